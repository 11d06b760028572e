#include <array>

#include <gtest/gtest.h>

#include "intercept/relay.h"
#include "intercept/status.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::intercept {
namespace {

using tests::describe;
using tests::describe_all;
using tests::packet;

const std::string shadow = "10.0.0.5:8080";
const std::string own = "10.0.1.2";
constexpr net::TcpFlags syn{.syn = true}, syn_ack{.syn = true, .ack = true}, ack{.ack = true},
    rst_ack{.rst = true, .ack = true};
constexpr std::array<net::ProductionPort, 1> http = {{{80}}};

std::string from(uint16_t port) {
  return own + ":" + std::to_string(port);
}

std::vector<SourceRange> leased(const std::string& address, PortRange ports) {
  return {{*net::IpAddress::parse(address), ports}};
}

struct FakeDownlink : Downlink {
  void headers(std::string& batch, size_t count) override {
    EXPECT_EQ(tests::split(batch, false).size(), count);
    batches.push_back(batch);
    batch.clear();
  }
  void replies(std::string& batch, size_t count) override {
    EXPECT_EQ(tests::split(batch, true).size(), count);
    whole.push_back(batch);
    batch.clear();
  }
  void lease_changed() override { ++lease_changes; }
  void configuration_changed() override { ++configuration_changes; }
  void drain() override { drained = true; }
  void end(const std::string& reason) override { ended = reason; }

  std::vector<std::string> batches;
  std::vector<std::string> whole;
  int lease_changes = 0;
  int configuration_changes = 0;
  bool drained = false;
  std::string ended;
};

// One relay with one target, whose packets are gathered. Time is what the test says it is.
class RelayTest : public testing::Test {
 protected:
  static constexpr uint32_t seed = 1000;

  explicit RelayTest(Relay::Targets is = Relay::Targets::fixed) : kind(is) { set_path(own, 1500); }

  void set_path(const char* address, uint32_t mtu) {
    relay.set_paths({Path{*net::IpAddress::parse(address), mtu}});
  }
  void set_path(const std::string& address, uint32_t mtu) { set_path(address.c_str(), mtu); }

  std::vector<std::string> injected() {
    auto texts = describe_all(sent);
    sent.clear();
    return texts;
  }
  void arrive(const std::vector<std::string>& packets) {
    std::vector<std::span<const uint8_t>> bytes;
    bytes.reserve(packets.size());
    for (const std::string& each : packets) bytes.push_back(tests::bytes_of(each));
    relay.headers(bytes);
  }
  void prove() {
    relay.prove(now);
    arrive({packet(shadow, from(10000), {5, seed + 1, syn_ack, ""})});
    sent.clear();
  }
  StreamId open() { return std::get<StreamId>(relay.open("pod-1", http, downlink)); }
  Denial denied(std::vector<net::ProductionPort> ports) {
    return std::get<Denial>(relay.open("pod-1", ports, downlink));
  }
  uint64_t refused(Refusal refusal) {
    return counters.refused_packets[static_cast<size_t>(refusal)];
  }
  uint64_t reset(ResetReason reason) {
    return counters.sessions_reset[static_cast<size_t>(reason)];
  }

  const Relay::Targets kind;
  Counters counters;
  std::string sent;
  Relay relay{{10000, 32767}, {{80, *net::Endpoint::parse(shadow)}},
              seed,           [this](std::string_view packets) { sent += packets; },
              counters,       kind};
  Relay::Clock::time_point now{std::chrono::hours(1)};
  std::shared_ptr<FakeDownlink> downlink = std::make_shared<FakeDownlink>();
};

TEST_F(RelayTest, AStreamWaitsForTheProof) {
  const std::string reason =
      "no answer from 10.0.0.5:8080: is it running, and does its network let it answer 10.0.1.2?";
  EXPECT_EQ(relay.not_ready(), reason);
  EXPECT_EQ(denied({{80}}).reason, reason);
  EXPECT_EQ(denied({{80}}).kind, Denial::Kind::unavailable);

  relay.prove(now);
  EXPECT_EQ(injected(),
            (std::vector<std::string>{"10.0.1.2:10000 > 10.0.0.5:8080 SYN seq 1000 ack 0 len 0"}));
  relay.prove(now + PathProof::interval - std::chrono::milliseconds(1));
  EXPECT_TRUE(injected().empty()) << "not due";
  relay.prove(now + PathProof::interval);
  EXPECT_EQ(injected().size(), 1u);

  arrive({packet(shadow, from(10000), {5, seed + 1, syn_ack, ""})});
  EXPECT_EQ(injected(),
            (std::vector<std::string>{"10.0.1.2:10000 > 10.0.0.5:8080 RST seq 1001 ack 0 len 0"}));
  EXPECT_EQ(relay.not_ready(), std::nullopt);
  relay.prove(now + std::chrono::hours(1));
  EXPECT_TRUE(injected().empty()) << "nothing more to prove";
  open();
}

TEST_F(RelayTest, WhoSendsDirectlyGetsNoClientsAddresses) {
  Relay preserving({10000, 32767}, {}, seed, [](std::string_view) {}, counters,
                   Relay::Targets::changing, {.mode = ClientAddresses::Mode::preserve});
  const auto denied = preserving.open("pod-1", http, downlink, Sender::sidecar);
  ASSERT_TRUE(std::holds_alternative<Denial>(denied));
  EXPECT_EQ(std::get<Denial>(denied).kind, Denial::Kind::wrong);
  EXPECT_TRUE(std::holds_alternative<StreamId>(preserving.open("pod-1", http, downlink)));
}

TEST(RelayOfDatagrams, NeedsARouteAndNoProof) {
  Counters counters;
  std::string sent;
  const net::Endpoint dns = *net::Endpoint::parse("10.0.0.5:53");
  Relay relay(
      {10000, 32767}, {{53, dns, net::Protocol::udp}, {53, dns}}, 1000,
      [&](std::string_view packets) { sent += packets; }, counters);
  const auto downlink = std::make_shared<FakeDownlink>();
  const std::vector<net::ProductionPort> ports = {{53, net::Protocol::udp}};
  const auto denial = relay.open("pod-1", ports, downlink);
  EXPECT_EQ(std::get<Denial>(denial).reason, "no way to 10.0.0.5:53: not looked up yet");
  ASSERT_EQ(relay.endpoints().size(), 2U) << "each protocol's has its own";
  const Path path{*net::IpAddress::parse(own), 1500};
  relay.set_paths({path, path});
  const StreamId stream = std::get<StreamId>(relay.open("pod-1", ports, downlink));
  ASSERT_EQ(relay.lease(stream).targets.size(), 1U);
  EXPECT_EQ(relay.lease(stream).targets[0].target.to_string(), "53/udp=10.0.0.5:53");
  EXPECT_EQ(std::get<Denial>(relay.open("pod-2", http, downlink)).reason,
            "production port 80 has no --target here; those with one are 53, 53/udp");
  relay.prove(Relay::Clock::time_point(std::chrono::hours(1)));
  EXPECT_EQ(tests::split(sent, true).size(), 1U) << "TCP's is proven by a handshake";
  sent.clear();

  const std::string question = tests::datagram(from(10001), "10.0.0.5:53", "question");
  relay.packets(stream, question);
  EXPECT_EQ(sent, question);
  const std::string answer = tests::datagram("10.0.0.5:53", from(10001), "answer");
  const auto bytes = tests::bytes_of(answer);
  relay.headers({&bytes, 1});
  EXPECT_EQ(downlink->batches, (std::vector<std::string>{answer.substr(0, 28)}));
  relay.packets(stream, tests::datagram(from(10001), "10.0.0.5:54", "question"));
  EXPECT_EQ(counters.refused_packets[static_cast<size_t>(Refusal::target)], 1U);

  relay.set_paths({std::string("unreachable"), std::string("unreachable")});
  EXPECT_TRUE(relay.lease(stream).targets.empty());
  EXPECT_GT(downlink->lease_changes, 0);
}

TEST_F(RelayTest, AnAnswerToARealAddressSaysThatTheTargetIsThere) {
  relay.set_paths({Path{*net::IpAddress::parse("192.0.2.1"), 1500, *net::IpAddress::parse(own)}});
  for (int i = 0; i < 3; ++i) relay.prove(now + i * PathProof::interval);
  EXPECT_EQ(injected().back(), "10.0.1.2:10000 > 10.0.0.5:8080 SYN seq 1000 ack 0 len 0");
  arrive({packet(shadow, from(10000), {5, seed + 1, syn_ack, ""})});
  EXPECT_TRUE(relay.not_ready()->starts_with(
      "10.0.0.5:8080 answers 10.0.1.2 and not 192.0.2.1, whose answers have to come here"))
      << *relay.not_ready();
  arrive({packet(shadow, "192.0.2.1:10000", {5, seed + 1, syn_ack, ""})});
  EXPECT_EQ(relay.not_ready(), std::nullopt);
}

TEST_F(RelayTest, AnObstacleThatIsKnownIsTheReason) {
  relay.set_paths({Path{*net::IpAddress::parse(own), 1500, std::nullopt, "it is drowned"}});
  EXPECT_EQ(relay.not_ready(), "no answer from 10.0.0.5:8080: it is drowned");
}

TEST_F(RelayTest, ARefusalProvesThePathToo) {
  relay.prove(now);
  sent.clear();
  arrive({packet(shadow, from(10000), {0, seed + 1, rst_ack, ""})});
  EXPECT_TRUE(injected().empty()) << "a RST is never answered";
  EXPECT_EQ(relay.not_ready(), std::nullopt);
}

TEST_F(RelayTest, OnlyTheRightAnswerProves) {
  relay.prove(now);
  arrive({packet("10.0.0.6:8080", from(10000), {5, seed + 1, syn_ack, ""}),
          packet(shadow, from(10000), {5, seed + 2, syn_ack, ""}),
          packet(shadow, from(10000), {5, seed + 1, ack, ""}),
          packet(shadow, from(10001), {5, seed + 1, syn_ack, ""})});
  EXPECT_NE(relay.not_ready(), std::nullopt);
}

TEST_F(RelayTest, ALostPathEndsStreams) {
  prove();
  open();
  relay.prove_again();
  relay.prove(now);
  relay.prove(now + PathProof::interval);
  EXPECT_EQ(downlink->ended, "") << "two SYNs may be lost";
  relay.prove(now + 2 * PathProof::interval);
  EXPECT_NE(downlink->ended.find("no answer from 10.0.0.5:8080"), std::string::npos);
  EXPECT_NE(relay.not_ready(), std::nullopt);
}

TEST_F(RelayTest, NoRouteIsSaidInTheKernelsWords) {
  relay.set_paths({std::string("Network is unreachable")});
  EXPECT_EQ(relay.not_ready(), "no way to 10.0.0.5:8080: Network is unreachable");
}

TEST_F(RelayTest, UnknownProductionPortsAreRefusedWithTheKnown) {
  prove();
  EXPECT_EQ(denied({{80}, {443}}).kind, Denial::Kind::wrong);
  EXPECT_EQ(denied({{80}, {443}}).reason,
            "production port 443 has no --target here; those with one are 80");
  EXPECT_EQ(denied({}).kind, Denial::Kind::wrong);
}

TEST_F(RelayTest, TheLeaseFollowsThePath) {
  prove();
  const StreamId stream = open();
  LeaseContents lease = relay.lease(stream);
  ASSERT_EQ(lease.targets.size(), 1u);
  EXPECT_EQ(lease.targets[0].path_mtu, 1500u);
  EXPECT_EQ(lease.sources, leased(own, {10001, 11024})) << "10000 is the proofs'";

  set_path(own, 1500);
  EXPECT_EQ(downlink->lease_changes, 0);
  set_path(own, 1400);
  EXPECT_EQ(downlink->lease_changes, 1);
  EXPECT_EQ(relay.lease(stream).targets[0].path_mtu, 1400u);
  relay.more_source_ports(stream);
  EXPECT_EQ(downlink->lease_changes, 2);
  EXPECT_EQ(relay.lease(stream).sources, leased(own, {10001, 12048}));

  set_path("10.0.1.9", 1400);
  EXPECT_EQ(downlink->ended, "the intercept's address was 10.0.1.2 and is 10.0.1.9 now");
}

TEST_F(RelayTest, ABatchPassesButForWhatIsRefused) {
  prove();
  const StreamId stream = open();
  const std::string good = packet(from(10001), shadow, {1, 0, syn, ""});
  const std::string also_good = packet(from(10002), shadow, {1, 0, syn, "data"});
  const std::string bad = packet(from(9999), shadow, {1, 0, syn, "data"});
  std::string fragment = good;
  fragment[6] = 0x20;

  relay.packets(stream, good + bad + also_good + also_good + fragment + good);
  EXPECT_EQ(sent, good + also_good + also_good + good);
  EXPECT_EQ(refused(Refusal::source), 1u);
  EXPECT_EQ(refused(Refusal::malformed), 1u);

  sent.clear();
  relay.packets(stream, good + also_good.substr(0, 30));
  EXPECT_EQ(sent, good);
  relay.packets(stream, "no packet at all, but quite some bytes");
  EXPECT_EQ(sent, good);
  EXPECT_EQ(refused(Refusal::malformed), 3u);
}

TEST_F(RelayTest, HeadersGoToTheirStreamWithoutPayload) {
  prove();
  const StreamId stream = open();
  auto other = std::make_shared<FakeDownlink>();
  const StreamId second = std::get<StreamId>(relay.open("pod-1", http, other));
  relay.packets(stream, packet(from(10001), shadow, {1, 0, syn, ""}));
  relay.packets(second, packet(from(11025), shadow, {1, 0, syn, ""}));

  arrive({packet(shadow, from(10001), {5, 2, syn_ack, ""}),
          packet(shadow, from(11025), {5, 2, syn_ack, ""}),
          packet(shadow, from(10001), {6, 2, ack, "answer"}), "nonsense"});
  ASSERT_EQ(downlink->batches.size(), 1u) << "one batch for a wake-up";
  const auto headers = tests::split(downlink->batches[0], false);
  ASSERT_EQ(headers.size(), 2u);
  EXPECT_EQ(describe(headers[0]), "10.0.0.5:8080 > 10.0.1.2:10001 SYN,ACK seq 5 ack 2 len 0");
  EXPECT_EQ(describe(headers[1]), "10.0.0.5:8080 > 10.0.1.2:10001 ACK seq 6 ack 2 len 6");
  EXPECT_EQ(other->batches.size(), 1u);
  EXPECT_EQ(counters.tap_foreign, 1u);
}

TEST_F(RelayTest, TheFirstRepliesOfAPortGoDownWholeWhereTheyAreAskedFor) {
  std::vector<std::vector<uint16_t>> copied;
  relay.set_copy_whole([&](const std::vector<uint16_t>& ports) { copied.push_back(ports); });
  prove();
  const std::array<uint16_t, 1> reply_ports = {80};
  const StreamId stream =
      std::get<StreamId>(relay.open("pod-1", http, downlink, Sender::intercept, reply_ports));
  EXPECT_EQ(copied, (std::vector<std::vector<uint16_t>>{{8080}}));
  auto other = std::make_shared<FakeDownlink>();
  const StreamId second = std::get<StreamId>(relay.open("pod-2", http, other));
  relay.packets(stream, packet(from(10001), shadow, {1, 0, syn, ""}));
  relay.packets(second, packet(from(11025), shadow, {1, 0, syn, ""}));

  const std::string greeting = packet(shadow, from(10001), {6, 2, ack, "greeting"});
  arrive({packet(shadow, from(10001), {5, 2, syn_ack, ""}), greeting,
          packet(shadow, from(11025), {5, 2, syn_ack, ""}),
          packet(shadow, from(11025), {6, 2, ack, "greeting"})});
  ASSERT_EQ(downlink->whole.size(), 1u);
  EXPECT_EQ(downlink->whole[0], packet(shadow, from(10001), {5, 2, syn_ack, ""}) + greeting);
  EXPECT_TRUE(downlink->batches.empty());
  EXPECT_TRUE(other->whole.empty());
  EXPECT_EQ(other->batches.size(), 1u);

  // One that the tap has only in part is as good as lost.
  arrive({greeting.substr(0, greeting.size() - 1)});
  EXPECT_EQ(downlink->whole.size(), 1u);
  EXPECT_TRUE(downlink->batches.empty());
  EXPECT_EQ(counters.tap_drops, 1u);

  const uint32_t first = 6;
  arrive({packet(shadow, from(10001), {first + first_reply_bytes - 1, 2, ack, "a"}),
          packet(shadow, from(10001), {first + first_reply_bytes, 2, ack, "b"})});
  EXPECT_EQ(downlink->whole.size(), 2u);
  EXPECT_EQ(downlink->batches.size(), 1u) << "behind the first ones the headers do";

  relay.close(stream);
  EXPECT_EQ(copied.back(), std::vector<uint16_t>());
}

TEST_F(RelayTest, HeadersThatDoNotSayTheirLengthGoNowhere) {
  prove();
  const StreamId stream = open();
  relay.packets(stream, packet(from(10001), shadow, {1, 0, syn, ""}));
  std::string without_length = packet(shadow, from(10001), {5, 2, syn_ack, ""});
  without_length[2] = without_length[3] = 0;
  arrive({without_length, packet(shadow, from(10001), {5, 2, syn_ack, ""})});
  ASSERT_EQ(downlink->batches.size(), 1u);
  EXPECT_EQ(tests::split(downlink->batches[0], false).size(), 1u);
  EXPECT_EQ(counters.tap_foreign, 1u);
}

TEST_F(RelayTest, UnknownSessionsAreReset) {
  prove();
  arrive({packet(shadow, from(15000), {5, 77, ack, "data"}),
          packet(shadow, from(15000), {5, 77, rst_ack, ""})});
  EXPECT_EQ(injected(),
            (std::vector<std::string>{"10.0.1.2:15000 > 10.0.0.5:8080 RST seq 77 ack 0 len 0"}));
  EXPECT_EQ(reset(ResetReason::unknown_port), 1u);
}

TEST_F(RelayTest, AClosedStreamResetsItsSessions) {
  prove();
  const StreamId stream = open();
  relay.packets(stream, packet(from(10001), shadow, {1, 0, syn, ""}));
  arrive({packet(shadow, from(10001), {5, 2, syn_ack, ""})});
  sent.clear();
  relay.close(stream);
  EXPECT_EQ(injected(),
            (std::vector<std::string>{"10.0.1.2:10001 > 10.0.0.5:8080 RST seq 2 ack 0 len 0"}));
  EXPECT_EQ(reset(ResetReason::stream_ended), 1u);
  EXPECT_EQ(relay.statistics().streams, 0u);
  EXPECT_EQ(relay.statistics().leased_ports, 0u);
}

TEST_F(RelayTest, DrainResetsEverythingOnce) {
  prove();
  const StreamId stream = open();
  const std::string first = packet(from(10001), shadow, {1, 0, syn, ""});
  relay.packets(stream, first);
  arrive({packet(shadow, from(10001), {5, 2, syn_ack, ""})});
  sent.clear();
  relay.drain();
  EXPECT_TRUE(downlink->drained);
  EXPECT_EQ(injected().size(), 1u);
  EXPECT_EQ(reset(ResetReason::drained), 1u);
  relay.packets(stream, first);
  EXPECT_TRUE(sent.empty());
  EXPECT_EQ(refused(Refusal::draining), 1u);
  EXPECT_EQ(denied({{80}}).reason, "the intercept is about to end");
  EXPECT_FALSE(relay.wait_for_streams_to_end(std::chrono::milliseconds(0)));
  relay.close(stream);
  EXPECT_TRUE(relay.wait_for_streams_to_end(std::chrono::milliseconds(0)));
  EXPECT_TRUE(sent.empty());
}

TEST_F(RelayTest, AnObstacleStopsEverythingNew) {
  prove();
  relay.set_obstacle("the rules are gone");
  EXPECT_EQ(relay.not_ready(), "the rules are gone");
  EXPECT_EQ(denied({{80}}).reason, "the rules are gone");
  relay.prove_again();
  relay.prove(now);
  EXPECT_TRUE(sent.empty());
  relay.set_obstacle(std::nullopt);
  EXPECT_EQ(relay.not_ready(), std::nullopt);
}

// A relay whose targets come and go.
class LiveRelayTest : public RelayTest {
 protected:
  static constexpr const char* second = "10.0.0.6:8080";
  LiveRelayTest() : RelayTest(Relay::Targets::changing) {}

  static Target target(const std::string& endpoint, uint16_t port = 80) {
    return {port, *net::Endpoint::parse(endpoint)};
  }
  void set_targets(const std::vector<Target>& targets) {
    relay.set_targets(targets);
    relay.set_paths(std::vector<std::variant<Path, std::string>>(
        relay.endpoints().size(), Path{*net::IpAddress::parse(own), 1500}));
  }
  std::vector<std::string> leased_targets(StreamId stream) {
    std::vector<std::string> targets;
    for (const auto& leased : relay.lease(stream).targets)
      targets.push_back(leased.target.endpoint.to_string());
    return targets;
  }
};

TEST_F(LiveRelayTest, ANewTargetIsLeasedOnceItIsProven) {
  prove();
  const StreamId stream = open();
  set_targets({target(shadow), target(second)});
  EXPECT_EQ(leased_targets(stream), std::vector{shadow});
  const int changes = downlink->lease_changes;

  relay.prove(now);
  EXPECT_EQ(injected(),
            (std::vector<std::string>{"10.0.1.2:10000 > 10.0.0.6:8080 SYN seq 66536 ack 0 len 0"}))
      << "the path to the other one is proven already";
  arrive({packet(second, from(10000), {5, 66537, syn_ack, ""})});
  EXPECT_EQ(leased_targets(stream), (std::vector<std::string>{shadow, second}));
  EXPECT_EQ(downlink->lease_changes, changes + 1);
  EXPECT_EQ(downlink->ended, "");
  sent.clear();
  relay.packets(stream, packet(from(10001), second, {1, 0, syn, ""}));
  EXPECT_EQ(injected().size(), 1u);
}

TEST_F(LiveRelayTest, ATargetThatWentMayBeEndedAndNotBegun) {
  prove();
  const StreamId stream = open();
  relay.packets(stream, packet(from(10001), shadow, {1, 0, syn, ""}));
  set_targets({});
  EXPECT_EQ(leased_targets(stream), std::vector<std::string>{});
  EXPECT_EQ(downlink->lease_changes, 1);
  EXPECT_EQ(downlink->ended, "");
  sent.clear();

  relay.packets(stream, packet(from(10001), shadow, {2, 0, {.rst = true}, ""}));
  EXPECT_EQ(injected().size(), 1u) << "the session's end";
  relay.packets(stream, packet(from(10002), shadow, {1, 0, syn, ""}));
  EXPECT_EQ(injected().size(), 0u);
  EXPECT_EQ(refused(Refusal::target), 1u);
}

TEST_F(LiveRelayTest, WithoutATargetStreamsAreServedAndWait) {
  set_targets({});
  EXPECT_EQ(relay.not_ready(), std::nullopt);
  const StreamId stream = open();
  EXPECT_TRUE(relay.lease(stream).targets.empty());
  EXPECT_FALSE(relay.lease(stream).sources.empty());

  // The target of another port does not matter to it.
  set_targets({target(second, 81)});
  EXPECT_NE(relay.not_ready(), std::nullopt);
  open();
  EXPECT_EQ(denied({{81}}).kind, Denial::Kind::unavailable) << "it has one, and it is not proven";
}

TEST_F(LiveRelayTest, StreamsThatAreThereWaitForTheNewTargetsProof) {
  prove();
  open();
  set_targets({target(second)});
  for (int i = 0; i < 5; ++i) relay.prove(now + i * PathProof::interval);
  EXPECT_EQ(downlink->ended, "");
}

TEST_F(LiveRelayTest, ConnectionsKeepTheirTargetsWhateverComes) {
  prove();
  const StreamId stream = open();
  relay.packets(stream, packet(from(10001), shadow, {1, 0, syn, ""}));
  // As many others as would take its place, had it been given away.
  for (int i = 1; i < 9; ++i) set_targets({target("10.0.9." + std::to_string(i) + ":80")});
  sent.clear();
  relay.close(stream);
  EXPECT_EQ(injected(),
            (std::vector<std::string>{"10.0.1.2:10001 > 10.0.0.5:8080 RST seq 2 ack 0 len 0",
                                      "10.0.1.2:10001 > 10.0.0.5:8080 RST seq 1 ack 0 len 0"}));
}

TEST_F(LiveRelayTest, TheOwnAddressStaysWhileItServes) {
  prove();
  const StreamId stream = open();
  relay.set_targets({target("10.0.0.1:80"), target(shadow)});
  // The new one, which is first in their order, would be reached from another address.
  relay.set_paths(
      {Path{*net::IpAddress::parse("10.0.7.7"), 1500}, Path{*net::IpAddress::parse(own), 1500}});
  EXPECT_EQ(downlink->ended, "");
  EXPECT_EQ(relay.lease(stream).sources, leased(own, {10001, 11024}));
}

TEST_F(LiveRelayTest, WhatSidecarsAreToldChangesWhileTheyAreThere) {
  prove();
  open();
  relay.configure({});
  EXPECT_EQ(downlink->configuration_changes, 0) << "nothing new";
  const SidecarConfiguration tenth{.limits = {.percent = 10.0, .max_sessions = {}}};
  relay.configure(tenth);
  EXPECT_EQ(downlink->configuration_changes, 1);
  EXPECT_EQ(relay.configuration(), tenth);
}

TEST_F(LiveRelayTest, ASidecarThatIsToEndNeedsNoTarget) {
  EXPECT_EQ(denied({{80}}).kind, Denial::Kind::unavailable);
  relay.configure({.limits = {}, .stop = true});
  EXPECT_EQ(relay.not_ready(), std::nullopt);
  open();
}

TEST_F(RelayTest, TheStatusSaysWhatIsProvenAndWhatIsNot) {
  const std::string reason = *relay.not_ready();
  EXPECT_EQ(
      to_json(relay.status()),
      R"({"message":")" + reason + R"(","ready":false,"reply_path":[{"message":")" + reason +
          R"(","target":"80=10.0.0.5:8080","verified":false}],"sidecars":[],)" +
          R"("totals":{"closed":{},"exchanges":0,"sessions":0,"sessions_opened":0,"shed":{}}})");
  prove();
  const auto status = relay.status();
  EXPECT_EQ(status.not_ready, std::nullopt);
  EXPECT_EQ(status.targets[0].second, std::nullopt);
}

TEST_F(RelayTest, CountsOfASidecarAreSummedOverItsStreamsAndKeptInTheTotals) {
  prove();
  const StreamId one = open(), two = open();
  const auto other = std::get<StreamId>(relay.open("pod-2", http, downlink));
  const auto counts = [](uint64_t n) {
    SidecarCounts all;
    all.sessions = all.sessions_opened = all.exchanges = n;
    all.closed["finished"] = n;
    all.shed["sampled"] = n;
    return all;
  };
  relay.counted(one, counts(1));
  relay.counted(one, counts(2));
  relay.counted(two, counts(4));
  relay.counted(other, counts(8));
  auto status = relay.status();
  SidecarCounts of_pod_1 = counts(7);
  of_pod_1.sessions = 6;  // what each said last
  EXPECT_EQ(status.sidecars["pod-1"], of_pod_1);
  EXPECT_EQ(status.sidecars["pod-2"], counts(8));
  SidecarCounts totals = counts(15);
  totals.sessions = 14;
  EXPECT_EQ(status.totals, totals);

  relay.close(one);
  relay.close(two);
  status = relay.status();
  EXPECT_EQ(status.sidecars.size(), 1U);
  totals.sessions = 8;
  EXPECT_EQ(status.totals, totals) << "they never run back";
}

TEST_F(RelayTest, TheStatusSaysHowFarAReplayIs) {
  prove();
  const StreamId stream = open();
  const auto says = [&](const char* text) {
    return to_json(relay.status()).find(text) != std::string::npos;
  };
  relay.counted(stream, {});
  EXPECT_FALSE(says("replay\":")) << "it is none";
  SidecarCounts counts;
  counts.replay = {.packets = 1200, .percent = 40};
  relay.counted(stream, counts);
  EXPECT_TRUE(says(R"("replay":{"packets":1200,"percent":40})"));
  counts.replay = {.packets = 1300, .percent = {}};
  relay.counted(stream, counts);
  EXPECT_TRUE(says(R"("replay":{"packets":1300})")) << "what it said last";
}

TEST_F(RelayTest, ReasonsThatASidecarMakesUpAreBounded) {
  prove();
  const StreamId stream = open();
  for (int i = 0; i < 1000; ++i) {
    SidecarCounts counts;
    counts.shed[std::to_string(i)] = 1;
    relay.counted(stream, counts);
  }
  SidecarCounts counts;
  counts.closed[std::string(65, 'x')] = 1;
  relay.counted(stream, counts);
  const SidecarCounts totals = relay.status().totals;
  EXPECT_EQ(totals.shed.size(), 65U);
  EXPECT_EQ(totals.shed.at("other"), 936U);
  EXPECT_EQ(totals.closed, (std::map<std::string, uint64_t>{{"other", 1}}));
}

TEST_F(RelayTest, WhenNoPortIsLeftTheReasonIsPlain) {
  prove();
  std::vector<StreamId> streams;
  for (auto opened = relay.open("pod-1", http, downlink); std::holds_alternative<StreamId>(opened);
       opened = relay.open("pod-1", http, downlink))
    streams.push_back(std::get<StreamId>(opened));
  EXPECT_EQ(streams.size(), 23u);
  EXPECT_EQ(denied({{80}}).reason,
            "every source port is leased to another sidecar: widen --source-ports");
  relay.close(streams.back());
  open();
}

}  // namespace
}  // namespace trafficmirror::intercept
