// What stands in front of an IP packet where libpcap captured it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace trafficmirror::capture {

// Whether frames of this DLT_ can be read: Ethernet, Linux cooked (SLL, SLL2), loopback, raw IP.
bool is_known_link_type(int link_type);

// Where the IP packet begins in a frame, VLAN tags passed over. Nothing where there is none.
std::optional<size_t> network_offset(int link_type, std::span<const uint8_t> frame);

}  // namespace trafficmirror::capture
