// How the kernel would frame packets that leave an Ethernet link, for those that are handed to the
// link itself.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "net/address.h"

namespace trafficmirror::intercept {

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

}  // namespace trafficmirror::intercept
