#include "net/checksum.h"

#include <cstring>

#include <netinet/in.h>

#include "net/bytes.h"

namespace trafficmirror::net {

// RFC 1071 section 2: the sum does not depend on byte order, so native 32-bit words are added and
// the result, folded to 16 bits, is swapped once.
uint64_t checksum_add(uint64_t sum, std::span<const uint8_t> bytes) {
  const uint8_t* p = bytes.data();
  size_t left = bytes.size();
  for (; left >= 4; p += 4, left -= 4) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    sum += word;
  }
  uint32_t last = 0;
  if (left > 0) std::memcpy(&last, p, left);
  return sum + last;
}

uint16_t checksum_fold(uint64_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return ntohs(static_cast<uint16_t>(sum));
}

uint64_t pseudo_header_sum(Protocol protocol, const IpAddress& source, const IpAddress& destination,
                           uint32_t length) {
  uint8_t tail[8] = {};
  store32(tail, length);
  tail[7] = protocol == Protocol::tcp ? IPPROTO_TCP : IPPROTO_UDP;
  return checksum_add(checksum_add(checksum_add(0, source.bytes()), destination.bytes()), tail);
}

}  // namespace trafficmirror::net
