// Logs go through spdlog's default logger, to stderr: spdlog::info("…", …). This header sets it up,
// and keeps messages that could come for each packet down to one now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "program/flags.h"

namespace trafficmirror::program {

// Replaces the default logger by one that writes a line a message to stderr, from any thread: text,
// or JSON objects with the fields time (RFC 3339, UTC), level and message.
void set_up_logging(const CommonOptions& options, const std::string& program_name);

// Lets one message through in each interval and counts the others:
//
//   if (const auto held = limit.allow(now)) spdlog::warn("sending failed: {}{}", reason, *held);
//
// One for each place that logs; not for use by several threads at once.
class LogLimit {
 public:
  using Clock = std::chrono::steady_clock;
  explicit LogLimit(std::chrono::nanoseconds interval = std::chrono::seconds(10))
      : interval_(interval) {}

  // Nothing where the message has to be held back; otherwise what to put at its end: empty, or
  // " (and 41 times before)" where messages were held back since the last one.
  std::optional<std::string> allow(Clock::time_point now);

 private:
  std::chrono::nanoseconds interval_;
  std::optional<Clock::time_point> last_;
  uint64_t held_back_ = 0;
};

}  // namespace trafficmirror::program
