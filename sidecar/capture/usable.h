// Which captured packets can be mirrored.
#pragma once

#include <array>
#include <cstdint>
#include <variant>

#include "net/packet.h"
#include "sidecar/capture/capture.h"

namespace trafficmirror::capture {

// Why one can't.
enum class Unusable : uint8_t { other_protocol, fragment, malformed, bad_checksum };
inline constexpr std::array unusable_names = {"other_protocol", "fragment", "malformed",
                                              "bad_checksum"};

struct UnusableCounts : std::array<uint64_t, unusable_names.size()> {
  using std::array<uint64_t, unusable_names.size()>::operator[];
  uint64_t& operator[](Unusable reason) { return at(static_cast<size_t>(reason)); }
  uint64_t operator[](Unusable reason) const { return at(static_cast<size_t>(reason)); }
};

// The packet points into what was captured.
std::variant<net::Packet, Unusable> usable_packet(const CapturedPacket& captured);

}  // namespace trafficmirror::capture
