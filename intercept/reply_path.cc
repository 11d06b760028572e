#include "intercept/reply_path.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "intercept/socket_address.h"
#include "program/descriptor.h"

namespace trafficmirror::intercept {
namespace {

struct LocalAddress {
  std::string interface;
  net::IpAddress address;
};

std::vector<LocalAddress> all_local_addresses() {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, ::freeifaddrs);
  std::vector<LocalAddress> all;
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr) continue;
    if (const auto address = address_of(*each->ifa_addr)) all.push_back({each->ifa_name, *address});
  }
  return all;
}

bool is_loopback(const net::IpAddress& address) {
  return address.family() == net::Family::ipv4 ? address.bytes()[0] == 127
                                               : address == *net::IpAddress::parse("::1");
}

bool is_link_local(const net::IpAddress& address) {
  const auto bytes = address.bytes();
  return address.family() == net::Family::ipv6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
}

const char* name_of(net::Family family) {
  return family == net::Family::ipv4 ? "IPv4" : "IPv6";
}

const char* keyword_of(net::Family family) {
  return family == net::Family::ipv4 ? "ip" : "ip6";
}

// Why a client's address can't be routed; nothing: it can.
std::optional<std::string> why_no_route(const net::IpAddress& client) {
  const SocketAddress to = socket_address({client, {9}}, 0);
  const program::Descriptor udp(::socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (udp && ::connect(udp.get(), &to.any, to.length) == 0) return std::nullopt;
  return std::strerror(errno);
}

// How many packets rp_filter has dropped in this network namespace.
uint64_t reverse_path_drops() {
  std::ifstream file("/proc/net/netstat");
  for (std::string names, values; std::getline(file, names) && std::getline(file, values);) {
    std::istringstream name_words(names), value_words(values);
    for (std::string name, value; name_words >> name && value_words >> value;)
      if (name == "IPReversePathFilter") return std::strtoull(value.c_str(), nullptr, 10);
  }
  return 0;
}

}  // namespace

// ---- chains

std::string loop_chains(const ClientAddresses& clients) {
  const std::string through_loop = std::string("iifname \"") + Loop::far_end + "\" ";
  if (clients.mode == ClientAddresses::Mode::pool) {
    std::string replies;
    for (const auto& network : clients.pool) {
      if (network)
        replies += std::string(keyword_of(network->first.family())) + " daddr " +
                   network->to_string() + " notrack\n";
    }
    return "chain injected {\ntype filter hook prerouting priority -300; policy accept;\n" +
           through_loop + "notrack\n}\n" +
           "chain replies {\ntype filter hook output priority -300; policy accept;\n" + replies +
           "}\n";
  }
  const std::string mark = std::to_string(Loop::mark);
  return "chain injected {\ntype filter hook prerouting priority -150; policy accept;\n" +
         through_loop + "meta mark set " + mark + "\n" + through_loop +
         "ct state new ct mark set " + mark + "\n" + through_loop + "ct mark != " + mark +
         " counter drop\n}\n" +
         "chain replies {\ntype route hook output priority -150; policy accept;\nct mark " + mark +
         " meta mark set " + mark + "\n}\n";
}

std::string route_chains(const ClientAddresses& clients, const std::string& interface,
                         const std::vector<net::Endpoint>& targets,
                         const std::vector<net::IpAddress>& local_addresses) {
  std::string replies, injected;
  for (const net::Endpoint& target : targets) {
    const net::Family family = target.address.family();
    const std::string ip = keyword_of(family);
    const auto& network = clients.pool[static_cast<size_t>(family)];
    std::string own;
    for (const net::IpAddress& address : local_addresses)
      if (address.family() == family) own += (own.empty() ? "" : ", ") + address.to_string();
    const std::string clients_are =
        network ? "addr " + network->to_string() : "addr != { " + own + " }";
    const std::string port = std::to_string(target.port.number);
    replies += "iifname \"" + interface + "\" " + ip + " saddr " + target.address.to_string() +
               " tcp sport " + port + " " + ip + " d" + clients_are + " counter drop\n";
    injected += "oifname \"" + interface + "\" " + ip + " daddr " + target.address.to_string() +
                " tcp dport " + port + " " + ip + " s" + clients_are + " notrack\n";
  }
  return "chain replies {\ntype filter hook prerouting priority -300; policy accept;\n" + replies +
         "}\nchain injected {\ntype filter hook output priority -300; policy accept;\n" + injected +
         "}\n";
}

// ---- this host

std::vector<net::IpAddress> local_addresses() {
  std::vector<net::IpAddress> addresses;
  for (const auto& [interface, address] : all_local_addresses()) addresses.push_back(address);
  std::sort(addresses.begin(), addresses.end());
  addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
  return addresses;
}

std::optional<std::string> resolve_loopback(std::vector<Target>& targets,
                                            const std::string& interface) {
  const auto all = all_local_addresses();
  std::vector<Target> resolved;
  for (Target target : targets) {
    net::IpAddress& address = target.endpoint.address;
    if (is_loopback(address)) {
      const auto own = std::find_if(all.begin(), all.end(), [&](const LocalAddress& each) {
        return each.interface == interface && each.address.family() == address.family() &&
               !is_link_local(each.address);
      });
      if (own == all.end())
        return "the target " + target.endpoint.to_string() + " stands for the address of " +
               interface + ", which has none of " + name_of(address.family());
      address = own->address;
    }
    if (std::find(resolved.begin(), resolved.end(), target) == resolved.end())
      resolved.push_back(target);
  }
  targets = std::move(resolved);
  return std::nullopt;
}

std::optional<std::string> why_not_looped(const std::vector<Target>& targets) {
  const auto local = local_addresses();
  for (const Target& target : targets)
    if (std::find(local.begin(), local.end(), target.endpoint.address) == local.end())
      return "the target " + target.endpoint.to_string() +
             " is not in this network namespace: with --reply-path loop the intercept runs in the "
             "shadow's, and a target is written as 127.0.0.1:PORT or [::1]:PORT";
  return std::nullopt;
}

std::optional<std::string> why_not_pool(const ClientAddresses& clients) {
  for (const net::IpAddress& address : local_addresses()) {
    const auto& network = clients.pool[static_cast<size_t>(address.family())];
    if (network && network->contains(address))
      return "the pool " + network->to_string() + " has " + address.to_string() +
             ", which is an address of this host: choose a network that nobody uses";
  }
  return std::nullopt;
}

std::optional<uint32_t> mtu_of(const std::string& interface) {
  const program::Descriptor any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  interface.copy(request.ifr_name, IFNAMSIZ - 1);
  if (!any || ::ioctl(any.get(), SIOCGIFMTU, &request) != 0) return std::nullopt;
  return static_cast<uint32_t>(request.ifr_mtu);
}

// ---- paths

ReplyPaths::ReplyPaths(const ClientAddresses& clients, const std::string& interface,
                       const Loop* loop, const Counters& counters)
    : clients_(clients), interface_(interface), loop_(loop), counters_(counters) {}

void ReplyPaths::begin() {
  local_addresses_ = local_addresses();
  const auto grew = [](uint64_t& last, uint64_t now) { return std::exchange(last, now) < now; };
  if (loop_) reverse_path_dropped_ = grew(reverse_path_drops_, reverse_path_drops());
  was_not_permitted_ =
      grew(not_permitted_,
           counters_.injected.errors[static_cast<size_t>(inject::InjectError::not_permitted)].load(
               std::memory_order_relaxed));
}

std::variant<Path, std::string> ReplyPaths::look_up(const net::Endpoint& target) const {
  const net::Family family = target.address.family();
  const auto proof_address = clients_.proof_address(family);
  if (!proof_address)
    return std::string("the pool has no addresses of ") + name_of(family) + ": give it a network";
  if (loop_) return looped(target, {*proof_address, loop_->mtu(), std::nullopt, ""});
  auto path = look_up_path(interface_, target);
  if (auto* found = std::get_if<Path>(&path)) {
    found->real_address = std::exchange(found->own_address, *proof_address);
    if (was_not_permitted_)
      found->obstacle =
          "this host lets no packet from a client's address leave (Operation not permitted): a "
          "rule of nftables or iptables drops what does not come from its own";
  }
  return path;
}

std::variant<Path, std::string> ReplyPaths::looped(const net::Endpoint& target, Path path) const {
  if (const auto wrong = why_not_looped({{0, target}})) return *wrong;
  if (const auto& obstacle = loop_->obstacle(target.address.family())) return *obstacle;
  if (clients_.mode == ClientAddresses::Mode::preserve) {
    if (const auto wrong = why_no_route(path.own_address)) {
      path.obstacle = "this network namespace has no route to its clients (" + *wrong +
                      "): it needs a default route, though the replies then take another way";
      return path;
    }
  }
  if (reverse_path_dropped_)
    path.obstacle = std::string("rp_filter drops what comes in through ") + Loop::far_end +
                    ": set net.ipv4.conf." + Loop::far_end +
                    ".src_valid_mark to 1, or start the intercept anew";
  else
    path.obstacle = std::string("something drops what comes in through ") + Loop::far_end +
                    ", or the answer: look at the rules of nftables and iptables in this network "
                    "namespace (nft list ruleset)";
  return path;
}

}  // namespace trafficmirror::intercept
