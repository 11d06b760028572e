#include "sidecar/uplink/messages.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/unit/tcp_packets.h"
#include "trafficmirror/v1/mirror.pb.h"

namespace trafficmirror::uplink {
namespace {

const std::string ipv4 = "\x0a\x09\x08\x07";
const std::string ipv6 = "\xfd" + std::string(14, '\0') + "\x01";

v1::SourceRange& add_source(v1::Lease& lease, const std::string& address, uint32_t first,
                            uint32_t last) {
  v1::SourceRange& source = *lease.add_sources();
  source.set_address(address);
  source.set_first_port(first);
  source.set_last_port(last);
  return source;
}

v1::Target& add_target(v1::Lease& lease, const std::string& address, uint32_t port, uint32_t mtu) {
  v1::Target& target = *lease.add_targets();
  target.set_production_port(80);
  target.set_address(address);
  target.set_port(port);
  target.set_path_mtu(mtu);
  return target;
}

TEST(Identity, IsWhatTheConfigurationHasOfIt) {
  v1::Configuration message;
  EXPECT_EQ(to_identity(message), std::nullopt);
  message.mutable_identity()->set_certificate("a");
  message.mutable_identity()->set_key("b");
  message.mutable_identity()->set_ca("c");
  EXPECT_EQ(to_identity(message), (program::TlsMaterial{"a", "b", "c"}));
  message.clear_identity();
  message.mutable_identity();
  EXPECT_EQ(to_identity(message), program::TlsMaterial()) << "one that can't hold up";
}

TEST(Lease, IsReadForBothFamilies) {
  v1::Lease message;
  add_source(message, ipv4, 1, 65535);
  add_source(message, ipv6, 10000, 10000);
  add_target(message, ipv4, 8080, 1500);
  add_target(message, ipv6, 65535, 9000).set_udp(true);
  const auto lease = to_lease(message);
  ASSERT_TRUE(lease);
  ASSERT_EQ(lease->sources.size(), 2U);
  EXPECT_EQ(lease->sources[0].address.to_string(), "10.9.8.7");
  EXPECT_EQ(lease->sources[0].last.number, 65535);
  EXPECT_EQ(lease->sources[1].address.to_string(), "fd00::1");
  ASSERT_EQ(lease->targets.size(), 2U);
  EXPECT_EQ(lease->targets[1].endpoint.to_string(), "[fd00::1]:65535");
  EXPECT_EQ(lease->targets[1].path_mtu, 9000);
  EXPECT_EQ(lease->targets[0].protocol, net::Protocol::tcp);
  EXPECT_EQ(lease->targets[1].protocol, net::Protocol::udp);
}

TEST(Lease, KeepsTheMtuWithinWhatAPathCanHave) {
  v1::Lease message;
  add_target(message, ipv4, 8080, 0);
  add_target(message, ipv4, 8081, 1 << 20);
  const auto lease = to_lease(message);
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->targets[0].path_mtu, 576);
  EXPECT_EQ(lease->targets[1].path_mtu, 65535);
}

TEST(Lease, ThatMakesNoSenseIsNone) {
  const auto with_source = [](const std::string& address, uint32_t first, uint32_t last) {
    v1::Lease message;
    add_source(message, address, first, last);
    return to_lease(message).has_value();
  };
  EXPECT_TRUE(with_source(ipv4, 10, 20));
  EXPECT_FALSE(with_source("", 10, 20));
  EXPECT_FALSE(with_source("three", 10, 20));
  EXPECT_FALSE(with_source(ipv4, 0, 20));
  EXPECT_FALSE(with_source(ipv4, 20, 10));
  EXPECT_FALSE(with_source(ipv4, 10, 65536));
  const auto with_target = [](const std::string& address, uint32_t port) {
    v1::Lease message;
    add_target(message, address, port, 1500);
    return to_lease(message).has_value();
  };
  EXPECT_TRUE(with_target(ipv6, 80));
  EXPECT_FALSE(with_target(ipv6 + "x", 80));
  EXPECT_FALSE(with_target(ipv6, 0));
  EXPECT_FALSE(with_target(ipv6, 65536));
  v1::Lease many;
  for (int i = 0; i <= 1 << 16; ++i) add_source(many, ipv4, 10, 20);
  EXPECT_FALSE(to_lease(many)) << "no intercept has so many ranges";
}

TEST(Limits, AreReadWithinTheirBounds) {
  v1::Configuration message;
  using Read = std::variant<program::Limits, std::string>;
  EXPECT_EQ(to_limits(message), Read(program::Limits{})) << "all is left to the flags";
  message.set_percent(0.1);
  message.set_max_sessions(1);
  message.set_memory_limit(1 << 20);
  EXPECT_EQ(to_limits(message), Read(program::Limits{0.1, 1, 1 << 20}));
  message.set_turns(v1::TURNS_OFF);
  message.set_max_lag(1);
  message.set_over_lag(v1::OVER_LAG_CATCH_UP);
  message.set_max_rate(1);
  message.set_filter("port 80");
  message.set_copies(2);
  EXPECT_EQ(to_limits(message),
            Read(program::Limits{
                0.1, 1, 1 << 20, program::Turns::off, std::chrono::milliseconds(1),
                program::OverLag::catch_up, 1,
                std::get<program::FlowFilter>(program::FlowFilter::compile("port 80")), 2}));

  const auto holds = [&](auto change) {
    v1::Configuration changed = message;
    change(changed);
    return std::holds_alternative<program::Limits>(to_limits(changed));
  };
  EXPECT_TRUE(holds([](auto& m) { m.set_percent(100); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_percent(100.1); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_percent(0.09); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_percent(std::nan("")); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_max_sessions(0); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_memory_limit((1 << 20) - 1); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_turns(static_cast<v1::Turns>(4)); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_turns(static_cast<v1::Turns>(-1)); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_over_lag(static_cast<v1::OverLag>(3)); }));
  EXPECT_TRUE(holds([](auto& m) { m.set_max_lag(315'360'000'000); })) << "ten years";
  EXPECT_FALSE(holds([](auto& m) { m.set_max_lag(315'360'000'001); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_max_lag(UINT64_MAX); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_max_rate(0); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_copies(0); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_copies(1001); }));
  EXPECT_FALSE(holds([](auto& m) { m.set_filter("prot 80"); }));
  EXPECT_TRUE(holds([](auto& m) { m.set_filter(""); }));
}

TEST(Headers, StandOneBehindTheOther) {
  const std::string first = tests::packet("10.0.0.5:80", "10.0.0.1:1000", {1, 2, {.ack = true}});
  const std::string second = tests::packet("[fd00::5]:80", "[fd00::1]:1", {3, 4, {.ack = true}});
  std::vector<std::string> taken;
  const auto take = [&](const net::Packet& packet) { taken.push_back(tests::describe(packet)); };
  EXPECT_TRUE(for_each_header("", take));
  EXPECT_TRUE(taken.empty());
  EXPECT_TRUE(for_each_header(first + second, take));
  EXPECT_EQ(taken, (std::vector<std::string>{"10.0.0.5:80 > 10.0.0.1:1000 ACK seq 1 ack 2 len 0",
                                             "[fd00::5]:80 > [fd00::1]:1 ACK seq 3 ack 4 len 0"}));
}

TEST(Headers, HaveNoPayload) {
  const std::string packet =
      tests::packet("10.0.0.5:80", "10.0.0.1:1000", {1, 2, {.ack = true}, "answer"});
  const std::string header = packet.substr(0, packet.size() - 6);
  int taken = 0;
  EXPECT_TRUE(for_each_header(header + header, [&](const net::Packet& its) {
    EXPECT_EQ(its.payload_length, 6u);
    EXPECT_TRUE(its.payload.empty()) << "that is the next header";
    ++taken;
  }));
  EXPECT_EQ(taken, 2);
}

TEST(Replies, StandOneBehindTheOther) {
  const std::string first =
      tests::packet("10.0.0.5:80", "10.0.0.1:1000", {1, 2, {.ack = true}, "answer"});
  const std::string second = tests::packet("[fd00::5]:80", "[fd00::1]:1", {3, 4, {.ack = true}});
  std::vector<std::string> taken;
  const auto take = [&](const net::Packet& packet) {
    taken.emplace_back(packet.payload.begin(), packet.payload.end());
  };
  EXPECT_TRUE(for_each_reply(first + second + first, take));
  EXPECT_EQ(taken, (std::vector<std::string>{"answer", "", "answer"}));
  EXPECT_FALSE(for_each_reply(second + first.substr(0, first.size() - 1), take)) << "it is cut";
  EXPECT_FALSE(for_each_reply("nonsense", take));
  EXPECT_EQ(taken.size(), 4u);
}

TEST(Headers, BehindOneThatCannotBeReadAreLost) {
  const std::string good = tests::packet("10.0.0.5:80", "10.0.0.1:1000", {1, 2, {.ack = true}});
  int taken = 0;
  const auto take = [&](const net::Packet&) { ++taken; };
  EXPECT_FALSE(for_each_header(good + "nonsense" + good, take));
  EXPECT_EQ(taken, 1);
  EXPECT_FALSE(for_each_header(good.substr(0, 30), take));
  std::string without_length = good;
  without_length[3] = 0;
  EXPECT_FALSE(for_each_header(without_length + good, take));
  EXPECT_EQ(taken, 1);
}

}  // namespace
}  // namespace trafficmirror::uplink
