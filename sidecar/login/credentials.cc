#include "sidecar/login/credentials.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include "program/start_error.h"
#include "sidecar/login/mysql.h"
#include "sidecar/login/postgresql.h"

namespace trafficmirror::login {
namespace {

// Where it is wrong, but nothing of what stands there: it may be a password.
[[noreturn]] void fail(const std::string& name, const YAML::Mark& mark, const std::string& what) {
  const std::string line = mark.is_null() ? "" : " line " + std::to_string(mark.line + 1);
  throw program::StartError(name + line + ": " + what);
}

Protocol read_protocol(const std::string& name, const YAML::Node& key) {
  if (key.IsScalar()) {
    const auto* const found = std::find(protocol_names.begin(), protocol_names.end(), key.Scalar());
    if (found != protocol_names.end()) return static_cast<Protocol>(found - protocol_names.begin());
  }
  fail(name, key.Mark(), "a key has to be a protocol, postgresql or mysql");
}

}  // namespace

Credentials Credentials::read(const std::string& path) {
  const std::string name = "--credentials " + path;
  errno = 0;
  std::ostringstream yaml;
  yaml << std::ifstream(path).rdbuf();
  struct stat status {};
  if (errno != 0 || ::stat(path.c_str(), &status) != 0)
    throw program::StartError(name + " can't be read: " + std::strerror(errno));
  Credentials credentials = parse(yaml.str(), name);
  if ((status.st_mode & (S_IRGRP | S_IROTH)) != 0)
    spdlog::warn("{} can be read by others than its owner: chmod 600 it", name);
  return credentials;
}

Credentials Credentials::parse(const std::string& yaml, const std::string& name) {
  Credentials credentials;
  try {
    const YAML::Node root = YAML::Load(yaml);
    if (!root.IsNull() && !root.IsMap())
      fail(name, root.Mark(), "it has to be a map of protocols to the passwords of their users");
    for (const auto& entry : root) {
      const Protocol protocol = read_protocol(name, entry.first);
      if (!entry.second.IsMap())
        fail(name, entry.second.Mark(), "behind a protocol there has to be a map, USER: PASSWORD");
      for (const auto& user : entry.second) {
        if (!user.first.IsScalar() || !user.second.IsScalar())
          fail(name, user.first.Mark(), "behind a user there has to be a password");
        if (credentials.password(protocol, user.first.Scalar()) != nullptr)
          fail(name, user.first.Mark(), "this user is there twice");
        credentials.set(protocol, user.first.Scalar(), user.second.Scalar());
      }
    }
  } catch (const YAML::Exception& error) {
    fail(name, error.mark, "it is no YAML");
  }
  return credentials;
}

session::Logins::mapped_type begin(Protocol protocol, std::shared_ptr<const Credentials> known) {
  if (protocol == Protocol::mysql)
    return [known = std::move(known)] { return std::make_unique<Mysql>(*known); };
  return [known = std::move(known), keys = std::make_shared<ScramKeys>()] {
    return std::make_unique<Postgresql>(*known, *keys, scram_nonce());
  };
}

}  // namespace trafficmirror::login
