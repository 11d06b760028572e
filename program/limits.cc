#include "program/limits.h"

#include <charconv>
#include <string>

#include <CLI/App.hpp>

#include "program/flags.h"

namespace trafficmirror::program {
namespace {

template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
  Number number{};
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  if (error != std::errc() || end != last) return std::nullopt;
  return number;
}

}  // namespace

Limits Limits::over(const Limits& others) const {
  return {percent ? percent : others.percent, max_sessions ? max_sessions : others.max_sessions,
          memory != 0 ? memory : others.memory};
}

bool within_bounds(const Limits& limits) {
  // Written so that a NaN is not.
  return (!limits.percent || (*limits.percent >= least_percent && *limits.percent <= 100)) &&
         limits.max_sessions != 0U && (limits.memory == 0 || limits.memory >= least_memory);
}

void add_limit_flags(CLI::App& app, Limits& limits) {
  add_text(app, "--percent", "PERCENT", "",
           "mirror so many of 100 connections, chosen by a hash of their addresses and ports; "
           "0.1 to 100",
           [&limits](const std::string& text) -> std::optional<std::string> {
             const Limits parsed{.percent = parse_number<double>(text), .max_sessions = {}};
             if (!parsed.percent || !within_bounds(parsed))
               return "is no percentage; write a number from 0.1 to 100";
             limits.percent = parsed.percent;
             return std::nullopt;
           });
  add_text(app, "--max-sessions", "NUMBER", "", "sessions that a sidecar has open at most",
           [&limits](const std::string& text) -> std::optional<std::string> {
             const Limits parsed{.percent = {}, .max_sessions = parse_number<uint32_t>(text)};
             if (!parsed.max_sessions || !within_bounds(parsed))
               return "is no count; write a number from 1 on";
             limits.max_sessions = parsed.max_sessions;
             return std::nullopt;
           });
  add_size(app, "--memory-limit", limits.memory,
           "all that the sessions of a sidecar may hold; beyond it the newest are shed",
           least_memory);
}

}  // namespace trafficmirror::program
