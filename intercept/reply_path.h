// How the replies to clients' addresses get to the intercept, and what may keep them away; for
// sessions that do not come from its own address.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "intercept/client_addresses.h"
#include "intercept/counters.h"
#include "intercept/lease.h"
#include "intercept/loop.h"
#include "intercept/path.h"
#include "net/address.h"

namespace trafficmirror::intercept {

// --- the chains of the nftables table

// What came in through the loop has its connection marked, and with it the replies, by which they
// are routed. A connection that was there before stays as it is: what comes in for it is dropped.
// Of a pool the addresses say which they are; connection tracking is kept off them.
std::string loop_chains(const ClientAddresses& clients);
// Drops the targets' replies to others than this host, which would otherwise forward them, and
// keeps connection tracking off the sessions.
std::string route_chains(const ClientAddresses& clients, const std::string& interface,
                         const std::vector<net::Endpoint>& targets,
                         const std::vector<net::IpAddress>& local_addresses);

// --- what this host knows of it

// Of all interfaces, loopback's too.
std::vector<net::IpAddress> local_addresses();
// Puts the interface's address into targets whose host is loopback: nothing but loopback's own
// packets get there. Of targets that are the same then, one is left. What is wrong, if anything is.
std::optional<std::string> resolve_loopback(std::vector<Target>& targets,
                                            const std::string& interface);
// What is wrong with targets or a pool, in this host's network.
std::optional<std::string> why_not_looped(const std::vector<Target>& targets);
std::optional<std::string> why_not_pool(const ClientAddresses& clients);
std::optional<uint32_t> mtu_of(const std::string& interface);

class ReplyPaths {
 public:
  // All of these outlive it. `loop`: null where the replies are routed.
  ReplyPaths(const ClientAddresses& clients, const std::string& interface, const Loop* loop,
             const Counters& counters);

  // To be called before look_up() for the targets that there are: obstacles are those since the
  // call before.
  void begin();
  std::variant<Path, std::string> look_up(const net::Endpoint& target) const;

 private:
  std::variant<Path, std::string> looped(const net::Endpoint& target, Path path) const;

  const ClientAddresses& clients_;
  const std::string& interface_;
  const Loop* const loop_;
  const Counters& counters_;
  std::vector<net::IpAddress> local_addresses_;
  uint64_t reverse_path_drops_ = 0;
  uint64_t not_permitted_ = 0;
  bool reverse_path_dropped_ = false;
  bool was_not_permitted_ = false;
};

}  // namespace trafficmirror::intercept
