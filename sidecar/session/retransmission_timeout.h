// The retransmission timeout of RFC 6298: smoothed round-trip time, its variation, and the backoff.
#pragma once

#include <algorithm>

#include "sidecar/session/time.h"

namespace trafficmirror::session {

class RetransmissionTimeout {
 public:
  // Section 2.1 asks for one second before the first measurement; the minimum of 200 ms, below
  // section 2.4's second, is what every kernel uses today: a shadow is not far away.
  static constexpr Duration initial = std::chrono::seconds(1);
  static constexpr Duration minimum = std::chrono::milliseconds(200);
  static constexpr Duration maximum = std::chrono::seconds(60);

  // Sections 2.2 and 2.3. By Karn's algorithm `round_trip` is never of a segment that was sent
  // twice.
  void measured(Duration measured_round_trip) {
    const Compact round_trip(
        std::chrono::duration_cast<Compact>(std::min(measured_round_trip, maximum)));
    if (smoothed_ == Compact::zero()) {
      smoothed_ = std::max(round_trip, Compact(1));
      variation_ = round_trip / 2;
    } else {
      const Compact error =
          smoothed_ > round_trip ? smoothed_ - round_trip : round_trip - smoothed_;
      variation_ = (3 * variation_ + error) / 4;
      smoothed_ = std::max((7 * smoothed_ + round_trip) / 8, Compact(1));
    }
  }
  // Section 5.5. Backed off until new data is acknowledged.
  void back_off() { backoffs_ = std::min<uint8_t>(static_cast<uint8_t>(backoffs_ + 1), 16); }
  void reset_backoff() { backoffs_ = 0; }

  Duration value() const {
    const Duration base = smoothed_ == Compact::zero()
                              ? initial
                              : std::max<Duration>(smoothed_ + 4 * variation_, minimum);
    return std::min(base * (1 << backoffs_), maximum);
  }
  Duration smoothed_round_trip() const { return smoothed_; }

 private:
  // A round trip is far below half an hour, which 32 bits of microseconds hold.
  using Compact = std::chrono::duration<int32_t, Duration::period>;
  Compact smoothed_{};  // zero: nothing measured yet
  Compact variation_{};
  uint8_t backoffs_ = 0;
};

}  // namespace trafficmirror::session
