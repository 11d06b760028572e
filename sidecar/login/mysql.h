// The login of MySQL and MariaDB (their documentations, "Connection Phase" and "Connection
// protocol"): the shadow gets the handshake response of production's client, made fit for the nonce
// of its own greeting. From the client's side a login is that response, and every packet behind it
// whose number does not begin anew.
#pragma once

#include <optional>
#include <string>

#include "sidecar/login/credentials.h"
#include "sidecar/session/login.h"

namespace trafficmirror::login {

// What proves a password to who sent `nonce`, by the two ways there are; nothing for no password.
std::string mysql_native_password(const std::string& password, std::string_view nonce);
std::string caching_sha2_password(const std::string& password, std::string_view nonce);

class Mysql : public session::Login {
 public:
  // `known` is to outlive this.
  explicit Mysql(const Credentials& known) : known_(known) {}

  size_t client_said(std::span<const uint8_t> bytes) override;
  size_t shadow_said(std::span<const uint8_t> bytes) override;

 private:
  // The client's handshake response, taken apart.
  struct Response {
    uint32_t capabilities = 0;
    std::string before_user;  // capabilities, longest packet, character set, what is reserved
    std::string user;
    std::string database;
    std::string behind_plugin;  // attributes of the connection
  };
  struct Greeting {
    uint32_t capabilities = 0;
    std::string nonce;
    std::string plugin;
    uint8_t number = 0;
  };

  void take_response(std::string_view body);
  void take_greeting(uint8_t number, std::string_view body);
  void respond();
  void take_answer(uint8_t number, std::string_view body);
  void switch_plugin(uint8_t number, std::string_view request);
  std::optional<std::string> proof(std::string_view plugin, std::string_view nonce) const;
  void send_packet(uint8_t number, std::string_view body);
  void reject(std::string_view error);

  const Credentials& known_;
  std::optional<Response> response_;
  std::optional<Greeting> greeting_;
  bool responded_ = false;
  std::string plugin_;
  const std::string* password_ = nullptr;  // null where it is not known
};

}  // namespace trafficmirror::login
