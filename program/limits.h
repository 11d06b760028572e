// How much of production's traffic is mirrored, and what that may take. The sidecar has flags for
// it; the intercept has the same ones, and what it is told goes for all of its sidecars.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "program/flow_filter.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
}  // namespace CLI

namespace trafficmirror::program {

// When an exchange is sent that production's client began behind an answer: when the shadow has
// answered the one before, when it has received the one before, or at once.
enum class Turns : uint8_t { wait, eager, off };
inline constexpr std::array turns_names = {"wait", "eager", "off"};

// What becomes of a session that is later than max_lag: it ends, or it is eager until nothing of it
// waits any more.
enum class OverLag : uint8_t { shed, catch_up };
inline constexpr std::array over_lag_names = {"shed", "catch-up"};

// What is not there is left to somebody else.
struct Limits {
  std::optional<double> percent;  // of the connections
  std::optional<uint32_t> max_sessions;
  uint64_t memory = 0;  // bytes that sessions may hold; 0: not there
  std::optional<Turns> turns{};
  std::chrono::milliseconds max_lag{0};  // 0: not there
  std::optional<OverLag> over_lag{};
  std::optional<uint32_t> max_rate{};  // exchanges a second
  std::optional<FlowFilter> filter{};
  std::optional<uint32_t> copies{};  // sessions that mirror a connection

  bool operator==(const Limits&) const = default;

  // These, and where one is not there that of `others`.
  Limits over(const Limits& others) const;
};

inline constexpr double least_percent = 0.1;
inline constexpr uint32_t most_copies = 1000;
inline constexpr uint64_t least_memory = 1 << 20;

// Whether what is there is within its bounds.
bool within_bounds(const Limits& limits);

// The flags below, without their dashes.
std::vector<std::string> limit_names();
// What of them is different, as it is now: "percent 10, filter not given". Empty: nothing is.
std::string changes(const Limits& before, const Limits& now);

// --percent, --filter, --copies, --max-sessions, --max-rate, --memory-limit, --turns,
// --max-lag and --over-lag.
void add_limit_flags(CLI::App& app, Limits& limits);

}  // namespace trafficmirror::program
