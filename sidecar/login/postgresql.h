// PostgreSQL's login (its documentation, chapter "Frontend/Backend Protocol"): the shadow gets the
// startup packet of production's client, and its own answer to what it asks for. From the client's
// side a login is that packet, and every message of type 'p' behind it.
#pragma once

#include <optional>
#include <string>

#include "sidecar/login/credentials.h"
#include "sidecar/login/scram.h"
#include "sidecar/session/login.h"

namespace trafficmirror::login {

class Postgresql : public session::Login {
 public:
  // Both are to outlive this.
  Postgresql(const Credentials& known, ScramKeys& keys, std::string nonce)
      : known_(known), keys_(keys), nonce_(std::move(nonce)) {}

  size_t client_said(std::span<const uint8_t> bytes) override;
  size_t shadow_said(std::span<const uint8_t> bytes) override;

 private:
  size_t take_startup(std::span<const uint8_t> bytes);
  size_t take_password(std::span<const uint8_t> bytes);
  void take_request(std::string_view body);
  void begin_sasl(std::string_view mechanisms);
  void go_on_with_sasl(std::string_view server_first);
  // Null where it is not known, which fails the login.
  const std::string* password();
  void send_password(std::string_view body);

  const Credentials& known_;
  ScramKeys& keys_;
  std::string nonce_;
  std::string user_;
  std::optional<Scram> scram_;
  bool encryption_refused_ = false;  // or granted, which what follows shows
};

}  // namespace trafficmirror::login
