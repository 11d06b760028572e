#include <array>
#include <set>

#include <gtest/gtest.h>

#include "intercept/client_addresses.h"
#include "intercept/client_leases.h"
#include "intercept/kernel_state.h"
#include "intercept/lease.h"
#include "intercept/options.h"
#include "net/batch.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::intercept {
namespace {

using tests::describe_all;
using tests::packet;
using tests::parsed;
using tests::Segment;

constexpr std::array<net::ProductionPort, 1> http = {{{80}}};
const std::string shadow = "10.0.0.5:8080";
const std::string own = "10.0.1.2";

std::vector<Target> targets() {
  return {{80, *net::Endpoint::parse(shadow)},
          {80, *net::Endpoint::parse("[fd00::5]:8080")},
          {6379, *net::Endpoint::parse("10.0.0.6:6379")},
          {53, *net::Endpoint::parse("10.0.0.6:53"), net::Protocol::udp}};
}

LeaseBook book(PortRange ports = {10001, 32767}) {
  LeaseBook book(ports, targets());
  book.set_own_address(net::Family::ipv4, *net::IpAddress::parse(own));
  book.set_own_address(net::Family::ipv6, *net::IpAddress::parse("fd00::2"));
  return book;
}

// Of IPv4.
std::vector<PortRange> ports(const LeaseBook& leases, StreamId stream) {
  std::vector<PortRange> ranges;
  const auto sources = *leases.sources(stream);
  for (const auto& [address, range] : sources)
    if (address == *net::IpAddress::parse(own)) ranges.push_back(range);
  return ranges;
}

std::string from(uint16_t port) {
  return own + ":" + std::to_string(port);
}

uint32_t size(const std::vector<PortRange>& ranges) {
  uint32_t size = 0;
  for (const PortRange& range : ranges) size += range.size();
  return size;
}

TEST(Lease, ANewStreamGetsFourBlocksAndDoublesThem) {
  LeaseBook leases = book();
  const auto stream = leases.open(http);
  ASSERT_TRUE(stream);
  EXPECT_EQ(ports(leases, *stream), (std::vector<PortRange>{{10001, 11024}}));
  EXPECT_EQ(leases.extend(*stream), 1024u);
  EXPECT_EQ(ports(leases, *stream), (std::vector<PortRange>{{10001, 12048}}));
  EXPECT_EQ(leases.leased_ports(), 2048u);
  EXPECT_EQ(leases.free_ports() + leases.leased_ports(), 22767u);
}

TEST(Lease, StreamsNeverShareAPort) {
  LeaseBook leases = book();
  std::set<uint16_t> seen;
  for (int i = 0; i < 3; ++i) {
    const auto stream = leases.open(http);
    leases.extend(*stream);
    for (const PortRange& range : ports(leases, *stream))
      for (uint32_t port = range.first; port <= range.last; ++port)
        EXPECT_TRUE(seen.insert(static_cast<uint16_t>(port)).second) << port;
  }
}

TEST(Lease, FewPortsRatherThanNone) {
  LeaseBook leases = book({10001, 11300});  // five blocks and a short one
  const auto first = leases.open(http);
  const auto second = leases.open(http);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(ports(leases, *second), (std::vector<PortRange>{{11025, 11300}}));
  EXPECT_EQ(leases.extend(*second), 0u);
  EXPECT_FALSE(leases.open(http));
}

TEST(Lease, PortsGivenBackRestLongest) {
  LeaseBook leases = book({10001, 10001 + 6 * 256 - 1});
  std::string resets;
  const auto first = leases.open(http);
  leases.close(*first, resets);
  const auto second = leases.open(http);
  EXPECT_EQ(ports(leases, *second),
            (std::vector<PortRange>{{10001 + 4 * 256, 10001 + 6 * 256 - 1}, {10001, 10512}}));
  EXPECT_EQ(leases.free_ports(), 512u);
}

TEST(Lease, ChecksEachPacket) {
  LeaseBook leases = book();
  const StreamId stream = *leases.open(http);
  const StreamId other = *leases.open(std::array{net::ProductionPort{6379}});
  const Segment syn{.sequence = 1, .flags = {.syn = true}};
  std::string with_options = packet(from(10001), shadow, syn);
  with_options.insert(20, std::string("\x01\x01\x01\x00", 4));
  with_options[0] = 0x46;
  with_options[3] = static_cast<char>(with_options[3] + 4);
  const struct {
    const char* description;
    std::string packet;
    StreamId stream;
    std::optional<Refusal> refusal;
  } cases[] = {
      {"first port", packet(from(10001), shadow, syn), stream, {}},
      {"last port", packet(from(11024), shadow, syn), stream, {}},
      {"IPv6", packet("[fd00::2]:10001", "[fd00::5]:8080", syn), stream, {}},
      {"another stream's port", packet(from(11025), shadow, syn), stream, Refusal::source},
      {"a port nobody has", packet(from(20000), shadow, syn), stream, Refusal::source},
      {"below the range", packet(from(10000), shadow, syn), stream, Refusal::source},
      {"above the range", packet(from(32768), shadow, syn), stream, Refusal::source},
      {"another address", packet("10.0.1.3:10001", shadow, syn), stream, Refusal::source},
      {"another IPv6", packet("[fd00::3]:10001", "[fd00::5]:8080", syn), stream, Refusal::source},
      {"another host", packet(from(10001), "10.0.0.7:8080", syn), stream, Refusal::target},
      {"another port of it", packet(from(10001), "10.0.0.5:22", syn), stream, Refusal::target},
      {"a target of another production port", packet(from(10001), "10.0.0.6:6379", syn), stream,
       Refusal::target},
      {"that target, where it belongs", packet(from(11025), "10.0.0.6:6379", syn), other, {}},
      {"IPv4 options", with_options, stream, Refusal::ip_options},
  };
  for (const auto& each : cases)
    EXPECT_EQ(leases.send(each.stream, parsed(each.packet)), each.refusal) << each.description;
}

TEST(Lease, AnArrivalBelongsToTheConnectionOfItsPort) {
  LeaseBook leases = book();
  const StreamId stream = *leases.open(http);
  const auto arrive = [&](const std::string& source, const std::string& destination) {
    return leases
        .arrive(parsed(packet(source, destination, {.acknowledgment = 2, .flags = {.ack = true}})))
        .what;
  };
  EXPECT_EQ(arrive(shadow, from(10001)), LeaseBook::Arrival::closed_port) << "no SYN yet";
  leases.send(stream, parsed(packet(from(10001), shadow, {.sequence = 1, .flags = {.syn = true}})));
  EXPECT_EQ(arrive(shadow, from(10001)), LeaseBook::Arrival::session);
  EXPECT_EQ(arrive("10.0.0.9:8080", from(10001)), LeaseBook::Arrival::closed_port) << "a stranger";
  EXPECT_EQ(arrive("[fd00::5]:8080", "[fd00::2]:10001"), LeaseBook::Arrival::closed_port)
      << "the other family's port is another one";
  EXPECT_EQ(arrive(shadow, from(10000)), LeaseBook::Arrival::foreign);
  EXPECT_EQ(arrive(shadow, "10.0.1.3:10001"), LeaseBook::Arrival::foreign);
  leases.send(stream, parsed(packet(from(10001), shadow, {.sequence = 2, .flags = {.rst = true}})));
  EXPECT_EQ(arrive(shadow, from(10001)), LeaseBook::Arrival::closed_port) << "after a RST";
}

// Each step is a packet: "> flags sequence length" is sent, "< flags acknowledgment" is received.
struct Step {
  bool sent;
  Segment segment;
};

Step sent(net::TcpFlags flags, uint32_t sequence, size_t length = 0) {
  return {true, {.sequence = sequence, .flags = flags, .payload = std::string(length, 'x')}};
}
Step received(net::TcpFlags flags, uint32_t acknowledgment) {
  return {false, {.sequence = 900, .acknowledgment = acknowledgment, .flags = flags}};
}

TEST(Lease, AStreamThatEndsResetsWhatIsOpen) {
  constexpr net::TcpFlags syn{.syn = true}, syn_ack{.syn = true, .ack = true}, ack{.ack = true},
      fin{.fin = true, .ack = true}, rst{.rst = true};
  const struct {
    const char* description;
    std::vector<Step> steps;
    std::vector<uint32_t> sequences;  // of the RSTs
  } cases[] = {
      {"nothing sent", {}, {}},
      {"only a SYN", {sent(syn, 100)}, {101, 100}},
      {"handshake", {sent(syn, 100), received(syn_ack, 101)}, {101}},
      {"data not acknowledged yet",
       {sent(syn, 100), received(syn_ack, 101), sent(ack, 101, 10)},
       {111, 101}},
      {"data acknowledged",
       {sent(syn, 100), received(syn_ack, 101), sent(ack, 101, 10), received(ack, 111)},
       {111}},
      {"a retransmission does not go back",
       {sent(syn, 100), received(syn_ack, 101), sent(ack, 101, 10), received(ack, 111),
        sent(ack, 101, 4)},
       {111}},
      {"numbers wrap",
       {sent(syn, 0xfffffffe), received(syn_ack, 0xffffffff), sent(ack, 0xffffffff, 10),
        received(ack, 9)},
       {9}},
      {"an acknowledgement of what was never sent",
       {sent(syn, 100), received(ack, 5000)},
       {101, 100}},
      {"reset by the sidecar", {sent(syn, 100), sent(rst, 101)}, {}},
      {"reset by the shadow", {sent(syn, 100), received(rst, 101)}, {}},
      {"a RST that the sidecar does not accept",
       {sent(syn, 100), received(syn_ack, 101), received(rst, 101), sent(ack, 101, 1)},
       {102, 101}},
      {"half closed", {sent(syn, 100), received(syn_ack, 101), sent(fin, 101)}, {102, 101}},
      {"closed by both",
       {sent(syn, 100), received(syn_ack, 101), sent(fin, 101), received(fin, 102), sent(ack, 102)},
       {}},
      {"the port used again", {sent(syn, 100), sent(rst, 101), sent(syn, 7)}, {8, 7}},
  };
  for (const auto& each : cases) {
    LeaseBook leases = book();
    const StreamId stream = *leases.open(http);
    for (const Step& step : each.steps) {
      if (step.sent)
        EXPECT_FALSE(leases.send(stream, parsed(packet(from(10500), shadow, step.segment))));
      else
        leases.arrive(parsed(packet(shadow, from(10500), step.segment)));
    }
    std::vector<std::string> expected;
    for (const uint32_t sequence : each.sequences)
      expected.push_back("10.0.1.2:10500 > 10.0.0.5:8080 RST seq " + std::to_string(sequence) +
                         " ack 0 len 0");
    std::string resets;
    EXPECT_EQ(leases.close(stream, resets), each.sequences.empty() ? 0u : 1u) << each.description;
    EXPECT_EQ(describe_all(resets), expected) << each.description;
    EXPECT_EQ(size(ports(leases, *leases.open(http))), 1024u);
  }
}

// Of a sidecar that sends by itself only the shadow's packets pass.
TEST(Lease, ASessionSentElsewhereIsKnownByTheShadowsAnswers) {
  constexpr net::TcpFlags syn_ack{.syn = true, .ack = true}, ack{.ack = true},
      fin{.fin = true, .ack = true}, rst{.rst = true}, rst_ack{.rst = true, .ack = true};
  using Arrival = LeaseBook::Arrival;
  const struct {
    const char* description;
    std::vector<std::pair<Step, Arrival>> steps;
    std::vector<uint32_t> sequences;  // of the RSTs when the stream ends
  } cases[] = {
      {"refused", {{received(rst_ack, 101), Arrival::session}}, {}},
      {"no SYN was answered", {{received(ack, 101), Arrival::closed_port}}, {}},
      {"handshake", {{received(syn_ack, 101), Arrival::session}}, {101}},
      {"data acknowledged",
       {{received(syn_ack, 101), Arrival::session}, {received(ack, 111), Arrival::session}},
       {111}},
      {"numbers wrap",
       {{received(syn_ack, 0xffffffff), Arrival::session}, {received(ack, 9), Arrival::session}},
       {9}},
      {"reset by the shadow",
       {{received(syn_ack, 101), Arrival::session}, {received(rst, 0), Arrival::session}},
       {}},
      {"the shadow has finished",
       {{received(syn_ack, 101), Arrival::session}, {received(fin, 102), Arrival::session}},
       {}},
      {"the port used again",
       {{received(syn_ack, 101), Arrival::session},
        {received(fin, 102), Arrival::session},
        {received(syn_ack, 501), Arrival::session}},
       {501}},
  };
  for (const auto& each : cases) {
    LeaseBook leases = book();
    const StreamId stream = *leases.open(http, Sender::sidecar);
    for (const auto& [step, arrival] : each.steps) {
      const auto arrived = leases.arrive(parsed(packet(shadow, from(10500), step.segment)));
      EXPECT_EQ(arrived.what, arrival) << each.description;
      EXPECT_EQ(arrived.stream, stream);
    }
    const auto stranger = [&](const std::string& source, uint16_t to) {
      return leases.arrive(parsed(packet(source, from(to), received(syn_ack, 101).segment))).what;
    };
    EXPECT_EQ(stranger("10.0.0.6:6379", 10500), Arrival::closed_port) << "no target of its ports";
    EXPECT_EQ(stranger(shadow, 20000), Arrival::closed_port) << "a port nobody has";
    std::vector<std::string> expected;
    for (const uint32_t sequence : each.sequences)
      expected.push_back("10.0.1.2:10500 > 10.0.0.5:8080 RST seq " + std::to_string(sequence) +
                         " ack 0 len 0");
    std::string resets;
    EXPECT_EQ(leases.close(stream, resets), expected.size()) << each.description;
    EXPECT_EQ(describe_all(resets), expected) << each.description;
    EXPECT_EQ(stranger(shadow, 10500), Arrival::closed_port) << "the stream is gone";
  }
}

TEST(Lease, TheNextStreamDoesNotInheritConnections) {
  LeaseBook leases = book({10001, 10256});
  std::string resets;
  StreamId stream = *leases.open(http);
  leases.send(stream, parsed(packet(from(10001), shadow, {.sequence = 1, .flags = {.syn = true}})));
  EXPECT_EQ(leases.close(stream, resets), 1u);
  stream = *leases.open(http);
  EXPECT_EQ(leases.arrive(parsed(packet(shadow, from(10001), {.flags = {.ack = true}}))).what,
            LeaseBook::Arrival::closed_port);
  EXPECT_EQ(leases.close(stream, resets), 0u);
}

TEST(ClosedPort, AnswersAsRfc9293Says) {
  const struct {
    const char* description;
    Segment segment;
    std::vector<std::string> answer;
  } cases[] = {
      {"data",
       {.sequence = 5, .acknowledgment = 77, .flags = {.ack = true}, .payload = "abc"},
       {"10.0.1.2:10001 > 10.0.0.5:8080 RST seq 77 ack 0 len 0"}},
      {"SYN,ACK",
       {.sequence = 5, .acknowledgment = 78, .flags = {.syn = true, .ack = true}},
       {"10.0.1.2:10001 > 10.0.0.5:8080 RST seq 78 ack 0 len 0"}},
      {"SYN",
       {.sequence = 5, .flags = {.syn = true}},
       {"10.0.1.2:10001 > 10.0.0.5:8080 RST,ACK seq 0 ack 6 len 0"}},
      {"RST", {.sequence = 5, .flags = {.rst = true}}, {}},
      {"RST,ACK", {.sequence = 5, .acknowledgment = 1, .flags = {.rst = true, .ack = true}}, {}},
  };
  for (const auto& each : cases) {
    std::string answer;
    const std::string from_shadow = packet(shadow, from(10001), each.segment);
    EXPECT_EQ(append_closed_port_answer(answer, parsed(from_shadow)), !each.answer.empty())
        << each.description;
    EXPECT_EQ(describe_all(answer), each.answer) << each.description;
  }
}

TEST(Batch, APacketHasToSayHowLongItIs) {
  const std::string ipv4 = packet(from(10001), shadow, {.payload = "hello"});
  const std::string ipv6 = packet("[fd00::2]:1", "[fd00::5]:2", {.payload = "hello"});
  EXPECT_EQ(net::first_packet_length(tests::bytes_of(ipv4 + "more")), ipv4.size());
  EXPECT_EQ(net::first_packet_length(tests::bytes_of(ipv6 + "more")), ipv6.size());
  EXPECT_FALSE(net::first_packet_length(tests::bytes_of(ipv4.substr(0, ipv4.size() - 1)))) << "cut";
  EXPECT_FALSE(net::first_packet_length(tests::bytes_of(ipv6.substr(0, ipv6.size() - 1)))) << "cut";
  EXPECT_FALSE(net::first_packet_length(tests::bytes_of(ipv6.substr(0, 30))));
  EXPECT_FALSE(net::first_packet_length(tests::bytes_of(std::string(60, '\0')))) << "no IP version";
  std::string no_length = ipv4;
  no_length[2] = no_length[3] = 0;
  EXPECT_FALSE(net::first_packet_length(tests::bytes_of(no_length)));
}

TEST(Lease, DatagramsPassBetweenLeasedPortsAndTargetsOfTheirs) {
  LeaseBook leases = book();
  const StreamId stream = *leases.open(std::array{net::ProductionPort{53, net::Protocol::udp}},
                                       Sender::intercept, std::array<uint16_t, 1>{53});
  EXPECT_TRUE(leases.whole_from().empty()) << "reply ports are TCP's";
  const StreamId other = *leases.open(http);
  const std::string dns = "10.0.0.6:53";
  const auto send = [&](StreamId by, const std::string& source, const std::string& destination) {
    return leases.send(by, parsed(tests::datagram(source, destination, "question")));
  };
  EXPECT_EQ(send(stream, from(10001), dns), std::nullopt);
  EXPECT_EQ(send(stream, from(11025), dns), Refusal::source) << "another stream's port";
  EXPECT_EQ(send(stream, from(10001), "10.0.0.6:6379"), Refusal::target) << "of TCP";
  EXPECT_EQ(send(stream, from(10001), "10.0.0.7:53"), Refusal::target);
  EXPECT_EQ(send(other, from(11025), dns), Refusal::target) << "not of its production ports";
  EXPECT_EQ(leases.send(stream, parsed(packet(from(10001), dns, {.flags = {.syn = true}}))),
            Refusal::target)
      << "TCP";

  const auto arrive = [&](const std::string& source, const std::string& destination) {
    return leases.arrive(parsed(tests::datagram(source, destination, "answer")));
  };
  EXPECT_EQ(arrive(dns, from(10002)).what, LeaseBook::Arrival::session);
  EXPECT_EQ(arrive(dns, from(10002)).stream, stream);
  EXPECT_EQ(arrive("10.0.0.7:53", from(10002)).what, LeaseBook::Arrival::foreign);
  EXPECT_EQ(arrive(dns, from(11025)).what, LeaseBook::Arrival::foreign) << "another stream's port";
  EXPECT_EQ(arrive(dns, from(20000)).what, LeaseBook::Arrival::foreign) << "nobody's port";
  std::string resets;
  EXPECT_EQ(leases.close(stream, resets), 0u);
  EXPECT_EQ(resets, "") << "there is nothing to end";
}

TEST(ReservedPorts, AreReadAndWrittenAsTheKernelDoes) {
  for (const char* text : {"", "8080", "8080,9148", "1-5,10000-32767,65535"})
    EXPECT_EQ(format_port_list(parse_port_list(text)), text);
  EXPECT_EQ(format_port_list(parse_port_list("5,6,7")), "5-7");
  EXPECT_EQ(format_port_list(parse_port_list("x,99999,7")), "7");
}

TEST(Options, TargetsAreReadAndRefused) {
  std::vector<Target> read;
  EXPECT_FALSE(accept_target("80=10.0.0.5:8080", read));
  EXPECT_FALSE(accept_target("80=[fd00::5]:8080", read));
  EXPECT_FALSE(accept_target("443=localhost:1", read));
  EXPECT_FALSE(accept_target("53/udp=10.0.0.6:53", read));
  EXPECT_FALSE(accept_target("53/tcp=10.0.0.6:53", read)) << "another one";
  EXPECT_EQ(read.size(), 5u);
  EXPECT_EQ(read[3], targets()[3]);
  EXPECT_EQ(read[3].to_string(), "53/udp=10.0.0.6:53");
  EXPECT_EQ(read[4].to_string(), "53=10.0.0.6:53");
  EXPECT_EQ(read[0], targets()[0]);
  EXPECT_EQ(read[1], targets()[1]);
  for (const char* wrong :
       {"", "80", "80=", "=10.0.0.5:80", "80=10.0.0.5", "80=10.0.0.5:0", "0=10.0.0.5:80",
        "70000=10.0.0.5:80", "80=10.0.0.5:8080", "53/sctp=10.0.0.6:53", "x/udp=10.0.0.6:53",
        "53/=10.0.0.6:53", "53/udp=10.0.0.6:53"})
    EXPECT_TRUE(accept_target(wrong, read)) << wrong;
  EXPECT_EQ(read.size(), 5u);
}

TEST(Lease, PlacesOfTargetsThatAreGoneAreUsedAgain) {
  // More than could be told apart, if none was.
  LeaseBook leases({10001, 10256}, {});
  leases.set_own_address(net::Family::ipv4, *net::IpAddress::parse(own));
  const StreamId stream = *leases.open(http);
  for (int i = 0; i < 70000; ++i) {
    const net::Endpoint endpoint{*net::IpAddress::parse("10.0.0.5"),
                                 net::Port{static_cast<uint16_t>(i % 65535 + 1)}};
    leases.set_targets({{80, endpoint}});
    const std::string to = endpoint.to_string();
    ASSERT_FALSE(leases.send(stream, parsed(packet(from(10001), to, {.flags = {.syn = true}}))));
    ASSERT_EQ(leases.arrive(parsed(packet(to, from(10001), {.flags = {.ack = true}}))).what,
              LeaseBook::Arrival::session);
  }
}

TEST(Options, TooManyTargetsAreRefused) {
  std::vector<Target> read;
  for (uint16_t port = 1; port <= 1024; ++port)
    ASSERT_FALSE(accept_target("80=10.0.0.5:" + std::to_string(port), read));
  EXPECT_TRUE(accept_target("80=10.0.0.5:1025", read));
}

TEST(Options, SourcePortsAreReadAndRefused) {
  PortRange ports;
  EXPECT_FALSE(accept_source_ports("20000-20001", ports));
  EXPECT_EQ(ports, (PortRange{20000, 20001}));
  for (const char* wrong :
       {"", "20000", "20000-", "-20000", "20001-20000", "20000-20000", "1000-2000", "1-70000"})
    EXPECT_TRUE(accept_source_ports(wrong, ports)) << wrong;
  EXPECT_EQ(ports, (PortRange{20000, 20001}));
}

TEST(Pool, SpreadsTheSessionsOfAStreamOverItsAddresses) {
  const auto network = Network::parse("198.18.0.0/15");
  const auto addresses = addresses_of(*network);
  ASSERT_EQ(addresses.size(), 256u);
  EXPECT_EQ(addresses.front(), *net::IpAddress::parse("198.18.0.1"));
  EXPECT_EQ(addresses[1], *net::IpAddress::parse("198.18.2.0")) << "all of it, evenly";
  LeaseBook leases({10001, 12048}, targets(), {addresses, {}});
  const StreamId stream = *leases.open(http);
  const auto sources = *leases.sources(stream);
  ASSERT_EQ(sources.size(), 32u);
  EXPECT_EQ(sources[1], (SourceRange{addresses[1], {10001, 10256}}));
  EXPECT_EQ(leases.free_ports() + leases.leased_ports(), 256u * 2048);
  EXPECT_EQ(leases.own_address(net::Family::ipv6), std::nullopt);

  const Segment syn{.sequence = 1, .flags = {.syn = true}};
  const auto send = [&](const std::string& source) {
    return leases.send(stream, parsed(packet(source, shadow, syn)));
  };
  EXPECT_EQ(send("198.18.0.1:10001"), std::nullopt);
  EXPECT_EQ(send("198.18.2.0:10256"), std::nullopt);
  EXPECT_EQ(send("198.18.2.0:10257"), Refusal::source) << "another block";
  EXPECT_EQ(send("198.18.0.2:10001"), Refusal::source) << "none of the 256";
  EXPECT_EQ(send("10.0.1.2:10001"), Refusal::source);
  const auto arrive = [&](const std::string& destination) {
    return leases.arrive(parsed(packet(shadow, destination, {.flags = {.ack = true}}))).what;
  };
  EXPECT_EQ(arrive("198.18.2.0:10256"), LeaseBook::Arrival::session);
  EXPECT_EQ(arrive("198.18.2.0:10255"), LeaseBook::Arrival::closed_port);
  EXPECT_EQ(arrive("198.18.2.0:12000"), LeaseBook::Arrival::closed_port) << "never leased";
  EXPECT_EQ(arrive("198.18.2.1:10256"), LeaseBook::Arrival::foreign);
  std::string resets;
  EXPECT_EQ(leases.close(stream, resets), 2u);
  EXPECT_EQ(describe_all(resets)[2], "198.18.2.0:10256 > 10.0.0.5:8080 RST seq 2 ack 0 len 0");
}

TEST(Pool, OfOneAddressOrOfIPv6) {
  const auto addresses = [](const char* text) {
    std::vector<std::string> texts;
    for (const auto& address : addresses_of(*Network::parse(text)))
      texts.push_back(address.to_string());
    return texts;
  };
  EXPECT_EQ(addresses("198.18.0.7/32"), std::vector<std::string>{"198.18.0.7"});
  EXPECT_EQ(addresses("198.18.0.6/31"), (std::vector<std::string>{"198.18.0.6", "198.18.0.7"}));
  EXPECT_EQ(addresses("198.18.0.4/30"), (std::vector<std::string>{"198.18.0.5", "198.18.0.6"}));
  EXPECT_EQ(addresses("fd00::/126"), (std::vector<std::string>{"fd00::1", "fd00::2", "fd00::3"}));
  EXPECT_EQ(addresses("fd00::/64").size(), 256u);
  EXPECT_EQ(addresses("10.255.255.0/24").back(), "10.255.255.254");
}

class Clients : public testing::Test {
 protected:
  Clients() {
    leases.set_own_address(net::Family::ipv4, *net::IpAddress::parse("192.0.2.1"));
    leases.set_local_addresses({*net::IpAddress::parse("10.0.0.9")});
  }
  std::optional<Refusal> send(StreamId stream, const std::string& source, const Segment& segment,
                              const std::string& to = shadow) {
    return leases.send(stream, parsed(packet(source, to, segment)));
  }
  LeaseBook::Arrived arrive(const std::string& destination, const Segment& segment) {
    return leases.arrive(parsed(packet(shadow, destination, segment)));
  }

  ClientLeases leases{targets()};
  StreamId one = *leases.open(http), other = *leases.open(http);
  const Segment syn{.sequence = 1, .flags = {.syn = true}};
  const Segment data{.sequence = 2, .flags = {.ack = true}, .payload = "x"};
  const Segment fin{.sequence = 3, .acknowledgment = 2, .flags = {.fin = true, .ack = true}};
  const Segment rst{.sequence = 3, .flags = {.rst = true}};
};

TEST_F(Clients, AnySourceThatAnotherHostCouldHave) {
  EXPECT_EQ(leases.sources(one), std::nullopt);
  EXPECT_EQ(send(one, "203.0.113.7:4000", syn), std::nullopt);
  EXPECT_EQ(send(one, "[2001:db8:1::7]:4000", syn, "[fd00::5]:8080"), std::nullopt);
  EXPECT_EQ(send(one, "203.0.113.7:4000", data), std::nullopt);
  for (const char* wrong : {"10.0.0.5:4000",   // the shadow's
                            "10.0.0.9:4000",   // this host's
                            "192.0.2.1:4000",  // the proofs'
                            "127.0.0.1:4000", "0.0.0.0:4000", "224.0.0.1:4000", "169.254.1.1:4000",
                            "255.255.255.255:4000"})
    EXPECT_EQ(send(one, wrong, syn), Refusal::source) << wrong;
  for (const char* wrong : {"[::1]:4000", "[::]:4000", "[ff02::1]:4000", "[fe80::1]:4000"})
    EXPECT_EQ(send(one, wrong, syn, "[fd00::5]:8080"), Refusal::source) << wrong;
  EXPECT_EQ(send(one, "203.0.113.7:4001", syn, "10.0.0.5:22"), Refusal::target);
  EXPECT_EQ(send(one, "203.0.113.7:4001", syn, "10.0.0.6:6379"), Refusal::target)
      << "another production port's";
  EXPECT_EQ(send(one, "203.0.113.7:4002", data), Refusal::source) << "no SYN has begun it";
}

TEST_F(Clients, AConnectionBelongsToTheStreamThatOpenedIt) {
  const std::string client = "203.0.113.7:4000";
  EXPECT_EQ(send(one, client, syn), std::nullopt);
  EXPECT_EQ(send(other, client, syn), Refusal::source);
  EXPECT_EQ(send(other, client, data), Refusal::source);
  EXPECT_EQ(send(other, client, rst), Refusal::source);
  EXPECT_EQ(arrive(client, data).stream, one);
  EXPECT_EQ(send(one, client, fin), std::nullopt);
  EXPECT_EQ(send(other, client, syn), Refusal::source) << "it is closed on one side only";
  EXPECT_EQ(arrive(client, fin).what, LeaseBook::Arrival::session);
  EXPECT_EQ(arrive(client, fin).stream, one) << "sent again";
  EXPECT_EQ(send(other, client, syn), std::nullopt);
  EXPECT_EQ(arrive(client, data).stream, other);
  EXPECT_EQ(send(one, client, data), Refusal::source);
  EXPECT_EQ(send(other, client, syn), std::nullopt) << "its own goes on in a new one";
}

TEST_F(Clients, WhatNobodyKnowsIsAClosedPort) {
  const std::string client = "203.0.113.7:4000";
  EXPECT_EQ(arrive(client, data).what, LeaseBook::Arrival::closed_port);
  send(one, client, syn);
  send(one, client, rst);
  EXPECT_EQ(arrive(client, data).what, LeaseBook::Arrival::closed_port);
  EXPECT_EQ(arrive("192.0.2.1:4000", data).what, LeaseBook::Arrival::foreign) << "a proof's";
  EXPECT_EQ(leases.arrive(parsed(packet("10.0.0.7:80", client, data))).what,
            LeaseBook::Arrival::foreign)
      << "of no target";
}

TEST_F(Clients, NothingOfUdpIsTheirs) {
  const StreamId dns = *leases.open(std::array{net::ProductionPort{53, net::Protocol::udp}});
  const std::string client = "203.0.113.7:4000", target = "10.0.0.6:53";
  EXPECT_EQ(leases.send(dns, parsed(tests::datagram(client, target, "question"))), Refusal::target);
  EXPECT_EQ(leases.send(one, parsed(tests::datagram(client, shadow, "question"))), Refusal::target)
      << "of TCP";
  EXPECT_EQ(send(dns, client, syn, target), Refusal::target) << "TCP";
  EXPECT_EQ(leases.leased_ports(), 0u);
  EXPECT_EQ(leases.arrive(parsed(tests::datagram(target, client, "answer"))).what,
            LeaseBook::Arrival::foreign);
  EXPECT_EQ(send(one, client, syn), std::nullopt);
  EXPECT_EQ(leases.arrive(parsed(tests::datagram(shadow, client, "answer"))).what,
            LeaseBook::Arrival::foreign)
      << "of a session's ends";
}

TEST_F(Clients, AStreamThatEndsResetsItsOwn) {
  send(one, "203.0.113.7:4000", syn);
  send(one, "203.0.113.7:4001", syn);
  send(one, "203.0.113.7:4001", rst);
  send(other, "203.0.113.8:4000", syn);
  std::string resets;
  EXPECT_EQ(leases.close(one, resets), 1u);
  EXPECT_EQ(describe_all(resets)[0], "203.0.113.7:4000 > 10.0.0.5:8080 RST seq 2 ack 0 len 0");
  EXPECT_EQ(leases.leased_ports(), 1u);
  EXPECT_EQ(send(other, "203.0.113.7:4000", syn), std::nullopt);
}

TEST_F(Clients, WhatHasEndedIsForgottenInTheEnd) {
  for (uint32_t i = 0; i < 50'000; ++i) {
    const std::string client =
        "10.1." + std::to_string(i / 250) + "." + std::to_string(i % 250) + ":4000";
    ASSERT_EQ(send(one, client, syn), std::nullopt);
    ASSERT_EQ(send(one, client, rst), std::nullopt);
  }
  EXPECT_EQ(leases.leased_ports(), 0u);
  std::string resets;
  EXPECT_EQ(leases.close(one, resets), 0u);
}

TEST(Options, ClientAddressesAreReadAndRefused) {
  ClientAddresses read;
  EXPECT_FALSE(accept_client_address("preserve", read));
  EXPECT_EQ(read.mode, ClientAddresses::Mode::preserve);
  EXPECT_FALSE(accept_client_address("pool=198.18.0.0/15,fd00:1::/64", read));
  EXPECT_EQ(read.mode, ClientAddresses::Mode::pool);
  EXPECT_EQ(read.pool[0], Network::parse("198.18.0.0/15"));
  EXPECT_EQ(read.pool[1], Network::parse("fd00:1::/64"));
  EXPECT_FALSE(accept_client_address("masquerade", read));
  EXPECT_EQ(read.mode, ClientAddresses::Mode::masquerade);
  EXPECT_EQ(read.pool[0], std::nullopt);
  for (const char* wrong :
       {"", "preserved", "pool", "pool=", "pool=198.18.0.0", "pool=198.18.0.1/15",
        "pool=198.18.0.0/33", "pool=198.18.0.0/15,198.20.0.0/16", "pool=127.0.0.0/8",
        "pool=224.0.0.0/4", "pool=fe80::/64", "pool=0.0.0.0/0", "pool=::/0", "pool=198.18.0.0/15,"})
    EXPECT_TRUE(accept_client_address(wrong, read)) << wrong;
}

}  // namespace
}  // namespace trafficmirror::intercept
