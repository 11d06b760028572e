// How the kernel would frame packets that leave an Ethernet link, for those that are handed to the
// link itself.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "net/address.h"

namespace trafficmirror::inject {

using EthernetAddress = std::array<uint8_t, 6>;

struct NextHop {
  EthernetAddress own;
  EthernetAddress neighbour;

  bool operator==(const NextHop&) const = default;
};

// Asks the kernel's routes and neighbours; sends nothing. Nothing where the link is no Ethernet,
// where the neighbour is not known (the kernel finds it out when it sends a packet itself), and
// where the kernel does more than frame a packet: IPsec, a tunnel of the route's own.
std::optional<NextHop> look_up_next_hop(const std::string& interface, const net::IpAddress& to);

// What was looked up a moment ago is not asked again. Any thread.
class NextHops {
 public:
  explicit NextHops(std::string interface) : interface_(std::move(interface)) {}

  std::optional<NextHop> find(const net::IpAddress& to);
  // The interface of that name is another one now.
  void forget();

 private:
  struct Known {
    std::optional<NextHop> next_hop;
    std::chrono::steady_clock::time_point good_until;
  };
  const std::string interface_;
  std::mutex mutex_;
  std::map<net::IpAddress, Known> known_;  // of targets, which are few
};

}  // namespace trafficmirror::inject
