// TCP and UDP packets of IPv4 and IPv6: reading captured ones and writing new ones.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "net/address.h"
#include "net/sequence.h"

namespace trafficmirror::net {

inline constexpr uint32_t ipv4_header_length = 20;
inline constexpr uint32_t ipv6_header_length = 40;
inline constexpr uint32_t tcp_header_length = 20;
inline constexpr uint32_t udp_header_length = 8;
// The longest headers a packet without IPv6 extension headers can have: IPv4 with all options, then
// TCP with all.
inline constexpr uint32_t max_header_length = 60 + 60;

struct TcpFlags {
  bool fin = false;
  bool syn = false;
  bool rst = false;
  bool psh = false;
  bool ack = false;

  bool operator==(const TcpFlags&) const = default;
};

struct TcpTimestamps {  // RFC 7323 section 3
  uint32_t value = 0;
  uint32_t echo = 0;

  bool operator==(const TcpTimestamps&) const = default;
};

struct SackBlock {  // RFC 2018: the bytes from begin up to, not including, end have arrived
  SequenceNumber begin;
  SequenceNumber end;

  bool operator==(const SackBlock&) const = default;
};

class SackBlocks {
 public:
  static constexpr size_t max_size = 4;
  void push_back(SackBlock block) {
    if (size_ < max_size) blocks_[size_++] = block;
  }
  std::span<const SackBlock> get() const { return {blocks_.data(), size_}; }
  bool empty() const { return size_ == 0; }

  bool operator==(const SackBlocks& other) const {
    return size_ == other.size_ && std::equal(get().begin(), get().end(), other.get().begin());
  }

 private:
  std::array<SackBlock, max_size> blocks_{};
  size_t size_ = 0;
};

// The options the engine knows; others are passed over when read, and never written.
struct TcpOptions {
  std::optional<uint16_t> maximum_segment_size;
  std::optional<uint8_t> window_scale;
  bool sack_permitted = false;
  std::optional<TcpTimestamps> timestamps;
  SackBlocks sack_blocks;

  // Bytes they take in a header, padded to a multiple of four.
  uint32_t length() const;

  bool operator==(const TcpOptions&) const = default;
};

struct TcpHeader {
  SequenceNumber sequence;
  SequenceNumber acknowledgment;
  TcpFlags flags;
  uint16_t window = 0;  // as it stands in the header, not scaled
  TcpOptions options;
};

struct Packet {
  Endpoint source;
  Endpoint destination;
  Protocol protocol = Protocol::tcp;
  TcpHeader tcp;                     // where it is TCP
  uint32_t ip_header_length = 0;     // with IPv6 extension headers
  uint32_t header_length = 0;        // IP and TCP or UDP headers together
  uint32_t payload_length = 0;       // as the IP header, or that of UDP, says
  std::span<const uint8_t> payload;  // what was captured of it; points into the parsed bytes
  bool cut() const { return payload.size() < payload_length; }

  // Sequence numbers it occupies: payload, SYN and FIN (RFC 9293 section 3.4).
  uint32_t sequence_length() const { return payload_length + tcp.flags.syn + tcp.flags.fin; }
};

enum class ParseError : uint8_t {
  other_protocol,  // neither TCP nor UDP, or neither IPv4 nor IPv6
  fragment,        // an IP fragment: TCP of this age does not send them, and one alone says nothing
  malformed,       // lengths that contradict each other, or a header that is not whole
};

// Reads a packet that begins with its IP header. Only its headers need to be there; payload may be
// cut. `wire_length` is what the packet measured before it was cut; it is used where the IP header
// leaves its length at 0 (super-packets over 64 KiB), otherwise the header says it.
std::variant<Packet, ParseError> parse_packet(std::span<const uint8_t> bytes, size_t wire_length);

// Whether the checksum of TCP or UDP is right, or is the bare pseudo-header sum that the kernel
// leaves for the hardware to complete (CHECKSUM_PARTIAL), as captured super-packets have it.
// `bytes` is the whole packet that `packet` was parsed from; a packet cut by capture can't be
// judged and passes, and so does a datagram of IPv4 without one (RFC 768).
bool checksum_holds(const Packet& packet, std::span<const uint8_t> bytes);

// Appends a whole IP packet to `out`: headers, then `payload_length` bytes that
// `write_payload(uint8_t*)` fills in, with its checksums. `source` and `destination` are of one
// family.
template <typename WritePayload>
void append_packet(std::string& out, const Endpoint& source, const Endpoint& destination,
                   const TcpHeader& tcp, uint32_t payload_length, WritePayload&& write_payload);

// The same for a UDP datagram, which has to be short enough for an IP packet.
void append_datagram(std::string& out, const Endpoint& source, const Endpoint& destination,
                     std::span<const uint8_t> payload);

namespace detail {
// Writes the headers for a payload that already stands behind them, checksums included.
void write_headers(uint8_t* packet, const Endpoint& source, const Endpoint& destination,
                   const TcpHeader& tcp, uint32_t payload_length);
}  // namespace detail

uint32_t ip_header_length(Family family);

template <typename WritePayload>
void append_packet(std::string& out, const Endpoint& source, const Endpoint& destination,
                   const TcpHeader& tcp, uint32_t payload_length, WritePayload&& write_payload) {
  const size_t begin = out.size();
  const uint32_t headers =
      ip_header_length(destination.address.family()) + tcp_header_length + tcp.options.length();
  out.resize(begin + headers + payload_length);
  auto* packet = reinterpret_cast<uint8_t*>(out.data()) + begin;
  if (payload_length > 0) write_payload(packet + headers);
  detail::write_headers(packet, source, destination, tcp, payload_length);
}

}  // namespace trafficmirror::net
