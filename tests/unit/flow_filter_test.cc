#include "program/flow_filter.h"

#include <gtest/gtest.h>

namespace trafficmirror::program {
namespace {

net::FlowKey flow(const char* client, const char* server) {
  return {*net::Endpoint::parse(client), *net::Endpoint::parse(server)};
}

bool lets_through(const std::string& expression, const net::FlowKey& key) {
  const auto compiled = FlowFilter::compile(expression);
  const auto* filter = std::get_if<FlowFilter>(&compiled);
  EXPECT_NE(filter, nullptr) << expression << ": " << std::get<std::string>(compiled);
  return filter != nullptr && filter->lets_through(key);
}

TEST(FlowFilter, IsAskedAsOfTheClientsSyn) {
  const net::FlowKey key = flow("10.1.2.3:40000", "10.9.0.1:80");
  for (const char* yes :
       {"", "src net 10.1.0.0/16", "dst port 80", "host 10.9.0.1 and not port 81", "tcp", "ip",
        "src port 40000", "portrange 79-81", "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"})
    EXPECT_TRUE(lets_through(yes, key)) << yes;
  for (const char* no : {"src host 10.9.0.1", "dst net 10.1.0.0/16", "src port 80", "udp", "ip6",
                         "not host 10.1.2.3", "tcp[tcpflags] & tcp-ack != 0"})
    EXPECT_FALSE(lets_through(no, key)) << no;
}

TEST(FlowFilter, IsAskedAsOfADatagram) {
  const net::FlowKey key = flow("10.1.2.3:40000", "10.9.0.1:53");
  for (const auto& [expression, passes] :
       {std::pair("udp", true), std::pair("udp dst port 53", true), std::pair("port 53", true),
        std::pair("tcp", false), std::pair("src net 10.2.0.0/16", false)})
    EXPECT_EQ(
        std::get<FlowFilter>(FlowFilter::compile(expression)).lets_through(key, net::Protocol::udp),
        passes)
        << expression;
}

TEST(FlowFilter, KnowsBothFamilies) {
  const net::FlowKey key = flow("[fd00::5]:40000", "[fd00:9::1]:80");
  EXPECT_TRUE(lets_through("src net fd00::/64 and dst port 80", key));
  EXPECT_TRUE(lets_through("ip6 and tcp", key));
  EXPECT_FALSE(lets_through("src net fd00:9::/64", key));
  EXPECT_FALSE(lets_through("dst port 81", key));
  EXPECT_FALSE(lets_through("ip", key));
}

TEST(FlowFilter, SaysWhatIsWrong) {
  const auto wrong = [](const std::string& expression) {
    const auto compiled = FlowFilter::compile(expression);
    const auto* text = std::get_if<std::string>(&compiled);
    return text != nullptr ? *text : "nothing";
  };
  EXPECT_EQ(wrong("prot 80"), "is no pcap filter: can't parse filter expression: syntax error");
  EXPECT_EQ(wrong("port 80 and"), "is no pcap filter: can't parse filter expression: syntax error");
  EXPECT_EQ(wrong("src net 10.0.0.1/8"),
            "is no pcap filter: non-network bits set in \"10.0.0.1/8\"");
  EXPECT_EQ(wrong(std::string(4097, ' ')), "is longer than 4096 characters");
  EXPECT_EQ(wrong(std::string(4096, ' ')), "nothing");
}

TEST(FlowFilter, IsWhatItsExpressionSays) {
  const auto compiled = [](const char* expression) {
    return std::get<FlowFilter>(FlowFilter::compile(expression));
  };
  EXPECT_EQ(compiled("port 80"), compiled("port 80"));
  EXPECT_FALSE(compiled("port 80") == compiled("port 81"));
  FlowFilter copy = compiled("port 80");
  copy = compiled("port 81");
  EXPECT_FALSE(copy.lets_through(flow("10.1.2.3:40000", "10.9.0.1:80")));
  EXPECT_EQ(copy.expression(), "port 81");
}

}  // namespace
}  // namespace trafficmirror::program
