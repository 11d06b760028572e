#include "intercept/path.h"

#include <cerrno>
#include <cstring>

#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "intercept/socket_address.h"
#include "program/descriptor.h"

namespace trafficmirror::intercept {

std::variant<Path, std::string> look_up_path(const std::string& interface,
                                             const net::Endpoint& target) {
  const auto error = [] { return std::string(std::strerror(errno)); };
  const bool ipv4 = target.address.family() == net::Family::ipv4;
  const program::Descriptor udp(::socket(ipv4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!udp) return error();
  if (::setsockopt(udp.get(), SOL_SOCKET, SO_BINDTODEVICE, interface.c_str(),
                   static_cast<socklen_t>(interface.size())) != 0)
    return error();
  const SocketAddress to = socket_address(target, ::if_nametoindex(interface.c_str()));
  if (::connect(udp.get(), &to.any, to.length) != 0) return error();

  SocketAddress own;
  own.length = sizeof own.ipv6;
  if (::getsockname(udp.get(), &own.any, &own.length) != 0) return error();
  int mtu = 0;
  socklen_t mtu_length = sizeof mtu;
  if (::getsockopt(udp.get(), ipv4 ? IPPROTO_IP : IPPROTO_IPV6, ipv4 ? IP_MTU : IPV6_MTU, &mtu,
                   &mtu_length) != 0)
    return error();

  return Path{*address_of(own.any), static_cast<uint32_t>(mtu), std::nullopt, ""};
}

}  // namespace trafficmirror::intercept
