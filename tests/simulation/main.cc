// Runs seeds of the simulation and says which fail, with the command that replays one.
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "tests/simulation/simulation.h"

namespace {

constexpr const char* usage =
    "usage: simulation [--seeds FIRST-LAST | --count N | --seed N] [--trace] [--keep-going]\n";

uint64_t number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    std::fputs(usage, stderr);
    std::exit(2);
  }
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace trafficmirror;
  uint64_t first = 1;
  uint64_t last = 1000;
  bool trace = false;
  bool keep_going = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--trace") {
      trace = true;
      continue;
    }
    if (flag == "--keep-going") {
      keep_going = true;
      continue;
    }
    ++i;
    if (flag == "--seed") {
      first = last = number(value);
    } else if (flag == "--count") {
      last = number(value);
    } else if (const size_t dash = value.find('-');
               flag == "--seeds" && dash != std::string_view::npos) {
      first = number(value.substr(0, dash));
      last = number(value.substr(dash + 1));
    } else {
      std::fputs(usage, stderr);
      return 2;
    }
  }

  uint64_t failures = 0;
  uint64_t faultless = 0;
  session::Counters total;
  for (uint64_t seed = first; seed <= last; ++seed) {
    const simulation::Result result = simulation::simulate(seed, trace);
    faultless += result.faultless;
    total.opened += result.counters.opened;
    total.adopted += result.counters.adopted;
    total.exchanges += result.counters.exchanges;
    total.retransmits += result.counters.retransmits;
    for (size_t i = 0; i < total.closed.size(); ++i) total.closed[i] += result.counters.closed[i];
    for (size_t i = 0; i < total.shed.size(); ++i) total.shed[i] += result.counters.shed[i];
    if (!result.failure) continue;
    ++failures;
    std::printf("seed %llu: %s\n  replay: %s --seed %llu --trace\n",
                static_cast<unsigned long long>(seed), result.failure->c_str(), argv[0],
                static_cast<unsigned long long>(seed));
    if (!keep_going) break;
  }
  const auto show = [](const char* name, uint64_t value) {
    if (value > 0) std::printf("  %-20s %llu\n", name, static_cast<unsigned long long>(value));
  };
  std::printf("seeds %llu to %llu: %llu failed\n", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(last), static_cast<unsigned long long>(failures));
  show("runs without faults", faultless);
  show("sessions", total.opened);
  show("adopted", total.adopted);
  show("exchanges", total.exchanges);
  show("retransmits", total.retransmits);
  std::puts("closed:");
  for (size_t i = 0; i < total.closed.size(); ++i)
    show(session::close_reason_names[i], total.closed[i]);
  std::puts("shed:");
  for (size_t i = 0; i < total.shed.size(); ++i) show(session::shed_reason_names[i], total.shed[i]);
  return failures == 0 ? 0 : 1;
}
