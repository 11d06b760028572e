#include "net/packet.h"

#include <algorithm>
#include <cstring>

#include <netinet/in.h>

#include "net/bytes.h"
#include "net/checksum.h"

namespace trafficmirror::net {
namespace {

constexpr uint8_t flag_fin = 0x01, flag_syn = 0x02, flag_rst = 0x04, flag_psh = 0x08,
                  flag_ack = 0x10;

enum OptionKind : uint8_t {  // IANA, TCP option kinds
  option_end = 0,
  option_nop = 1,
  option_mss = 2,
  option_window_scale = 3,
  option_sack_permitted = 4,
  option_sack = 5,
  option_timestamps = 8,
};

// Where the header of TCP or UDP stands in the packet and how much of the packet is IP.
struct IpHeader {
  IpAddress source;
  IpAddress destination;
  Protocol protocol;
  uint32_t header_length;
  size_t total_length;
};

std::optional<Protocol> to_protocol(uint8_t number) {
  if (number == IPPROTO_TCP) return Protocol::tcp;
  if (number == IPPROTO_UDP) return Protocol::udp;
  return std::nullopt;
}

std::variant<IpHeader, ParseError> parse_ipv4(std::span<const uint8_t> bytes, size_t wire_length) {
  if (bytes.size() < ipv4_header_length) return ParseError::malformed;
  const uint32_t header_length = (bytes[0] & 0x0fU) * 4;
  if (header_length < ipv4_header_length || header_length > bytes.size())
    return ParseError::malformed;
  const bool more_fragments_or_offset = (load16(&bytes[6]) & 0x3fff) != 0;
  const auto protocol = to_protocol(bytes[9]);
  if (!protocol) return ParseError::other_protocol;
  if (more_fragments_or_offset) return ParseError::fragment;
  const uint16_t total_length = load16(&bytes[2]);
  return IpHeader{IpAddress::from_ipv4(bytes.subspan<12, 4>()),
                  IpAddress::from_ipv4(bytes.subspan<16, 4>()), *protocol, header_length,
                  total_length == 0 ? wire_length : total_length};
}

std::variant<IpHeader, ParseError> parse_ipv6(std::span<const uint8_t> bytes, size_t wire_length) {
  if (bytes.size() < ipv6_header_length) return ParseError::malformed;
  const uint16_t payload_length = load16(&bytes[4]);
  uint8_t next = bytes[6];
  uint32_t offset = ipv6_header_length;
  // RFC 8200 section 4: the extension headers that may stand before TCP and UDP, each with its
  // length in the second byte.
  while (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS) {
    if (offset + 8 > bytes.size()) return ParseError::malformed;
    next = bytes[offset];
    offset += (bytes[offset + 1] + 1U) * 8;
  }
  if (next == IPPROTO_FRAGMENT) return ParseError::fragment;
  const auto protocol = to_protocol(next);
  if (!protocol) return ParseError::other_protocol;
  const IpAddress source = IpAddress::from_ipv6(bytes.subspan<8, 16>());
  const IpAddress destination = IpAddress::from_ipv6(bytes.subspan<24, 16>());
  // An IPv4-mapped address has no place on the wire (RFC 4291 section 2.5.5.2), and would be taken
  // for the IPv4 address.
  if (source.family() != Family::ipv6 || destination.family() != Family::ipv6)
    return ParseError::malformed;
  return IpHeader{source, destination, *protocol, offset,
                  payload_length == 0 ? wire_length : ipv6_header_length + payload_length};
}

// An option of a wrong length, or one that runs past the header, makes the packet malformed; an
// option not known is passed over by its length (RFC 9293 section 3.1).
bool parse_options(std::span<const uint8_t> bytes, TcpOptions& options) {
  while (!bytes.empty()) {
    const uint8_t kind = bytes[0];
    if (kind == option_end) return true;
    if (kind == option_nop) {
      bytes = bytes.subspan(1);
      continue;
    }
    if (bytes.size() < 2 || bytes[1] < 2 || bytes[1] > bytes.size()) return false;
    const std::span<const uint8_t> value = bytes.subspan(2, bytes[1] - 2U);
    bytes = bytes.subspan(bytes[1]);
    switch (kind) {
      case option_mss:
        if (value.size() != 2) return false;
        options.maximum_segment_size = load16(value.data());
        break;
      case option_window_scale:
        if (value.size() != 1) return false;
        // RFC 7323 section 2.3: a shift over 14 counts as 14.
        options.window_scale = std::min<uint8_t>(value[0], 14);
        break;
      case option_sack_permitted:
        if (!value.empty()) return false;
        options.sack_permitted = true;
        break;
      case option_sack:
        if (value.size() % 8 != 0) return false;
        for (size_t i = 0; i < value.size(); i += 8)
          options.sack_blocks.push_back(
              {SequenceNumber(load32(&value[i])), SequenceNumber(load32(&value[i + 4]))});
        break;
      case option_timestamps:
        if (value.size() != 8) return false;
        options.timestamps = TcpTimestamps{load32(value.data()), load32(&value[4])};
        break;
      default:
        break;
    }
  }
  return true;
}

struct Lengths {
  uint32_t headers;  // IP and TCP or UDP
  uint32_t payload;
};

std::optional<Lengths> parse_tcp(std::span<const uint8_t> bytes, const IpHeader& ip,
                                 TcpHeader& header) {
  if (bytes.size() < ip.header_length + tcp_header_length) return std::nullopt;
  const std::span<const uint8_t> tcp = bytes.subspan(ip.header_length);
  const uint32_t data_offset = (tcp[12] >> 4U) * 4U;
  const uint32_t header_length = ip.header_length + data_offset;
  if (data_offset < tcp_header_length || data_offset > tcp.size() ||
      header_length > ip.total_length)
    return std::nullopt;
  header.sequence = SequenceNumber(load32(&tcp[4]));
  header.acknowledgment = SequenceNumber(load32(&tcp[8]));
  const uint8_t flags = tcp[13];
  header.flags = {.fin = (flags & flag_fin) != 0,
                  .syn = (flags & flag_syn) != 0,
                  .rst = (flags & flag_rst) != 0,
                  .psh = (flags & flag_psh) != 0,
                  .ack = (flags & flag_ack) != 0};
  header.window = load16(&tcp[14]);
  if (!parse_options(tcp.subspan(tcp_header_length, data_offset - tcp_header_length),
                     header.options))
    return std::nullopt;
  return Lengths{header_length, static_cast<uint32_t>(ip.total_length - header_length)};
}

// RFC 768. Its own length may be less than what IP says; the rest is then no part of the datagram.
std::optional<Lengths> parse_udp(std::span<const uint8_t> bytes, const IpHeader& ip) {
  const uint32_t header_length = ip.header_length + udp_header_length;
  if (bytes.size() < header_length || header_length > ip.total_length) return std::nullopt;
  const uint32_t length = load16(&bytes[ip.header_length + 4]);
  if (length < udp_header_length || length > ip.total_length - ip.header_length)
    return std::nullopt;
  return Lengths{header_length, length - udp_header_length};
}

uint8_t* write_options(uint8_t* p, const TcpOptions& options) {
  const uint8_t* begin = p;
  if (options.maximum_segment_size) {
    *p++ = option_mss;
    *p++ = 4;
    store16(p, *options.maximum_segment_size);
    p += 2;
  }
  if (options.sack_permitted) {
    *p++ = option_sack_permitted;
    *p++ = 2;
  }
  if (options.timestamps) {
    *p++ = option_timestamps;
    *p++ = 10;
    store32(p, options.timestamps->value);
    store32(p + 4, options.timestamps->echo);
    p += 8;
  }
  if (options.window_scale) {
    *p++ = option_window_scale;
    *p++ = 3;
    *p++ = *options.window_scale;
  }
  if (const auto blocks = options.sack_blocks.get(); !blocks.empty()) {
    *p++ = option_sack;
    *p++ = static_cast<uint8_t>(2 + 8 * blocks.size());
    for (const SackBlock& block : blocks) {
      store32(p, block.begin.value());
      store32(p + 4, block.end.value());
      p += 8;
    }
  }
  while ((p - begin) % 4 != 0) *p++ = option_end;
  return p;
}

}  // namespace

uint32_t TcpOptions::length() const {
  uint32_t length = 0;
  if (maximum_segment_size) length += 4;
  if (sack_permitted) length += 2;
  if (timestamps) length += 10;
  if (window_scale) length += 3;
  if (!sack_blocks.empty()) length += 2 + 8 * static_cast<uint32_t>(sack_blocks.get().size());
  return (length + 3) / 4 * 4;
}

uint32_t ip_header_length(Family family) {
  return family == Family::ipv4 ? ipv4_header_length : ipv6_header_length;
}

std::variant<Packet, ParseError> parse_packet(std::span<const uint8_t> bytes, size_t wire_length) {
  if (bytes.empty()) return ParseError::malformed;
  const unsigned version = bytes[0] >> 4;
  if (version != 4 && version != 6) return ParseError::other_protocol;
  const auto parsed =
      version == 4 ? parse_ipv4(bytes, wire_length) : parse_ipv6(bytes, wire_length);
  if (const auto* error = std::get_if<ParseError>(&parsed)) return *error;
  const auto& ip = std::get<IpHeader>(parsed);

  Packet packet;
  packet.protocol = ip.protocol;
  packet.ip_header_length = ip.header_length;
  const auto lengths =
      ip.protocol == Protocol::tcp ? parse_tcp(bytes, ip, packet.tcp) : parse_udp(bytes, ip);
  if (!lengths) return ParseError::malformed;
  const uint8_t* const ports = &bytes[ip.header_length];
  packet.source = {ip.source, Port{load16(ports)}};
  packet.destination = {ip.destination, Port{load16(ports + 2)}};
  packet.header_length = lengths->headers;
  packet.payload_length = lengths->payload;
  // Behind the packet there may be padding of the link layer.
  packet.payload = bytes.subspan(
      lengths->headers, std::min<size_t>(bytes.size() - lengths->headers, lengths->payload));
  return packet;
}

bool checksum_holds(const Packet& packet, std::span<const uint8_t> bytes) {
  if (packet.cut()) return true;
  const std::span<const uint8_t> segment =
      bytes.subspan(packet.ip_header_length,
                    packet.header_length - packet.ip_header_length + packet.payload_length);
  const bool tcp = packet.protocol == Protocol::tcp;
  const uint16_t checksum = load16(&segment[tcp ? 16 : 6]);
  if (!tcp && checksum == 0) return packet.source.address.family() == Family::ipv4;
  const uint64_t pseudo =
      pseudo_header_sum(packet.protocol, packet.source.address, packet.destination.address,
                        static_cast<uint32_t>(segment.size()));
  return checksum == checksum_fold(pseudo) ||
         checksum_fold(checksum_add(pseudo, segment)) == 0xffff;
}

namespace {

// `length`: of what follows.
void write_ip_header(uint8_t* packet, const IpAddress& source, const IpAddress& destination,
                     Protocol protocol, uint32_t length) {
  constexpr uint8_t hop_limit = 64;
  const uint8_t number = protocol == Protocol::tcp ? IPPROTO_TCP : IPPROTO_UDP;
  if (destination.family() == Family::ipv4) {
    packet[0] = 0x45;
    packet[1] = 0;
    store16(packet + 2, static_cast<uint16_t>(ipv4_header_length + length));
    // Identification is left to the kernel, and the packet may be fragmented: the path MTU is
    // followed by what is sent, and where it shrinks meanwhile nothing is lost.
    store32(packet + 4, 0);
    packet[8] = hop_limit;
    packet[9] = number;
    store16(packet + 10, 0);
    std::copy_n(source.bytes().data(), 4, packet + 12);
    std::copy_n(destination.bytes().data(), 4, packet + 16);
    store16(packet + 10,
            static_cast<uint16_t>(~checksum_fold(checksum_add(0, {packet, ipv4_header_length}))));
  } else {
    store32(packet, 0x60000000);
    store16(packet + 4, static_cast<uint16_t>(length));
    packet[6] = number;
    packet[7] = hop_limit;
    std::copy_n(source.bytes().data(), 16, packet + 8);
    std::copy_n(destination.bytes().data(), 16, packet + 24);
  }
}

}  // namespace

void append_datagram(std::string& out, const Endpoint& source, const Endpoint& destination,
                     std::span<const uint8_t> payload) {
  const size_t begin = out.size();
  const uint32_t ip_length = ip_header_length(destination.address.family());
  const auto length = static_cast<uint32_t>(udp_header_length + payload.size());
  out.resize(begin + ip_length + length);
  auto* const packet = reinterpret_cast<uint8_t*>(out.data()) + begin;
  write_ip_header(packet, source.address, destination.address, Protocol::udp, length);
  uint8_t* const datagram = packet + ip_length;
  store16(datagram, source.port.number);
  store16(datagram + 2, destination.port.number);
  store16(datagram + 4, static_cast<uint16_t>(length));
  store16(datagram + 6, 0);
  if (!payload.empty()) std::memcpy(datagram + udp_header_length, payload.data(), payload.size());
  const uint64_t sum =
      checksum_add(pseudo_header_sum(Protocol::udp, source.address, destination.address, length),
                   {datagram, length});
  const auto checksum = static_cast<uint16_t>(~checksum_fold(sum));
  store16(datagram + 6, checksum == 0 ? 0xffff : checksum);  // RFC 768: 0 is none
}

namespace detail {

void write_headers(uint8_t* packet, const Endpoint& source, const Endpoint& destination,
                   const TcpHeader& tcp, uint32_t payload_length) {
  const uint32_t ip_length = ip_header_length(destination.address.family());
  const uint32_t data_offset = tcp_header_length + tcp.options.length();
  const uint32_t tcp_length = data_offset + payload_length;

  uint8_t* segment = packet + ip_length;
  store16(segment, source.port.number);
  store16(segment + 2, destination.port.number);
  store32(segment + 4, tcp.sequence.value());
  store32(segment + 8, tcp.acknowledgment.value());
  segment[12] = static_cast<uint8_t>(data_offset / 4 << 4);
  segment[13] =
      static_cast<uint8_t>((tcp.flags.fin ? flag_fin : 0) | (tcp.flags.syn ? flag_syn : 0) |
                           (tcp.flags.rst ? flag_rst : 0) | (tcp.flags.psh ? flag_psh : 0) |
                           (tcp.flags.ack ? flag_ack : 0));
  store16(segment + 14, tcp.window);
  store32(segment + 16, 0);  // checksum and urgent pointer
  write_options(segment + tcp_header_length, tcp.options);
  const uint64_t sum = checksum_add(
      pseudo_header_sum(Protocol::tcp, source.address, destination.address, tcp_length),
      {segment, tcp_length});
  store16(segment + 16, static_cast<uint16_t>(~checksum_fold(sum)));
  write_ip_header(packet, source.address, destination.address, Protocol::tcp, tcp_length);
}

}  // namespace detail
}  // namespace trafficmirror::net
