// One run of the session engine in virtual time: production conversations on one side, a model
// shadow behind a bad network on the other, everything decided by one seed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "sidecar/session/counters.h"

namespace trafficmirror::simulation {

struct Result {
  std::optional<std::string> failure;
  session::Counters counters;
  bool faultless = false;
};

// `trace` prints every packet and event with its time.
Result simulate(uint64_t seed, bool trace);

}  // namespace trafficmirror::simulation
