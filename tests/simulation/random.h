// Random numbers that are the same on every machine: the standard's distributions are not.
#pragma once

#include <cstdint>

#include "sidecar/session/time.h"

namespace trafficmirror::simulation {

using session::Duration;
using session::Time;

// SplitMix64's finaliser: a hash of 64 bits.
constexpr uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}

  uint64_t next() { return mix(state_++); }
  uint64_t below(uint64_t limit) { return next() % limit; }
  uint64_t between(uint64_t least, uint64_t most) { return least + below(most - least + 1); }
  bool chance(double probability) {
    return static_cast<double>(next() >> 11) < probability * 9007199254740992.0;  // 2^53
  }
  // Small values as likely as great ones: 1 to 2^bits.
  uint64_t scale(unsigned bits) { return 1 + below(uint64_t{1} << below(bits + 1)); }
  Duration duration(Duration least, Duration most) {
    return Duration(static_cast<int64_t>(
        between(static_cast<uint64_t>(least.count()), static_cast<uint64_t>(most.count()))));
  }

 private:
  uint64_t state_;
};

}  // namespace trafficmirror::simulation
