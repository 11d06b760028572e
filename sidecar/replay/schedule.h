// When the packets of a capture are due: its own times, or none at all. No I/O, no clock.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include "sidecar/session/time.h"

namespace trafficmirror::replay {

// A time on the capture's clock, or so long behind its first packet.
struct Moment {
  bool from_start = false;
  std::chrono::nanoseconds time{0};  // otherwise since 1970, UTC

  bool operator==(const Moment&) const = default;
};
// "2024-05-01T12:00:00.5Z", "2024-05-01T14:00:00+02:00" (RFC 3339), or "90s", "5m" behind the
// start.
std::optional<Moment> parse_moment(std::string_view text);

// How many times as fast as it was captured: "1", "2x", "0.5x", "max". Nothing where it is none of
// them.
std::optional<double> parse_speed(std::string_view text);
// All is due at once: it goes as fast as may be.
inline constexpr double max_speed = std::numeric_limits<double>::infinity();

class Schedule {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    double speed = 1;
    std::optional<Moment> from;   // what is captured before is left out
    std::optional<Moment> until;  // and what is captured then or later
  };
  // Far behind, nothing follows that is within.
  enum class Place : uint8_t { before, within, behind, far_behind };

  explicit Schedule(Options options) : options_(options) {}

  // Now is the time for the first packet.
  void begin(Clock::time_point now) { begun_at_ = now; }

  // The packets of a round in their order: where each stands to `from` and `until`,
  Place place(std::chrono::nanoseconds captured);
  // for those within, when they are due,
  Clock::time_point due(std::chrono::nanoseconds captured);
  // and when one is passed, the time on a clock that goes on from round to round and never back,
  // though a capture's packets may do so by a little.
  session::Time pass(std::chrono::nanoseconds captured);
  // Behind the last one. The next round's first is due then.
  void end_round();

  // What has been passed of the capture, over all rounds.
  std::chrono::nanoseconds passed() const { return earlier_rounds_ + furthest_; }

 private:
  // From the first packet of the round.
  std::chrono::nanoseconds position(std::chrono::nanoseconds captured);

  const Options options_;
  Clock::time_point begun_at_;
  std::optional<std::chrono::nanoseconds> start_;  // of the capture
  std::optional<std::chrono::nanoseconds> first_;  // packet of this round within
  std::chrono::nanoseconds furthest_{0};           // position that was passed
  std::chrono::nanoseconds earlier_rounds_{0};
};

// `until` is not later than `from`, as far as that can be told without the capture.
bool nothing_within(const Schedule::Options& options);

}  // namespace trafficmirror::replay
