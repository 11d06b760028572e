// Addresses as the kernel's calls take them.
#pragma once

#include <cstring>

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

}  // namespace trafficmirror::intercept
