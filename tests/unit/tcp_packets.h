// Packets for tests, in one expression.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "net/packet.h"

namespace trafficmirror::tests {

inline std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct Segment {
  uint32_t sequence = 0;
  uint32_t acknowledgment = 0;
  net::TcpFlags flags = {};
  std::string payload = {};
};

inline std::string packet(std::string_view source, std::string_view destination,
                          const Segment& segment) {
  net::TcpHeader tcp;
  tcp.sequence = net::SequenceNumber(segment.sequence);
  tcp.acknowledgment = net::SequenceNumber(segment.acknowledgment);
  tcp.flags = segment.flags;
  tcp.window = 0xffff;
  std::string out;
  net::append_packet(out, *net::Endpoint::parse(source), *net::Endpoint::parse(destination), tcp,
                     static_cast<uint32_t>(segment.payload.size()),
                     [&](uint8_t* to) { segment.payload.copy(reinterpret_cast<char*>(to), ~0UL); });
  return out;
}

inline std::string datagram(std::string_view source, std::string_view destination,
                            std::string_view payload) {
  std::string out;
  net::append_datagram(out, *net::Endpoint::parse(source), *net::Endpoint::parse(destination),
                       bytes_of(payload));
  return out;
}

// The packet points into `text`.
inline net::Packet parsed(std::string_view text) {
  return std::get<net::Packet>(net::parse_packet(bytes_of(text), text.size()));
}

// Takes headers or packets that stand one behind the other apart. With headers alone, `whole` is
// false.
inline std::vector<net::Packet> split(std::string_view text, bool whole) {
  std::vector<net::Packet> packets;
  while (!text.empty()) {
    packets.push_back(parsed(text));
    text.remove_prefix(packets.back().header_length + (whole ? packets.back().payload_length : 0));
  }
  return packets;
}

// "10.0.0.1:1 > 10.0.0.2:80 SYN,ACK seq 5 ack 7 len 0", for readable failures.
inline std::string describe(const net::Packet& packet) {
  std::string flags;
  const auto flag = [&](bool set, const char* name) {
    if (set) flags += (flags.empty() ? "" : ",") + std::string(name);
  };
  flag(packet.tcp.flags.syn, "SYN");
  flag(packet.tcp.flags.fin, "FIN");
  flag(packet.tcp.flags.rst, "RST");
  flag(packet.tcp.flags.ack, "ACK");
  return packet.source.to_string() + " > " + packet.destination.to_string() + " " + flags +
         " seq " + std::to_string(packet.tcp.sequence.value()) + " ack " +
         std::to_string(packet.tcp.acknowledgment.value()) + " len " +
         std::to_string(packet.payload_length);
}

inline std::vector<std::string> describe_all(std::string_view packets) {
  std::vector<std::string> texts;
  for (const net::Packet& each : split(packets, true)) texts.push_back(describe(each));
  return texts;
}

}  // namespace trafficmirror::tests
