// How the uplink shows who it is, and whom it takes for the intercept.
#pragma once

#include <memory>
#include <string>

#include "program/tls.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace trafficmirror::uplink {

// For one channel, with the certificates as they are now. Its handshakes succeed only with a
// certificate that one of the CAs has signed and that carries the name tls->peer(). Null: plain
// text, with anybody.
std::shared_ptr<grpc::ChannelCredentials> channel_credentials(program::Tls* tls);

// What gRPC says of a channel that could not be made, in plainer words where it is about TLS.
std::string explain_failure(const std::string& message, bool with_tls);

}  // namespace trafficmirror::uplink
