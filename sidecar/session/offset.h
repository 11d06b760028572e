// Positions in a byte stream, counted from 0 and never wrapping. Those of the client's stream and
// of the shadow's are different types, so that neither is taken for the other; sequence numbers
// exist only where packets are read and written.
#pragma once

#include <compare>
#include <cstdint>

namespace trafficmirror::session {

template <typename Stream>
class Offset {
 public:
  constexpr Offset() = default;
  constexpr explicit Offset(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }

  friend constexpr Offset operator+(Offset offset, uint64_t bytes) {
    return Offset(offset.value_ + bytes);
  }
  // Bytes from b to a; b must not be behind a.
  friend constexpr uint64_t operator-(Offset a, Offset b) { return a.value_ - b.value_; }
  auto operator<=>(const Offset&) const = default;

 private:
  uint64_t value_ = 0;
};

using ClientOffset = Offset<struct ClientStream>;  // what the production client sent
using ShadowOffset = Offset<struct ShadowStream>;  // what the shadow answered

}  // namespace trafficmirror::session
