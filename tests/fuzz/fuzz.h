// What the fuzz targets share: reading decisions out of the bytes, and stopping where something
// does not hold.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "net/bytes.h"

namespace trafficmirror::fuzz {

// The input from front to back. Behind its end there are zeros, so that any input says something.
class Input {
 public:
  explicit Input(std::span<const uint8_t> bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }
  uint8_t u8() { return take<1>()[0]; }
  uint16_t u16() { return net::load16(take<2>().data()); }
  uint32_t u32() { return net::load32(take<4>().data()); }
  // As many as there are, at most `size`.
  std::span<const uint8_t> bytes(size_t size) {
    const auto first = rest_.first(std::min(size, rest_.size()));
    rest_ = rest_.subspan(first.size());
    return first;
  }
  std::span<const uint8_t> rest() { return bytes(rest_.size()); }

 private:
  template <size_t size>
  std::array<uint8_t, size> take() {
    std::array<uint8_t, size> value{};
    const auto from = bytes(size);
    std::copy(from.begin(), from.end(), value.begin());
    return value;
  }

  std::span<const uint8_t> rest_;
};

inline std::string_view as_text(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline std::span<const uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Ends the run, which the fuzzer and the replay both take for a finding.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

}  // namespace trafficmirror::fuzz

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer chose the name
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
