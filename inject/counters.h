// What is counted of packets that are sent towards the shadow. Each is in one of these.
#pragma once

#include <array>
#include <cstdint>

#include "program/counter.h"

namespace trafficmirror::inject {

// Why the kernel did not take a packet.
enum class InjectError : uint8_t {
  queue_full,
  not_permitted,
  unreachable,
  too_long,
  no_interface,
  other
};
inline constexpr std::array<const char*, 6> inject_error_names = {
    "queue_full", "not_permitted", "unreachable", "too_long", "no_interface", "other"};

// Of an error number of the kernel's.
InjectError classify(int error);

struct Counters {
  program::Counter packets{0};
  program::Counter bytes{0};  // of these packets, headers included
  program::CounterByReason<inject_error_names.size()> errors{};
};

}  // namespace trafficmirror::inject
