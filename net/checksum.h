// The Internet checksum (RFC 1071), and the use that TCP and UDP make of it (RFC 9293 section 3.1,
// RFC 768, RFC 8200 section 8.1).
#pragma once

#include <cstdint>
#include <span>

#include "net/address.h"

namespace trafficmirror::net {

// The one's complement sum of 16-bit words, not yet folded to 16 bits nor complemented. `sum`
// carries on from an earlier part, which must have had an even number of bytes.
uint64_t checksum_add(uint64_t sum, std::span<const uint8_t> bytes);
uint16_t checksum_fold(uint64_t sum);

// `length`: of the header of TCP or UDP and all behind it.
uint64_t pseudo_header_sum(Protocol protocol, const IpAddress& source, const IpAddress& destination,
                           uint32_t length);

}  // namespace trafficmirror::net
