#include "operator/kube/config.h"

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <string_view>
#include <vector>

#include <yaml-cpp/yaml.h>

#include "operator/kube/base64.h"
#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

using program::StartError;

std::string read_file(const std::filesystem::path& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file || text.empty())
    throw StartError(what + " cannot be read: " + path.string() + " is missing or empty");
  return text;
}

std::string trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

// https://HOST[:PORT][/PATH] into its parts.
void read_server(const std::string& server, const std::string& where, Config& config) {
  const auto fail = [&] {
    throw StartError(where + ": server \"" + server +
                     "\" is no URL; write it as https://HOST:PORT");
  };
  std::string_view rest = server;
  const auto take = [&](std::string_view prefix) {
    if (rest.substr(0, prefix.size()) != prefix) return false;
    rest.remove_prefix(prefix.size());
    return true;
  };
  if (take("http://")) {
    config.tls = false;
    config.port = 80;
  } else if (!take("https://")) {
    fail();
  }
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) {
    config.path = rest.substr(slash);
    while (config.path.ends_with('/')) config.path.pop_back();
    rest = rest.substr(0, slash);
  }
  size_t host_end = rest.find(':');
  if (rest.starts_with('[')) {
    const size_t bracket = rest.find(']');
    if (bracket == std::string_view::npos) fail();
    config.host = rest.substr(1, bracket - 1);
    host_end = bracket + 1 < rest.size() ? bracket + 1 : std::string_view::npos;
  } else {
    config.host = rest.substr(0, host_end);
  }
  if (config.host.empty()) fail();
  if (host_end == std::string_view::npos) return;
  const auto port =
      rest[host_end] == ':' ? parse_port(rest.substr(host_end + 1)) : std::optional<uint16_t>();
  if (!port) fail();
  config.port = *port;
}

// A kubeconfig file: lists of named clusters, users and contexts.
class Kubeconfig {
 public:
  explicit Kubeconfig(const std::filesystem::path& file) : file_(file) {
    const std::string text = read_file(file, "the kubeconfig");
    try {
      root_ = YAML::Load(text);
    } catch (const YAML::Exception& error) {
      throw StartError(where() + " line " + std::to_string(error.mark.line + 1) + ": " + error.msg);
    }
    if (!root_.IsMap()) throw StartError(where() + " is no kubeconfig: it has to be a map");
  }

  Config read() const {
    const std::string context_name = text(root_, "current-context");
    if (context_name.empty())
      throw StartError(where() + " has no current-context; choose one: kubectl config use-context");
    const YAML::Node context = find("contexts", "context", context_name);
    Config config;
    read_cluster(find("clusters", "cluster", text(context, "cluster")), config);
    if (const std::string user = text(context, "user"); !user.empty())
      read_user(find("users", "user", user), user, config);
    if (const std::string name = text(context, "namespace"); !name.empty())
      config.own_namespace = name;
    return config;
  }

 private:
  std::string where() const { return file_.string(); }

  std::string text(const YAML::Node& map, const std::string& key) const {
    const YAML::Node value = map[key];
    if (!value || value.IsNull()) return "";
    if (!value.IsScalar()) throw StartError(where() + ": " + key + " has to be a plain value");
    return value.Scalar();
  }

  // The content of the entry of `list` that has that name.
  YAML::Node find(const std::string& list, const std::string& content,
                  const std::string& name) const {
    const YAML::Node entries = root_[list];
    if (entries && entries.IsSequence())
      for (const YAML::Node& entry : entries)
        if (entry.IsMap() && text(entry, "name") == name && entry[content] &&
            entry[content].IsMap())
          return entry[content];
    throw StartError(where() + ": there is no " + content + " named \"" + name + "\" under " +
                     list);
  }

  // What KEY-data holds in base64, or else what the file at KEY does, as seen from this file.
  std::string data(const YAML::Node& map, const std::string& key) const {
    if (const std::string encoded = text(map, key + "-data"); !encoded.empty()) {
      const auto decoded = decode_base64(encoded);
      if (!decoded || decoded->empty())
        throw StartError(where() + ": " + key + "-data is no base64");
      return *decoded;
    }
    const std::string path = text(map, key);
    return path.empty() ? "" : read_file(beside(path), where() + ": " + key);
  }

  std::filesystem::path beside(const std::string& path) const {
    return file_.parent_path() / path;  // an absolute one stays as it is
  }

  void read_cluster(const YAML::Node& cluster, Config& config) const {
    read_server(text(cluster, "server"), where(), config);
    if (!text(cluster, "proxy-url").empty())
      throw StartError(where() + ": proxy-url is not supported");
    config.certificate_authority = data(cluster, "certificate-authority");
    config.tls_server_name = text(cluster, "tls-server-name");
    const std::string insecure = text(cluster, "insecure-skip-tls-verify");
    if (!insecure.empty() && insecure != "true" && insecure != "false")
      throw StartError(where() + ": insecure-skip-tls-verify is true or false");
    config.verify = insecure != "true";
  }

  void read_user(const YAML::Node& user, const std::string& name, Config& config) const {
    for (const char* key : {"exec", "auth-provider", "username", "as"})
      if (user[key])
        throw StartError(where() + ": user \"" + name + "\" uses " + key +
                         ", which is not supported; use a client certificate or a token");
    config.client_certificate = data(user, "client-certificate");
    config.client_key = data(user, "client-key");
    if (config.client_certificate.empty() != config.client_key.empty())
      throw StartError(where() + ": user \"" + name +
                       "\" needs both client-certificate and client-key");
    config.token = trim(text(user, "token"));
    if (const std::string path = text(user, "tokenFile"); !path.empty()) {
      config.token_file = beside(path);
      read_file(config.token_file, where() + ": tokenFile");
    }
  }

  std::filesystem::path file_;
  YAML::Node root_;
};

}  // namespace

Config read_kubeconfig(const std::filesystem::path& file) {
  try {
    return Kubeconfig(file).read();
  } catch (const YAML::Exception& error) {
    throw StartError(file.string() + ": " + error.what());
  }
}

Config in_cluster_config(const std::string& host, const std::string& port,
                         const std::filesystem::path& directory) {
  Config config;
  const auto number = parse_port(port);
  if (host.empty() || !number)
    throw StartError("KUBERNETES_SERVICE_HOST \"" + host + "\" and KUBERNETES_SERVICE_PORT \"" +
                     port + "\" are no address of an API server");
  config.host = host;
  config.port = *number;
  config.token_file = directory / "token";
  read_file(config.token_file, "the ServiceAccount's token");
  config.certificate_authority =
      read_file(directory / "ca.crt", "the ServiceAccount's certificate authority");
  config.own_namespace = trim(read_file(directory / "namespace", "the ServiceAccount's namespace"));
  return config;
}

Config load_config() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string file = variable("KUBECONFIG"); !file.empty()) {
    if (file.find(':') != std::string::npos)
      throw StartError("KUBECONFIG names several files; name one (kubectl config view --flatten)");
    return read_kubeconfig(file);
  }
  const std::string host = variable("KUBERNETES_SERVICE_HOST");
  if (host.empty())
    throw StartError(
        "no API server is known: set KUBECONFIG to a kubeconfig file, or run this in a pod");
  return in_cluster_config(host, variable("KUBERNETES_SERVICE_PORT"));
}

}  // namespace trafficmirror::kube
