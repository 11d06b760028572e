// What the session engine does for a capture that is replayed, in virtual time.
#include <gtest/gtest.h>

#include "sidecar/session/engine.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::session {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using tests::Segment;

constexpr const char* server = "10.1.0.1:80";
constexpr net::TcpFlags syn = {.syn = true};
constexpr net::TcpFlags ack = {.ack = true};
constexpr net::TcpFlags fin = {.fin = true, .ack = true};
constexpr net::TcpFlags syn_ack = {.syn = true, .ack = true};

// An engine with a stream to a shadow that answers only what it is told to.
class ReplayedFlows : public testing::Test, protected SegmentSink {
 protected:
  ReplayedFlows() : stream_(engine_.add_stream(1, *this)) { lease(4); }

  void lease(uint16_t ports) {
    const std::array<uint8_t, 4> address = {10, 9, 0, 1};
    Lease lease;
    lease.sources = {{net::IpAddress::from_ipv4(address), net::Port{10000},
                      net::Port{static_cast<uint16_t>(10000 + ports - 1)}}};
    lease.targets = {{net::Port{80}, shadow_, 1500}};
    engine_.set_lease(now_, stream_, lease);
  }
  static std::string client(size_t number) { return "192.0.2.1:" + std::to_string(4000 + number); }

  bool congested(const std::string& packet) const {
    return engine_.congested(now_, tests::parsed(packet));
  }
  std::string from_client(size_t number, const Segment& segment) const {
    return tests::packet(client(number), server, segment);
  }
  void production(const std::string& packet) {
    engine_.on_production(now_, tests::parsed(packet));
    engine_.run(now_);
  }
  void open(size_t number) { production(from_client(number, {.sequence = 100, .flags = syn})); }
  // The shadow says it to the session that was opened last.
  void shadow(const Segment& segment) {
    const std::string packet =
        tests::packet(shadow_.to_string(), last_path_.source.to_string(), segment);
    engine_.on_shadow(now_, stream_, tests::parsed(packet));
    engine_.run(now_);
  }
  uint64_t closed(CloseReason reason) const { return engine_.counters()[reason]; }

  void send(const Path& path, const session::Segment& segment) override {
    if (segment.header.flags.syn) {
      ++syns_;
      last_path_ = path;
      last_syn_ = segment.header.sequence.value();
    }
    if (segment.header.flags.rst) ++resets_;
    sent_bytes_ += segment.length;
  }

  static Engine::Options options() {
    Engine::Options options;
    options.ports = {net::Port{80}};
    return options;
  }

  const net::Endpoint shadow_ = *net::Endpoint::parse("10.2.0.1:8080");
  Time now_{seconds(1'000'000)};
  Engine engine_{options()};
  Stream& stream_;
  size_t syns_ = 0, resets_ = 0, sent_bytes_ = 0;
  Path last_path_;
  uint32_t last_syn_ = 0;
};

TEST_F(ReplayedFlows, WaitForASourcePort) {
  for (size_t number = 0; number < 4; ++number) {
    EXPECT_FALSE(congested(from_client(number, {.flags = syn})));
    open(number);
  }
  EXPECT_TRUE(congested(from_client(4, {.flags = syn})));
  // What the sessions there are have to say has its way.
  EXPECT_FALSE(congested(from_client(0, {.sequence = 100, .flags = syn})));
  EXPECT_FALSE(congested(from_client(0, {.sequence = 101, .flags = ack, .payload = "GET"})));
  EXPECT_FALSE(congested(tests::packet(server, client(4), {.flags = syn_ack})));
  lease(5);
  EXPECT_FALSE(congested(from_client(4, {.flags = syn})));
}

TEST_F(ReplayedFlows, WaitForASession) {
  engine_.set_limits(now_, {.sessions = 2});
  open(0);
  open(1);
  EXPECT_TRUE(congested(from_client(2, {.flags = syn})));
  EXPECT_EQ(engine_.counters()[ShedReason::session_limit], 0U);
}

TEST_F(ReplayedFlows, WaitForTheRate) {
  engine_.set_limits(now_, {.rate = 2});
  open(0);
  open(1);
  EXPECT_TRUE(congested(from_client(2, {.flags = syn})));
  EXPECT_FALSE(congested(from_client(1, {.sequence = 101, .flags = ack, .payload = "GET"})));
  now_ += milliseconds(500);
  EXPECT_FALSE(congested(from_client(2, {.flags = syn})));
}

TEST_F(ReplayedFlows, WaitForMemoryAndTheStream) {
  open(0);
  const std::string more =
      from_client(0, {.sequence = 101, .flags = ack, .payload = std::string(8192, 'x')});
  EXPECT_FALSE(congested(more));
  Engine::set_uplink_full(stream_, true);
  EXPECT_TRUE(congested(more));
  EXPECT_TRUE(engine_.busy());
  Engine::set_uplink_full(stream_, false);
  engine_.set_limits(now_, {.memory = 10'000});
  EXPECT_FALSE(congested(more));
  production(more);
  EXPECT_TRUE(congested(more));
  EXPECT_EQ(closed(CloseReason::memory_limit), 0U);
}

TEST_F(ReplayedFlows, AreBusyWhileTheShadowHasSomethingToDo) {
  EXPECT_FALSE(engine_.busy());
  open(0);
  EXPECT_TRUE(engine_.busy());
  shadow({.sequence = 500, .acknowledgment = last_syn_ + 1, .flags = syn_ack});
  EXPECT_FALSE(engine_.busy()) << "it is the client's turn, and what it says is not read yet";
  production(from_client(0, {.sequence = 101, .flags = ack, .payload = "GET"}));
  EXPECT_TRUE(engine_.busy());
  shadow({.sequence = 501, .acknowledgment = last_syn_ + 4, .flags = ack});
  EXPECT_FALSE(engine_.busy());
  production(from_client(0, {.sequence = 104, .flags = fin}));
  EXPECT_TRUE(engine_.busy());
  engine_.stream_lost(stream_);
  EXPECT_FALSE(engine_.busy());
}

TEST_F(ReplayedFlows, HaveATargetOnceTheLeaseSaysSo) {
  EXPECT_TRUE(engine_.has_target());
  Lease other;
  other.targets = {{net::Port{81}, shadow_, 1500}};
  engine_.set_lease(now_, stream_, other);
  EXPECT_FALSE(engine_.has_target());
  engine_.stream_lost(stream_);
  EXPECT_FALSE(engine_.has_target());
}

TEST_F(ReplayedFlows, FallIdleByTheCapturesClock) {
  engine_.set_production_time(Time(seconds(0)));
  open(0);
  shadow({.sequence = 500, .acknowledgment = last_syn_ + 1, .flags = syn_ack});
  now_ += hours(5);
  engine_.run(now_);
  EXPECT_EQ(closed(CloseReason::idle_timeout), 0U) << "reading may take its time";
  engine_.set_production_time(Time(minutes(10)));
  engine_.run(now_);
  EXPECT_EQ(closed(CloseReason::idle_timeout), 1U);
}

TEST_F(ReplayedFlows, MissBytesByTheCapturesClock) {
  engine_.set_production_time(Time(seconds(0)));
  open(0);
  production(
      tests::packet(server, client(0), {.sequence = 900, .acknowledgment = 101, .flags = syn_ack}));
  // The server has received what stands further on in the file.
  production(
      tests::packet(server, client(0), {.sequence = 901, .acknowledgment = 104, .flags = ack}));
  now_ += seconds(10);
  engine_.run(now_);
  EXPECT_EQ(closed(CloseReason::capture_gap), 0U);
  engine_.set_production_time(Time(milliseconds(300)));
  engine_.run(now_);
  EXPECT_EQ(closed(CloseReason::capture_gap), 1U);
}

TEST_F(ReplayedFlows, AreForgottenAtTheEndOfARound) {
  for (int round = 1; round <= 2; ++round) {
    open(0);
    shadow({.sequence = 500, .acknowledgment = last_syn_ + 1, .flags = syn_ack});
    production(
        from_client(0, {.sequence = 101, .acknowledgment = 901, .flags = ack, .payload = "GET"}));
    production(tests::packet(
        server, client(0),
        {.sequence = 901, .acknowledgment = 104, .flags = ack, .payload = std::string(10, 'a')}));
    engine_.end_flows(now_);
    engine_.run(now_);
    EXPECT_EQ(engine_.counters().flows, 0U);
    EXPECT_EQ(syns_, round) << "the same SYN again is of another connection";
    EXPECT_EQ(sent_bytes_, round * 3U);
    EXPECT_EQ(resets_, round - 1U) << "the shadow has not answered";

    // Half an answer is none.
    shadow({.sequence = 501, .acknowledgment = last_syn_ + 4, .flags = ack, .payload = "12345"});
    EXPECT_EQ(resets_, round - 1U);
    shadow({.sequence = 506, .acknowledgment = last_syn_ + 4, .flags = ack, .payload = "12345"});
    EXPECT_EQ(resets_, round);
    EXPECT_EQ(closed(CloseReason::capture_ended), round);
    EXPECT_EQ(engine_.counters().exchanges, round);
  }
}

TEST_F(ReplayedFlows, EndInOrderWhereTheClientHasClosed) {
  open(0);
  shadow({.sequence = 500, .acknowledgment = last_syn_ + 1, .flags = syn_ack});
  production(from_client(0, {.sequence = 101, .flags = fin}));
  engine_.end_flows(now_);
  shadow({.sequence = 501, .acknowledgment = last_syn_ + 2, .flags = fin});
  EXPECT_EQ(closed(CloseReason::finished), 1U);
  EXPECT_EQ(resets_, 0U);
}

TEST_F(ReplayedFlows, AreResetWhereBytesAreMissing) {
  open(0);
  shadow({.sequence = 500, .acknowledgment = last_syn_ + 1, .flags = syn_ack});
  production(from_client(0, {.sequence = 201, .flags = ack, .payload = "later"}));
  engine_.end_flows(now_);
  EXPECT_EQ(closed(CloseReason::capture_gap), 1U);
  EXPECT_EQ(sent_bytes_, 0U);
}

TEST_F(ReplayedFlows, AreCountedWhereTheirStartIsNotThere) {
  open(0);
  EXPECT_EQ(engine_.counters().without_start, 0U);
  for (const char* said : {"one", "two"})
    production(from_client(1, {.sequence = 101, .flags = ack, .payload = said}));
  EXPECT_EQ(engine_.counters().without_start, 1U);
}

}  // namespace
}  // namespace trafficmirror::session
