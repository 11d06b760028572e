// How many exchanges a second all sessions together may give the shadow: a token bucket that holds
// a second's worth, and may be overdrawn by as much, since an exchange of an open session can't be
// left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "sidecar/session/time.h"

namespace trafficmirror::session {

class RateLimit {
 public:
  // 0: there is none. The bucket of a new one is full; another one keeps what is left.
  void set(uint32_t exchanges_a_second) {
    const double before = std::exchange(rate_, exchanges_a_second);
    tokens_ = before == 0 ? rate_ : std::clamp(tokens_, -rate_, rate_);
  }

  // Whether there is room for the first exchange of a session more.
  bool has_room(Time now) {
    refill(now);
    return rate_ == 0 || tokens_ >= 1;
  }

  // Takes an exchange into account. False where that overdraws it by more than a second's worth;
  // what is beyond is forgotten.
  bool spend(Time now) {
    refill(now);
    if (rate_ == 0) return true;
    tokens_ -= 1;
    if (tokens_ >= -rate_) return true;
    tokens_ = -rate_;
    return false;
  }

 private:
  void refill(Time now) {
    const Duration passed = now - refilled_at_.value_or(now);
    refilled_at_ = now;
    tokens_ = std::min(rate_, tokens_ + rate_ * std::chrono::duration<double>(passed).count());
  }

  double rate_ = 0;
  double tokens_ = 0;
  std::optional<Time> refilled_at_;
};

}  // namespace trafficmirror::session
