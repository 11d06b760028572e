// The session engine with streams to several replicas of the intercept, in virtual time.
#include <array>
#include <deque>
#include <map>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "sidecar/session/engine.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::session {
namespace {

using std::chrono::seconds;

constexpr const char* server = "10.1.0.1:80";

// A stream, and which flows' sessions go its way; the shadow behind it answers nothing.
struct Replica : SegmentSink {
  void send(const Path& path, const Segment& segment) override {
    if (segment.header.flags.syn) ++syns;
    if (segment.header.flags.rst) ++resets;
    last = path;
    last_sequence = segment.header.sequence;
  }
  Stream* stream = nullptr;
  size_t syns = 0;
  size_t resets = 0;
  Path last;
  net::SequenceNumber last_sequence;
};

// An engine, and the streams it has.
struct Sidecar {
  static Engine::Options options() {
    Engine::Options options;
    options.ports = {net::Port{80}};
    return options;
  }

  Replica& add(uint64_t identity, uint16_t ports = 20000) {
    Replica& replica = replicas.emplace_back();
    replica.stream = &engine.add_stream(identity, replica);
    lease(replica, ports);
    return replica;
  }
  void lease(Replica& replica, uint16_t ports = 20000) {
    const auto number = static_cast<uint8_t>(replica.stream->identity);
    const std::array<uint8_t, 4> address = {10, 9, 0, number};
    Lease lease;
    if (ports > 0)
      lease.sources = {{net::IpAddress::from_ipv4(address), net::Port{10000},
                        net::Port{static_cast<uint16_t>(10000 + ports - 1)}}};
    lease.targets = {{net::Port{80}, *net::Endpoint::parse("10.2.0.1:8080"), 1500}};
    engine.set_lease(now, *replica.stream, lease);
  }
  static std::string client(size_t flow) {
    return "192.0." + std::to_string(flow / 250) + "." + std::to_string(flow % 250 + 1) + ":40000";
  }
  void open(size_t flow) { say(flow, {.flags = {.syn = true}}); }
  void open_many(size_t count, size_t from = 0) {
    for (size_t flow = from; flow < from + count; ++flow) open(flow);
  }
  // With a request, so that it counts if it is shed.
  void use(size_t flow) {
    open(flow);
    say(flow, {.sequence = 1, .acknowledgment = 1, .flags = {.ack = true}, .payload = "one"});
  }
  void use_many(size_t count, size_t from = 0) {
    for (size_t flow = from; flow < from + count; ++flow) use(flow);
  }
  void say(size_t flow, const tests::Segment& segment) {
    const std::string packet = tests::packet(client(flow), server, segment);
    engine.on_production(now, tests::parsed(packet));
    engine.run(now);
  }
  uint64_t shed(ShedReason reason) { return engine.counters()[reason]; }
  // The number of the replica whose stream takes a flow's session.
  size_t way_of(size_t flow) {
    std::vector<size_t> before;
    for (const Replica& replica : replicas) before.push_back(replica.syns);
    open(flow);
    for (size_t i = 0; i < replicas.size(); ++i)
      if (replicas[i].syns > before[i]) return i;
    return SIZE_MAX;
  }

  // For each of so many flows the identity of the stream that takes its session.
  std::vector<uint64_t> ways_of(size_t flows) {
    std::vector<uint64_t> ways;
    for (size_t flow = 0; flow < flows; ++flow)
      ways.push_back(replicas[way_of(flow)].stream->identity);
    return ways;
  }

  Time now{seconds(1)};
  std::deque<Replica> replicas;
  Engine engine{options()};
};

class Streams : public testing::Test, protected Sidecar {};

uint64_t sum(const auto& counts) {
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

TEST_F(Streams, SessionsAreSpreadEvenly) {
  for (uint64_t identity = 1; identity <= 3; ++identity) add(identity);
  open_many(6000);
  for (const Replica& replica : replicas) {
    EXPECT_GT(replica.syns, 1850U);
    EXPECT_LT(replica.syns, 2150U);
    EXPECT_EQ(replica.stream->counters.active, replica.syns);
  }
}

// In a sidecar with streams of these identities.
std::vector<uint64_t> ways_with(const std::vector<uint64_t>& identities) {
  Sidecar sidecar;
  for (const uint64_t identity : identities) sidecar.add(identity);
  return sidecar.ways_of(3000);
}

TEST(Ways, AreTheSameWhateverTheOrderInWhichTheStreamsCame) {
  EXPECT_EQ(ways_with({1, 2, 3}), ways_with({3, 1, 2}));
}

TEST(Ways, OfOneThatComesAreOnlyItsShareAndOfOneThatGoesOnlyItsOwn) {
  const auto three = ways_with({1, 2, 3});
  const auto four = ways_with({1, 2, 3, 4});
  const size_t flows = three.size();
  size_t moved = 0;
  for (size_t flow = 0; flow < flows; ++flow) {
    if (three[flow] == four[flow]) continue;
    EXPECT_EQ(four[flow], 4U) << "a flow moved between two that were there before";
    ++moved;
  }
  EXPECT_GT(moved, flows / 5);
  EXPECT_LT(moved, flows * 3 / 10);
}

TEST_F(Streams, OneThatIsLostEndsOnlyItsOwnSessions) {
  for (uint64_t identity = 1; identity <= 3; ++identity) add(identity);
  open_many(300);
  const uint64_t its = replicas[1].syns;
  ASSERT_GT(its, 0U);
  engine.stream_lost(*replicas[1].stream);
  EXPECT_EQ(engine.counters()[CloseReason::stream_lost], its);
  EXPECT_EQ(sum(engine.counters().closed), its);
  EXPECT_EQ(engine.counters().active, 300 - its);
  EXPECT_EQ(engine.counters().opened, 300U);
  EXPECT_EQ(replicas[0].resets + replicas[2].resets, 0U);

  // New ones go to those that are left, and to it again once it has a lease.
  const size_t before = replicas[0].syns + replicas[2].syns;
  open_many(300, 300);
  EXPECT_EQ(replicas[0].syns + replicas[2].syns, before + 300);
  EXPECT_EQ(replicas[1].syns, its);
  lease(replicas[1]);
  open_many(300, 600);
  EXPECT_GT(replicas[1].syns, its);
  EXPECT_EQ(sum(engine.counters().shed), 0U);
}

TEST_F(Streams, FlowsOfALostOneAreTakenUpByAnotherAtTheirNextExchange) {
  add(1);
  add(2);
  const size_t way = way_of(7);
  const auto say = [&](bool from_client, const tests::Segment& segment) {
    const std::string text = from_client ? tests::packet(client(7), server, segment)
                                         : tests::packet(server, client(7), segment);
    engine.on_production(now, tests::parsed(text));
    engine.run(now);
  };
  const net::TcpFlags syn_ack{.syn = true, .ack = true};
  const net::TcpFlags ack{.ack = true};
  say(false, {.sequence = 0, .acknowledgment = 1, .flags = syn_ack});
  say(true, {.sequence = 1, .acknowledgment = 1, .flags = ack, .payload = "one"});
  engine.remove_stream(*replicas[way].stream);
  say(false, {.sequence = 1, .acknowledgment = 4, .flags = ack, .payload = "two"});
  say(true, {.sequence = 4, .acknowledgment = 4, .flags = ack, .payload = "three"});
  EXPECT_EQ(engine.counters()[CloseReason::stream_lost], 1U);
  EXPECT_EQ(engine.counters().adopted, 1U);
  EXPECT_EQ(replicas[1 - way].stream->counters.active, 1U);
}

TEST_F(Streams, WhatOneHasNoRoomForGoesToAnother) {
  add(1, 10);
  add(2);
  open_many(1000);
  EXPECT_EQ(replicas[0].syns, 10U) << "it has ports for ten";
  EXPECT_EQ(replicas[1].syns, 990U);

  Engine::set_uplink_full(*replicas[1].stream, true);
  use_many(10, 1000);
  EXPECT_EQ(shed(ShedReason::no_source_port), 10U) << "the reason of the one that came closest";
  lease(replicas[0]);
  open_many(90, 1100);
  EXPECT_EQ(replicas[0].syns, 100U);
  EXPECT_EQ(replicas[1].syns, 990U);
  EXPECT_EQ(sum(engine.counters().shed), 10U);

  Engine::set_uplink_full(*replicas[0].stream, true);
  use(2000);
  EXPECT_EQ(shed(ShedReason::uplink_full), 1U);
  engine.remove_stream(*replicas[0].stream);
  engine.stream_lost(*replicas[1].stream);
  use(2001);
  EXPECT_EQ(shed(ShedReason::no_stream), 1U);
}

TEST_F(Streams, OneWithoutATargetForThePortIsPassedOver) {
  add(1);
  Replica& without = add(2);
  engine.set_lease(now, *without.stream, {});
  open_many(100);
  EXPECT_EQ(replicas[0].syns, 100U);
  engine.set_lease(now, *replicas[0].stream, {});
  use(100);
  EXPECT_EQ(shed(ShedReason::no_target), 1U);
  EXPECT_EQ(engine.counters()[CloseReason::target_gone], 100U) << "those of its own lease";
}

TEST_F(Streams, ALeaseConcernsOnlyTheSessionsOfItsStream) {
  add(1);
  add(2);
  open_many(100);
  const uint64_t its = replicas[1].syns;
  ASSERT_GT(its, 0U);
  engine.set_lease(now, *replicas[1].stream, {});
  EXPECT_EQ(engine.counters()[CloseReason::target_gone], its);
  EXPECT_EQ(engine.counters().active, 100 - its);
}

TEST_F(Streams, WhatComesFromTheSourcePortsOfAnyOfThemIsOwnTraffic) {
  add(1);
  add(2);
  for (const char* own : {"10.9.0.1:10000", "10.9.0.2:10000"}) {
    const std::string syn = tests::packet(own, server, {.flags = {.syn = true}});
    engine.on_production(now, tests::parsed(syn));
  }
  EXPECT_EQ(shed(ShedReason::own_traffic), 2U);
  EXPECT_EQ(engine.counters().opened, 0U);
}

TEST_F(Streams, OneThatComesBackBeginsWithOtherSequenceNumbers) {
  Replica& before = add(1);
  open(0);
  engine.remove_stream(*before.stream);
  Replica& after = add(1);
  open(1);
  ASSERT_EQ(after.last.source, before.last.source);
  EXPECT_NE(after.last_sequence, before.last_sequence) << "the shadow may remember the last one";
}

TEST_F(Streams, OneThatIsFullHoldsUpNoOther) {
  Replica& full = add(1);
  Replica& other = add(2);
  open_many(100);
  ASSERT_GT(other.syns, 0U);
  Engine::set_uplink_full(*full.stream, true);
  const size_t before = full.syns;
  const size_t before_of_other = other.syns;
  now = engine.deadline();  // the SYNs are sent again
  ASSERT_NE(now, never);
  engine.run(now);
  EXPECT_EQ(full.syns, before);
  EXPECT_EQ(other.syns, 2 * before_of_other);
  EXPECT_GT(engine.deadline(), now);
  Engine::set_uplink_full(*full.stream, false);
  engine.run(now);
  EXPECT_EQ(full.syns, 2 * before);
}

TEST_F(Streams, OneThatIsClosedToNewSessionsKeepsItsOwn) {
  Replica& closed = add(1);
  add(2);
  open_many(100);
  const size_t its = closed.syns;
  Engine::close_to_new_sessions(*closed.stream, true);
  open_many(100, 100);
  EXPECT_EQ(closed.syns, its);
  EXPECT_EQ(closed.stream->counters.active, its);
  EXPECT_EQ(sum(engine.counters().closed), 0U);
  Engine::close_to_new_sessions(*closed.stream, false);
  open_many(100, 200);
  EXPECT_GT(closed.syns, its);
}

// One stream, with several targets for the port.
class Targets : public Streams {
 protected:
  void SetUp() override { add(1); }
  static net::Endpoint target(uint8_t number) {
    return *net::Endpoint::parse("10.2.0." + std::to_string(number) + ":8080");
  }
  void lease(std::vector<uint8_t> numbers) {
    Lease lease;
    lease.sources = {{*net::IpAddress::parse("10.9.0.1"), net::Port{10000}, net::Port{29999}}};
    for (const uint8_t number : numbers)
      lease.targets.push_back({net::Port{80}, target(number), 1500});
    engine.set_lease(now, *replicas[0].stream, lease);
  }
  net::Endpoint target_of(size_t flow) {
    open(flow);
    return replicas[0].last.target;
  }
  std::vector<net::Endpoint> targets_of(size_t flows, size_t from) {
    std::vector<net::Endpoint> all;
    for (size_t flow = from; flow < from + flows; ++flow) all.push_back(target_of(flow));
    return all;
  }
  // The shadow's answer to the SYN of the latest session.
  void answer(net::TcpFlags flags) {
    const Path path = replicas[0].last;
    const std::string packet =
        tests::packet(path.target.to_string(), path.source.to_string(),
                      {.acknowledgment = (replicas[0].last_sequence + 1U).value(), .flags = flags});
    engine.on_shadow(now, *replicas[0].stream, tests::parsed(packet));
    engine.run(now);
  }
  // A session with it, which it refuses or accepts.
  size_t reach(uint8_t number, net::TcpFlags flags, size_t flow) {
    const size_t last = flow + 100;
    while (target_of(flow) != target(number) && flow < last) ++flow;
    EXPECT_LT(flow, last) << "it gets no session";
    answer(flags);
    return flow + 1;
  }
  // With what sessions that nobody answers send again.
  void pass(Duration time) {
    now += time;
    engine.run(now);
  }
  static constexpr net::TcpFlags refused{.rst = true, .ack = true};
  static constexpr net::TcpFlags accepted{.syn = true, .ack = true};
};

TEST_F(Targets, ShareTheSessionsAndKeepTheirsWhenAnotherGoes) {
  lease({1, 2, 3});
  const auto three = targets_of(900, 0);
  for (const uint8_t number : std::initializer_list<uint8_t>{1, 2, 3}) {
    const auto its = std::count(three.begin(), three.end(), target(number));
    EXPECT_GT(its, 250);
    EXPECT_LT(its, 350);
  }
  lease({1, 3});
  for (size_t flow = 0; flow < three.size(); ++flow) {
    say(flow, {.sequence = 1000, .flags = {.syn = true}});  // its four-tuple once more
    if (three[flow] != target(2)) {
      EXPECT_EQ(replicas[0].last.target, three[flow]);
    }
  }
}

TEST_F(Targets, ThatRefuseAreLeftOutAndTriedAgainByOneSession) {
  lease({1, 2});
  size_t next = reach(1, refused, 0);
  for (const net::Endpoint& to : targets_of(50, next)) EXPECT_EQ(to, target(2));
  pass(seconds(1));
  next = reach(1, refused, next + 50);
  for (const net::Endpoint& to : targets_of(50, next)) EXPECT_EQ(to, target(2));
  pass(seconds(1));
  next = reach(1, accepted, next + 50);
  const auto all = targets_of(50, next);
  EXPECT_GT(std::count(all.begin(), all.end(), target(1)), 10);
}

TEST_F(Targets, AnExchangeOfOneThatRefusedGoesToAnotherAtOnce) {
  lease({1, 2});
  const size_t flow = reach(1, refused, 0) - 1;
  say(flow, {.sequence = 1, .acknowledgment = 1, .flags = {.ack = true}, .payload = "one"});
  EXPECT_EQ(replicas[0].last.target, target(2));
  EXPECT_EQ(sum(engine.counters().shed), 0U);
}

TEST_F(Targets, AreAskedThoughAllAreDown) {
  lease({1});
  const size_t next = reach(1, refused, 0);
  EXPECT_EQ(target_of(next), target(1));
  EXPECT_EQ(engine.counters().opened, 2U);
}

TEST_F(Streams, LimitsCountOverAllOfThem) {
  for (uint64_t identity = 1; identity <= 3; ++identity) add(identity);
  Limits limits;
  limits.sessions = 30;
  engine.set_limits(now, limits);
  use_many(100);
  EXPECT_EQ(engine.counters().active, 30U);
  EXPECT_EQ(shed(ShedReason::session_limit), 70U);
  // The newest go, whichever stream they are of.
  limits.memory = engine.counters().memory - 1;
  engine.set_limits(now, limits);
  EXPECT_EQ(engine.counters()[CloseReason::memory_limit], 1U);
}

TEST_F(Streams, AnsweredHeadersBelongToTheStreamTheyCameBy) {
  Replica& first = add(1);
  Replica& second = add(2);
  open_many(10);
  ASSERT_GT(first.syns, 0U);
  const std::string answer =
      tests::packet(first.last.target.to_string(), first.last.source.to_string(),
                    {.flags = {.syn = true, .ack = true}});
  const size_t resets = second.resets;
  engine.on_shadow(now, *second.stream, tests::parsed(answer));
  engine.run(now);
  EXPECT_EQ(second.resets, resets + 1) << "it knows of no such session";
  EXPECT_EQ(first.resets, 0U);
}

// What each replica's intercept was told, as operators of mirrors sum it up.
class Reports : public Streams {
 protected:
  void report(Replica& replica) {
    Counters& to = told[&replica];
    to.add(engine.unreported(*replica.stream));
    to.active = replica.stream->counters.active;
    engine.set_reported(*replica.stream);
  }
  void expect_told_sum_up() {
    Counters all;
    for (const auto& [replica, counters] : told) all.add(counters);
    const Counters counters = engine.counters();
    EXPECT_EQ(all.opened, counters.opened);
    EXPECT_EQ(all.closed, counters.closed);
    EXPECT_EQ(all.shed, counters.shed);
    EXPECT_EQ(all.active, counters.active);
    EXPECT_EQ(all.adopted, counters.adopted);
  }
  std::map<const Replica*, Counters> told;
};

TEST_F(Reports, EachIsToldOfItsOwnSessionsAndOneOfTheRest) {
  for (uint64_t identity = 1; identity <= 3; ++identity) add(identity);
  Limits limits;
  limits.sessions = 50;
  engine.set_limits(now, limits);
  use_many(80);
  for (Replica& replica : replicas) report(replica);
  for (Replica& replica : replicas) {
    EXPECT_EQ(told[&replica].opened, replica.syns);
    EXPECT_EQ(told[&replica].active, replica.syns);
  }
  EXPECT_EQ(sum(told[&replicas[0]].shed), 30U);
  EXPECT_EQ(sum(told[&replicas[1]].shed) + sum(told[&replicas[2]].shed), 0U);
  expect_told_sum_up();

  // The same is not told again.
  for (Replica& replica : replicas) report(replica);
  expect_told_sum_up();
}

TEST_F(Reports, WhatALostOneWasNotToldIsToldToAnother) {
  Replica& lost = add(1);
  Replica& other = add(2);
  open_many(50);
  report(lost);
  open_many(50, 50);
  const size_t its = lost.syns;
  engine.stream_lost(*lost.stream);
  told[&lost].active = 0;
  report(other);
  EXPECT_EQ(told[&other].closed[static_cast<size_t>(CloseReason::stream_lost)], its);
  expect_told_sum_up();

  // It comes back, and nothing is told twice.
  lease(lost);
  open_many(50, 100);
  report(lost);
  report(other);
  expect_told_sum_up();
  engine.remove_stream(*lost.stream);
  told[&lost].active = 0;
  report(other);
  expect_told_sum_up();
}

}  // namespace
}  // namespace trafficmirror::session
