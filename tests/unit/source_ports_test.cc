#include "sidecar/session/source_ports.h"

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

}  // namespace
}  // namespace trafficmirror::session
