#include "sidecar/session/source_ports.h"

#include <algorithm>
#include <array>
#include <set>

#include <gtest/gtest.h>

namespace trafficmirror::session {
namespace {

Lease::Source source(uint16_t first, uint16_t last) {
  return {*net::IpAddress::parse("10.0.0.1"), net::Port{first}, net::Port{last}};
}

std::multiset<uint16_t> all(SourcePorts& ports) {
  std::multiset<uint16_t> taken;
  while (const auto number = ports.take(net::Family::ipv4))
    taken.insert(ports.endpoint(*number).port.number);
  return taken;
}

TEST(SourcePorts, AreGivenOutOnceWhateverTheLeaseSays) {
  SourcePorts ports(1);
  ports.lease({source(10, 12), source(11, 13), source(10, 10)});
  EXPECT_EQ(all(ports), (std::multiset<uint16_t>{10, 11, 12, 13}));
}

TEST(SourcePorts, ALeaseThatShrinksAndGrowsAgainAddsOnlyWhatIsNew) {
  SourcePorts ports(1);
  ports.lease({source(10, 12)});
  ports.lease({source(20, 20)});
  ports.lease({source(10, 13)});
  EXPECT_EQ(all(ports), (std::multiset<uint16_t>{10, 11, 12, 13, 20}));
  EXPECT_TRUE(ports.contains({*net::IpAddress::parse("10.0.0.1"), net::Port{12}}));
}

TEST(SourcePorts, AreBounded) {
  SourcePorts ports(1);
  std::vector<Lease::Source> sources;
  for (const char* address : {"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"})
    sources.push_back({*net::IpAddress::parse(address), net::Port{1}, net::Port{65535}});
  ports.lease(sources);
  EXPECT_EQ(all(ports).size(), SourcePorts::max_ports);
}

SourcePorts::Ends ends(const char* client, const char* target = "10.0.0.5:80") {
  return {*net::Endpoint::parse(client), *net::Endpoint::parse(target)};
}

TEST(ClientSources, AreEachClientsOwn) {
  SourcePorts ports(1);
  ports.lease_clients();
  const auto number = ports.take(ends("192.0.2.7:4000"));
  ASSERT_TRUE(number);
  EXPECT_EQ(ports.endpoint(*number), *net::Endpoint::parse("192.0.2.7:4000"));
  EXPECT_FALSE(ports.contains(*net::Endpoint::parse("192.0.2.7:4000")))
      << "what comes from there is no mirrored session, but its client";
  EXPECT_TRUE(ports.take(ends("[2001:db8::7]:4000", "[fd00::5]:80")));
  EXPECT_FALSE(ports.low());
}

TEST(ClientSources, HaveOneSessionATimeWithATarget) {
  SourcePorts ports(1);
  ports.lease_clients();
  const auto number = ports.take(ends("192.0.2.7:4000"));
  SessionEntry* const user = reinterpret_cast<SessionEntry*>(&ports);  // never looked into
  ports.set_user(*number, *user);
  EXPECT_EQ(ports.user(ends("192.0.2.7:4000").client, ends("192.0.2.7:4000").target), user);
  EXPECT_FALSE(ports.has_free(ends("192.0.2.7:4000")));
  EXPECT_FALSE(ports.take(ends("192.0.2.7:4000")));
  EXPECT_TRUE(ports.take(ends("192.0.2.7:4000", "10.0.0.5:81"))) << "another target";
  ports.give_back(*number, net::SequenceNumber(77));
  const auto again = ports.take(ends("192.0.2.7:4000"));
  ASSERT_TRUE(again);
  EXPECT_EQ(ports.initial_sequence(*again), net::SequenceNumber(77)) << "behind the last one";
}

TEST(ClientSources, AreNoneWhereTheTargetCouldNotAnswerThem) {
  SourcePorts ports(1);
  ports.lease_clients();
  for (const char* client : {"127.0.0.1:4000", "0.0.0.0:4000", "169.254.1.1:4000", "224.0.0.1:4000",
                             "255.255.255.255:4000", "[2001:db8::7]:4000"})
    EXPECT_FALSE(ports.take(ends(client))) << client;
  for (const char* client : {"[::1]:4000", "[::]:4000", "[fe80::1]:4000", "[ff02::1]:4000"})
    EXPECT_FALSE(ports.take(ends(client, "[fd00::5]:80"))) << client;
}

TEST(ClientSources, AreForgottenInTheEnd) {
  SourcePorts ports(1);
  ports.lease_clients();
  const auto use = [&](uint32_t client) {
    const std::array<uint8_t, 4> address = {10, static_cast<uint8_t>(client >> 16),
                                            static_cast<uint8_t>(client >> 8),
                                            static_cast<uint8_t>(client)};
    const auto number =
        ports.take({{net::IpAddress::from_ipv4(address), net::Port{1}}, ends("10.0.0.1:1").target});
    ports.give_back(*number, net::SequenceNumber(1));
    return static_cast<uint32_t>(*number);
  };
  uint32_t highest = 0;
  for (uint32_t client = 0; client < 50'000; ++client) highest = std::max(highest, use(client));
  for (int i = 0; i < 50'000; ++i) highest = std::max(highest, use(49'999));
  EXPECT_LT(highest, 20'000U);
}

}  // namespace
}  // namespace trafficmirror::session
