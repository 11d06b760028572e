// A login that can't be replayed: its server sends a nonce, which the client's answer has to fit.
//
// On a port whose protocol is known the session holds the login with the shadow itself: from what
// production's client says of who it is, and from credentials. What the client says of its own
// login is not sent, and what it says behind it waits until the shadow has let it in. A module for
// each protocol says what is to be sent; it knows nothing of TCP and of time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "net/address.h"
#include "sidecar/session/counters.h"

namespace trafficmirror::session {

class Login {
 public:
  struct Failure {
    CloseReason reason;
    std::string why;  // in plain words, and no secret
  };

  Login() = default;
  virtual ~Login() = default;
  Login(const Login&) = delete;
  Login& operator=(const Login&) = delete;

  // What production's client, or the shadow, has said and was not taken yet. Both take the whole
  // messages at its front and return how many bytes these are; the rest comes again with what is
  // behind it. They fail where a message is longer than one of a login can be.
  virtual size_t client_said(std::span<const uint8_t> bytes) = 0;
  virtual size_t shadow_said(std::span<const uint8_t> bytes) = 0;

  // What is to be sent to the shadow next.
  std::string take_messages() { return std::exchange(messages_, {}); }
  // The client has said who it is, so that the shadow has to say something.
  bool asked() const { return asked_; }
  // What the client says next is no part of its login.
  bool client_is_over() const { return client_is_over_; }
  // The shadow takes what is behind a login.
  bool let_in() const { return let_in_; }
  // Nothing more comes of it.
  const std::optional<Failure>& failure() const { return failure_; }
  void fail(CloseReason reason, std::string why) {
    if (!failure_) failure_ = {reason, std::move(why)};
  }

 protected:
  void send(std::string_view message) { messages_ += message; }
  void set_asked() { asked_ = true; }
  void set_client_is_over() { client_is_over_ = true; }
  void set_let_in() { let_in_ = true; }

 private:
  std::string messages_;
  std::optional<Failure> failure_;
  bool asked_ = false;
  bool client_is_over_ = false;
  bool let_in_ = false;
};

// How each login of a production port's begins; none of the others' are taken part in.
using Logins = std::map<net::Port, std::function<std::unique_ptr<Login>()>>;

}  // namespace trafficmirror::session
