// What this host knows of the way to a target.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "net/address.h"

namespace trafficmirror::intercept {

struct Path {
  net::IpAddress own_address;  // what the target sees as the source of the intercept's own packets
  uint32_t mtu = 0;            // of the path, as far as it is known
  // An address that this host really has, where own_address is none: what answers it is there.
  std::optional<net::IpAddress> real_address{};
  // What was found that may keep the target's answers away, in plain words; empty: nothing.
  std::string obstacle{};

  bool operator==(const Path&) const = default;
};

// Asks the kernel's routes; sends nothing. Otherwise why there is no way, in the kernel's words.
std::variant<Path, std::string> look_up_path(const std::string& interface,
                                             const net::Endpoint& target);

}  // namespace trafficmirror::intercept
