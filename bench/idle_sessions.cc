// What an idle session takes: opens sessions (100,000 where nothing else is said), has each of them
// carry one exchange, and prints the memory the engine says it holds and what the allocator says it
// handed out.
//
//   build/bin/idle_sessions [SESSIONS]
#include <cstdio>
#include <cstdlib>

#include <malloc.h>

#include "sidecar/session/engine.h"

namespace trafficmirror::session {
namespace {

using net::SequenceNumber;

constexpr double most_bytes = (64 << 20) / 100'000.0;

// Answers what the engine sends as a shadow would.
class Shadow : public SegmentSink {
 public:
  void send(const Path& path, const Segment& segment) override {
    const net::TcpHeader& sent = segment.header;
    net::Packet answer;
    answer.source = path.target;
    answer.destination = path.source;
    answer.tcp.flags.ack = true;
    answer.tcp.window = 65535;
    answer.tcp.sequence = sent.acknowledgment;
    answer.tcp.acknowledgment = sent.sequence + segment.length;
    if (sent.flags.syn) {
      answer.tcp.flags.syn = true;
      answer.tcp.acknowledgment = sent.sequence + 1;
      answer.tcp.options.maximum_segment_size = 1460;
    } else if (segment.length > 0) {
      answer.tcp.flags.psh = true;
      answer.payload_length = 200;
    } else {
      return;
    }
    answers.push_back(answer);
  }
  std::vector<net::Packet> answers;
};

void deliver(Engine& engine, Stream& stream, Shadow& shadow, Time now) {
  do {
    const std::vector<net::Packet> answers = std::exchange(shadow.answers, {});
    for (const net::Packet& answer : answers) engine.on_shadow(now, stream, answer);
    engine.run(now);
  } while (!shadow.answers.empty());
}

int run(uint32_t sessions) {
  const net::Endpoint server = *net::Endpoint::parse("10.0.0.1:80");
  const auto before = ::mallinfo2();
  Shadow shadow;
  Engine::Options options;
  options.ports = {server.port};
  options.limits.memory = UINT64_MAX;
  Engine engine(options);
  Stream& stream = engine.add_stream(0, shadow);
  Time now{std::chrono::seconds(1)};
  // As many source addresses as the sessions need ports of.
  Lease lease;
  for (uint8_t host = 1; lease.sources.size() * 22768 < sessions; ++host) {
    const std::array<uint8_t, 4> address = {10, 1, 0, host};
    lease.sources.push_back({net::IpAddress::from_ipv4(address), {10000}, {32767}});
  }
  lease.targets = {{server.port, *net::Endpoint::parse("10.2.0.1:8080"), 1500}};
  engine.set_lease(now, stream, lease);

  const std::array<uint8_t, 100> request{};
  for (uint32_t i = 0; i < sessions; ++i) {
    const std::array<uint8_t, 4> address = {192, 168, static_cast<uint8_t>(i >> 16),
                                            static_cast<uint8_t>(i >> 8)};
    net::Packet packet;
    packet.source = {net::IpAddress::from_ipv4(address),
                     {static_cast<uint16_t>(1024 + (i & 0xff))}};
    packet.destination = server;
    packet.tcp.flags.syn = true;
    packet.tcp.options.maximum_segment_size = 1460;
    engine.on_production(now, packet);

    net::Packet answer;
    answer.source = packet.destination;
    answer.destination = packet.source;
    answer.tcp.flags = {.syn = true, .ack = true};
    answer.tcp.acknowledgment = SequenceNumber(1);
    engine.on_production(now, answer);

    packet.tcp.flags = {.psh = true, .ack = true};
    packet.tcp.sequence = SequenceNumber(1);
    packet.tcp.acknowledgment = SequenceNumber(1);
    packet.payload = request;
    packet.payload_length = request.size();
    engine.on_production(now, packet);

    answer.tcp.flags = {.psh = true, .ack = true};
    answer.tcp.sequence = SequenceNumber(1);
    answer.tcp.acknowledgment = SequenceNumber(1 + static_cast<uint32_t>(request.size()));
    answer.payload_length = 200;
    engine.on_production(now, answer);
    deliver(engine, stream, shadow, now);
  }
  now += std::chrono::seconds(1);  // the delayed acknowledgments go out
  engine.run(now);
  shadow.answers = {};

  const Counters counters = engine.counters();
  const auto after = ::mallinfo2();
  const double allocated =
      static_cast<double>(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd);
  std::printf(
      "%llu sessions idle after %llu exchanges\n"
      "the engine says  %6.1f MiB  %4.0f bytes a session\n"
      "the allocator    %6.1f MiB  %4.0f bytes a session\n",
      static_cast<unsigned long long>(counters.active),
      static_cast<unsigned long long>(counters.exchanges),
      static_cast<double>(counters.memory) / (1 << 20),
      static_cast<double>(counters.memory) / sessions, allocated / (1 << 20), allocated / sessions);
  const bool all_idle = counters.active == sessions && counters.exchanges == sessions;
  return all_idle && allocated / sessions <= most_bytes ? 0 : 1;
}

}  // namespace
}  // namespace trafficmirror::session

int main(int argc, char** argv) {
  return trafficmirror::session::run(
      argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 100'000);
}
