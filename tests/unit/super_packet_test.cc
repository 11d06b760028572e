#include "inject/super_packet.h"

#include <gtest/gtest.h>

#include "tests/unit/tcp_packets.h"

namespace trafficmirror::inject {
namespace {

using tests::packet;

constexpr net::TcpFlags ack{.ack = true}, push{.psh = true, .ack = true};
constexpr const char *here = "10.1.0.1:10001", *there = "10.2.0.1:80";

std::string data(uint32_t sequence, size_t length, net::TcpFlags flags = ack) {
  return packet(here, there, {sequence, 7, flags, std::string(length, 'x')});
}

// How many packets of `packets` the first super-packet takes.
size_t taken(std::string_view packets) {
  const auto super = SuperPacket::take(packets);
  return super ? super->payloads().size() : 0;
}

std::string whole(const SuperPacket& super) {
  std::string packet(reinterpret_cast<const char*>(super.headers().data()), super.headers().size());
  for (const std::string_view payload : super.payloads()) packet += payload;
  return packet;
}

TEST(SuperPacketTest, IsTheSegmentsInOne) {
  for (const auto& [source, destination] :
       {std::pair(here, there), std::pair("[fd01::1]:10001", "[fd02::1]:80")}) {
    const auto segment = [&, source = source, destination = destination](
                             uint32_t sequence, const std::string& bytes, net::TcpFlags flags) {
      return packet(source, destination, {sequence, 7, flags, bytes});
    };
    const std::string packets = segment(0xfffffffe, "abcd", ack) + segment(2, "efgh", ack) +
                                segment(6, "ij", push) + segment(8, "klmn", ack);
    std::string_view rest = packets;
    const auto super = SuperPacket::take(rest);
    ASSERT_TRUE(super);
    EXPECT_EQ(super->segment_size(), 4);
    EXPECT_EQ(super->segment_bytes(), packets.size() - rest.size());
    EXPECT_EQ(rest, segment(8, "klmn", ack));
    EXPECT_EQ(super->destination(), net::Endpoint::parse(destination)->address);
    const std::string bytes = whole(*super);
    const net::Packet merged = tests::parsed(bytes);
    EXPECT_EQ(merged.tcp.sequence, net::SequenceNumber(0xfffffffe));
    EXPECT_TRUE(merged.tcp.flags.psh);
    EXPECT_EQ(std::string(merged.payload.begin(), merged.payload.end()), "abcdefghij");
    // The kernel's half-done checksum, and not yet a whole one.
    EXPECT_TRUE(net::checksum_holds(merged, tests::bytes_of(bytes)));
    EXPECT_NE(bytes.substr(0, merged.header_length),
              segment(0xfffffffe, "abcdefghij", push).substr(0, merged.header_length));
  }
}

TEST(SuperPacketTest, TakesOnlyWhatTheKernelCutsUpAgainAsItWas) {
  EXPECT_EQ(taken(data(1, 100) + data(101, 100)), 2u);
  EXPECT_EQ(taken(data(1, 100)), 0u);
  EXPECT_EQ(taken(data(1, 100) + data(102, 100)), 0u) << "a gap";
  EXPECT_EQ(taken(data(1, 100) + data(101, 101)), 0u) << "longer than the first";
  EXPECT_EQ(taken(data(1, 100) + data(101, 99) + data(200, 100)), 2u) << "behind a short one";
  EXPECT_EQ(taken(data(1, 100, push) + data(101, 100)), 0u) << "PSH before the last";
  EXPECT_EQ(taken(data(1, 100) + data(101, 0)), 0u) << "no data";
  EXPECT_EQ(taken(data(1, 100) + data(101, 100, {.fin = true, .ack = true})), 0u);
  EXPECT_EQ(taken(data(1, 100) + packet(here, there, {101, 8, ack, std::string(100, 'x')})), 0u)
      << "another acknowledgment";
  EXPECT_EQ(
      taken(data(1, 100) + packet("10.1.0.1:10002", there, {101, 7, ack, std::string(100, 'x')})),
      0u)
      << "another connection";
  EXPECT_EQ(taken(data(1, 100) + packet("[fd01::1]:1", "[fd02::1]:80", {101, 7, ack, "x"})), 0u)
      << "another family";
  EXPECT_EQ(taken(data(1, 100) + data(101, 100).substr(0, 60)), 0u) << "not whole";
  EXPECT_EQ(taken(""), 0u);
}

TEST(SuperPacketTest, FitsAnIpPacket) {
  std::string packets;
  for (uint32_t i = 0; i < 60; ++i) packets += data(1 + i * 1460, 1460);
  EXPECT_EQ(taken(packets), (65535 - 40) / 1460);
  packets.clear();
  for (uint32_t i = 0; i < 100; ++i) packets += data(1 + i * 10, 10);
  EXPECT_EQ(taken(packets), SuperPacket::max_segments);
}

}  // namespace
}  // namespace trafficmirror::inject
