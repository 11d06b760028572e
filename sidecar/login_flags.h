// The flags of logins that the sidecar holds itself, --protocol and --credentials.
#pragma once

#include <map>
#include <span>
#include <string>

#include "sidecar/login/credentials.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
}  // namespace CLI

namespace trafficmirror::sidecar {

// To live until the flags are parsed, as what they fill in.
class LoginFlags {
 public:
  explicit LoginFlags(CLI::App& app);

  // Reads the file, or else the environment. Throws StartError where it can't, where a port is none
  // of `ports`, or where one flag says nothing without the other.
  session::Logins logins(std::span<const net::Port> ports) const;

 private:
  std::map<net::Port, login::Protocol> protocols_;
  std::string credentials_;
};

}  // namespace trafficmirror::sidecar
