// Which addresses a client can have that is somewhere in a network.
#pragma once

#include "net/address.h"

namespace trafficmirror::net {

// False for those that no packet from another host may have as its source: unspecified and "this
// network", loopback, link-local, multicast, reserved and broadcast (RFC 6890, RFC 4291 section
// 2.4).
inline bool may_be_client(const IpAddress& address) {
  const auto bytes = address.bytes();
  if (address.family() == Family::ipv4) {
    const bool link_local = bytes[0] == 169 && bytes[1] == 254;
    return bytes[0] != 0 && bytes[0] != 127 && bytes[0] < 224 && !link_local;
  }
  const bool link_local = bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
  // ::/8 holds the unspecified address, loopback, and forms of IPv4 addresses that are on no link.
  return bytes[0] != 0 && bytes[0] != 0xff && !link_local;
}

}  // namespace trafficmirror::net
