// Numbers in network order, read and written by offset.
#pragma once

#include <cstdint>

namespace trafficmirror::net {

inline uint16_t load16(const uint8_t* p) {
  return static_cast<uint16_t>(p[0] << 8 | p[1]);
}
inline uint32_t load32(const uint8_t* p) {
  return static_cast<uint32_t>(load16(p)) << 16 | load16(p + 2);
}
inline void store16(uint8_t* p, uint16_t value) {
  p[0] = static_cast<uint8_t>(value >> 8);
  p[1] = static_cast<uint8_t>(value);
}
inline void store32(uint8_t* p, uint32_t value) {
  store16(p, static_cast<uint16_t>(value >> 16));
  store16(p + 2, static_cast<uint16_t>(value));
}

}  // namespace trafficmirror::net
