// Sequence numbers of RFC 9293 section 3.4: they wrap, so they are a type of their own whose order
// is that of a circle. Two of them are comparable while less than 2^31 apart.
#pragma once

#include <cstdint>

namespace trafficmirror::net {

class SequenceNumber {
 public:
  constexpr SequenceNumber() = default;
  constexpr explicit SequenceNumber(uint32_t value) : value_(value) {}
  constexpr uint32_t value() const { return value_; }

  friend constexpr SequenceNumber operator+(SequenceNumber a, uint32_t bytes) {
    return SequenceNumber(a.value_ + bytes);
  }
  friend constexpr SequenceNumber operator-(SequenceNumber a, uint32_t bytes) {
    return SequenceNumber(a.value_ - bytes);
  }
  // How far a is ahead of b; negative where it is behind.
  friend constexpr int32_t operator-(SequenceNumber a, SequenceNumber b) {
    return static_cast<int32_t>(a.value_ - b.value_);
  }
  friend constexpr bool operator==(SequenceNumber a, SequenceNumber b) = default;
  friend constexpr bool operator<(SequenceNumber a, SequenceNumber b) { return a - b < 0; }
  friend constexpr bool operator>(SequenceNumber a, SequenceNumber b) { return a - b > 0; }
  friend constexpr bool operator<=(SequenceNumber a, SequenceNumber b) { return a - b <= 0; }
  friend constexpr bool operator>=(SequenceNumber a, SequenceNumber b) { return a - b >= 0; }

 private:
  uint32_t value_ = 0;
};

}  // namespace trafficmirror::net
