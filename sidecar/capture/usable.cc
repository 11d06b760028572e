#include "sidecar/capture/usable.h"

namespace trafficmirror::capture {

std::variant<net::Packet, Unusable> usable_packet(const CapturedPacket& captured) {
  const auto parsed = net::parse_packet(captured.bytes, captured.wire_length);
  if (const auto* error = std::get_if<net::ParseError>(&parsed)) {
    switch (*error) {
      case net::ParseError::other_protocol:
        return Unusable::other_protocol;
      case net::ParseError::fragment:
        return Unusable::fragment;
      case net::ParseError::malformed:
        return Unusable::malformed;
    }
  }
  const auto& packet = std::get<net::Packet>(parsed);
  // Production throws a packet with a wrong checksum away, so it must not reach the shadow.
  if (!captured.checksum_vouched && !net::checksum_holds(packet, captured.bytes))
    return Unusable::bad_checksum;
  return packet;
}

}  // namespace trafficmirror::capture
