#include "program/limits.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

#include <CLI/App.hpp>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

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

template <typename Choice, size_t count>
void add_choice(CLI::App& app, const std::string& name, const std::string& form,
                const std::array<const char*, count>& names, std::optional<Choice>& value,
                const std::string& help) {
  add_text(app, name, form, "", help,
           [&value, &names, form](const std::string& text) -> std::optional<std::string> {
             const auto found = std::find(names.begin(), names.end(), text);
             if (found == names.end()) return "is none of " + form;
             value = static_cast<Choice>(found - names.begin());
             return std::nullopt;
           });
}

void add_count(CLI::App& app, const std::string& name, std::optional<uint32_t>& value,
               const std::string& help) {
  add_text(app, name, "NUMBER", "", help,
           [&value](const std::string& text) -> std::optional<std::string> {
             const auto parsed = parse_number<uint32_t>(text);
             if (!parsed || *parsed == 0) return "is no count; write a number from 1 on";
             value = parsed;
             return std::nullopt;
           });
}

using NameAndText = std::pair<const char*, std::string>;

// Each flag, and its value as the flag takes it; empty where it is not there.
std::vector<NameAndText> to_texts(const Limits& limits) {
  const auto text = [](const auto& value) {
    return value ? fmt::format("{}", *value) : std::string();
  };
  const auto name_of = [](const auto& choice, const auto& names) {
    return choice ? names[static_cast<size_t>(*choice)] : "";
  };
  return {
      {"percent", text(limits.percent)},
      {"filter", limits.filter ? limits.filter->expression() : ""},
      {"copies", text(limits.copies)},
      {"max-sessions", text(limits.max_sessions)},
      {"max-rate", text(limits.max_rate)},
      {"memory-limit", limits.memory != 0 ? std::to_string(limits.memory) : ""},
      {"turns", name_of(limits.turns, turns_names)},
      {"max-lag", limits.max_lag.count() != 0 ? fmt::format("{}ms", limits.max_lag.count()) : ""},
      {"over-lag", name_of(limits.over_lag, over_lag_names)}};
}

}  // namespace

std::vector<std::string> limit_names() {
  std::vector<std::string> names;
  for (const auto& [name, text] : to_texts({})) names.emplace_back(name);
  return names;
}

std::string changes(const Limits& before, const Limits& now) {
  std::vector<std::string> changed;
  const auto one = to_texts(before), other = to_texts(now);
  for (size_t i = 0; i < one.size(); ++i) {
    const auto& [name, text] = other[i];
    if (one[i].second != text)
      changed.push_back(std::string(name) + " " + (text.empty() ? "not given" : text));
  }
  if (before.filter && now.filter && before.filter->expression() == now.filter->expression() &&
      before.filter != now.filter)
    changed.emplace_back("filter, as names in it are of other addresses");
  return fmt::format("{}", fmt::join(changed, ", "));
}

Limits Limits::over(const Limits& others) const {
  return {.percent = percent ? percent : others.percent,
          .max_sessions = max_sessions ? max_sessions : others.max_sessions,
          .memory = memory != 0 ? memory : others.memory,
          .turns = turns ? turns : others.turns,
          .max_lag = max_lag.count() != 0 ? max_lag : others.max_lag,
          .over_lag = over_lag ? over_lag : others.over_lag,
          .max_rate = max_rate ? max_rate : others.max_rate,
          .filter = filter ? filter : others.filter,
          .copies = copies ? copies : others.copies};
}

bool within_bounds(const Limits& limits) {
  // Written so that a NaN is not.
  return (!limits.percent || (*limits.percent >= least_percent && *limits.percent <= 100)) &&
         limits.max_sessions != 0U && limits.max_rate != 0U &&
         (!limits.copies || (*limits.copies >= 1 && *limits.copies <= most_copies)) &&
         (limits.memory == 0 || limits.memory >= least_memory) &&
         limits.max_lag >= limits.max_lag.zero() && limits.max_lag <= longest_duration;
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
  add_text(app, "--filter", "EXPRESSION", "",
           "mirror only connections that this lets through, written as for tcpdump (pcap-filter) "
           "and asked as of their client's SYN, such as 'src net 10.1.0.0/16'",
           [&limits](const std::string& text) -> std::optional<std::string> {
             auto compiled = FlowFilter::compile(text);
             if (auto* wrong = std::get_if<std::string>(&compiled)) return std::move(*wrong);
             limits.filter = std::get<FlowFilter>(std::move(compiled));
             return std::nullopt;
           });
  add_text(app, "--copies", "NUMBER", "",
           "mirror each connection, and client of UDP, so many times, each time as a session of "
           "its own with a source port of its own (default 1)",
           [&limits](const std::string& text) -> std::optional<std::string> {
             const Limits parsed{
                 .percent = {}, .max_sessions = {}, .copies = parse_number<uint32_t>(text)};
             if (!parsed.copies || !within_bounds(parsed))
               return "is no number of copies; write a number from 1 to " +
                      std::to_string(most_copies);
             limits.copies = parsed.copies;
             return std::nullopt;
           });
  add_count(app, "--max-sessions", limits.max_sessions, "sessions that a sidecar has open at most");
  add_count(
      app, "--max-rate", limits.max_rate,
      "requests a second that a sidecar mirrors at most; beyond it no sessions are opened, and "
      "where that does not help the newest are shed");
  add_size(app, "--memory-limit", limits.memory,
           "all that the sessions of a sidecar may hold; beyond it the newest are shed",
           least_memory);
  add_choice(
      app, "--turns", "wait|eager|off", turns_names, limits.turns,
      "when a request is sent that production's client sent behind an answer: wait, when the "
      "shadow has answered the one before; eager, when it has received it; off, at once "
      "(default wait)");
  add_duration(app, "--max-lag", limits.max_lag,
               "the longest that a request may be sent later than production's client sent it; "
               "default: any");
  add_choice(
      app, "--over-lag", "shed|catch-up", over_lag_names, limits.over_lag,
      "what becomes of a session beyond --max-lag: shed, it ends; catch-up, it is eager until "
      "nothing waits any more (default shed)");
}

}  // namespace trafficmirror::program
