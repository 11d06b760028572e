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
  bool has_room(Time now) const { return rate_ == 0 || tokens_at(now) >= 1; }

  // Takes an exchange into account. False where that overdraws it by more than a second's worth;
  // what is beyond is forgotten.
  bool spend(Time now) {
    tokens_ = tokens_at(now);
    taken_at_ = now;
    if (rate_ == 0) return true;
    tokens_ -= 1;
    if (tokens_ >= -rate_) return true;
    tokens_ = -rate_;
    return false;
  }

 private:
  double tokens_at(Time now) const {
    const Duration passed = now - taken_at_.value_or(now);
    return std::min(rate_, tokens_ + rate_ * std::chrono::duration<double>(passed).count());
  }

  double rate_ = 0;
  double tokens_ = 0;
  std::optional<Time> taken_at_;  // nothing yet
};

}  // namespace trafficmirror::session
