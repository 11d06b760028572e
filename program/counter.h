// Counters that are written by any thread and read by any.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace trafficmirror::program {

using Counter = std::atomic<uint64_t>;

template <size_t size>
using CounterByReason = std::array<Counter, size>;

inline void add(Counter& counter, uint64_t count = 1) {
  counter.fetch_add(count, std::memory_order_relaxed);
}
template <size_t size, typename Reason>
void add(CounterByReason<size>& counters, Reason reason, uint64_t count = 1) {
  add(counters[static_cast<size_t>(reason)], count);
}

}  // namespace trafficmirror::program
