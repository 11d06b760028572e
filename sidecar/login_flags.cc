#include "sidecar/login_flags.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include <CLI/App.hpp>

#include "program/flags.h"
#include "program/start_error.h"

namespace trafficmirror::sidecar {
namespace {

// As an ephemeral container of Kubernetes has no file of its own.
constexpr const char* credentials_variable = "TRAFFICMIRROR_CREDENTIALS";

// What is given by no flag; empty: nothing.
std::string credentials_of_environment() {
  const char* const text = std::getenv(credentials_variable);
  return text == nullptr ? "" : text;
}

}  // namespace

LoginFlags::LoginFlags(CLI::App& app) {
  program::add_repeated_text(
      app, "--protocol", "PORT=postgresql|mysql",
      "hold the logins to the shadow on this port, as a password's proof can't be replayed; mysql "
      "is MariaDB's too",
      [this](const std::string& text) -> std::optional<std::string> {
        const std::string usage = "is none of those; write it like 5432=postgresql or 3306=mysql";
        const size_t equals = std::min(text.find('='), text.size());
        uint16_t port = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + equals, port);
        const auto* const name =
            std::find(login::protocol_names.begin(), login::protocol_names.end(),
                      text.substr(std::min(equals + 1, text.size())));
        if (error != std::errc() || end != text.data() + equals || port == 0 ||
            name == login::protocol_names.end())
          return usage;
        const auto protocol = static_cast<login::Protocol>(name - login::protocol_names.begin());
        if (protocols_.emplace(net::Port{port}, protocol).first->second != protocol)
          return "says otherwise than before of this port";
        return std::nullopt;
      });
  program::add_name(
      app, "--credentials", "FILE", credentials_,
      std::string("YAML of the shadow's users and their passwords, by protocol: "
                  "postgresql: {USER: PASSWORD}; read once; or the YAML itself in the "
                  "environment: ") +
          credentials_variable);
}

session::Logins LoginFlags::logins(std::span<const net::Port> ports) const {
  const std::string yaml = credentials_of_environment();
  if (protocols_.empty() && !(credentials_.empty() && yaml.empty()))
    throw program::StartError(
        std::string(credentials_.empty() ? credentials_variable : "--credentials") +
        " says nothing without --protocol: name a port's, like 5432=postgresql");
  const auto known = std::make_shared<const login::Credentials>(
      credentials_.empty() ? login::Credentials::parse(yaml, credentials_variable)
                           : login::Credentials::read(credentials_));
  session::Logins logins;
  for (const auto& [port, protocol] : protocols_) {
    if (std::find(ports.begin(), ports.end(), port) == ports.end())
      throw program::StartError("--protocol " + std::to_string(port.number) +
                                " is of a port that is not mirrored: add it with --port");
    logins.emplace(port, login::begin(protocol, known));
  }
  return logins;
}

}  // namespace trafficmirror::sidecar
