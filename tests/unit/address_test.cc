#include "net/address.h"

#include <gtest/gtest.h>

namespace trafficmirror::net {
namespace {

TEST(Endpoint, ReadsAndWritesBothFamilies) {
  for (const char* text : {"10.0.0.1:80", "[fd00::1]:65535"}) {
    const auto endpoint = Endpoint::parse(text);
    ASSERT_TRUE(endpoint) << text;
    EXPECT_EQ(endpoint->to_string(), text);
  }
  EXPECT_EQ(Endpoint::parse("10.0.0.1:80")->address.family(), Family::ipv4);
  EXPECT_EQ(Endpoint::parse("10.0.0.1:80")->address.bytes().size(), 4);
  EXPECT_EQ(Endpoint::parse("[fd00::1]:80")->address.family(), Family::ipv6);
  EXPECT_EQ(Endpoint::parse("[fd00::1]:80")->address.bytes().size(), 16);
}

TEST(Endpoint, RefusesWhatIsNone) {
  for (const char* text : {"", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536",
                           "10.0.0.1:8x", "fd00::1:80", "[fd00::1]", "[]:80", "host:80"})
    EXPECT_FALSE(Endpoint::parse(text)) << text;
}

TEST(Endpoint, RefusesBytesBehindANul) {
  using namespace std::string_view_literals;
  EXPECT_FALSE(Endpoint::parse("10.0.0.1\0x:80"sv));
  EXPECT_FALSE(HostPort::parse("10.0.0.1\0x:80"sv));
  EXPECT_FALSE(IpAddress::parse("10.0.0.1\0"sv));
}

TEST(HostPort, RefusesBracketsWithinAHost) {
  for (const char* text : {"[[::1]]:80", "a]:80", "[a:80", "a[b]:80"})
    EXPECT_FALSE(HostPort::parse(text)) << text;
}

TEST(HostPort, KeepsNames) {
  const auto name = HostPort::parse("shadow.default.svc:8080");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->host, "shadow.default.svc");
  EXPECT_EQ(name->port.number, 8080);
  EXPECT_EQ(HostPort::parse("[::]:1")->host, "::");
}

TEST(FlowKey, HashTellsDirectionsApart) {
  const FlowKey key{*Endpoint::parse("10.0.0.1:1000"), *Endpoint::parse("10.0.0.2:80")};
  EXPECT_NE(std::hash<FlowKey>()(key), std::hash<FlowKey>()({key.server, key.client}));
}

}  // namespace
}  // namespace trafficmirror::net
