// What is counted of exchanges, and of how late they were, with each of the ways to take turns.
#include <vector>

#include <gtest/gtest.h>

#include "sidecar/session/engine.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::session {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr const char* client = "192.0.2.7:40001";
constexpr const char* server = "10.1.0.1:80";
constexpr uint32_t request = 100;
constexpr uint32_t answer = 500;

// A client whose requests production answers at once, and its session towards a shadow that does
// what the test says.
class Exchanges : public testing::Test, protected SegmentSink {
 protected:
  Exchanges() {
    engine.set_lease(now, stream,
                     {{{*net::IpAddress::parse("10.9.0.1"), net::Port{10000}, net::Port{10100}}},
                      {{net::Port{80}, *net::Endpoint::parse("10.2.0.1:8080"), 1500}}});
  }

  void pace(const Pacing& pacing) {
    Limits limits;
    limits.pacing = pacing;
    engine.set_limits(now, limits);
  }
  void capture(const char* from, const char* to, const tests::Segment& segment) {
    engine.on_production(now, tests::parsed(tests::packet(from, to, segment)));
  }
  void open() {
    capture(client, server, {.flags = {.syn = true}});
    capture(server, client, {.acknowledgment = 1, .flags = {.syn = true, .ack = true}});
    engine.run(now);
    shadow({.syn = true, .ack = true}, 0, 0);
  }
  // The client sends its next request, and production answers it.
  void exchange() {
    capture(client, server,
            {1 + requests * request,
             1 + requests * answer,
             {.psh = true, .ack = true},
             std::string(request, 'r')});
    ++requests;
    capture(server, client,
            {1 + (requests - 1) * answer,
             1 + requests * request,
             {.psh = true, .ack = true},
             std::string(answer, 'a')});
    engine.run(now);
  }
  // The shadow has so many requests, and says so many bytes more.
  void shadow(net::TcpFlags flags, uint32_t received, uint32_t length) {
    net::Packet packet;
    packet.source = path.target;
    packet.destination = path.source;
    packet.tcp.flags = flags;
    packet.tcp.sequence = net::SequenceNumber(said);
    packet.tcp.acknowledgment = initial + 1 + received * request;
    packet.tcp.window = 65535;
    packet.payload_length = length;
    said += length + flags.syn;
    engine.on_shadow(now, stream, packet);
  }
  void shadow_receives(uint32_t count) {
    shadow({.ack = true}, count, 0);
    engine.run(now);
  }
  void send(const Path& to, const Segment& segment) override {
    if (segment.header.flags.syn) initial = segment.header.sequence;
    path = to;
    sent += segment.length;
  }

  // How many exchanges were later than `above` and no later than `most`.
  uint64_t late(Duration above, Duration most) const {
    const Lags lags = engine.counters().lags;
    uint64_t count = 0;
    for (size_t i = 0; i < Lags::bounds.size(); ++i)
      if (Lags::bounds[i] > above && Lags::bounds[i] <= most) count += lags.exchanges[i];
    return count;
  }

  static Engine::Options options() {
    Engine::Options options;
    options.ports = {net::Port{80}};
    return options;
  }
  Time now{seconds(1)};
  Engine engine{options()};
  Stream& stream = engine.add_stream(0, *this);
  Path path;
  net::SequenceNumber initial;
  uint32_t said = 5000;
  uint32_t requests = 0;
  uint64_t sent = 0;
};

TEST_F(Exchanges, HaveTheLagOfTheirFirstByte) {
  open();
  exchange();
  EXPECT_EQ(late(Duration(-1), milliseconds(1)), 1U);
  now += milliseconds(10);
  exchange();
  EXPECT_EQ(sent, request);
  now += milliseconds(300);
  shadow({.psh = true, .ack = true}, 1, answer);
  engine.run(now);
  EXPECT_EQ(sent, 2 * request);
  EXPECT_EQ(late(milliseconds(200), milliseconds(500)), 1U);
  EXPECT_EQ(engine.counters().lags.sum, 300'000U);
  // What is sent again is counted no more.
  now = engine.deadline() + seconds(1);
  engine.run(now);
  EXPECT_GT(engine.counters().retransmits, 0U);
  EXPECT_EQ(late(Duration(-1), seconds(60)), 2U);
}

TEST_F(Exchanges, HaveTheLagOfTheHandshake) {
  capture(client, server, {.flags = {.syn = true}});
  capture(server, client, {.acknowledgment = 1, .flags = {.syn = true, .ack = true}});
  engine.run(now);
  exchange();
  now += milliseconds(15);
  shadow({.syn = true, .ack = true}, 0, 0);
  engine.run(now);
  EXPECT_EQ(late(milliseconds(10), milliseconds(20)), 1U);
}

TEST_F(Exchanges, HaveTheLagOfAWindowThatHoldsThemBack) {
  pace({.turns = Turns::off});
  open();
  exchange();
  // There is room for half a request more, which is sent when there is room for all of it.
  net::Packet packet;
  for (int i = 0; i < 3; ++i) exchange();
  EXPECT_EQ(sent, 4 * request) << "the window is wide";
  EXPECT_EQ(late(Duration(-1), milliseconds(1)), 4U);
  packet.source = path.target;
  packet.destination = path.source;
  packet.tcp.flags.ack = true;
  packet.tcp.sequence = net::SequenceNumber(said);
  packet.tcp.acknowledgment = initial + 1 + 4 * request;
  packet.tcp.window = 0;
  engine.on_shadow(now, stream, packet);
  exchange();
  exchange();
  EXPECT_EQ(sent, 4 * request);
  now += milliseconds(150);
  packet.tcp.window = 65535;
  engine.on_shadow(now, stream, packet);
  engine.run(now);
  EXPECT_EQ(sent, 6 * request);
  EXPECT_EQ(late(milliseconds(100), milliseconds(200)), 2U);
}

TEST_F(Exchanges, LongerThanAllBucketsAreInTheLast) {
  open();
  exchange();
  shadow_receives(1);
  exchange();
  now += seconds(59);
  shadow({.ack = true}, 1, answer / 2);
  engine.run(now);
  now += seconds(2);
  shadow({.psh = true, .ack = true}, 1, answer / 2);
  engine.run(now);
  EXPECT_EQ(engine.counters().lags.exchanges.back(), 1U);
}

TEST_F(Exchanges, AreAnsweredOneByOneThoughTheyWereSentAhead) {
  pace({.turns = Turns::eager});
  open();
  for (uint32_t i = 1; i <= 4; ++i) {
    exchange();
    shadow_receives(i);
  }
  EXPECT_EQ(sent, 4 * request);
  EXPECT_EQ(engine.counters().exchanges, 0U);
  shadow({.psh = true, .ack = true}, 4, answer);
  engine.run(now);
  EXPECT_EQ(engine.counters().exchanges, 1U);
  // Two answers in one batch.
  shadow({.psh = true, .ack = true}, 4, answer);
  shadow({.psh = true, .ack = true}, 4, answer);
  engine.run(now);
  EXPECT_EQ(engine.counters().exchanges, 3U);
  shadow({.psh = true, .ack = true}, 4, answer);
  engine.run(now);
  EXPECT_EQ(engine.counters().exchanges, 4U);
  EXPECT_EQ(late(Duration(-1), milliseconds(1)), 4U);
}

TEST_F(Exchanges, ThatWereSentAheadAreNotAnsweredByAShadowThatCloses) {
  pace({.turns = Turns::eager});
  open();
  for (uint32_t i = 1; i <= 4; ++i) {
    exchange();
    shadow_receives(i);
  }
  shadow({.psh = true, .ack = true}, 4, answer);
  shadow({.fin = true, .ack = true}, 4, 0);
  engine.run(now);
  EXPECT_EQ(sent, 4 * request);
  EXPECT_EQ(engine.counters().exchanges, 1U);
}

TEST_F(Exchanges, ThatWereSentAheadLeaveNothingBehind) {
  pace({.turns = Turns::eager});
  open();
  exchange();
  shadow_receives(1);
  shadow({.psh = true, .ack = true}, 1, answer);
  engine.run(now);
  const uint64_t before = engine.counters().memory;
  for (uint32_t i = 2; i <= 100; ++i) {
    exchange();
    shadow_receives(i);
  }
  EXPECT_GT(engine.counters().memory, before) << "they are remembered until they are answered";
  shadow({.psh = true, .ack = true}, 100, 99 * answer);
  engine.run(now);
  EXPECT_EQ(engine.counters().exchanges, 100U);
  EXPECT_EQ(engine.counters().memory, before);
}

}  // namespace
}  // namespace trafficmirror::session
