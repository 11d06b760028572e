// Packets one behind the other, as they travel in a PacketBatch.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "net/bytes.h"
#include "net/packet.h"

namespace trafficmirror::net {

// How long the first packet of `bytes` is by its own account. Nothing where it doesn't say, or
// where it is not wholly there.
inline std::optional<size_t> first_packet_length(std::span<const uint8_t> bytes) {
  if (bytes.size() < ipv4_header_length) return std::nullopt;
  size_t length = 0;
  switch (bytes[0] >> 4) {
    case 4:
      length = load16(&bytes[2]);
      if (length < ipv4_header_length) return std::nullopt;
      break;
    case 6:
      length = load16(&bytes[4]);
      if (length == 0) return std::nullopt;  // a jumbogram (RFC 2675), which TCP here never is
      length += ipv6_header_length;
      break;
    default:
      return std::nullopt;
  }
  if (length > bytes.size()) return std::nullopt;
  return length;
}

}  // namespace trafficmirror::net
