#include "sidecar/capture/capture.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <thread>

#include <gtest/gtest.h>
#include <poll.h>

#include "net/packet.h"
#include "program/start_error.h"
#include "sidecar/capture/filter.h"
#include "sidecar/capture/usable.h"
#include "tests/unit/connection.h"
#include "tests/unit/network_namespace.h"

namespace trafficmirror::capture {
namespace {

using testing_network::NetworkNamespace;
using testing_network::Socket;

constexpr net::Port production_port{8080};
constexpr net::Port other_port{8081};

std::string bytes_of_a_kind(size_t count) {
  std::string bytes(count, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

// What was captured, by flow.
class Recorder : public PacketReceiver {
 public:
  struct Flow {
    std::optional<net::SequenceNumber> first;  // of the client's bytes
    std::string received;                      // at their places; never captured ones are zero
    size_t client_bytes = 0;                   // captured, also twice
    size_t server_bytes = 0;                   // by the headers' word
    size_t largest_request = 0;
    size_t largest_response_capture = 0;
  };

  void on_captured(const CapturedPacket& captured) override {
    ++packets;
    EXPECT_GE(captured.wire_length, captured.bytes.size());
    const auto result = net::parse_packet(captured.bytes, captured.wire_length);
    const auto* packet = std::get_if<net::Packet>(&result);
    if (packet == nullptr) {
      ++unreadable;
      return;
    }
    if (captured.checksum_vouched) ++vouched;
    EXPECT_TRUE(captured.checksum_vouched || net::checksum_holds(*packet, captured.bytes));
    const bool request = packet->destination.port == production_port;
    Flow& flow = flows[request ? net::FlowKey{packet->source, packet->destination}
                               : net::FlowKey{packet->destination, packet->source}];
    if (!request) {
      flow.server_bytes += packet->payload_length;
      flow.largest_response_capture =
          std::max(flow.largest_response_capture, captured.bytes.size());
      return;
    }
    EXPECT_FALSE(packet->cut());
    if (packet->tcp.flags.syn) flow.first = packet->tcp.sequence + 1;
    if (!flow.first || packet->payload.empty()) return;
    const auto at = static_cast<size_t>(packet->tcp.sequence - *flow.first);
    flow.received.resize(std::max(flow.received.size(), at + packet->payload.size()));
    std::copy(packet->payload.begin(), packet->payload.end(),
              flow.received.begin() + static_cast<ptrdiff_t>(at));
    flow.client_bytes += packet->payload.size();
    flow.largest_request = std::max(flow.largest_request, captured.bytes.size());
  }

  std::map<net::FlowKey, Flow> flows;
  size_t packets = 0;
  size_t unreadable = 0;
  size_t vouched = 0;
};

class Datagrams : public PacketReceiver {
 public:
  void on_captured(const CapturedPacket& captured) override {
    const auto result = usable_packet(captured);
    const auto* packet = std::get_if<net::Packet>(&result);
    ASSERT_NE(packet, nullptr);
    EXPECT_EQ(packet->protocol, net::Protocol::udp);
    EXPECT_FALSE(packet->cut());
    payloads.emplace_back(packet->payload.begin(), packet->payload.end());
  }

  std::vector<std::string> payloads;
};

struct Case {
  const char* name;
  std::unique_ptr<Capture> (*open)(const CaptureOptions&);
  const char* interface;
  bool over_veth;
  bool ipv6;
};

void PrintTo(const Case& test_case, std::ostream* out) {
  *out << test_case.name;
}

// Production in a namespace of its own and, over a veth pair, its client in another.
class CaptureTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    SKIP_UNLESS_ROOT();
    production_.emplace();
    client_.emplace();
    const NetworkNamespace::Visit visit(*production_);
    NetworkNamespace::run("ip link add production type veth peer name client netns " +
                          client_->path() +
                          " && ip addr add 10.9.0.1/24 dev production && ip link set production up"
                          " && ip -6 addr add fd09::1/64 dev production nodad");
    const NetworkNamespace::Visit other(*client_);
    NetworkNamespace::run(
        "ip addr add 10.9.0.2/24 dev client && ip link set client up"
        " && ip -6 addr add fd09::2/64 dev client nodad");
  }

  const NetworkNamespace& clients_namespace(bool over_veth) {
    return over_veth ? *client_ : *production_;
  }

  net::Endpoint server_address(const Case& test_case, net::Port port) {
    const char* text = test_case.over_veth ? (test_case.ipv6 ? "fd09::1" : "10.9.0.1")
                                           : (test_case.ipv6 ? "::1" : "127.0.0.1");
    return {*net::IpAddress::parse(text), port};
  }

  std::unique_ptr<Capture> open_capture(const Case& test_case, uint64_t ring_bytes = 16 << 20) {
    const NetworkNamespace::Visit visit(*production_);
    return test_case.open(
        {.interface = test_case.interface, .ports = {production_port}, .ring_bytes = ring_bytes});
  }

  std::optional<NetworkNamespace> production_;
  std::optional<NetworkNamespace> client_;
};

// By this namespace's TCP. On a busy machine there are some even on lo.
size_t retransmitted_segments(const NetworkNamespace& where) {
  const NetworkNamespace::Visit visit(where);
  std::ifstream counters("/proc/thread-self/net/snmp");
  std::string line;
  std::vector<std::string> names, values;
  while (std::getline(counters, line)) {
    std::istringstream words(line);
    std::string protocol, word;
    words >> protocol;
    if (protocol != "Tcp:") continue;
    names = std::exchange(values, {});
    while (words >> word) values.push_back(word);
  }
  const auto found = std::find(names.begin(), names.end(), "RetransSegs");
  return std::stoul(values.at(static_cast<size_t>(found - names.begin())));
}

class CaptureOverVethTest : public CaptureTest {};
class CaptureOfIpv6Test : public CaptureTest {};
class CaptureOfOneInterfaceTest : public CaptureTest {};

// Reads until nothing came for 100 ms after `done`.
void read_all(Capture& capture, PacketReceiver& receiver, const std::atomic<bool>& done) {
  for (;;) {
    const bool was_done = done;
    pollfd entry{.fd = capture.descriptor(), .events = POLLIN, .revents = 0};
    if (poll(&entry, 1, 100) > 0)
      ASSERT_TRUE(capture.read(receiver));
    else if (was_done)
      return;
  }
}

TEST_P(CaptureTest, CopiesRequestsWholeAndResponsesByTheirHeaders) {
  const auto capture = open_capture(GetParam());
  const std::string request = bytes_of_a_kind(4 << 20);
  constexpr size_t response_size = 1 << 20;
  net::FlowKey flow_key;
  std::atomic<bool> done = false;

  const auto serve = [&](net::Port port) {
    const net::Endpoint address = server_address(GetParam(), port);
    std::optional<Socket> listener;
    std::optional<Socket> client;
    {
      const NetworkNamespace::Visit visit(*production_);
      listener.emplace(Socket::listening(address));
    }
    {
      const NetworkNamespace::Visit visit(clients_namespace(GetParam().over_veth));
      client.emplace(Socket::connected(address));
    }
    if (port == production_port) flow_key = {client->local(), address};
    const Socket server = listener->accepted();
    std::jthread answering([&] {
      server.receive(request.size());
      server.send_all(std::string(response_size, 'r'));
    });
    client->send_all(request);
    client->receive(response_size);
  };
  std::jthread traffic([&] {
    serve(other_port);  // none of it is ours
    serve(production_port);
    done = true;
  });
  Recorder recorder;
  read_all(*capture, recorder, done);
  traffic.join();

  ASSERT_EQ(recorder.flows.size(), 1);
  const auto& [key, flow] = *recorder.flows.begin();
  EXPECT_EQ(key, flow_key);
  EXPECT_TRUE(flow.received == request) << flow.received.size() << " bytes";
  if (retransmitted_segments(*production_) + retransmitted_segments(*client_) == 0) {
    EXPECT_EQ(flow.client_bytes, request.size());
    EXPECT_EQ(flow.server_bytes, response_size);
  }
  EXPECT_GT(flow.largest_request, 10'000) << "no super-packet";
  EXPECT_LE(flow.largest_response_capture, headers_snap_length);
  EXPECT_EQ(recorder.unreadable, 0);
  // Nothing here has seen a wire, which the ring is told and libpcap is not.
  EXPECT_EQ(recorder.vouched, GetParam().open == open_ring_capture ? recorder.packets : 0);
  const CaptureCounters counters = capture->counters();
  EXPECT_EQ(counters.packets, recorder.packets);
  EXPECT_EQ(counters.drops, 0);
}

TEST_P(CaptureOverVethTest, CopiesOfRequestsAsMuchAsItIsTold) {
  const auto capture = open_capture(GetParam());
  const net::Endpoint address = server_address(GetParam(), production_port);
  std::optional<Socket> listener;
  std::optional<Socket> client;
  {
    const NetworkNamespace::Visit visit(*production_);
    listener.emplace(Socket::listening(address));
  }
  {
    const NetworkNamespace::Visit visit(*client_);
    client.emplace(Socket::connected(address));
  }
  const Socket server = listener->accepted();
  struct Largest : PacketReceiver {
    void on_captured(const CapturedPacket& packet) override {
      copied = std::max(copied, packet.bytes.size());
      length = std::max(length, packet.wire_length);
    }
    size_t copied = 0, length = 0;
  };
  for (const RequestCopy copy : {RequestCopy::headers, RequestCopy::whole, RequestCopy::headers}) {
    ASSERT_TRUE(capture->copy_requests(copy));
    client->send_all(std::string(1000, 'x'));
    server.receive(1000);
    Largest seen;
    read_all(*capture, seen, true);
    EXPECT_GE(seen.length, 1000);
    if (copy == RequestCopy::headers)
      EXPECT_LE(seen.copied, headers_snap_length);
    else
      EXPECT_EQ(seen.copied, seen.length);
  }
}

TEST_P(CaptureOverVethTest, LeavesOutWhatProductionAsksOfOthersOnThatPort) {
  const auto capture = open_capture(GetParam());
  const net::Endpoint address = {*net::IpAddress::parse(GetParam().ipv6 ? "fd09::2" : "10.9.0.2"),
                                 production_port};
  std::optional<Socket> listener;
  std::optional<Socket> client;
  {
    const NetworkNamespace::Visit visit(*client_);
    listener.emplace(Socket::listening(address));
  }
  {
    const NetworkNamespace::Visit visit(*production_);
    client.emplace(Socket::connected(address));
  }
  const Socket server = listener->accepted();
  client->send_all("question");
  server.receive(8);
  server.send_all("answer");
  client->receive(6);
  Recorder recorder;
  read_all(*capture, recorder, true);
  EXPECT_EQ(recorder.packets, 0);
}

TEST_P(CaptureOfIpv6Test, LetsIpv6ExtensionHeadersThrough) {
  const auto capture = open_capture(GetParam());
  const net::Endpoint address = server_address(GetParam(), production_port);
  std::optional<Socket> listener;
  std::optional<Socket> client;
  {
    const NetworkNamespace::Visit visit(*production_);
    listener.emplace(Socket::listening(address));
  }
  {
    const NetworkNamespace::Visit visit(clients_namespace(GetParam().over_veth));
    client.emplace(Socket::connected(address, true));
  }
  const Socket server = listener->accepted();
  client->send_all("question");
  server.receive(8);
  Recorder recorder;
  read_all(*capture, recorder, true);
  ASSERT_EQ(recorder.flows.size(), 1);
  EXPECT_EQ(recorder.flows.begin()->second.received, "question");
}

TEST_P(CaptureTest, CountsWhatTheRingHadNoRoomFor) {
  const auto capture = open_capture(GetParam(), 1 << 20);
  const net::Endpoint address = server_address(GetParam(), production_port);
  std::optional<Socket> listener;
  std::optional<Socket> client;
  {
    const NetworkNamespace::Visit visit(*production_);
    listener.emplace(Socket::listening(address));
  }
  {
    const NetworkNamespace::Visit visit(clients_namespace(GetParam().over_veth));
    client.emplace(Socket::connected(address));
  }
  const Socket server = listener->accepted();
  constexpr size_t size = 16 << 20;
  std::jthread answering([&] { server.receive(size); });
  client->send_all(std::string(size, 'x'));
  answering.join();
  const uint64_t drops = capture->counters().drops;
  EXPECT_GT(drops, 0);
  EXPECT_EQ(capture->counters().drops, drops);
  Recorder recorder;
  read_all(*capture, recorder, true);
  EXPECT_GT(capture->counters().packets, 0);
  EXPECT_EQ(capture->counters().drops, drops);
}

TEST_P(CaptureOfOneInterfaceTest, SaysThatItsInterfaceIsGone) {
  const auto capture = open_capture(GetParam());
  Recorder recorder;
  EXPECT_TRUE(capture->read(recorder));
  {
    const NetworkNamespace::Visit visit(*production_);
    NetworkNamespace::run("ip link del production");
  }
  pollfd entry{.fd = capture->descriptor(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&entry, 1, 1000), 1);
  EXPECT_FALSE(capture->read(recorder));
  EXPECT_THROW(open_capture(GetParam()), program::StartError);
}

constexpr Case cases[] = {
    {"RingVeth", open_ring_capture, "production", true, false},
    {"RingVethIpv6", open_ring_capture, "production", true, true},
    {"RingLo", open_ring_capture, "lo", false, false},
    {"RingLoIpv6", open_ring_capture, "lo", false, true},
    {"RingAnyOverVeth", open_ring_capture, "any", true, false},
    {"RingAnyOverLo", open_ring_capture, "any", false, true},
    {"PcapVeth", open_pcap_capture, "production", true, false},
    {"PcapVethIpv6", open_pcap_capture, "production", true, true},
    {"PcapLo", open_pcap_capture, "lo", false, false},
    {"PcapLoIpv6", open_pcap_capture, "lo", false, true},
    {"PcapAnyOverVeth", open_pcap_capture, "any", true, false},
    {"PcapAnyOverLo", open_pcap_capture, "any", false, true},
};
std::vector<Case> cases_where(bool (*fits)(const Case&)) {
  std::vector<Case> fitting;
  std::copy_if(std::begin(cases), std::end(cases), std::back_inserter(fitting), fits);
  return fitting;
}
std::string name_of(const testing::TestParamInfo<Case>& test) {
  return test.param.name;
}

INSTANTIATE_TEST_SUITE_P(Both, CaptureTest, testing::ValuesIn(cases), name_of);
INSTANTIATE_TEST_SUITE_P(Both, CaptureOverVethTest,
                         testing::ValuesIn(cases_where([](const Case& c) { return c.over_veth; })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Both, CaptureOfIpv6Test,
                         testing::ValuesIn(cases_where([](const Case& c) { return c.ipv6; })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Both, CaptureOfOneInterfaceTest,
                         testing::ValuesIn(cases_where([](const Case& c) {
                           return std::string_view(c.interface) == "production";
                         })),
                         name_of);

TEST(Capture, AnUnknownInterfaceIsNamedWithThoseThereAre) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  NetworkNamespace::run("ip link add eth7 type veth peer name peer7");
  for (const auto open : {open_ring_capture, open_pcap_capture}) {
    try {
      open({.interface = "eth9", .ports = {production_port}});
      FAIL();
    } catch (const program::StartError& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.rfind("--interface eth9 does not exist: choose any, or one of ", 0), 0)
          << text;
      EXPECT_NE(text.find("lo"), std::string::npos);
      EXPECT_NE(text.find("eth7"), std::string::npos);
    }
  }
}

TEST(Capture, WithoutCapNetRawSaysWhatIsMissing) {
  SKIP_UNLESS_ROOT();
  for (const auto open : {open_ring_capture, open_pcap_capture})
    EXPECT_EXIT(
        {
          if (setuid(65534) != 0) _exit(1);
          _exit(program::run_program("trafficmirror-sidecar", [&] {
            open({.interface = "lo", .ports = {production_port}});
            return 0;
          }));
        },
        testing::ExitedWithCode(2),
        "^trafficmirror-sidecar: CAP_NET_RAW is missing: run as root, or add NET_RAW");
}

TEST(Capture, TheDefaultRouteChoosesTheInterface) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  NetworkNamespace::run(
      "ip link add eth7 type veth peer name peer7 && ip addr add 10.9.0.1/24 dev eth7 && ip link "
      "set eth7 up"
      " && ip link add eth8 type veth peer name peer8 && ip addr add 10.8.0.1/24 dev eth8 && ip "
      "link set eth8 up"
      " && ip -6 addr add fd08::1/64 dev eth8 nodad");
  EXPECT_THROW(default_route_interface(), program::StartError);
  NetworkNamespace::run("ip -6 route add default via fd08::2 dev eth8");
  EXPECT_EQ(default_route_interface(), "eth8");
  NetworkNamespace::run("ip route add default via 10.9.0.2 dev eth7 metric 200");
  EXPECT_EQ(default_route_interface(), "eth7");
  NetworkNamespace::run("ip route add default via 10.8.0.2 dev eth8 metric 100");
  EXPECT_EQ(default_route_interface(), "eth8");
}

TEST(Filter, TakesUpTo64Ports) {
  std::vector<net::Port> ports;
  EXPECT_THROW(build_filter({.ports = ports}), program::StartError);
  for (uint16_t number = 1; number <= max_ports; ++number) ports.push_back({number});
  EXPECT_LT(build_filter({.ports = ports}).size(), 256);
  ports.push_back({1000});
  EXPECT_THROW(build_filter({.ports = ports}), program::StartError);
}

// Their number is that of a port of TCP too, and the answers are not asked for.
TEST(Filter, TakesDatagramsOfItsPortsOfUdpAlone) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  std::vector<net::Port> udp_ports;
  for (uint16_t number = 1; number < max_ports - 1; ++number) udp_ports.push_back({number});
  udp_ports.push_back(production_port);
  for (const auto open : {open_ring_capture, open_pcap_capture}) {
    const auto capture =
        open({.interface = "lo", .ports = {production_port}, .udp_ports = udp_ports});
    for (const char* host : {"127.0.0.1", "::1"}) {
      const net::IpAddress address = *net::IpAddress::parse(host);
      const Socket server = Socket::of_datagrams({address, production_port});
      const Socket other = Socket::of_datagrams({address, other_port});
      const Socket client = Socket::of_datagrams({address, {}});
      client.send_to({address, production_port}, "question");
      client.send_to({address, other_port}, "to another port");
      server.send_to(client.local(), "answer");
    }
    Datagrams datagrams;
    read_all(*capture, datagrams, true);
    EXPECT_EQ(datagrams.payloads, (std::vector<std::string>{"question", "question"}));
  }
}

TEST(Filter, FindsTheLastOf64Ports) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  std::vector<net::Port> ports;
  for (uint16_t number = 1; number < max_ports; ++number) ports.push_back({number});
  ports.push_back(production_port);
  const auto capture = open_ring_capture({.interface = "lo", .ports = ports});
  const net::Endpoint address = *net::Endpoint::parse("127.0.0.1:8080");
  const Socket listener = Socket::listening(address);
  const Socket client = Socket::connected(address);
  client.send_all("question");
  Recorder recorder;
  read_all(*capture, recorder, true);
  ASSERT_EQ(recorder.flows.size(), 1);
  EXPECT_EQ(recorder.flows.begin()->second.received, "question");
  EXPECT_GT(recorder.packets, 3);  // the handshake's, in both directions
}

}  // namespace
}  // namespace trafficmirror::capture
