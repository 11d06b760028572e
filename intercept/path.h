// What this host knows of the way to a target.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "net/address.h"

namespace trafficmirror::intercept {

struct Path {
  net::IpAddress own_address;  // what the target sees as the source
  uint32_t mtu = 0;            // of the path, as far as it is known

  bool operator==(const Path&) const = default;
};

// Asks the kernel's routes; sends nothing. Otherwise why there is no way, in the kernel's words.
std::variant<Path, std::string> look_up_path(const std::string& interface,
                                             const net::Endpoint& target);

}  // namespace trafficmirror::intercept
