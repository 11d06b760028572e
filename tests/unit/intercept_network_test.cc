// The intercept's edges and the whole of it, against a real kernel, in network namespaces.
#include <array>
#include <chrono>
#include <fstream>
#include <memory>
#include <thread>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject/inject.h"
#include "inject/link_injector.h"
#include "inject/next_hop.h"
#include "intercept/intercept.h"
#include "intercept/kernel_state.h"
#include "intercept/path.h"
#include "intercept/socket_address.h"
#include "intercept/tap.h"
#include "net/bytes.h"
#include "program/descriptor.h"
#include "program/start_error.h"
#include "tests/unit/network_namespace.h"
#include "tests/unit/tcp_packets.h"
#include "trafficmirror/v1/mirror.grpc.pb.h"

namespace trafficmirror::intercept {
namespace {

using inject::InjectError;
using inject::Injector;
using inject::look_up_next_hop;
using program::Descriptor;
using testing_network::NetworkNamespace;
using tests::describe;
using tests::packet;
using tests::Segment;

constexpr const char* reserved_ports_file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
constexpr net::TcpFlags syn{.syn = true}, ack{.ack = true};

std::string read_file(const char* file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

bool succeeds(const std::string& command) {
  // NOLINTNEXTLINE(bugprone-command-processor): the commands are the tests' own
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

bool table_stands() {
  return succeeds("nft list table inet trafficmirror");
}

class InterceptNetwork : public testing::Test {
 protected:
  // Once for all tests, since gRPC's threads stay in the namespace they began in.
  static void SetUpTestSuite() {
    if (::geteuid() != 0) return;
    here = std::make_unique<NetworkNamespace>();
    shadow = std::make_unique<NetworkNamespace>();
    visit = std::make_unique<NetworkNamespace::Visit>(*here);
    join_hosts();
  }
  static void TearDownTestSuite() {
    visit.reset();
    shadow.reset();
    here.reset();
  }

  void SetUp() override { SKIP_UNLESS_ROOT(); }

  // This host's "here" (10.99.0.1, fd99::1) to the shadow's "there" (10.99.0.2, fd99::2).
  static void join_hosts() {
    NetworkNamespace::run("ip link add here type veth peer name there netns " + shadow->path() +
                          " && ip address add 10.99.0.1/24 dev here"
                          " && ip address add fd99::1/64 dev here nodad && ip link set here up");
    at_shadow([] {
      NetworkNamespace::run(
          "ip address add 10.99.0.2/24 dev there"
          " && ip address add fd99::2/64 dev there nodad"
          " && ip link set there up");
    });
  }

  // Sockets made in `work` stay there.
  template <typename Work>
  static void at_shadow(Work&& work) {
    const NetworkNamespace::Visit there(*shadow);
    work();
  }

  // A socket that listens at the shadow, on any free port.
  struct Listener {
    Descriptor socket;
    net::Endpoint endpoint;
  };
  static Listener listen(const char* address) {
    Listener listener;
    at_shadow([&] {
      const net::Endpoint any_port{*net::IpAddress::parse(address), {}};
      SocketAddress at = socket_address(any_port, 0);
      listener.socket = Descriptor(::socket(at.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
      ASSERT_EQ(::bind(listener.socket.get(), &at.any, at.length), 0);
      ASSERT_EQ(::listen(listener.socket.get(), 16), 0);
      ASSERT_EQ(::getsockname(listener.socket.get(), &at.any, &at.length), 0);
      listener.endpoint = {any_port.address, {ntohs(at.ipv4.sin_port)}};
    });
    return listener;
  }

  static std::unique_ptr<NetworkNamespace> here, shadow;
  static std::unique_ptr<NetworkNamespace::Visit> visit;
};
std::unique_ptr<NetworkNamespace> InterceptNetwork::here, InterceptNetwork::shadow;
std::unique_ptr<NetworkNamespace::Visit> InterceptNetwork::visit;

TEST_F(InterceptNetwork, ThePathIsWhatTheKernelSays) {
  for (const auto& [target, own] :
       {std::pair("10.99.0.2:80", "10.99.0.1"), std::pair("[fd99::2]:80", "fd99::1")}) {
    const auto path = look_up_path("here", *net::Endpoint::parse(target));
    ASSERT_TRUE(std::holds_alternative<Path>(path)) << std::get<std::string>(path);
    EXPECT_EQ(std::get<Path>(path), (Path{*net::IpAddress::parse(own), 1500}));
  }
  EXPECT_EQ(std::get<std::string>(look_up_path("here", *net::Endpoint::parse("[fd00::1]:80"))),
            "Network is unreachable");
  EXPECT_EQ(std::get<std::string>(look_up_path("away", *net::Endpoint::parse("10.99.0.2:80"))),
            "No such device");
}

TEST_F(InterceptNetwork, TheKernelsStateIsMadeHeldAndRemoved) {
  std::ofstream(reserved_ports_file) << "8080,10500\n";
  // Left behind by a killed run.
  NetworkNamespace::run("nft add table inet trafficmirror && nft add chain inet trafficmirror old");
  const KernelState::Wanted wanted{
      "here",
      {10000, 32767},
      {*net::IpAddress::parse("10.99.0.1"), *net::IpAddress::parse("fd99::1")}};
  {
    KernelState state(wanted);
    EXPECT_TRUE(table_stands());
    EXPECT_FALSE(succeeds("nft list chain inet trafficmirror old"));
    EXPECT_EQ(read_file(reserved_ports_file), "8080,10000-32767");
    EXPECT_EQ(state.hold(), KernelState::Held::intact);

    EXPECT_THROW(KernelState second(wanted), program::StartError);
    EXPECT_TRUE(table_stands()) << "the second one must not take it away";

    NetworkNamespace::run("nft flush ruleset");
    EXPECT_EQ(state.hold(), KernelState::Held::put_back);
    EXPECT_TRUE(table_stands());
    NetworkNamespace::run("nft flush chain inet trafficmirror replies");
    EXPECT_EQ(state.hold(), KernelState::Held::put_back);
    EXPECT_EQ(state.hold(), KernelState::Held::intact);
    EXPECT_TRUE(state.set_own_addresses({*net::IpAddress::parse("10.99.0.1")}));
    EXPECT_EQ(state.hold(), KernelState::Held::intact);
  }
  EXPECT_FALSE(table_stands());
  EXPECT_EQ(read_file(reserved_ports_file), "8080,10500");

  // A killed run leaves its table and its range, which need not be the next one's.
  std::ofstream(reserved_ports_file) << "8080\n";
  const pid_t killed = ::fork();
  if (killed == 0) {
    const KernelState state({"here", {5000, 5999}, wanted.own_addresses});
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(killed, &status, 0), killed);
  ASSERT_EQ(status, 0);
  EXPECT_TRUE(table_stands());
  EXPECT_EQ(read_file(reserved_ports_file), "5000-5999,8080");
  { const KernelState state(wanted); }
  EXPECT_EQ(read_file(reserved_ports_file), "8080");
  std::ofstream(reserved_ports_file) << "\n";
}

TEST_F(InterceptNetwork, FailedSendsAreCountedByReason) {
  Counters counters;
  Injector injector("here", counters.injected);
  const auto errors = [&](InjectError error) {
    return counters.injected.errors[static_cast<size_t>(error)].load();
  };
  const Segment data{.sequence = 1, .flags = ack, .payload = std::string(100, 'x')};
  const std::string good = packet("10.99.0.1:10001", "10.99.0.2:9", data);
  const std::string too_long =
      packet("10.99.0.1:10001", "10.99.0.2:9", {.payload = std::string(2000, 'x')});
  const std::string no_route = packet("[fd99::1]:10001", "[fd00::1]:9", data);
  const std::string good_v6 = packet("[fd99::1]:10001", "[fd99::2]:9", data);
  injector.send(good + too_long + good_v6 + no_route + good);
  EXPECT_EQ(counters.injected.packets, 3u);
  EXPECT_EQ(counters.injected.bytes, 2 * good.size() + good_v6.size());
  EXPECT_EQ(errors(InjectError::too_long), 1u);
  EXPECT_EQ(errors(InjectError::unreachable), 1u);

  NetworkNamespace::run(
      "nft add table inet t && nft add chain inet t c '{ type filter hook output priority 0; }'"
      " && nft add rule inet t c tcp sport 10001 drop");
  injector.send(good);
  NetworkNamespace::run("nft delete table inet t");
  EXPECT_EQ(errors(InjectError::not_permitted), 1u);

  std::string many;
  for (int i = 0; i < 1000; ++i) many += good;
  injector.send(many);
  EXPECT_EQ(counters.injected.packets, 1003u);
}

TEST_F(InterceptNetwork, SegmentsOfABulkUploadTravelTogetherWhereTheWayIsPlainEthernet) {
  Descriptor seen;
  at_shadow(
      [&] { seen = Descriptor(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL))); });
  const auto next_length_of_port = [&](uint16_t port) -> size_t {
    std::array<uint8_t, 65536> bytes;
    pollfd waited{seen.get(), POLLIN, 0};
    while (::poll(&waited, 1, 10'000) > 0) {
      const ssize_t size = ::recv(seen.get(), bytes.data(), bytes.size(), 0);
      const std::span<const uint8_t> whole(bytes.data(), static_cast<size_t>(size));
      const auto parsed = net::parse_packet(whole, whole.size());
      const auto* packet = std::get_if<net::Packet>(&parsed);
      if (!packet || packet->source.port.number != port) continue;
      EXPECT_TRUE(net::checksum_holds(*packet, whole));
      return packet->payload_length;
    }
    return 0;
  };

  uint16_t port = 10100;
  const auto first_length = [&](const char* source, const char* destination) {
    Counters counters;
    Injector injector("here", counters.injected);
    ++port;
    std::string packets;
    for (const uint32_t sequence : {1, 1001, 2001})
      packets += packet(source + std::to_string(port), destination,
                        {.sequence = sequence, .flags = ack, .payload = std::string(1000, 'x')});
    injector.send(packets);
    EXPECT_EQ(counters.injected.packets, 3u);
    EXPECT_EQ(counters.injected.bytes, packets.size());
    return next_length_of_port(port);
  };
  NetworkNamespace::run("ip neighbour flush dev here");
  for (const auto& [source, destination] :
       {std::pair("10.99.0.1:", "10.99.0.2:9"), std::pair("[fd99::1]:", "[fd99::2]:9")}) {
    EXPECT_EQ(first_length(source, destination), 1000u) << "the neighbour is not known";
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!look_up_next_hop("here", net::Endpoint::parse(destination)->address) &&
           std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    EXPECT_EQ(first_length(source, destination), 3000u);
  }
  NetworkNamespace::run("ip route add 10.98.0.0/24 via 10.99.0.2");
  EXPECT_EQ(first_length("10.99.0.1:", "10.98.0.2:9"), 3000u) << "behind a gateway";
  EXPECT_EQ(look_up_next_hop("here", *net::IpAddress::parse("10.97.0.1")), std::nullopt);
  EXPECT_EQ(look_up_next_hop("lo", *net::IpAddress::parse("127.0.0.1")), std::nullopt);
  if (!succeeds("ip xfrm policy add dir out src 10.99.0.1 dst 10.99.0.3 tmpl proto esp"))
    GTEST_SKIP() << "this kernel has no IPsec; all but that was checked";
  EXPECT_EQ(look_up_next_hop("here", *net::IpAddress::parse("10.99.0.2")), std::nullopt);
  NetworkNamespace::run("ip xfrm policy flush");
}

// The kernel finds the neighbour out by the first packet; from then on its rules are passed by.
TEST_F(InterceptNetwork, TheLinkTakesWholePackets) {
  inject::Counters counters;
  inject::LinkInjector injector("here", counters);
  NetworkNamespace::run("ip neighbour flush dev here");
  Descriptor seen;
  at_shadow(
      [&] { seen = Descriptor(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL))); });
  const auto arrives = [&](uint16_t port) {
    std::array<uint8_t, 65536> bytes;
    pollfd waited{seen.get(), POLLIN, 0};
    while (::poll(&waited, 1, 10'000) > 0) {
      const ssize_t size = ::recv(seen.get(), bytes.data(), bytes.size(), 0);
      const std::span<const uint8_t> whole(bytes.data(), static_cast<size_t>(size));
      const auto parsed = net::parse_packet(whole, whole.size());
      const auto* packet = std::get_if<net::Packet>(&parsed);
      if (packet && packet->source.port.number == port)
        return net::checksum_holds(*packet, whole) && packet->payload_length == 1000;
    }
    return false;
  };
  const Segment data{.sequence = 1, .flags = ack, .payload = std::string(1000, 'x')};
  uint16_t port = 10300;
  // Sources of other hosts.
  for (const auto& [source, destination] :
       {std::pair("10.98.0.7:", "10.99.0.2:9"), std::pair("[fd98::7]:", "[fd99::2]:9")}) {
    ++port;
    injector.send(packet(source + std::to_string(port), destination, data));
    EXPECT_TRUE(arrives(port)) << "sent by the kernel";
    const net::IpAddress neighbour = net::Endpoint::parse(destination)->address;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!look_up_next_hop("here", neighbour) && std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    inject::LinkInjector fresh("here", counters);
    NetworkNamespace::run(
        "nft add table inet t && nft add chain inet t c '{ type filter hook output priority 0; }'"
        " && nft add rule inet t c meta l4proto tcp drop");
    ++port;
    fresh.send(packet(source + std::to_string(port), destination, data));
    NetworkNamespace::run("nft delete table inet t");
    EXPECT_TRUE(arrives(port)) << destination;
  }
  EXPECT_EQ(counters.packets, 4u);
  EXPECT_EQ(counters.bytes, 2 * (1040u + 1060u));
  injector.send(packet("10.98.0.7:10400", "10.99.0.2:9", {.payload = std::string(2000, 'x')}));
  EXPECT_EQ(counters.errors[static_cast<size_t>(InjectError::too_long)], 1u);
  EXPECT_THROW(inject::LinkInjector("none", counters), program::StartError);
}

TEST_F(InterceptNetwork, TheTapSeesHeadersForItsPortsOnly) {
  Counters counters;
  Tap tap("here", {20000, 20010}, counters);
  std::vector<std::string> seen;
  std::thread thread([&] {
    tap.run([&](std::span<const Tap::Headers> headers) {
      for (const Tap::Headers each : headers)
        seen.push_back(
            describe(tests::parsed({reinterpret_cast<const char*>(each.data()), each.size()})));
      if (seen.back().find(":20010") != std::string::npos) tap.stop();
    });
  });
  at_shadow([] {
    Counters of_shadow;
    Injector injector("there", of_shadow.injected);
    const Segment data{.sequence = 7, .flags = ack, .payload = std::string(1000, 'x')};
    std::string packets;
    for (const char* to : {"10.99.0.1:19999", "10.99.0.1:20000", "10.99.0.1:20011",
                           "[fd99::1]:19999", "[fd99::1]:20005", "10.99.0.1:20010"})
      packets += packet(to[0] == '[' ? "[fd99::2]:80" : "10.99.0.2:80", to, data);
    injector.send(packets);
  });
  thread.join();
  EXPECT_EQ(seen,
            (std::vector<std::string>{"10.99.0.2:80 > 10.99.0.1:20000 ACK seq 7 ack 0 len 1000",
                                      "[fd99::2]:80 > [fd99::1]:20005 ACK seq 7 ack 0 len 1000",
                                      "10.99.0.2:80 > 10.99.0.1:20010 ACK seq 7 ack 0 len 1000"}));
  EXPECT_EQ(counters.tap_packets, 3u);
}

TEST_F(InterceptNetwork, TheTapSeesPacketsWholeFromPortsOfWhichItIsToldSo) {
  Counters counters;
  Tap tap("here", {20000, 20010}, counters);
  tap.copy_whole({79, 80});
  std::vector<size_t> seen;
  std::thread thread([&] {
    tap.run([&](std::span<const Tap::Headers> packets) {
      for (const Tap::Headers each : packets) {
        const auto packet =
            tests::parsed({reinterpret_cast<const char*>(each.data()), each.size()});
        const std::string text(packet.payload.begin(), packet.payload.end());
        EXPECT_EQ(text.find_first_not_of(packet.source.port.number == 80 ? "ab" : "x"),
                  std::string::npos);
        seen.push_back(text.size());
        if (packet.destination.port.number == 20010) tap.stop();
      }
    });
  });
  at_shadow([] {
    Counters of_shadow;
    Injector injector("there", of_shadow.injected);
    const auto of = [](size_t size, char what) {
      return Segment{.sequence = 7, .flags = ack, .payload = std::string(size, what)};
    };
    injector.send(packet("10.99.0.2:80", "10.99.0.1:20000", of(1000, 'a')) +
                  packet("10.99.0.2:81", "10.99.0.1:20000", of(1000, 'x')) +
                  packet("10.99.0.2:80", "10.99.0.1:20000", of(30, 'b')) +
                  packet("[fd99::2]:80", "[fd99::1]:20000", of(1200, 'b')) +
                  packet("[fd99::2]:81", "[fd99::1]:20010", of(1200, 'x')));
  });
  thread.join();
  ASSERT_EQ(seen.size(), 5u);
  EXPECT_EQ(seen[0], 1000u);
  EXPECT_LT(seen[1], 200u);
  EXPECT_EQ(seen[2], 30u);
  EXPECT_EQ(seen[3], 1200u);
  EXPECT_LT(seen[4], 200u);
}

// A router's "packet too big" comes for the injected packets, which no socket of this host's knows.
TEST_F(InterceptNetwork, AShorterPathIsLearned) {
  Counters counters;
  Injector injector("here", counters.injected);
  const std::string sent = packet("[fd99::1]:10001", "[fd99::2]:9", {.flags = ack});
  injector.send(sent);
  at_shadow([&] {
    const Descriptor icmp(::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6));
    std::string too_big("\x02\x00\x00\x00\x00\x00\x05\x78", 8);  // MTU 1400
    too_big += sent;
    const SocketAddress address = socket_address({*net::IpAddress::parse("fd99::1"), {}}, 0);
    ASSERT_EQ(::sendto(icmp.get(), too_big.data(), too_big.size(), 0, &address.any, address.length),
              static_cast<ssize_t>(too_big.size()));
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  uint32_t mtu = 0;
  while (mtu != 1400 && std::chrono::steady_clock::now() < deadline)
    mtu = std::get<Path>(look_up_path("here", *net::Endpoint::parse("[fd99::2]:9"))).mtu;
  EXPECT_EQ(mtu, 1400u);
  NetworkNamespace::run("ip -6 route flush cache");
}

// --- the whole intercept, over gRPC

// An intercept that runs on a thread of its own.
class Running {
 public:
  explicit Running(std::vector<Target> targets)
      : stop_(::eventfd(0, EFD_CLOEXEC)),
        intercept_({.listen = {"127.0.0.1", {}},
                    .interface = "here",
                    .source_ports = {10000, 12000},
                    .live = {.targets = std::move(targets), .sidecars = {}}}),
        thread_([this] { intercept_.run(stop_.get()); }) {}
  ~Running() { stop(); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  void stop() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    EXPECT_EQ(::write(stop_.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
    thread_.join();
  }

  // Waits until it is ready, or not ready, whichever is asked for.
  bool becomes_ready(bool ready) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      if (!intercept_.not_ready() == ready) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  double metric(const std::string& name, const std::string& label = "") const {
    double sum = 0;
    for (const auto& family : intercept_.metrics()) {
      if (family.name != name) continue;
      for (const auto& each : family.metric)
        if (label.empty() || (!each.label.empty() && each.label[0].value == label))
          sum += family.type == prometheus::MetricType::Counter ? each.counter.value
                                                                : each.gauge.value;
    }
    return sum;
  }

  Intercept& get() { return intercept_; }

 private:
  Descriptor stop_;
  Intercept intercept_;
  std::thread thread_;
};

// A sidecar without its engine: one stream.
class Client {
 public:
  Client(net::Port port, const std::vector<uint32_t>& production_ports)
      : stub_(v1::Mirror::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port.number),
                                                      grpc::InsecureChannelCredentials()))),
        stream_(stub_->Stream(&context_)) {
    v1::SidecarMessage message;
    message.mutable_hello()->set_name("test");
    for (const uint32_t each : production_ports) message.mutable_hello()->add_ports(each);
    stream_->Write(message);
  }

  v1::InterceptMessage read() {
    v1::InterceptMessage message;
    EXPECT_TRUE(stream_->Read(&message));
    return message;
  }
  // What each stream begins with.
  v1::InterceptMessage read_lease() {
    EXPECT_TRUE(read().has_configuration());
    return read();
  }
  void send(const std::string& packets) {
    v1::SidecarMessage message;
    message.mutable_packets()->set_packets(packets);
    EXPECT_TRUE(stream_->Write(message));
  }
  void send_more_source_ports() {
    v1::SidecarMessage message;
    message.mutable_more_source_ports();
    EXPECT_TRUE(stream_->Write(message));
  }
  grpc::Status finish() {
    stream_->WritesDone();
    v1::InterceptMessage message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }
  void cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::Mirror::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SidecarMessage, v1::InterceptMessage>> stream_;
};

// Counts what comes in for the shadow's TCP, RSTs apart, as the shadow's own host sees it.
class Watch {
 public:
  explicit Watch(const NetworkNamespace& host) {
    const NetworkNamespace::Visit there(host);
    for (const int family : {AF_INET, AF_INET6})
      sockets_[family == AF_INET6] =
          Descriptor(::socket(family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP));
  }
  // RSTs so far from source ports of sessions; the proofs' port does not count.
  int resets() {
    std::array<uint8_t, 2000> buffer;
    for (const bool ipv6 : {false, true}) {
      while (::recv(sockets_[ipv6].get(), buffer.data(), buffer.size(), 0) > 0) {
        const uint8_t* tcp = buffer.data() + (ipv6 ? 0 : 20);  // IPv6 leaves its header out
        if (net::load16(tcp) != 10000 && (tcp[13] & 0x04) != 0) ++resets_;
      }
    }
    return resets_;
  }

 private:
  std::array<Descriptor, 2> sockets_;
  int resets_ = 0;
};

std::string source_of(const v1::Lease& lease, net::Family family) {
  for (const v1::SourceRange& range : lease.sources()) {
    const auto address = net::IpAddress::from_bytes(tests::bytes_of(range.address()));
    if (address->family() == family)
      return net::Endpoint{*address, {static_cast<uint16_t>(range.first_port())}}.to_string();
  }
  return "";
}

// Opens a session through the intercept, hands data to the shadow's socket, and returns that
// socket.
void talk(Client& client, const std::string& source, const Descriptor& listener,
          const net::Endpoint& target, Descriptor& accepted) {
  client.send(packet(source, target.to_string(), {.sequence = 1000, .flags = syn}));
  const auto answers = tests::split(client.read().headers().headers(), false);
  ASSERT_EQ(answers.size(), 1u);
  const net::TcpHeader answer = answers[0].tcp;
  EXPECT_TRUE(answer.flags.syn && answer.flags.ack) << describe(answers[0]);
  EXPECT_EQ(answer.acknowledgment.value(), 1001u);
  client.send(packet(source, target.to_string(),
                     {.sequence = 1001,
                      .acknowledgment = (answer.sequence + 1).value(),
                      .flags = {.psh = true, .ack = true},
                      .payload = "hello"}));
  accepted = Descriptor(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(accepted);
  std::array<char, 16> data{};
  ASSERT_EQ(::recv(accepted.get(), data.data(), data.size(), 0), 5);
  EXPECT_STREQ(data.data(), "hello");
}

// Whether the shadow's socket ends with a RST, and not otherwise.
bool is_reset(const Descriptor& socket) {
  char byte = 0;
  return ::recv(socket.get(), &byte, 1, 0) == -1 && errno == ECONNRESET;
}

TEST_F(InterceptNetwork, ASessionGoesThroughAndEndsWithItsStream) {
  for (const auto& [address, family] :
       {std::pair("10.99.0.2", net::Family::ipv4), std::pair("fd99::2", net::Family::ipv6)}) {
    const Listener listener = listen(address);
    Watch watch(*shadow);
    Running running({{80, listener.endpoint}});
    ASSERT_TRUE(running.becomes_ready(true)) << *running.get().not_ready();
    EXPECT_EQ(running.metric("trafficmirror_reply_path_proven"), 1);

    auto client = std::make_unique<Client>(running.get().port(), std::vector<uint32_t>{80});
    const v1::InterceptMessage first = client->read_lease();
    ASSERT_TRUE(first.has_lease());
    ASSERT_EQ(first.lease().targets_size(), 1);
    EXPECT_EQ(first.lease().targets(0).path_mtu(), 1500u);
    EXPECT_EQ(first.lease().targets(0).port(), listener.endpoint.port.number);

    Descriptor accepted;
    talk(*client, source_of(first.lease(), family), listener.socket, listener.endpoint, accepted);
    EXPECT_EQ(watch.resets(), 0) << "the intercept's kernel answered";

    client->send(packet("10.99.0.1:9", "10.99.0.2:9", {.flags = syn}));
    client->send_more_source_ports();
    for (v1::InterceptMessage message = client->read();; message = client->read()) {
      if (!message.has_lease()) continue;
      EXPECT_EQ(message.lease().sources(0).first_port(), 10001u);
      EXPECT_EQ(message.lease().sources(0).last_port(), 12000u) << "all there are";
      break;
    }
    EXPECT_EQ(running.metric("trafficmirror_refused_packets_total", "source"), 1);

    // The sidecar is gone without a word.
    client->cancel();
    client.reset();
    EXPECT_TRUE(is_reset(accepted));
    EXPECT_EQ(running.metric("trafficmirror_sessions_reset_total", "stream_ended"), 1);
  }
}

TEST_F(InterceptNetwork, StoppingDrainsResetsAndCleansUp) {
  const Listener listener = listen("10.99.0.2");
  Descriptor accepted;
  {
    Running running({{80, listener.endpoint}});
    ASSERT_TRUE(running.becomes_ready(true));
    EXPECT_TRUE(table_stands());
    Client client(running.get().port(), {80});
    const v1::InterceptMessage lease = client.read_lease();
    talk(client, source_of(lease.lease(), net::Family::ipv4), listener.socket, listener.endpoint,
         accepted);
    std::thread sidecar([&] {
      v1::InterceptMessage message = client.read();
      while (!message.has_drain()) message = client.read();
      EXPECT_TRUE(client.finish().ok());
    });
    running.stop();
    sidecar.join();
    EXPECT_EQ(running.metric("trafficmirror_sessions_reset_total", "drained"), 1);
    EXPECT_EQ(running.metric("trafficmirror_streams_active"), 0);
  }
  EXPECT_TRUE(is_reset(accepted));
  EXPECT_FALSE(table_stands());
  EXPECT_EQ(read_file(reserved_ports_file), "");
}

TEST_F(InterceptNetwork, ASessionOfAKilledRunIsReset) {
  const Listener listener = listen("10.99.0.2");
  const std::string source = "10.99.0.1:11000", target = listener.endpoint.to_string();
  {
    // What a run was up to when it was killed.
    const KernelState state({"here", {10000, 12000}, {*net::IpAddress::parse("10.99.0.1")}});
    Counters counters;
    Injector injector("here", counters.injected);
    Tap tap("here", {10000, 12000}, counters);
    injector.send(packet(source, target, {.sequence = 1000, .flags = syn}));
    tap.run([&](std::span<const Tap::Headers> headers) {
      const net::Packet answer =
          tests::parsed({reinterpret_cast<const char*>(headers[0].data()), headers[0].size()});
      injector.send(packet(
          source, target,
          {.sequence = 1001, .acknowledgment = (answer.tcp.sequence + 1).value(), .flags = ack}));
      tap.stop();
    });
  }
  const Descriptor accepted(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(accepted);

  Running running({{80, listener.endpoint}});
  ASSERT_TRUE(running.becomes_ready(true));
  ASSERT_EQ(::send(accepted.get(), "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_TRUE(is_reset(accepted));
  EXPECT_EQ(running.metric("trafficmirror_sessions_reset_total", "unknown_port"), 1);
}

TEST_F(InterceptNetwork, AStreamThatCantBeServedEndsInPlainWords) {
  // An address that nobody has: ARP is not answered.
  Running running({{80, *net::Endpoint::parse("10.99.0.99:80")}});
  Client early(running.get().port(), {80});
  const grpc::Status unavailable = early.finish();
  EXPECT_EQ(unavailable.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(unavailable.error_message(),
            "no answer from 10.99.0.99:80: is it running, and does its network let it answer "
            "10.99.0.1?");
  Client wrong(running.get().port(), {443});
  EXPECT_EQ(wrong.finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(InterceptNetwork, AFlushedRulesetIsPutBack) {
  const Listener listener = listen("10.99.0.2");
  Running running({{80, listener.endpoint}});
  ASSERT_TRUE(running.becomes_ready(true));
  NetworkNamespace::run("nft flush ruleset");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!table_stands() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_TRUE(table_stands());
  EXPECT_TRUE(running.becomes_ready(true));
}

TEST_F(InterceptNetwork, AnInterfaceThatComesBackIsUsedAgain) {
  const Listener listener = listen("10.99.0.2");
  Running running({{80, listener.endpoint}});
  ASSERT_TRUE(running.becomes_ready(true));
  NetworkNamespace::run("ip link delete here");
  EXPECT_TRUE(running.becomes_ready(false));
  join_hosts();
  ASSERT_TRUE(running.becomes_ready(true)) << *running.get().not_ready();
  Client client(running.get().port(), {80});
  const v1::InterceptMessage lease = client.read_lease();
  Descriptor accepted;
  talk(client, source_of(lease.lease(), net::Family::ipv4), listener.socket, listener.endpoint,
       accepted);
}

TEST_F(InterceptNetwork, StartErrorsSayWhatToDo) {
  const auto error_of = [](Options options) -> std::string {
    try {
      const Intercept intercept(std::move(options));
      return "";
    } catch (const program::StartError& error) {
      return error.what();
    }
  };
  Options options{
      .listen = {"127.0.0.1", {}},
      .interface = "away",
      .source_ports = {10000, 12000},
      .live = {.targets = {{80, *net::Endpoint::parse("10.99.0.2:80")}}, .sidecars = {}}};
  EXPECT_EQ(error_of(options).substr(0, 37), "--interface away does not exist; ther");
  options.interface = "here";
  options.listen.port = {11000};
  EXPECT_EQ(error_of(options), "the port of --listen is one of --source-ports: choose another");

  Running running(options.live.targets);
  options.listen.port = running.get().port();
  EXPECT_NE(error_of(options).find(" is taken"), std::string::npos) << error_of(options);
  EXPECT_TRUE(table_stands()) << "the one that runs keeps its rules";
}

}  // namespace
}  // namespace trafficmirror::intercept
