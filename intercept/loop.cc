#include "intercept/loop.h"

#include <cerrno>
#include <cstring>

#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <spdlog/spdlog.h>

#include "inject/netlink.h"
#include "program/start_error.h"

namespace trafficmirror::intercept {
namespace {

namespace netlink = inject::netlink;
using inject::EthernetAddress;
using netlink::Question;

// Both locally administered (RFC 7042 section 2.1).
constexpr EthernetAddress near_address = {0x02, 't', 'm', 0, 0, 0};
constexpr EthernetAddress far_address = {0x02, 't', 'm', 0, 0, 1};

constexpr uint32_t table = 7443;
// Before the table main, which has 32766.
constexpr uint32_t priority = 7443;
// While the rules of a killed run are replaced.
constexpr uint32_t cover_priority = 7442;
// Behind the route into the loop: with the loop gone, replies leave nowhere.
constexpr uint32_t last_metric = 4096;

constexpr std::array families = {net::Family::ipv4, net::Family::ipv6};

// One gateway for all clients, or each of them would take a place in the table of neighbours.
net::IpAddress gateway(net::Family family) {
  return *net::IpAddress::parse(family == net::Family::ipv4 ? "169.254.116.109" : "fe80::746d");
}

bool delete_link(const char* name) {
  ifinfomsg body{};
  Question question(RTM_DELLINK, &body, sizeof body);
  mnl_attr_put_strz(question.header(), IFLA_IFNAME, name);
  return question.ask(NETLINK_ROUTE);
}

void put_end(nlmsghdr* header, const char* name, const EthernetAddress& address, uint32_t mtu) {
  mnl_attr_put_strz(header, IFLA_IFNAME, name);
  mnl_attr_put(header, IFLA_ADDRESS, address.size(), address.data());
  mnl_attr_put_u32(header, IFLA_MTU, mtu);
}

ifinfomsg link_of(const char* name) {
  ifinfomsg body{};
  body.ifi_index = static_cast<int>(::if_nametoindex(name));
  return body;
}

// Setting of an address family's own.
template <typename Put>
bool set_of_family(const char* name, uint16_t family, Put&& put) {
  const ifinfomsg body = link_of(name);
  Question question(RTM_NEWLINK, &body, sizeof body);
  nlattr* all = mnl_attr_nest_start(question.header(), IFLA_AF_SPEC);
  nlattr* of_family = mnl_attr_nest_start(question.header(), family);
  put(question.header());
  mnl_attr_nest_end(question.header(), of_family);
  mnl_attr_nest_end(question.header(), all);
  return question.ask(NETLINK_ROUTE);
}

bool set_up(const char* name) {
  ifinfomsg body = link_of(name);
  body.ifi_flags = body.ifi_change = IFF_UP | IFF_NOARP;
  Question question(RTM_NEWLINK, &body, sizeof body);
  return question.ask(NETLINK_ROUTE);
}

// Whether what was to be added is there; `added`: it was not before.
bool is_there(Question& question, bool& added) {
  if (question.ask(NETLINK_ROUTE))
    added = true;
  else if (errno != EEXIST)
    return false;
  return true;
}

void delete_rules(net::Family family, uint32_t of_priority) {
  fib_rule_hdr body{};
  body.family = netlink::family_of(family);
  for (bool deleted = true; deleted;) {
    Question question(RTM_DELRULE, &body, sizeof body);
    question.put(FRA_PRIORITY, of_priority);
    question.put(FRA_TABLE, table);
    deleted = question.ask(NETLINK_ROUTE);
  }
}

void delete_last_route(net::Family family) {
  rtmsg body{};
  body.rtm_family = netlink::family_of(family);
  body.rtm_type = RTN_BLACKHOLE;
  Question question(RTM_DELROUTE, &body, sizeof body);
  question.put(RTA_TABLE, table);
  question.put(RTA_PRIORITY, last_metric);
  question.ask(NETLINK_ROUTE);
}

}  // namespace

inject::NextHop Loop::hop() {
  return {near_address, far_address};
}

Loop::Loop(const ClientAddresses& clients, uint32_t mtu) : clients_(clients), mtu_(mtu) {
  bool added = false;
  for (const net::Family family : families) add_rules(family, cover_priority, added);
  for (const net::Family family : families) delete_rules(family, priority);
  delete_link(near_end);
  const bool made = make(added);
  for (const net::Family family : families) delete_rules(family, cover_priority);
  if (made) return;
  throw program::StartError("the replies can't be turned around in this network namespace: " +
                            error_);
}

Loop::~Loop() {
  for (const net::Family family : families) {
    delete_rules(family, priority);
    delete_last_route(family);
  }
  if (!delete_link(near_end))
    spdlog::warn("the interface {} could not be removed: {}", near_end, std::strerror(errno));
}

Loop::Held Loop::hold() {
  bool added = false;
  if (!make(added)) return Held::failed;
  return added ? Held::put_back : Held::intact;
}

bool Loop::make_links() {
  const ifinfomsg body{};
  Question question(RTM_NEWLINK, &body, sizeof body, NLM_F_CREATE | NLM_F_EXCL);
  nlmsghdr* header = question.header();
  put_end(header, near_end, near_address, mtu_);
  nlattr* info = mnl_attr_nest_start(header, IFLA_LINKINFO);
  mnl_attr_put_strz(header, IFLA_INFO_KIND, "veth");
  nlattr* data = mnl_attr_nest_start(header, IFLA_INFO_DATA);
  nlattr* peer = mnl_attr_nest_start(header, VETH_INFO_PEER);
  std::memcpy(mnl_nlmsg_put_extra_header(header, sizeof body), &body, sizeof body);
  put_end(header, far_end, far_address, mtu_);
  mnl_attr_nest_end(header, peer);
  mnl_attr_nest_end(header, data);
  mnl_attr_nest_end(header, info);
  if (!question.ask(NETLINK_ROUTE)) return false;

  for (const char* name : {near_end, far_end}) {
    // No address of its own, which IPv6 would announce. Without IPv6 this fails, and is not needed.
    set_of_family(name, AF_INET6, [](nlmsghdr* to) {
      mnl_attr_put_u8(to, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
    });
  }
  // The reverse path is that of the packet's mark, so that rp_filter finds the loop.
  return set_of_family(far_end, AF_INET, [](nlmsghdr* to) {
    nlattr* settings = mnl_attr_nest_start(to, IFLA_INET_CONF);
    mnl_attr_put_u32(to, IPV4_DEVCONF_SRC_VMARK, 1);
    mnl_attr_nest_end(to, settings);
  });
}

bool Loop::add_routes(net::Family family, bool& added) {
  rtmsg body{};
  body.rtm_family = netlink::family_of(family);
  body.rtm_protocol = RTPROT_STATIC;
  body.rtm_type = RTN_BLACKHOLE;
  Question last(RTM_NEWROUTE, &body, sizeof body, NLM_F_CREATE | NLM_F_EXCL);
  last.put(RTA_TABLE, table);
  last.put(RTA_PRIORITY, last_metric);
  if (!is_there(last, added)) return false;
  body.rtm_type = RTN_UNICAST;
  body.rtm_flags = RTNH_F_ONLINK;
  Question first(RTM_NEWROUTE, &body, sizeof body, NLM_F_CREATE | NLM_F_EXCL);
  first.put(RTA_TABLE, table);
  first.put(RTA_PRIORITY, 1);
  first.put(RTA_GATEWAY, gateway(family));
  first.put(RTA_OIF, ::if_nametoindex(far_end));
  return is_there(first, added);
}

bool Loop::add_rules(net::Family family, uint32_t of_priority, bool& added) {
  fib_rule_hdr body{};
  body.family = netlink::family_of(family);
  body.action = FR_ACT_TO_TBL;
  const auto& network = clients_.pool[static_cast<size_t>(family)];
  if (network) body.dst_len = network->prefix_length;
  if (clients_.mode == ClientAddresses::Mode::pool && !network) return true;
  Question question(RTM_NEWRULE, &body, sizeof body, NLM_F_CREATE | NLM_F_EXCL);
  question.put(FRA_PRIORITY, of_priority);
  question.put(FRA_TABLE, table);
  if (network)
    question.put(FRA_DST, network->first);
  else
    question.put(FRA_FWMARK, mark);
  return is_there(question, added);
}

bool Loop::make(bool& added) {
  const auto failed = [&](const std::string& what) {
    error_ = what + ": " + std::strerror(errno);
    return false;
  };
  if (::if_nametoindex(near_end) == 0 || ::if_nametoindex(far_end) == 0) {
    added = true;
    if (!make_links()) return failed("the pair of interfaces (veth) can't be made");
  }
  if (!set_up(near_end) || !set_up(far_end)) return failed("the interfaces can't be set up");
  for (const net::Family family : families) {
    const bool is_ipv4 = family == net::Family::ipv4;
    auto& obstacle = obstacles_[static_cast<size_t>(family)];
    obstacle.reset();
    if (add_routes(family, added) && add_rules(family, priority, added)) continue;
    if (is_ipv4) return failed("the routes of IPv4 can't be made");
    obstacle = std::string("the routes of IPv6 can't be made: ") + std::strerror(errno);
  }
  return true;
}

}  // namespace trafficmirror::intercept
