// The engine's time. It never reads a clock: whoever calls it says what time it is, so tests run in
// virtual time.
#pragma once

#include <chrono>

namespace trafficmirror::session {

struct EngineClock {  // has no now(), on purpose
  using duration = std::chrono::microseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<EngineClock, duration>;
  static constexpr bool is_steady = true;
};
using Duration = EngineClock::duration;
using Time = EngineClock::time_point;

inline constexpr Time never = Time::max();

}  // namespace trafficmirror::session
