#include "inject/next_hop.h"

#include <cstring>

#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/xfrm.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "inject/netlink.h"
#include "program/descriptor.h"

namespace trafficmirror::inject {
namespace {

// A neighbour may move, and one that is not known may become so with the next packet.
constexpr std::chrono::milliseconds next_hop_life{1000};
constexpr std::chrono::milliseconds next_hop_pause{100};

// The address on the link that a packet goes to.
std::optional<net::IpAddress> gateway(unsigned interface_index, const net::IpAddress& to) {
  rtmsg body{};
  body.rtm_family = netlink::family_of(to.family());
  body.rtm_dst_len = static_cast<uint8_t>(to.bytes().size() * 8);
  netlink::Question question(RTM_GETROUTE, &body, sizeof body);
  question.put(RTA_DST, to);
  question.put(RTA_OIF, interface_index);
  std::optional<net::IpAddress> found;
  bool plain = true;
  const bool answered = question.ask(NETLINK_ROUTE, [&](const nlmsghdr* reply) {
    found = to;
    const auto* route = netlink::parse<rtmsg>(reply, [&](const nlattr* attribute) {
      switch (mnl_attr_get_type(attribute)) {
        case RTA_GATEWAY:
          found = net::IpAddress::from_bytes(
              {static_cast<const uint8_t*>(mnl_attr_get_payload(attribute)),
               mnl_attr_get_payload_len(attribute)});
          break;
        case RTA_OIF:
          plain = plain && mnl_attr_get_u32(attribute) == interface_index;
          break;
        case RTA_VIA:
        case RTA_ENCAP:
        case RTA_MULTIPATH:
          plain = false;
          break;
        default:
          break;
      }
    });
    plain = plain && route && route->rtm_type == RTN_UNICAST;
  });
  if (!answered || !plain) return std::nullopt;
  return found;
}

std::optional<EthernetAddress> neighbour(unsigned interface_index, const net::IpAddress& address) {
  ndmsg body{};
  body.ndm_family = netlink::family_of(address.family());
  body.ndm_ifindex = static_cast<int>(interface_index);
  netlink::Question question(RTM_GETNEIGH, &body, sizeof body);
  question.put(NDA_DST, address);
  std::optional<EthernetAddress> found;
  question.ask(NETLINK_ROUTE, [&](const nlmsghdr* reply) {
    std::optional<EthernetAddress> link_address;
    const auto* entry = netlink::parse<ndmsg>(reply, [&](const nlattr* attribute) {
      if (mnl_attr_get_type(attribute) != NDA_LLADDR ||
          mnl_attr_get_payload_len(attribute) != sizeof(EthernetAddress))
        return;
      std::memcpy(link_address.emplace().data(), mnl_attr_get_payload(attribute),
                  sizeof(EthernetAddress));
    });
    constexpr unsigned valid =
        NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;
    if (entry && (entry->ndm_state & valid) != 0) found = link_address;
  });
  return found;
}

// A kernel without IPsec has no such netlink protocol.
bool has_ipsec_policies() {
  const uint32_t flags = 0;
  netlink::Question question(XFRM_MSG_GETSPDINFO, &flags, sizeof flags);
  const program::Descriptor supported(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM));
  if (!supported) return false;
  bool found = false;
  const bool answered = question.ask(NETLINK_XFRM, [&](const nlmsghdr* reply) {
    netlink::parse<uint32_t>(reply, [&](const nlattr* attribute) {
      xfrmu_spdinfo info{};
      if (mnl_attr_get_type(attribute) != XFRMA_SPD_INFO ||
          mnl_attr_get_payload_len(attribute) < sizeof info)
        return;
      std::memcpy(&info, mnl_attr_get_payload(attribute), sizeof info);
      found = info.outcnt > 0;
    });
  });
  return found || !answered;
}

std::optional<EthernetAddress> own_address(const std::string& interface) {
  const program::Descriptor any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  interface.copy(request.ifr_name, IFNAMSIZ - 1);
  if (!any || ::ioctl(any.get(), SIOCGIFHWADDR, &request) != 0 ||
      request.ifr_hwaddr.sa_family != ARPHRD_ETHER)
    return std::nullopt;
  EthernetAddress address;
  std::memcpy(address.data(), request.ifr_hwaddr.sa_data, address.size());
  return address;
}

}  // namespace

std::optional<NextHop> look_up_next_hop(const std::string& interface, const net::IpAddress& to) {
  const unsigned index = ::if_nametoindex(interface.c_str());
  const auto own = own_address(interface);
  if (!own || has_ipsec_policies()) return std::nullopt;
  const auto on_link = gateway(index, to);
  if (!on_link) return std::nullopt;
  const auto next = neighbour(index, *on_link);
  if (!next) return std::nullopt;
  return NextHop{*own, *next};
}

std::optional<NextHop> NextHops::find(const net::IpAddress& to) {
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard lock(mutex_);
  Known& known = known_[to];
  if (now >= known.good_until) {
    known.next_hop = look_up_next_hop(interface_, to);
    known.good_until = now + (known.next_hop ? next_hop_life : next_hop_pause);
  }
  return known.next_hop;
}

void NextHops::forget() {
  const std::lock_guard lock(mutex_);
  known_.clear();
}

}  // namespace trafficmirror::inject
