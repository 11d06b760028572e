// Whom the intercept takes streams of.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "intercept/counters.h"
#include "program/tls.h"

namespace grpc {
class AuthContext;
class ServerCredentials;
}  // namespace grpc

namespace trafficmirror::intercept {

// Each handshake is made with the certificates as they are at that time, and succeeds only with a
// client certificate that one of the CAs has signed. What is returned has to outlive the server.
// Null: plain text, with anybody.
std::shared_ptr<grpc::ServerCredentials> server_credentials(std::shared_ptr<program::Tls> tls);

// Nothing where the client's certificate carries the name `wanted`; otherwise the names that it
// carries.
std::optional<std::string> other_identity(const grpc::AuthContext& client,
                                          const std::string& wanted);

struct FailedHandshake {
  StreamRefusal refusal;
  std::string reason;  // in plain words
};
// gRPC says only in its log that a handshake has failed. Nothing where `message` is another line of
// it.
std::optional<FailedHandshake> failed_handshake(std::string_view message);

}  // namespace trafficmirror::intercept
