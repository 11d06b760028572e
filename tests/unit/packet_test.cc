#include "net/packet.h"

#include <cstring>

#include <gtest/gtest.h>

#include "net/bytes.h"
#include "net/checksum.h"

namespace trafficmirror::net {
namespace {

const Endpoint v4_client = *Endpoint::parse("10.0.0.1:1000");
const Endpoint v4_server = *Endpoint::parse("10.0.0.2:80");
const Endpoint v6_client = *Endpoint::parse("[fd00::1]:1000");
const Endpoint v6_server = *Endpoint::parse("[fd00::2]:80");

std::span<const uint8_t> bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string packet_with(const TcpHeader& header, std::string_view payload,
                        const Endpoint& source = v4_client,
                        const Endpoint& destination = v4_server) {
  std::string out;
  append_packet(out, source, destination, header, static_cast<uint32_t>(payload.size()),
                [&](uint8_t* to) { std::memcpy(to, payload.data(), payload.size()); });
  return out;
}

const Packet& parsed(const std::variant<Packet, ParseError>& result) {
  return std::get<Packet>(result);
}

TcpHeader header_with_every_option() {
  TcpHeader header;
  header.sequence = SequenceNumber(0xfffffff0);
  header.acknowledgment = SequenceNumber(7);
  header.flags = {.psh = true, .ack = true};
  header.window = 501;
  header.options.maximum_segment_size = 1460;
  header.options.window_scale = 7;
  header.options.sack_permitted = true;
  header.options.timestamps = TcpTimestamps{1, 2};
  header.options.sack_blocks.push_back({SequenceNumber(10), SequenceNumber(20)});
  return header;
}

TEST(Packet, IsReadAsItWasWritten) {
  for (const auto& [source, destination] :
       {std::pair(v4_client, v4_server), std::pair(v6_client, v6_server)}) {
    const TcpHeader header = header_with_every_option();
    const std::string packet = packet_with(header, "GET /", source, destination);
    const auto result = parse_packet(bytes(packet), packet.size());
    ASSERT_TRUE(std::holds_alternative<Packet>(result));
    EXPECT_EQ(parsed(result).source, source);
    EXPECT_EQ(parsed(result).destination, destination);
    EXPECT_EQ(parsed(result).tcp.sequence, header.sequence);
    EXPECT_EQ(parsed(result).tcp.acknowledgment, header.acknowledgment);
    EXPECT_EQ(parsed(result).tcp.flags, header.flags);
    EXPECT_EQ(parsed(result).tcp.window, header.window);
    EXPECT_EQ(parsed(result).tcp.options, header.options);
    EXPECT_EQ(std::string(parsed(result).payload.begin(), parsed(result).payload.end()), "GET /");
    EXPECT_TRUE(checksum_holds(parsed(result), bytes(packet)));
  }
}

TEST(Packet, IpHeaderChecksumIsRight) {
  const std::string packet = packet_with({}, "x");
  EXPECT_EQ(checksum_fold(checksum_add(0, bytes(packet).first(20))), 0xffff);
}

TEST(Packet, AnyFlippedBitFailsTheChecksum) {
  const std::string packet = packet_with(header_with_every_option(), "odd payload");
  for (size_t i = 20; i < packet.size(); ++i) {
    std::string broken = packet;
    broken[i] = static_cast<char>(broken[i] ^ 0x10);
    const auto result = parse_packet(bytes(broken), broken.size());
    if (std::holds_alternative<Packet>(result)) {
      EXPECT_FALSE(checksum_holds(parsed(result), bytes(broken))) << "byte " << i;
    }
  }
}

TEST(Packet, AcceptsTheChecksumTheKernelLeavesToHardware) {
  std::string packet = packet_with({}, "super-packet");
  const uint64_t pseudo = pseudo_header_sum(Protocol::tcp, v4_client.address, v4_server.address,
                                            static_cast<uint32_t>(packet.size() - 20));
  store16(reinterpret_cast<uint8_t*>(packet.data()) + 36, checksum_fold(pseudo));
  EXPECT_TRUE(checksum_holds(parsed(parse_packet(bytes(packet), packet.size())), bytes(packet)));
}

TEST(Packet, HeadersAloneKeepThePayloadLength) {
  const std::string packet = packet_with({}, std::string(1000, 'x'));
  const auto result = parse_packet(bytes(packet).first(40), packet.size());
  EXPECT_EQ(parsed(result).payload_length, 1000);
  EXPECT_TRUE(parsed(result).payload.empty());
  EXPECT_TRUE(parsed(result).cut());
}

TEST(Packet, LinkLayerPaddingIsNotPayload) {
  std::string packet = packet_with({}, "");
  packet.append(6, '\0');
  EXPECT_EQ(parsed(parse_packet(bytes(packet), packet.size())).payload_length, 0);
}

TEST(Packet, UnknownOptionsArePassedOver) {
  TcpHeader header;
  header.options.timestamps = TcpTimestamps{1, 2};
  std::string packet = packet_with(header, "");
  packet[40] = static_cast<char>(254);  // experimental, RFC 4727; its length of 10 stays
  const auto result = parse_packet(bytes(packet), packet.size());
  EXPECT_EQ(parsed(result).tcp.options, TcpOptions());
}

TEST(Packet, ReadsBehindIpv6ExtensionHeaders) {
  std::string packet = packet_with({}, "x", v6_client, v6_server);
  packet.insert(40, std::string("\x06\x00\x01\x04\x00\x00\x00\x00", 8));  // destination options
  packet[6] = 60;
  packet[5] = static_cast<char>(packet[5] + 8);
  const auto result = parse_packet(bytes(packet), packet.size());
  EXPECT_EQ(parsed(result).source, v6_client);
  EXPECT_EQ(parsed(result).payload_length, 1);
  EXPECT_TRUE(checksum_holds(parsed(result), bytes(packet)));
}

TEST(Packet, RefusesWhatItCannotRead) {
  const std::string good = packet_with(header_with_every_option(), "x");
  const auto error = [](const std::string& packet) {
    const auto result = parse_packet(bytes(packet), packet.size());
    return std::holds_alternative<ParseError>(result) ? std::get<ParseError>(result)
                                                      : ParseError(255);
  };
  const auto changed = [&](size_t at, int value) {
    std::string packet = good;
    packet[at] = static_cast<char>(value);
    return error(packet);
  };
  EXPECT_EQ(error(""), ParseError::malformed);
  EXPECT_EQ(changed(0, 0x75), ParseError::other_protocol);  // IP version 7
  EXPECT_EQ(changed(0, 0x44), ParseError::malformed);       // IPv4 header of 16 bytes
  EXPECT_EQ(changed(9, 1), ParseError::other_protocol);     // ICMP
  EXPECT_EQ(changed(6, 0x20), ParseError::fragment);        // more fragments
  EXPECT_EQ(changed(7, 1), ParseError::fragment);           // an offset
  EXPECT_EQ(changed(3, 30), ParseError::malformed);         // total length within the headers
  EXPECT_EQ(changed(32, 0x40), ParseError::malformed);      // TCP header of 16 bytes
  EXPECT_EQ(changed(41, 40), ParseError::malformed);        // an option that runs past the header
  EXPECT_EQ(changed(41, 3), ParseError::malformed);         // a maximum segment size of one byte
  for (size_t size = 0; size + 1 < good.size(); ++size)
    EXPECT_TRUE(error(good.substr(0, size)) == ParseError::malformed || size >= good.size() - 1);
}

TEST(Packet, AnIpv6PacketWithAMappedAddressIsMalformed) {
  const std::string good = packet_with(TcpHeader(), "x", v6_client, v6_server);
  const std::string mapped = std::string(10, '\0') + "\xff\xff\x0a" + std::string(2, '\0') + "\x02";
  for (const size_t at : {8, 24}) {
    std::string packet = good;
    packet.replace(at, 16, mapped);
    const auto result = parse_packet(bytes(packet), packet.size());
    ASSERT_TRUE(std::holds_alternative<ParseError>(result)) << "it would be taken for 10.0.0.2";
    EXPECT_EQ(std::get<ParseError>(result), ParseError::malformed);
  }
}

std::string datagram_with(std::string_view payload, const Endpoint& source = v4_client,
                          const Endpoint& destination = v4_server) {
  std::string out;
  append_datagram(out, source, destination,
                  {reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
  return out;
}

TEST(Datagram, IsReadAsItWasWritten) {
  for (const auto& [source, destination] :
       {std::pair(v4_client, v4_server), std::pair(v6_client, v6_server)}) {
    for (const std::string_view payload : {"", "odd", "even"}) {
      const std::string packet = datagram_with(payload, source, destination);
      const auto result = parse_packet(bytes(packet), packet.size());
      ASSERT_TRUE(std::holds_alternative<Packet>(result));
      EXPECT_EQ(parsed(result).protocol, Protocol::udp);
      EXPECT_EQ(parsed(result).source, source);
      EXPECT_EQ(parsed(result).destination, destination);
      EXPECT_EQ(std::string(parsed(result).payload.begin(), parsed(result).payload.end()), payload);
      EXPECT_TRUE(checksum_holds(parsed(result), bytes(packet)));
    }
  }
}

TEST(Datagram, AnyFlippedBitFailsTheChecksum) {
  const std::string packet = datagram_with("odd payload");
  for (size_t i = 20; i < packet.size(); ++i) {
    std::string broken = packet;
    broken[i] = static_cast<char>(broken[i] ^ 0x10);
    const auto result = parse_packet(bytes(broken), broken.size());
    if (std::holds_alternative<Packet>(result)) {
      EXPECT_FALSE(checksum_holds(parsed(result), bytes(broken))) << "byte " << i;
    }
  }
}

TEST(Datagram, MayHaveNoChecksumInIpv4Alone) {
  for (const auto& [source, destination] :
       {std::pair(v4_client, v4_server), std::pair(v6_client, v6_server)}) {
    std::string packet = datagram_with("x", source, destination);
    const Family family = source.address.family();
    packet.replace(ip_header_length(family) + 6, 2, 2, '\0');
    EXPECT_EQ(checksum_holds(parsed(parse_packet(bytes(packet), packet.size())), bytes(packet)),
              family == Family::ipv4);
  }
}

TEST(Datagram, ItsOwnLengthHolds) {
  std::string packet = datagram_with("four");
  const auto with_length = [&](int length) {
    packet[25] = static_cast<char>(length);
    return parse_packet(bytes(packet), packet.size());
  };
  EXPECT_EQ(parsed(with_length(8)).payload_length, 0) << "what is behind it is none of it";
  for (const int wrong : {0, 7, 13}) {
    const auto result = with_length(wrong);
    ASSERT_TRUE(std::holds_alternative<ParseError>(result)) << wrong;
    EXPECT_EQ(std::get<ParseError>(result), ParseError::malformed);
  }
}

TEST(Sequence, OrderIsThatOfACircle) {
  const SequenceNumber before_wrap(0xfffffffe);
  EXPECT_LT(before_wrap, before_wrap + 3);
  EXPECT_EQ((before_wrap + 3) - before_wrap, 3);
  EXPECT_EQ((before_wrap + 3).value(), 1u);
}

}  // namespace
}  // namespace trafficmirror::net
