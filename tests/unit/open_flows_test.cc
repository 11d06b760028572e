#include "sidecar/capture/open_flows.h"

#include <chrono>
#include <optional>
#include <thread>

#include <gtest/gtest.h>

#include "tests/unit/connection.h"
#include "tests/unit/network_namespace.h"

namespace trafficmirror::capture {
namespace {

using testing_network::NetworkNamespace;
using testing_network::Socket;

struct Connection {
  Socket client;
  Socket server;
  net::FlowKey key;

  static Connection open(const Socket& listener, const net::Endpoint& address) {
    Socket client = Socket::connected(address);
    Socket server = listener.accepted();
    const net::FlowKey key{client.local(), address};
    return {std::move(client), std::move(server), key};
  }
};

std::vector<net::FlowKey> sorted(std::vector<net::FlowKey> keys) {
  std::sort(keys.begin(), keys.end());
  return keys;
}

std::vector<net::FlowKey> keys_of(const std::vector<OpenFlow>& flows) {
  std::vector<net::FlowKey> keys;
  keys.reserve(flows.size());
  for (const OpenFlow& flow : flows) keys.push_back(flow.key);
  return sorted(keys);
}

TEST(OpenFlows, AreThoseBetweenExchanges) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  for (const char* host : {"127.0.0.1", "::1"}) {
    const net::Endpoint address{*net::IpAddress::parse(host), {8080}};
    const net::Endpoint other_address{address.address, {8081}};
    const Socket listener = Socket::listening(address);
    const Socket other_listener = Socket::listening(other_address);

    const Connection fresh = Connection::open(listener, address);
    const Connection answered = Connection::open(listener, address);
    const Connection greeted = Connection::open(listener, address);
    const Connection unread = Connection::open(listener, address);
    const Connection unanswered = Connection::open(listener, address);
    const Connection elsewhere = Connection::open(other_listener, other_address);

    answered.client.send_all("question");
    answered.server.receive(8);
    answered.server.send_all("answer");
    greeted.server.send_all("hello");
    // The kernel tells times in milliseconds, some of ours in ticks of 4.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    unread.client.send_all("question");
    unanswered.client.send_all("question");
    unanswered.server.receive(8);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));

    const net::Port port{8080};
    EXPECT_EQ(keys_of(flows_between_exchanges({&port, 1})),
              sorted({fresh.key, answered.key, greeted.key}));
  }
}

TEST(OpenFlows, AreCertainOnlyWhereTheAnswerWasLater) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  const net::Endpoint address = *net::Endpoint::parse("127.0.0.1:8080");
  const Socket listener = Socket::listening(address);
  const Connection answered = Connection::open(listener, address);
  answered.client.send_all("question");
  answered.server.receive(8);
  // Longer than a tick of the kernel's clock.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  answered.server.send_all("answer");
  answered.client.receive(6);
  const net::Port port{8080};
  EXPECT_EQ(flows_between_exchanges({&port, 1}), (std::vector<OpenFlow>{{answered.key, true}}));
  // What comes within the same tick can't be told from what came before: either it is listed as
  // uncertain, or, as the tick passed just then, not at all.
  answered.client.send_all("half a qu");
  answered.server.receive(9);
  for (const OpenFlow& flow : flows_between_exchanges({&port, 1})) EXPECT_FALSE(flow.certain);
}

TEST(OpenFlows, OfADualStackServerAreIpv4WhereTheyAre) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  const Socket listener = Socket::listening(*net::Endpoint::parse("[::]:8080"));
  const Connection connection = Connection::open(listener, *net::Endpoint::parse("127.0.0.1:8080"));
  const net::Port port{8080};
  EXPECT_EQ(flows_between_exchanges({&port, 1}), (std::vector<OpenFlow>{{connection.key, true}}));
}

TEST(HasSockets, WhileAProcessListensOrHasAConnection) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  const net::Port port{8080};
  for (const char* text : {"127.0.0.1:8080", "[::1]:8080"}) {
    const net::Endpoint address = *net::Endpoint::parse(text);
    const Socket other = Socket::listening({address.address, {8081}});
    EXPECT_FALSE(has_sockets({&port, 1}));
    std::optional<Socket> listener = Socket::listening(address);
    EXPECT_TRUE(has_sockets({&port, 1}));
    std::optional<Connection> connection = Connection::open(*listener, address);
    listener.reset();
    EXPECT_TRUE(has_sockets({&port, 1}));
    // The client's is not production's, though it has the port as its peer's.
    connection.reset();
    EXPECT_FALSE(has_sockets({&port, 1}));
  }
}

TEST(HasSockets, OfUdpWhileThereIsOne) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  const net::Port port{8080};
  for (const char* text : {"127.0.0.1:8080", "[::1]:8080"}) {
    const net::Endpoint address = *net::Endpoint::parse(text);
    const Socket of_tcp = Socket::listening(address);
    EXPECT_FALSE(has_sockets({}, {&port, 1}));
    const Socket of_udp = Socket::of_datagrams(address);
    EXPECT_TRUE(has_sockets({}, {&port, 1}));
  }
}

TEST(OpenFlows, OfWhichThereMayBeHundreds) {
  SKIP_UNLESS_ROOT();
  const NetworkNamespace alone;
  const NetworkNamespace::Visit visit(alone);
  const net::Endpoint address = *net::Endpoint::parse("127.0.0.1:8080");
  const Socket listener = Socket::listening(address);
  std::vector<Connection> connections;
  constexpr size_t count = 400;
  connections.reserve(count);
  while (connections.size() < count) connections.push_back(Connection::open(listener, address));
  const net::Port port{8080};
  EXPECT_EQ(flows_between_exchanges({&port, 1}).size(), connections.size());
}

}  // namespace
}  // namespace trafficmirror::capture
