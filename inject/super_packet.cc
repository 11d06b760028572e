#include "inject/super_packet.h"

#include <cstring>

#include <netinet/in.h>

#include "net/batch.h"
#include "net/bytes.h"
#include "net/checksum.h"

namespace trafficmirror::inject {
namespace {

constexpr size_t max_ip_length = 65535;
constexpr uint8_t ack = 0x10;
constexpr uint8_t ack_and_push = 0x18;
constexpr size_t flags_at = 13;
constexpr size_t checksum_at = 16;

const uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// A packet's data segment, as far as one can be part of a super-packet.
struct Segment {
  std::string_view headers;
  std::string_view payload;
  const uint8_t* tcp;

  uint8_t flags() const { return tcp[flags_at]; }
};

std::optional<Segment> first_segment(std::string_view packets, net::Family family) {
  const auto length = net::first_packet_length({bytes_of(packets), packets.size()});
  const uint32_t ip_length = net::ip_header_length(family);
  if (!length || *length < ip_length + net::tcp_header_length) return std::nullopt;
  const std::string_view packet = packets.substr(0, *length);
  const uint8_t* ip = bytes_of(packet);
  const bool plain = family == net::Family::ipv4 ? ip[0] == 0x45 && ip[9] == IPPROTO_TCP
                                                 : ip[0] >> 4 == 6 && ip[6] == IPPROTO_TCP;
  if (!plain) return std::nullopt;
  const uint8_t* tcp = ip + ip_length;
  const size_t header_length = ip_length + (tcp[12] >> 4) * size_t{4};
  if (header_length < ip_length + net::tcp_header_length || packet.size() <= header_length)
    return std::nullopt;
  if (tcp[flags_at] != ack && tcp[flags_at] != ack_and_push) return std::nullopt;
  return Segment{packet.substr(0, header_length), packet.substr(header_length), tcp};
}

bool same_bytes(std::string_view one, std::string_view other, size_t begin, size_t end) {
  return std::memcmp(one.data() + begin, other.data() + begin, end - begin) == 0;
}

// Whether the headers are equal in all that the kernel copies into every segment: all but lengths,
// IPv4's identification, the sequence number, PSH and the checksums.
bool same_headers(const Segment& one, const Segment& other, net::Family family) {
  const std::string_view a = one.headers, b = other.headers;
  if (a.size() != b.size()) return false;
  const size_t tcp = net::ip_header_length(family);
  const bool same_ip =
      family == net::Family::ipv4
          ? same_bytes(a, b, 0, 2) && same_bytes(a, b, 6, 10) && same_bytes(a, b, 12, tcp)
          : same_bytes(a, b, 0, 4) && same_bytes(a, b, 6, tcp);
  return same_ip && same_bytes(a, b, tcp, tcp + 4) && same_bytes(a, b, tcp + 8, tcp + flags_at) &&
         same_bytes(a, b, tcp + 14, tcp + checksum_at) && same_bytes(a, b, tcp + 18, a.size());
}

}  // namespace

std::optional<SuperPacket> SuperPacket::take(std::string_view& packets) {
  if (packets.empty()) return std::nullopt;
  const net::Family family = bytes_of(packets)[0] >> 4 == 4 ? net::Family::ipv4 : net::Family::ipv6;
  const auto first = first_segment(packets, family);
  if (!first) return std::nullopt;

  SuperPacket super(family);
  super.header_length_ = static_cast<uint32_t>(first->headers.size());
  std::string_view rest = packets;
  Segment last = *first;
  for (auto segment = first; segment; segment = first_segment(rest, family)) {
    const bool continues =
        same_headers(*first, *segment, family) &&
        net::load32(segment->tcp + 4) ==
            net::load32(first->tcp + 4) + static_cast<uint32_t>(super.payload_bytes_) &&
        segment->payload.size() <= first->payload.size() &&
        super.header_length_ + super.payload_bytes_ + segment->payload.size() <= max_ip_length;
    if (!continues) break;
    last = *segment;
    super.payloads_[super.count_++] = segment->payload;
    super.payload_bytes_ += segment->payload.size();
    rest.remove_prefix(segment->headers.size() + segment->payload.size());
    // Only the last may be shorter, and only the last gets the PSH.
    if (super.count_ == max_segments || segment->flags() != ack ||
        segment->payload.size() < first->payload.size())
      break;
  }
  if (super.count_ < 2) return std::nullopt;
  packets = rest;
  std::memcpy(super.headers_.data(), first->headers.data(), super.header_length_);
  super.write_headers(last.flags());
  return super;
}

void SuperPacket::write_headers(uint8_t flags) {
  uint8_t* ip = headers_.data();
  uint8_t* tcp = ip + ip_header_length();
  const auto tcp_length =
      static_cast<uint32_t>(header_length_ - ip_header_length() + payload_bytes_);
  uint64_t sum = 0;  // of the pseudo-header
  if (family_ == net::Family::ipv4) {
    net::store16(ip + 2, static_cast<uint16_t>(ip_header_length() + tcp_length));
    net::store16(ip + 10, 0);
    net::store16(ip + 10, static_cast<uint16_t>(
                              ~net::checksum_fold(net::checksum_add(0, {ip, ip_header_length()}))));
    sum = net::checksum_add(0, {ip + 12, 8});
  } else {
    net::store16(ip + 4, static_cast<uint16_t>(tcp_length));
    sum = net::checksum_add(0, {ip + 8, 32});
  }
  std::array<uint8_t, 8> tail = {0, 0, 0, 0, 0, 0, 0, IPPROTO_TCP};
  net::store32(tail.data(), tcp_length);
  tcp[flags_at] = flags;
  net::store16(tcp + checksum_at, net::checksum_fold(net::checksum_add(sum, tail)));
}

net::IpAddress SuperPacket::destination() const {
  const bool ipv4 = family_ == net::Family::ipv4;
  return *net::IpAddress::from_bytes({headers_.data() + (ipv4 ? 16 : 24), ipv4 ? 4U : 16U});
}

}  // namespace trafficmirror::inject
