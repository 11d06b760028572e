// What this host knows of its own way to a target, which may be another one than the intercept's.
#pragma once

#include <cstdint>
#include <optional>

#include "net/address.h"

namespace trafficmirror::direct {

// Bytes of an IP packet, by the kernel's routes and what it has learned of the path. Sends nothing.
// Nothing where there is no way.
std::optional<uint32_t> own_path_mtu(const net::Endpoint& target);

}  // namespace trafficmirror::direct
