#include "tests/simulation/simulation.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <queue>

#include "sidecar/session/engine.h"
#include "tests/simulation/production.h"
#include "tests/simulation/shadow.h"

namespace trafficmirror::simulation {
namespace {

using session::CloseReason;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

std::string describe(const net::TcpHeader& tcp, uint32_t length) {
  std::string text;
  if (tcp.flags.syn) text += 'S';
  if (tcp.flags.fin) text += 'F';
  if (tcp.flags.rst) text += 'R';
  if (tcp.flags.psh) text += 'P';
  if (tcp.flags.ack) text += '.';
  text += " " + std::to_string(tcp.sequence.value()) + "(" + std::to_string(length) + ")";
  if (tcp.flags.ack) text += " ack " + std::to_string(tcp.acknowledgment.value());
  text += " win " + std::to_string(tcp.window);
  for (const net::SackBlock& block : tcp.options.sack_blocks.get())
    text +=
        " sack " + std::to_string(block.begin.value()) + ":" + std::to_string(block.end.value());
  return text;
}

// What a network does to packets, one direction.
struct Network {
  double loss = 0;
  double duplicates = 0;
  double corruption = 0;
  Duration delay{100};
  Duration jitter{0};
};

net::SequenceNumber first_sequence(const Conversation& conversation) {
  const std::string& bytes = conversation.packets.front().bytes;
  return std::get<net::Packet>(
             net::parse_packet({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
                               bytes.size()))
      .tcp.sequence;
}

class Run {
 public:
  Run(uint64_t seed, bool with_trace);
  Result run();

 private:
  // One of the intercept's, and the stream to it.
  struct Replica : session::SegmentSink {
    Replica(Run& in, uint8_t its) : run(in), number(its) {}
    void send(const session::Path& path, const session::Segment& segment) override {
      run.send(*this, path, segment);
    }
    Run& run;
    const uint8_t number;
    session::Stream* stream = nullptr;  // null: there is none, nor an attempt at one
    bool up = false;
    bool full = false;
  };
  struct Event {
    Time at;
    uint64_t number;
    std::function<void()> act;
    bool operator<(const Event& other) const {
      return at != other.at ? at > other.at : number > other.number;
    }
  };

  void at(Time time, std::function<void()> act) {
    events_.push({time, ++last_event_, std::move(act)});
  }
  void fail(const std::string& what) {
    if (!failure_)
      failure_ = what + ", at " + std::to_string(now_.time_since_epoch().count()) + " us";
    if (trace_) std::printf("!! %s\n", what.c_str());
  }
  void trace(const char* who, const std::string& what) const {
    if (trace_)
      std::printf("%12.6f %-12s %s\n", static_cast<double>(now_.time_since_epoch().count()) / 1e6,
                  who, what.c_str());
  }
  void trace(const Replica& replica, const std::string& what) const {
    trace("replica", std::to_string(replica.number) + " " + what);
  }

  Personality make_personality();
  void plan_production();
  void plan_replicas();
  void plan_pacing();
  session::Pacing make_pacing();
  void plan_faults();
  void play(const CapturedPacket& captured, Shadow::Application& application, size_t index);
  void carry(const Network& network, const std::string& packet,
             const std::function<void(std::span<const uint8_t>)>& arrive);
  void send(const Replica& replica, const session::Path& path, const session::Segment& segment);
  void come(Replica& replica);
  void go(Replica& replica);
  void lose(Replica& replica);
  void report(Replica& replica);
  void run_engine();
  void check_step();
  void check_end();
  net::IpAddress source_of(uint8_t replica) const;
  session::Lease lease_of(const Replica& replica) const;

  Random random_;
  Random replicas_random_;  // of its own, so that a seed's run is the same with one replica or more
  Random pacing_random_;    // likewise
  bool trace_;
  bool faultless_;
  Time now_{};
  std::priority_queue<Event> events_;
  uint64_t last_event_ = 0;
  std::optional<std::string> failure_;

  Shadow shadow_;
  std::vector<session::Lease::Target> targets_;
  net::Port first_source_{10000};
  net::Port last_source_{10000};
  session::Engine::Options options_;
  std::optional<session::Engine> engine_;
  Network to_shadow_, to_engine_;
  Duration batching_{0};
  Time run_at_ = session::never;                    // a batch is awaited
  std::vector<std::unique_ptr<Replica>> replicas_;  // the first never goes
  session::Counters reported_;                      // what they were told, in sum
  bool clean_path_ = true;
  Time capture_begins_{};
  double capture_loss_ = 0;
  Time production_ends_{};
  uint64_t last_exchanges_ = 0;
  Duration longest_lag_ = Duration::max();
};

Run::Run(uint64_t seed, bool with_trace)
    : random_(seed),
      replicas_random_(~seed),
      pacing_random_(mix(~seed)),
      trace_(with_trace),
      faultless_(random_.chance(0.3)),
      shadow_(
          Random(random_.next()),
          [this](const net::Endpoint& from, const net::Endpoint& to, const net::TcpHeader& header,
                 uint32_t length) {
            trace("shadow", describe(header, length));
            std::string packet;
            net::append_packet(packet, from, to, header, length,
                               [&](uint8_t* bytes) { std::fill_n(bytes, length, uint8_t{0}); });
            carry(to_engine_, packet, [this, length](std::span<const uint8_t> bytes) {
              // The intercept sends headers alone.
              const auto parsed =
                  net::parse_packet(bytes.first(bytes.size() - length), bytes.size());
              const auto& arrived = std::get<net::Packet>(parsed);
              for (const auto& replica : replicas_)
                if (replica->up && arrived.destination.address == source_of(replica->number))
                  engine_->on_shadow(now_, *replica->stream, arrived);
            });
          },
          [this](const std::string& what) { fail(what); }) {
  options_.seed = random_.next();
  options_.idle_timeout = random_.duration(seconds(20), minutes(5));
  options_.response_timeout = random_.duration(seconds(5), seconds(60));
  if (!faultless_ && random_.chance(0.15)) options_.limits.memory = random_.between(20000, 400000);
  if (random_.chance(0.3)) batching_ = random_.duration(microseconds(1), milliseconds(2));

  for (Network* network : {&to_shadow_, &to_engine_}) {
    network->delay = Duration(static_cast<int64_t>(random_.scale(15)));
    if (faultless_) {
      // A little loss is no fault: everything has to arrive nonetheless.
      if (random_.chance(0.5)) continue;
      clean_path_ = false;
      options_.response_timeout = minutes(2);
      network->loss = network->duplicates = network->corruption = 0.01;
      if (random_.chance(0.5)) network->jitter = Duration(static_cast<int64_t>(random_.scale(14)));
      continue;
    }
    if (random_.chance(0.3)) continue;
    clean_path_ = false;
    network->loss = random_.chance(0.5) ? 0.01 : 0.001 * static_cast<double>(random_.below(250));
    network->duplicates = random_.chance(0.5) ? 0.02 : 0;
    network->corruption = random_.chance(0.5) ? 0.01 : 0;
    if (random_.chance(0.5)) network->jitter = Duration(static_cast<int64_t>(random_.scale(16)));
  }
  if (!faultless_ && random_.chance(0.2)) capture_loss_ = random_.chance(0.5) ? 0.005 : 0.05;
  options_.limits.pacing = make_pacing();
  if (!faultless_ && pacing_random_.chance(0.1))
    options_.limits.rate = static_cast<uint32_t>(pacing_random_.between(1, 20));
  plan_production();
  engine_.emplace(options_);
  const uint64_t replicas = replicas_random_.chance(0.5) ? 1 : replicas_random_.between(2, 3);
  for (uint8_t number = 1; number <= replicas; ++number)
    replicas_.push_back(std::make_unique<Replica>(*this, number));
  at(Time{}, [this] { come(*replicas_.front()); });
  plan_replicas();
  plan_pacing();
  plan_faults();
}

session::Pacing Run::make_pacing() {
  session::Pacing pacing;
  if (pacing_random_.chance(0.5))
    pacing.turns = pacing_random_.chance(0.5) ? session::Turns::eager : session::Turns::off;
  if (pacing_random_.chance(0.4)) {
    pacing.max_lag = Duration(static_cast<int64_t>(pacing_random_.scale(22)));
    if (faultless_ || pacing_random_.chance(0.5)) pacing.over_lag = session::OverLag::catch_up;
  }
  return pacing;
}

// The pacing it begins with is changed in some runs. What may be asked of the order in which
// exchanges arrive is what holds with both.
void Run::plan_pacing() {
  const session::Pacing first = options_.limits.pacing;
  const session::Pacing second = pacing_random_.chance(0.3) ? make_pacing() : first;
  const auto order_of = [](const session::Pacing& pacing) {
    if (pacing.turns == session::Turns::off) return Order::any;
    const bool eager =
        pacing.turns == session::Turns::eager ||
        (pacing.max_lag > Duration::zero() && pacing.over_lag == session::OverLag::catch_up);
    return eager ? Order::received : Order::answered;
  };
  for (auto& [target, application] : shadow_.applications)
    application.order = std::max(order_of(first), order_of(second));
  trace("order", std::to_string(static_cast<int>(std::max(order_of(first), order_of(second)))));
  // Nothing is sent that is later than it may be.
  const auto longest = [](const session::Pacing& pacing) {
    return pacing.max_lag > Duration::zero() && pacing.over_lag == session::OverLag::shed
               ? pacing.max_lag
               : Duration::max();
  };
  longest_lag_ = std::max(longest(first), longest(second));
  if (second == first) return;
  at(Time{} + pacing_random_.duration(Duration(0), production_ends_ - Time{} + seconds(1)),
     [this, second] {
       trace("pacing", "changed");
       options_.limits.pacing = second;
       engine_->set_limits(now_, options_.limits);
     });
}

net::IpAddress Run::source_of(uint8_t replica) const {
  const bool ipv4 = targets_.front().endpoint.address.family() == net::Family::ipv4;
  return *net::IpAddress::parse((ipv4 ? "10.9.0." : "fd09::") + std::to_string(replica));
}

session::Lease Run::lease_of(const Replica& replica) const {
  return {{{source_of(replica.number), first_source_, last_source_}}, targets_};
}

void Run::come(Replica& replica) {
  trace(replica, "comes");
  if (replica.stream == nullptr) replica.stream = &engine_->add_stream(replica.number, replica);
  replica.up = true;
  engine_->set_lease(now_, *replica.stream, lease_of(replica));
}

void Run::lose(Replica& replica) {
  trace(replica, "is lost");
  replica.up = replica.full = false;
  if (replica.stream != nullptr) engine_->stream_lost(*replica.stream);
}

void Run::go(Replica& replica) {
  trace(replica, "goes");
  replica.up = replica.full = false;
  if (replica.stream != nullptr) engine_->remove_stream(*replica.stream);
  replica.stream = nullptr;
}

void Run::report(Replica& replica) {
  if (!replica.up) return;
  reported_.add(engine_->unreported(*replica.stream));
  engine_->set_reported(*replica.stream);
}

// Those behind the first come at some time and go again, and come again. Where nothing may fail
// they get no more sessions and are gone only when their last one has ended.
void Run::plan_replicas() {
  const auto some_time = [&] {
    return Time{} + replicas_random_.duration(Duration(0), production_ends_ - Time{} + seconds(1));
  };
  for (const auto& each : replicas_) {
    Replica& replica = *each;
    for (int i = 0; i < 5; ++i) at(some_time(), [this, &replica] { report(replica); });
    if (replica.number == 1) continue;
    for (uint64_t i = 0, times = replicas_random_.between(1, 3); i < times; ++i) {
      at(i == 0 && replicas_random_.chance(0.5) ? Time{} : some_time(),
         [this, &replica] { come(replica); });
      if (replicas_random_.chance(0.4)) continue;
      const auto how = replicas_random_.below(faultless_ ? 1 : 4);
      at(some_time(), [this, &replica, how] {
        if (!replica.up) return;
        if (how == 0) {
          const bool closed = !replica.stream->closed_to_new;
          trace(replica, closed ? "closes" : "opens");
          session::Engine::close_to_new_sessions(*replica.stream, closed);
        } else if (how == 1) {
          lose(replica);
        } else if (how == 2) {
          go(replica);
        } else {
          trace(replica, replica.full ? "free" : "full");
          replica.full = !replica.full;
          session::Engine::set_uplink_full(*replica.stream, replica.full);
        }
      });
    }
    // Nothing is full for ever.
    at(production_ends_ + seconds(5), [this, &replica] {
      replica.full = false;
      if (replica.up) session::Engine::set_uplink_full(*replica.stream, false);
    });
  }
}

Personality Run::make_personality() {
  Personality how;
  how.max_think = Duration(static_cast<int64_t>(random_.scale(random_.chance(0.2) ? 21 : 14)));
  how.min_think = std::min(how.min_think, how.max_think);
  if (random_.chance(0.3)) how.closing = Personality::Closing::as_production;
  how.length_change = static_cast<int>(random_.below(3)) - 1;
  if (random_.chance(0.3)) {
    how.max_writes = 3;
    how.between_writes = Duration(static_cast<int64_t>(random_.scale(10)));
  }
  if (random_.chance(0.3)) how.buffer = static_cast<uint32_t>(random_.between(1000, 20000));
  if (random_.chance(0.3)) how.read_interval = Duration(static_cast<int64_t>(random_.scale(18)));
  if (random_.chance(0.3)) how.delayed_acknowledgment = Duration(0);
  how.selective_acknowledgment = random_.chance(0.7);
  how.timestamps = random_.chance(0.7);
  if (random_.chance(0.3)) how.window_scale.reset();
  if (random_.chance(0.2)) how.window_scale = static_cast<uint8_t>(random_.below(8));
  if (random_.chance(0.2)) how.maximum_segment_size.reset();
  if (random_.chance(0.1))
    how.maximum_segment_size = static_cast<uint16_t>(random_.between(88, 9000));
  if (faultless_) return how;
  if (random_.chance(0.05)) how.refuses = true;
  if (random_.chance(0.05)) how.silent = true;
  if (random_.chance(0.05)) how.never_answers = true;
  if (random_.chance(0.05)) how.resets_behind = random_.scale(12);
  if (random_.chance(0.1)) how.closing = Personality::Closing::early_close;
  if (random_.chance(0.1)) how.closing = Personality::Closing::early_shutdown;
  if (random_.chance(0.1)) how.read_interval = random_.duration(seconds(1), seconds(20));
  return how;
}

void Run::plan_production() {
  const bool ipv4 = random_.chance(0.7);
  const uint64_t flows = random_.scale(2);
  last_source_ =
      net::Port{static_cast<uint16_t>(first_source_.number + flows * 3 + random_.below(20))};
  ConversationOptions how;
  how.stray_packets = !faultless_ && random_.chance(0.1);
  how.unclean_end = !faultless_ && random_.chance(0.3);
  how.max_bulk = random_.chance(0.02) ? 1 << 21 : 1 << 16;
  if (!faultless_ && random_.chance(0.3))
    capture_begins_ = Time{} + random_.duration(Duration(0), seconds(3));
  for (uint64_t flow = 0; flow < flows; ++flow) {
    const auto port = static_cast<uint16_t>(80 + flow);
    const net::FlowKey key{
        {*net::IpAddress::parse(ipv4 ? "192.0.2.7" : "2001:db8::7"),
         net::Port{static_cast<uint16_t>(random_.between(1024, 65535))}},
        {*net::IpAddress::parse(ipv4 ? "10.1.0.1" : "fd01::1"), net::Port{port}}};
    const net::Endpoint target{*net::IpAddress::parse(ipv4 ? "10.2.0.1" : "fd02::1"),
                               net::Port{static_cast<uint16_t>(8000 + flow)}};
    options_.ports.push_back(key.server.port);
    constexpr std::array<uint16_t, 4> mtus = {1500, 9000, 1280, 576};
    targets_.push_back({key.server.port, target, mtus[ipv4 ? random_.below(4) : random_.below(3)]});
    Shadow::Application& application = shadow_.applications[target];
    application.personality = make_personality();
    const auto kind = static_cast<Kind>(random_.below(kind_names.size()));
    application.check_turns = kind != Kind::streaming && kind != Kind::pipelined &&
                              application.personality.max_writes == 1 && clean_path_;
    Time start = Time{} + random_.duration(milliseconds(1), milliseconds(500));
    for (const uint64_t reuse = faultless_ ? 1 : random_.scale(2);
         application.conversations.size() < reuse;) {
      auto conversation =
          std::make_unique<Conversation>(make_conversation(random_, kind, key, start, how));
      // No host begins twice with one number: the second SYN would be the first sent again.
      if (!application.conversations.empty() &&
          first_sequence(*conversation) == first_sequence(*application.conversations.back()))
        continue;
      trace("flow", key.to_string() + " " + kind_names[static_cast<size_t>(kind)] + ", " +
                        std::to_string(conversation->client_bytes) + " bytes, mirrored to " +
                        target.to_string());
      start = std::max(conversation->packets.back().at,
                       conversation->idle.empty() ? Time{} : conversation->idle.back().second) +
              random_.duration(milliseconds(10), seconds(5));
      production_ends_ = std::max(production_ends_, conversation->packets.back().at);
      const size_t index = application.conversations.size();
      for (CapturedPacket& packet : conversation->packets) {
        packet.captured = !random_.chance(capture_loss_);
        at(packet.at, [this, &packet, &application, index] { play(packet, application, index); });
      }
      // A conversation that runs when mirroring begins, and is known to be between exchanges.
      // Nothing tells when the capture loses the very first packet of one.
      if (capture_loss_ == 0 && random_.chance(0.5))
        for (const auto& [begin, end] : conversation->idle)
          if (begin < capture_begins_ && capture_begins_ < end)
            at(capture_begins_, [this, key] {
              trace("idle flow", key.to_string());
              engine_->on_idle_flow(now_, key, session::Boundary::certain);
            });
      application.conversations.push_back(std::move(conversation));
      application.server_received.push_back(0);
    }
  }
}

void Run::plan_faults() {
  if (faultless_) return;
  const auto some_time = [&] {
    return Time{} + random_.duration(Duration(0), production_ends_ - Time{} + seconds(1));
  };
  if (random_.chance(0.2)) {
    const Time lost = some_time();
    at(lost, [this] { lose(*replicas_.front()); });
    at(lost + random_.duration(Duration(0), seconds(2)), [this] { come(*replicas_.front()); });
  }
  if (random_.chance(0.2)) {
    const Time full = some_time();
    const auto set = [this](bool is_full) {
      trace("uplink", is_full ? "full" : "free");
      Replica& replica = *replicas_.front();
      session::Engine::set_uplink_full(*replica.stream, replica.full = is_full);
    };
    at(full, [set] { set(true); });
    at(full + random_.duration(Duration(0), seconds(10)), [set] { set(false); });
  }
  if (random_.chance(0.1))
    at(some_time(), [this] {
      const Replica& replica = *replicas_.front();
      session::Lease smaller = lease_of(replica);
      for (auto& target : smaller.targets) target.path_mtu = 576;
      if (smaller.targets.size() > 1 && random_.chance(0.3)) smaller.targets.pop_back();
      if (!replica.up) return;
      trace("lease", "changed");
      engine_->set_lease(now_, *replica.stream, smaller);
    });
  if (random_.chance(0.1))
    at(some_time(), [this] {
      session::Limits limits = options_.limits;
      if (random_.chance(0.5)) limits.sessions = random_.below(4);
      if (random_.chance(0.5)) limits.percent = static_cast<double>(random_.between(1, 1000)) / 10;
      if (pacing_random_.chance(0.2))
        limits.filter = [](const net::FlowKey& key, net::Protocol) {
          return key.server.port.number % 2 == 0;
        };
      trace("limits", "changed");
      engine_->set_limits(now_, limits);
    });
  if (random_.chance(0.03)) {
    const Time begin = some_time();
    for (uint64_t i = 0, count = random_.scale(10); i < count; ++i)
      at(begin + microseconds(10 * i), [this, i] {
        // SYNs of clients that say nothing more.
        net::TcpHeader syn;
        syn.flags.syn = true;
        std::string bytes;
        net::append_packet(
            bytes,
            {*net::IpAddress::parse("203.0.113.1"), net::Port{static_cast<uint16_t>(1024 + i)}},
            {*net::IpAddress::parse("10.1.0.1"), options_.ports.front()}, syn, 0, [](uint8_t*) {});
        const auto parsed = net::parse_packet(
            {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, bytes.size());
        trace("flood", describe(syn, 0));
        engine_->on_production(now_, std::get<net::Packet>(parsed));
      });
  }
  if (random_.chance(0.05))
    at(some_time(), [this] {
      trace("engine", "drains");
      engine_->drain(now_);
    });
}

void Run::play(const CapturedPacket& captured, Shadow::Application& application, size_t index) {
  uint64_t& received = application.server_received[index];
  received = std::max(received, captured.server_received);
  const auto* data = reinterpret_cast<const uint8_t*>(captured.bytes.data());
  const std::string before = captured.bytes;
  const auto parsed = net::parse_packet({data, captured.bytes.size()}, captured.bytes.size());
  const auto& packet = std::get<net::Packet>(parsed);
  const bool seen = captured.captured && now_ >= capture_begins_;
  trace(captured.from_client ? "client" : "server",
        describe(packet.tcp, packet.payload_length) + (seen ? "" : " (not captured)"));
  Conversation& conversation = *application.conversations[index];
  if (packet.tcp.flags.syn && !captured.from_client)
    conversation.server_begins = packet.tcp.sequence + 1;
  if (!seen) return;
  if (packet.tcp.flags.syn && captured.from_client) conversation.syn_captured = true;
  const bool tells_where_the_server_begins =
      captured.from_client
          ? packet.payload_length == 0 && packet.tcp.acknowledgment == conversation.server_begins
          : packet.tcp.flags.syn || packet.tcp.sequence == conversation.server_begins;
  if (captured.from_client && packet.payload_length > 0) conversation.client_bytes_captured = true;
  if (conversation.server_begins && tells_where_the_server_begins &&
      !conversation.client_bytes_captured)
    conversation.server_begin_captured = true;
  engine_->on_production(now_, packet);
  if (captured.bytes != before) fail("a captured packet was changed");
}

void Run::carry(const Network& network, const std::string& packet,
                const std::function<void(std::span<const uint8_t>)>& arrive) {
  if (random_.chance(network.loss)) {
    trace("network", "lost");
    return;
  }
  const unsigned copies = random_.chance(network.duplicates) ? 2 : 1;
  for (unsigned i = 0; i < copies; ++i) {
    std::string bytes = packet;
    if (random_.chance(network.corruption))
      bytes[random_.below(bytes.size())] ^= static_cast<char>(1 << random_.below(8));
    Time when = now_ + network.delay;
    if (network.jitter > Duration::zero()) when += random_.duration(Duration(0), network.jitter);
    at(when, [this, arrive, original = packet, bytes = std::move(bytes)] {
      if (bytes != original) {
        trace("network", "corrupted");
        return;
      }
      arrive({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
    });
  }
}

void Run::send(const Replica& replica, const session::Path& path, const session::Segment& segment) {
  trace("engine", describe(segment.header, segment.length) +
                      (replicas_.size() > 1 ? " by " + std::to_string(replica.number) : ""));
  std::string packet;
  net::append_packet(
      packet, path.source, path.target, segment.header, segment.length,
      [&](uint8_t* to) { segment.queue->copy(segment.payload, segment.length, to); });
  if (packet.size() > path.mtu) fail("a packet of " + std::to_string(packet.size()) + " bytes");
  if (replica.full) fail("something was put out while the uplink was full");
  if (!replica.up) fail("something was put out without a stream");
  if (path.source.address != source_of(replica.number))
    fail("a packet was sent by another stream than its session's");
  carry(to_shadow_, packet, [this](std::span<const uint8_t> bytes) {
    const auto parsed = net::parse_packet(bytes, bytes.size());
    const auto& arrived = std::get<net::Packet>(parsed);
    if (!net::checksum_holds(arrived, bytes)) fail("a wrong checksum");
    shadow_.process(now_, arrived);
  });
}

void Run::run_engine() {
  engine_->run(now_);
  if (engine_->deadline() <= now_) fail("the engine's deadline does not move on");
}

void Run::check_step() {
  const session::Counters counters = engine_->counters();
  const uint64_t closed =
      std::accumulate(counters.closed.begin(), counters.closed.end(), uint64_t{0});
  if (counters.opened != counters.active + closed) fail("opened is not active + closed");
  if (counters.memory > options_.limits.memory) fail("memory is over its limit");
  if (counters.exchanges < last_exchanges_) fail("exchanges went back");
  last_exchanges_ = counters.exchanges;
  for (size_t i = 1; i < counters.lags.exchanges.size(); ++i)
    if (session::Lags::bounds[i - 1] >= longest_lag_ && counters.lags.exchanges[i] > 0)
      fail("an exchange was sent later than it may be");
}

void Run::check_end() {
  const session::Counters counters = engine_->counters();
  if (counters.active > 0) fail("the engine waits for ever");
  if (counters.flows > 0) fail("a flow is never forgotten");
  if (failure_) return;
  if (counters.memory != 0) fail("memory does not return to 0");
  for (const auto& replica : replicas_) report(*replica);
  if (replicas_.front()->up &&
      (reported_.opened != counters.opened || reported_.closed != counters.closed ||
       reported_.shed != counters.shed || reported_.exchanges != counters.exchanges))
    fail("what the replicas were told is not the whole in sum");
  // flow_reused does not say so: the close that was not captured may have had bytes before it.
  const uint64_t whole = counters[CloseReason::finished] + counters[CloseReason::production_reset] +
                         (faultless_ ? counters[CloseReason::flow_reused] : 0);
  uint64_t empty = 0;  // a conversation without bytes is complete without a connection
  for (const auto& [target, application] : shadow_.applications)
    for (const auto& conversation : application.conversations)
      empty += conversation->client_bytes == 0;
  if (whole > shadow_.complete() + empty)
    fail(std::to_string(whole) + " sessions closed as whole, but only " +
         std::to_string(shadow_.complete()) + " connections received all");
  if (!faultless_) return;
  if (whole != counters.opened)
    for (size_t i = 0; i < counters.closed.size(); ++i)
      if (counters.closed[i] > 0 && i > static_cast<size_t>(CloseReason::flow_reused))
        fail(std::string("without a fault a session ended as ") + session::close_reason_names[i]);
  for (size_t i = 0; i < counters.shed.size(); ++i)
    if (counters.shed[i] > 0)
      fail(std::string("without a fault something was shed: ") + session::shed_reason_names[i]);
  for (const auto& [target, application] : shadow_.applications)
    for (const auto& conversation : application.conversations)
      if (conversation->client_bytes > 0 && !shadow_.received_all(*conversation, 0))
        fail("without a fault not all bytes arrived");
}

Result Run::run() {
  const Time bound = production_ends_ + std::chrono::hours(24);
  while (!failure_ || trace_) {
    const Time engine = engine_->deadline();
    const Time next = std::min(
        {events_.empty() ? session::never : events_.top().at, shadow_.deadline(), engine, run_at_});
    if (next == session::never) break;
    if (next > bound) {
      fail("no end after a day");
      break;
    }
    now_ = std::max(now_, next);
    if (!events_.empty() && events_.top().at <= now_) {
      const auto act = events_.top().act;
      events_.pop();
      act();
    } else {
      shadow_.tick(now_);
    }
    if (batching_ == Duration::zero() || engine_->deadline() <= now_) {
      run_engine();
    } else if (run_at_ <= now_) {
      run_at_ = session::never;
      run_engine();
    } else {
      run_at_ = std::min(run_at_, now_ + batching_);
    }
    check_step();
    if (failure_) break;
  }
  if (!failure_) check_end();
  return {failure_, engine_->counters(), faultless_};
}

}  // namespace

Result simulate(uint64_t seed, bool trace) {
  return Run(seed, trace).run();
}

}  // namespace trafficmirror::simulation
