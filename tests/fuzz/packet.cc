// Packets as anybody may send them: what is read lies within the bytes, and a packet that was read
// is read the same again once it is written.
#include "net/packet.h"

#include <cstring>

#include "net/batch.h"
#include "net/checksum.h"
#include "tests/fuzz/fuzz.h"

using trafficmirror::fuzz::as_bytes;
using trafficmirror::fuzz::require;
namespace net = trafficmirror::net;

namespace {

bool same(const net::TcpHeader& a, const net::TcpHeader& b) {
  return a.sequence == b.sequence && a.acknowledgment == b.acknowledgment && a.flags == b.flags &&
         a.window == b.window && a.options == b.options;
}

void check_bounds(const net::Packet& packet, std::span<const uint8_t> bytes) {
  require(packet.ip_header_length >= net::ip_header_length(packet.source.address.family()),
          "the IP header has its length");
  require(packet.header_length >= packet.ip_header_length + (packet.protocol == net::Protocol::tcp
                                                                 ? net::tcp_header_length
                                                                 : net::udp_header_length),
          "the header of TCP or UDP has its length");
  require(packet.header_length <= bytes.size(), "the headers are there");
  require(packet.payload.size() <= packet.payload_length, "no more payload than there is");
  require(packet.payload.empty() || (packet.payload.data() == bytes.data() + packet.header_length &&
                                     packet.header_length + packet.payload.size() <= bytes.size()),
          "the payload lies in the bytes");
  require(packet.source.address.family() == packet.destination.address.family(),
          "both addresses are of one family");
  require((bytes[0] >> 4 == 4) == (packet.source.address.family() == net::Family::ipv4),
          "the addresses are of the packet's family");
  require(packet.tcp.options.length() <= 40, "the options fit into a header");
}

void check_round_trip(const net::Packet& packet) {
  std::string text;
  if (packet.protocol == net::Protocol::udp)
    net::append_datagram(text, packet.source, packet.destination, packet.payload);
  else
    net::append_packet(text, packet.source, packet.destination, packet.tcp,
                       static_cast<uint32_t>(packet.payload.size()), [&](uint8_t* to) {
                         std::memcpy(to, packet.payload.data(), packet.payload.size());
                       });
  const auto parsed = net::parse_packet(as_bytes(text), text.size());
  const auto* again = std::get_if<net::Packet>(&parsed);
  require(again != nullptr, "what was written can be read");
  require(again->source == packet.source && again->destination == packet.destination,
          "the endpoints are the same");
  require(again->protocol == packet.protocol, "the protocol is the same");
  require(same(again->tcp, packet.tcp), "the TCP header is the same");
  require(!again->cut() && std::equal(packet.payload.begin(), packet.payload.end(),
                                      again->payload.begin(), again->payload.end()),
          "the payload is the same");
  require(net::checksum_holds(*again, as_bytes(text)), "its checksum holds");
  require(trafficmirror::net::first_packet_length(as_bytes(text)) == text.size(),
          "it says its own length");
}

void check_checksum(std::span<const uint8_t> bytes) {
  const size_t half = bytes.size() / 4 * 2;
  require(net::checksum_fold(
              net::checksum_add(net::checksum_add(0, bytes.first(half)), bytes.subspan(half))) ==
              net::checksum_fold(net::checksum_add(0, bytes)),
          "a sum in two parts is the sum");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  trafficmirror::fuzz::Input input({data, size});
  const uint16_t cut_off = input.u16();
  const std::span<const uint8_t> bytes = input.rest();
  check_checksum(bytes);
  const auto length = trafficmirror::net::first_packet_length(bytes);
  require(!length || *length <= bytes.size(), "the first packet lies in the bytes");

  const auto parsed = net::parse_packet(bytes, bytes.size() + cut_off);
  const auto* packet = std::get_if<net::Packet>(&parsed);
  if (packet == nullptr) return 0;
  check_bounds(*packet, bytes);
  net::checksum_holds(*packet, bytes);
  if (packet->header_length + packet->payload.size() <= 0xffff) check_round_trip(*packet);
  return 0;
}
