// Who logs in to the shadow with which password: a YAML file that has the users of each protocol.
//
//   postgresql:
//     app: "secret of the shadow's"
//   mysql:
//     shop: "another"
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "sidecar/session/login.h"

namespace trafficmirror::login {

enum class Protocol : uint8_t { postgresql, mysql };
inline constexpr std::array protocol_names = {"postgresql", "mysql"};

class Credentials {
 public:
  // Throws StartError where the file can't be read or is no such map. Warns where others than its
  // owner may read it.
  static Credentials read(const std::string& path);
  // What such a file holds, from wherever it comes; `name` says that in messages.
  static Credentials parse(const std::string& yaml, const std::string& name);

  void set(Protocol protocol, const std::string& user, std::string password) {
    passwords_[static_cast<size_t>(protocol)][user] = std::move(password);
  }
  // Null where there is none.
  const std::string* password(Protocol protocol, const std::string& user) const {
    const auto& users = passwords_[static_cast<size_t>(protocol)];
    const auto found = users.find(user);
    return found == users.end() ? nullptr : &found->second;
  }

 private:
  std::array<std::map<std::string, std::string>, protocol_names.size()> passwords_;
};

// How logins of a protocol begin.
session::Logins::mapped_type begin(Protocol protocol, std::shared_ptr<const Credentials> known);

}  // namespace trafficmirror::login
