// Addresses as the kernel's calls take them.
#pragma once

#include <cstddef>
#include <cstring>
#include <optional>

#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "net/address.h"

namespace trafficmirror::intercept {

struct SocketAddress {
  union {
    sockaddr any;
    sockaddr_in ipv4;
    sockaddr_in6 ipv6;
  };
  socklen_t length;
};

// `scope` is the interface's index, which a link-local IPv6 address needs.
inline SocketAddress socket_address(const net::Endpoint& endpoint, unsigned scope) {
  SocketAddress address;
  const auto bytes = endpoint.address.bytes();
  if (endpoint.address.family() == net::Family::ipv4) {
    address.ipv4 = {};
    address.ipv4.sin_family = AF_INET;
    address.ipv4.sin_port = htons(endpoint.port.number);
    std::memcpy(&address.ipv4.sin_addr, bytes.data(), bytes.size());
    address.length = sizeof address.ipv4;
  } else {
    address.ipv6 = {};
    address.ipv6.sin6_family = AF_INET6;
    address.ipv6.sin6_port = htons(endpoint.port.number);
    std::memcpy(&address.ipv6.sin6_addr, bytes.data(), bytes.size());
    if (IN6_IS_ADDR_LINKLOCAL(&address.ipv6.sin6_addr)) address.ipv6.sin6_scope_id = scope;
    address.length = sizeof address.ipv6;
  }
  return address;
}

// Nothing where it is neither IPv4's nor IPv6's.
inline std::optional<net::IpAddress> address_of(const sockaddr& address) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&address);
  if (address.sa_family == AF_INET)
    return net::IpAddress::from_bytes({bytes + offsetof(sockaddr_in, sin_addr), sizeof(in_addr)});
  if (address.sa_family == AF_INET6)
    return net::IpAddress::from_bytes(
        {bytes + offsetof(sockaddr_in6, sin6_addr), sizeof(in6_addr)});
  return std::nullopt;
}

}  // namespace trafficmirror::intercept
