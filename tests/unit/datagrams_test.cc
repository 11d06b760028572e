// Clients of UDP, in virtual time: what the shadow is sent, what counts as its answer, and when a
// flow is over.
#include <deque>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "sidecar/session/engine.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::session {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

const std::string server = "10.1.0.1:53";
const std::string shadow = "10.2.0.1:5353";

struct Sent {
  net::Endpoint source;
  net::Endpoint target;
  std::string payload;
};

// The shadow behind one stream; it answers when the test says so.
class Datagrams : public testing::Test, protected SegmentSink {
 protected:
  explicit Datagrams(Engine::Options options = with_ports()) : engine(std::move(options)) {
    lease(4);
  }
  static Engine::Options with_ports() {
    Engine::Options options;
    options.udp_ports = {net::Port{53}};
    return options;
  }

  void send(const Path& /*path*/, const Segment& /*segment*/) override { ++segments; }
  void send_datagram(const Path& path, std::span<const uint8_t> payload) override {
    sent.push_back({path.source, path.target, {payload.begin(), payload.end()}});
  }

  void lease(uint16_t ports, const std::vector<std::string>& targets = {shadow}) {
    Lease lease;
    lease.sources = {{*net::IpAddress::parse("10.9.0.1"), net::Port{10000},
                      net::Port{static_cast<uint16_t>(9999 + ports)}}};
    for (const std::string& target : targets)
      lease.targets.push_back(
          {net::Port{53}, *net::Endpoint::parse(target), 1500, net::Protocol::udp});
    engine.set_lease(now, stream, lease);
  }
  void ask(const std::string& client, const std::string& payload = "question") {
    const std::string packet = tests::datagram(client, server, payload);
    engine.on_production(now, tests::parsed(packet));
    engine.run(now);
  }
  // To the newest datagram.
  void answer(const std::string& payload = "answer") { answer(sent.back(), payload); }
  void answer(const Sent& to, const std::string& payload = "answer") {
    const std::string packet =
        tests::datagram(to.target.to_string(), to.source.to_string(), payload);
    engine.on_shadow(now, stream, tests::parsed(packet));
    engine.run(now);
  }
  void pass(Duration time) {
    now += time;
    engine.run(now);
  }
  Counters counters() const { return engine.counters(); }
  uint64_t shed(ShedReason reason) const { return counters()[reason]; }
  void expect_sums_close() const {
    const auto& closed = counters().closed;
    EXPECT_EQ(counters().opened,
              counters().active + std::accumulate(closed.begin(), closed.end(), uint64_t{0}));
  }
  static std::string client(int number) { return "192.0.2.1:" + std::to_string(40000 + number); }

  Time now{minutes(10)};
  Engine engine;
  Stream& stream{engine.add_stream(1, *this)};
  std::vector<Sent> sent;
  size_t segments = 0;
};

TEST_F(Datagrams, GoOutAsTheyCame) {
  ask(client(1), "one");
  ask(client(1), "");
  ask(client(2), "two");
  ASSERT_EQ(sent.size(), 3U);
  EXPECT_EQ(sent[0].payload, "one");
  EXPECT_EQ(sent[1].payload, "");
  EXPECT_EQ(sent[0].target.to_string(), shadow);
  EXPECT_EQ(sent[0].source, sent[1].source) << "a client has one port";
  EXPECT_NE(sent[0].source, sent[2].source);
  EXPECT_EQ(counters().opened, 2U);
  EXPECT_EQ(counters().flows, 2U);
  EXPECT_EQ(counters().bytes_to_shadow, 6U);
  EXPECT_EQ(counters().exchanges, 0U);
}

TEST_F(Datagrams, AnAnswerIsThatOfOneQuestion) {
  ask(client(1));
  ask(client(1));
  answer("answer");
  EXPECT_EQ(counters().exchanges, 1U);
  answer("answer");
  answer("one more");
  EXPECT_EQ(counters().exchanges, 2U) << "nobody had asked for the third";
  EXPECT_EQ(counters().bytes_from_shadow, 20U);
  answer({sent.back().source, *net::Endpoint::parse("10.2.0.2:5353"), ""}, "a stranger's");
  EXPECT_EQ(counters().bytes_from_shadow, 20U);
  EXPECT_EQ(segments, 0U) << "nothing is reset";
}

TEST_F(Datagrams, WhatIsNotForAProductionPortIsNotSent) {
  const std::string reply = tests::datagram(server, client(1), "production's own");
  engine.on_production(now, tests::parsed(reply));
  const std::string other = tests::datagram(client(1), "10.1.0.1:54", "x");
  engine.on_production(now, tests::parsed(other));
  EXPECT_TRUE(sent.empty());
  EXPECT_EQ(counters().flows, 0U);
}

TEST_F(Datagrams, AClientThatAskedOnceIsForgottenSoon) {
  ask(client(1));
  pass(seconds(10) - milliseconds(1));
  EXPECT_EQ(counters().active, 1U);
  EXPECT_EQ(engine.deadline(), now + milliseconds(1));
  pass(milliseconds(1));
  EXPECT_EQ(counters()[CloseReason::idle_timeout], 1U);
  EXPECT_EQ(counters().memory, 0U);
  EXPECT_EQ(engine.deadline(), never);
  expect_sums_close();
}

TEST_F(Datagrams, AClientThatGoesOnHasTwoMinutesAfterEach) {
  ask(client(1));
  ask(client(1));
  for (int i = 0; i < 3; ++i) {
    pass(minutes(2) - milliseconds(1));
    EXPECT_EQ(counters().active, 1U);
    ask(client(1));
  }
  pass(minutes(2));
  EXPECT_EQ(counters()[CloseReason::idle_timeout], 1U);
}

TEST_F(Datagrams, AnswersKeepNoFlow) {
  ask(client(1));
  pass(seconds(9));
  answer();
  pass(seconds(1));
  EXPECT_EQ(counters().active, 0U);
}

TEST_F(Datagrams, AnsweredClientsMakeRoomForOthers) {
  for (int i = 0; i < 4; ++i) ask(client(i));
  ask(client(4));
  EXPECT_EQ(shed(ShedReason::no_source_port), 1U) << "all of them wait for their answer";
  answer(sent[0]);
  ask(client(4));
  EXPECT_EQ(sent.back().source, sent[0].source);
  EXPECT_EQ(counters().active, 4U);
  pass(seconds(1));
  ask(client(5));
  EXPECT_EQ(sent.back().source, sent[1].source) << "nobody answers it any more";
  EXPECT_EQ(shed(ShedReason::no_source_port), 1U);
  expect_sums_close();
}

TEST_F(Datagrams, ClientsThatGoOnMakeNoRoom) {
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < 4; ++i) ask(client(i));
  pass(minutes(1));
  ask(client(4));
  EXPECT_EQ(shed(ShedReason::no_source_port), 1U);
  EXPECT_EQ(counters().active, 4U);
}

TEST_F(Datagrams, AFloodTakesNoMoreThanTheLeasedPorts) {
  for (int i = 0; i < 10000; ++i) ask(client(i));
  EXPECT_EQ(counters().active, 4U);
  EXPECT_EQ(counters().memory, 4 * DatagramFlows::flow_size);
  EXPECT_EQ(sent.size() + shed(ShedReason::no_source_port), 10000U);
  EXPECT_TRUE(Engine::wants_more_source_ports(stream));
}

TEST_F(Datagrams, LimitsAreThoseOfAllSessions) {
  Limits limits;
  limits.sessions = 1;
  engine.set_limits(now, limits);
  ask(client(1));
  ask(client(2));
  EXPECT_EQ(shed(ShedReason::session_limit), 1U);
  limits = {};
  limits.rate = 2;
  engine.set_limits(now, limits);
  for (int i = 0; i < 3; ++i) ask(client(1));
  EXPECT_EQ(shed(ShedReason::rate_limit), 1U) << "a datagram can be left out";
  EXPECT_EQ(counters().active, 1U);
  limits = {};
  limits.filter = [](const net::FlowKey&, net::Protocol protocol) {
    return protocol == net::Protocol::tcp;
  };
  engine.set_limits(now, limits);
  ask(client(1));
  ask(client(2));
  EXPECT_EQ(shed(ShedReason::filtered), 1U) << "a flow that there is lives on";
  limits = {};
  limits.memory = 100;
  engine.set_limits(now, limits);
  EXPECT_EQ(counters()[CloseReason::memory_limit], 1U);
  ask(client(1));
  EXPECT_EQ(shed(ShedReason::memory_limit), 1U);
  expect_sums_close();
}

TEST_F(Datagrams, CopiesAreFlowsOfTheirOwn) {
  Limits limits;
  limits.copies = 3;
  engine.set_limits(now, limits);
  ask(client(1));
  ASSERT_EQ(sent.size(), 3U);
  const std::set<net::Endpoint> sources{sent[0].source, sent[1].source, sent[2].source};
  EXPECT_EQ(sources.size(), 3U);
  EXPECT_EQ(counters().flows, 3U);
  answer(sent[0]);
  answer(sent[1]);
  EXPECT_EQ(counters().exchanges, 2U);
  ask(client(1));
  ASSERT_EQ(sent.size(), 6U);
  EXPECT_TRUE(sources.contains(sent[3].source)) << "each client's copy has one port";
  ask(client(2));
  EXPECT_EQ(sent.size(), 7U);
  EXPECT_EQ(shed(ShedReason::no_source_port), 2U) << "each copy is counted";
  limits.copies = 1;
  engine.set_limits(now, limits);
  ask(client(1));
  EXPECT_EQ(sent.size(), 8U);
  EXPECT_EQ(sent[7].source, sent[0].source);
  pass(minutes(2));
  EXPECT_EQ(counters().active, 0U);
  EXPECT_EQ(counters().memory, 0U);
  expect_sums_close();
}

TEST_F(Datagrams, AReplayWaitsForRoomForAllCopies) {
  Limits limits;
  limits.copies = 3;
  limits.sessions = 5;
  engine.set_limits(now, limits);
  const std::string first = tests::datagram(client(1), server, "question");
  const std::string second = tests::datagram(client(2), server, "question");
  EXPECT_FALSE(engine.congested(now, tests::parsed(first)));
  ask(client(1));
  EXPECT_FALSE(engine.congested(now, tests::parsed(first))) << "its sessions are there";
  EXPECT_TRUE(engine.congested(now, tests::parsed(second)));
  pass(seconds(10));
  EXPECT_FALSE(engine.congested(now, tests::parsed(second)));
}

TEST_F(Datagrams, APercentageIsOfTheClients) {
  lease(2000);
  Limits limits;
  limits.percent = 25;
  engine.set_limits(now, limits);
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < 2000; ++i) ask(client(i));
  EXPECT_GT(counters().active, 400U);
  EXPECT_LT(counters().active, 600U);
  EXPECT_EQ(sent.size(), 2 * counters().active) << "all of a client's, or none";
  EXPECT_EQ(sent.size() + shed(ShedReason::sampled), 4000U);
}

TEST_F(Datagrams, WhatThePathDoesNotCarryIsCounted) {
  ask(client(1), std::string(1500 - 28, 'x'));
  EXPECT_EQ(sent.size(), 1U);
  ask(client(1), std::string(1500 - 27, 'x'));
  EXPECT_EQ(sent.size(), 1U);
  EXPECT_EQ(shed(ShedReason::too_long), 1U);
  const std::string packet = tests::datagram(client(1), server, std::string(100, 'x'));
  engine.on_production(now, tests::parsed(packet.substr(0, 60)));
  EXPECT_EQ(sent.size(), 1U);
  EXPECT_EQ(shed(ShedReason::cut), 1U) << "only its beginning was captured";
}

TEST_F(Datagrams, GoNowhereWithoutAWay) {
  engine.stream_lost(stream);
  ask(client(1));
  EXPECT_EQ(shed(ShedReason::no_stream), 1U);
  lease(4, {});
  ask(client(1));
  EXPECT_EQ(shed(ShedReason::no_target), 1U);
  lease(4);
  Engine::set_uplink_full(stream, true);
  ask(client(1));
  EXPECT_EQ(shed(ShedReason::uplink_full), 1U);
  Engine::set_uplink_full(stream, false);
  ask("10.9.0.1:10001");
  EXPECT_EQ(shed(ShedReason::own_traffic), 1U);
  EXPECT_TRUE(sent.empty());
  ask(client(1));
  EXPECT_EQ(sent.size(), 1U);
  engine.drain(now);
  EXPECT_EQ(counters()[CloseReason::drained], 1U);
  ask(client(1));
  EXPECT_EQ(shed(ShedReason::no_stream), 2U);
}

TEST_F(Datagrams, EndWithTheirStreamAndTheirTarget) {
  ask(client(1));
  lease(4, {"10.2.0.2:53", shadow});
  ask(client(1));
  EXPECT_EQ(sent.back().target.to_string(), shadow) << "its target has another place";
  lease(4, {"10.2.0.2:53"});
  EXPECT_EQ(counters()[CloseReason::target_gone], 1U);
  ask(client(1));
  EXPECT_EQ(sent.back().target.to_string(), "10.2.0.2:53");
  engine.stream_lost(stream);
  EXPECT_EQ(counters()[CloseReason::stream_lost], 1U);
  EXPECT_EQ(counters().active, 0U);
  EXPECT_EQ(counters().memory, 0U);
  expect_sums_close();
}

// Those of a capture that is replayed.
TEST_F(Datagrams, WaitForTheirAnswersAtTheEndOfACapture) {
  for (int i = 0; i < 3; ++i) ask(client(i));
  answer(sent[0]);
  engine.end_flows(now);
  EXPECT_EQ(counters().active, 2U);
  answer(sent[1]);
  EXPECT_EQ(counters().active, 1U);
  EXPECT_EQ(counters().exchanges, 2U);
  EXPECT_EQ(engine.deadline(), now + seconds(10));
  pass(seconds(10));
  EXPECT_EQ(counters()[CloseReason::capture_ended], 3U);
}

TEST_F(Datagrams, AnAnswerIsWaitedForThoughTheCapturesTimeFlies) {
  engine.set_production_time(now);
  ask(client(1));
  engine.set_production_time(now + minutes(1));
  pass(milliseconds(1));
  EXPECT_EQ(counters().active, 1U);
  answer();
  EXPECT_EQ(counters().exchanges, 1U);
  pass(seconds(1));
  EXPECT_EQ(counters().active, 0U);
}

TEST(DatagramsAndConnections, OfOnePortAreTwoThings) {
  struct Sink : SegmentSink {
    void send(const Path& path, const Segment&) override { tcp = path; }
    void send_datagram(const Path& path, std::span<const uint8_t>) override { udp = path; }
    Path tcp, udp;
  } sink;
  Engine::Options options;
  options.ports = options.udp_ports = {net::Port{53}};
  Engine engine(options);
  Stream& stream = engine.add_stream(1, sink);
  const Time now{seconds(1)};
  Lease lease;
  lease.sources = {{*net::IpAddress::parse("10.9.0.1"), net::Port{10000}, net::Port{10000}}};
  lease.targets = {{net::Port{53}, *net::Endpoint::parse("10.2.0.1:53"), 1500},
                   {net::Port{53}, *net::Endpoint::parse(shadow), 1500, net::Protocol::udp}};
  engine.set_lease(now, stream, lease);
  const std::string question = tests::datagram("192.0.2.1:40000", server, "question");
  engine.on_production(now, tests::parsed(question));
  const std::string syn = tests::packet("192.0.2.1:40000", server, {.flags = {.syn = true}});
  engine.on_production(now, tests::parsed(syn));
  engine.run(now);
  EXPECT_EQ(sink.tcp.target.to_string(), "10.2.0.1:53");
  EXPECT_EQ(sink.udp.target.to_string(), shadow);
  EXPECT_EQ(sink.tcp.source, sink.udp.source) << "each protocol has all ports";
  EXPECT_EQ(engine.counters().active, 2U);
}

}  // namespace
}  // namespace trafficmirror::session
