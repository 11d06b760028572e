#include "sidecar/direct/own_path.h"

#include <cstring>

#include <netinet/in.h>
#include <sys/socket.h>

#include "program/descriptor.h"

namespace trafficmirror::direct {

std::optional<uint32_t> own_path_mtu(const net::Endpoint& target) {
  const bool ipv4 = target.address.family() == net::Family::ipv4;
  const program::Descriptor udp(::socket(ipv4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in to_ipv4{};
  sockaddr_in6 to_ipv6{};
  const auto bytes = target.address.bytes();
  const sockaddr* to = nullptr;
  if (ipv4) {
    to_ipv4.sin_family = AF_INET;
    to_ipv4.sin_port = htons(target.port.number);
    std::memcpy(&to_ipv4.sin_addr, bytes.data(), bytes.size());
    to = reinterpret_cast<const sockaddr*>(&to_ipv4);
  } else {
    to_ipv6.sin6_family = AF_INET6;
    to_ipv6.sin6_port = htons(target.port.number);
    std::memcpy(&to_ipv6.sin6_addr, bytes.data(), bytes.size());
    to = reinterpret_cast<const sockaddr*>(&to_ipv6);
  }
  int mtu = 0;
  socklen_t length = sizeof mtu;
  if (!udp || ::connect(udp.get(), to, ipv4 ? sizeof to_ipv4 : sizeof to_ipv6) != 0 ||
      ::getsockopt(udp.get(), ipv4 ? IPPROTO_IP : IPPROTO_IPV6, ipv4 ? IP_MTU : IPV6_MTU, &mtu,
                   &length) != 0)
    return std::nullopt;
  return static_cast<uint32_t>(mtu);
}

}  // namespace trafficmirror::direct
