// The session engine under any stream of events: production's packets, the shadow's headers, time,
// leases, a stream that is lost or full. The input is read as a list of events; after each of them
// the counters have to close and memory has to be within its limit. What comes out has to be what a
// production client sent, byte for byte and in order.
#include <map>
#include <optional>
#include <vector>

#include "sidecar/rewrite/rewrite.h"
#include "sidecar/session/engine.h"
#include "tests/fuzz/fuzz.h"

namespace trafficmirror::fuzz {
namespace {

using net::SequenceNumber;
using session::Duration;
using session::Engine;
using session::Time;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration idle_timeout = seconds(60);
constexpr Duration response_timeout = seconds(10);
constexpr size_t max_events = 400;
// What may be held for a moment beyond the limit.
constexpr uint64_t one_packet = 0x10000 + 0x1000;

net::Endpoint endpoint(const char* text) {
  return *net::Endpoint::parse(text);
}

// What a production client sent in one packet.
struct Sent {
  SequenceNumber begin;
  std::vector<uint8_t> bytes;
};

// A production connection as the input plays it.
struct Flow {
  net::FlowKey key;
  SequenceNumber client_next;
  SequenceNumber server_next;
  std::vector<Sent> sent;
  std::vector<SequenceNumber> ends;  // of packets, also of such that were cut, and of SYNs

  // How many of `bytes` the client sent from `at` on.
  size_t matches(SequenceNumber at, std::span<const uint8_t> bytes) const {
    size_t done = 0;
    for (bool further = true; further && done < bytes.size();) {
      further = false;
      for (const Sent& packet : sent) {
        const int64_t skip = (at + static_cast<uint32_t>(done)) - packet.begin;
        if (skip < 0 || skip >= static_cast<int64_t>(packet.bytes.size())) continue;
        const auto have = std::span(packet.bytes).subspan(static_cast<size_t>(skip));
        const auto want = bytes.subspan(done);
        const size_t most = std::min(have.size(), want.size());
        const auto differs =
            std::mismatch(have.begin(), have.begin() + static_cast<std::ptrdiff_t>(most),
                          want.begin())
                .first;
        done += static_cast<size_t>(differs - have.begin());
        if (differs != have.begin()) further = true;
        if (done == bytes.size()) return done;
      }
    }
    return done;
  }
};

// The same byte for the same place in the stream, and another where `variant` is.
uint8_t byte_at(size_t flow, bool variant, SequenceNumber sequence) {
  const uint32_t mixed = (sequence.value() + static_cast<uint32_t>(flow) * 0x1000193) * 2654435761U;
  return static_cast<uint8_t>((mixed >> 24) + variant);
}

// A session as the shadow sees it.
struct Session {
  // A place in a flow's stream at which the session's may begin.
  struct Origin {
    const Flow* flow;
    SequenceNumber begin;
  };

  net::Endpoint source;
  net::Endpoint target;
  SequenceNumber initial;
  SequenceNumber sent_end;      // behind what was sent last
  SequenceNumber acknowledged;  // what it acknowledged last
  std::optional<uint32_t> end;  // of its stream, where the FIN is
  std::vector<std::optional<uint8_t>> stream;
  std::optional<std::vector<Origin>> origins;
};

class Run {
 public:
  explicit Run(Input& input) : input_(input) {
    const uint8_t how = input.u8();
    drains_ = (how & 1) != 0;
    options_.ports = {{80}, {8080}};
    options_.idle_timeout = idle_timeout;
    options_.response_timeout = response_timeout;
    options_.seed = how;
    if ((how & 2) != 0) options_.limits.memory = 3000 + 500 * (how >> 2);
    engine_.emplace(options_);
    stream_ = &engine_->add_stream(0, rewriter_);
    const std::array<std::array<const char*, 2>, 6> keys = {{
        {"10.0.0.1:40000", "10.0.0.9:80"},
        {"10.0.0.2:40001", "10.0.0.9:80"},
        {"[fd00::1]:40002", "[fd00::9]:8080"},
        {"10.0.0.3:8080", "10.0.0.9:80"},     // the client's port is one of production's too
        {"10.0.0.4:50000", "10.0.0.9:8080"},  // leads to a target of the other family
        {"10.9.0.1:10001", "10.0.0.9:80"},    // from a leased port
    }};
    for (const auto& [client, server] : keys) {
      Flow flow;
      flow.key = {endpoint(client), endpoint(server)};
      // Most wrap early.
      flow.client_next = SequenceNumber(flows_.size() % 2 == 0 ? 0xffffff00 : 0x7fffff00);
      flow.server_next = SequenceNumber(flows_.size() % 3 == 0 ? 0xfffffff0 : 5000);
      flows_.push_back(flow);
    }
    engine_->set_lease(now_, *stream_, lease(0));
  }

  void run() {
    for (size_t i = 0; i < max_events && !input_.empty(); ++i) {
      step();
      rewriter_.flush();
      check();
    }
    if (drains_)
      drain();
    else
      wait();
    engine_->run(now_ += 2 * idle_timeout);
    check();
    require(engine_->counters().flows == 0, "idle flows are forgotten");
    require(engine_->counters().memory == 0, "nothing is held for nobody");
  }

 private:
  void step() {
    const uint8_t what = input_.u8();
    switch (what % 16) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return client_packet(what);
      case 5:
      case 6:
        return server_packet();
      case 7:
      case 8:
      case 9:
      case 10:
        return shadow_packet();
      case 11:
        now_ += milliseconds(1) * (what >> 4) * (input_.u8() + 1);
        return run_engine();
      case 12:
        return run_engine();
      case 13:
        return engine_->set_lease(now_, *stream_, lease(input_.u8()));
      case 14:
        return trouble(what >> 4);
      default: {
        const uint8_t flow = input_.u8();
        return engine_->on_idle_flow(now_, flows_[flow % flows_.size()].key,
                                     static_cast<session::Boundary>((flow >> 4) % 3));
      }
    }
  }

  void trouble(int which) {
    if (which < 4) {
      engine_->stream_lost(*stream_);
      if (which < 3) engine_->set_lease(now_, *stream_, lease(static_cast<uint8_t>(which)));
    } else if (which < 7) {
      session::Limits limits = options_.limits;
      const uint8_t how = input_.u8();
      if (how < 128) limits.sessions = how % 8;
      limits.percent = how % 16 == 0 ? 100 : 0.1 * how;
      if (how % 32 == 5)
        limits.filter = [](const net::FlowKey& key, net::Protocol) {
          return key.server.port == net::Port{80};
        };
      if (how % 8 == 3) limits.copies = 1 + (how >> 6);
      limits.rate = how % 64 < 16 ? how % 16U : 0;
      limits.pacing.turns = static_cast<session::Turns>(how % 3);
      if ((how & 16) != 0) limits.pacing.max_lag = milliseconds(how);
      limits.pacing.over_lag = static_cast<session::OverLag>(how >> 5 & 1);
      engine_->set_limits(now_, limits);
    } else if (which < 15) {
      uplink_full_ = which % 2 == 0;
      Engine::set_uplink_full(*stream_, uplink_full_);
    } else {
      engine_->drain(now_);
    }
  }

  void run_engine() {
    engine_->run(now_);
    require(engine_->deadline() > now_, "nothing is due after run()");
  }

  static session::Lease lease(uint8_t how) {
    session::Lease lease;
    if ((how & 7) == 7) return lease;
    const auto ports = static_cast<uint16_t>(10001 + (how & 7) * 2);
    for (const char* address : {"10.9.0.1", "fd09::1"})
      lease.sources.push_back(
          {*net::IpAddress::parse(address), net::Port{10001}, net::Port{ports}});
    const auto mtu = static_cast<uint16_t>((how & 8) != 0 ? 576 : 1500);
    const auto add_target = [&](uint16_t port, const char* to) {
      lease.targets.push_back({net::Port{port}, endpoint(to), mtu});
    };
    if ((how & 16) == 0) add_target(80, "10.8.0.1:80");
    if ((how & 32) != 0) add_target(80, "10.8.0.2:80");
    if ((how & 64) == 0) add_target(8080, "[fd08::1]:8080");
    return lease;
  }

  // Flags of a packet, and which of its fields differ from what would be in order.
  struct Form {
    net::TcpFlags flags;
    bool other_sequence;
    bool other_acknowledgment;
    bool payload;
  };
  Form form() {
    const uint8_t bits = input_.u8();
    return {{.fin = (bits & 1) != 0,
             .syn = (bits & 2) != 0,
             .rst = (bits & 4) != 0,
             .psh = (bits & 64) != 0,
             .ack = (bits & 8) == 0},
            (bits & 16) != 0,
            (bits & 32) != 0,
            (bits & 128) != 0};
  }
  SequenceNumber near(SequenceNumber sequence, bool other) {
    if (!other) return sequence;
    const uint16_t distance = input_.u16();
    if (distance == 0x8000) return SequenceNumber(input_.u32());
    return sequence + static_cast<uint32_t>(static_cast<int16_t>(distance) / 4);
  }
  uint32_t payload_length() {
    const uint8_t length = input_.u8();
    return length < 0x80 ? length : length < 0xfe ? (length - 0x7fU) * 32 : 40000;
  }
  net::TcpOptions options() {
    net::TcpOptions options;
    const uint8_t bits = input_.u8();
    if ((bits & 1) != 0) options.maximum_segment_size = static_cast<uint16_t>(input_.u8() * 8);
    if ((bits & 2) != 0) options.window_scale = static_cast<uint8_t>(bits >> 5);
    options.sack_permitted = (bits & 4) != 0;
    if ((bits & 8) != 0) options.timestamps = net::TcpTimestamps{input_.u8() * 0x01000001U, 0};
    return options;
  }

  void client_packet(uint8_t what) {
    const uint8_t which = input_.u8();
    const size_t number = which % flows_.size();
    Flow& flow = flows_[number];
    const Form form = this->form();
    net::Packet packet;
    packet.source = flow.key.client;
    packet.destination = flow.key.server;
    packet.tcp.flags = form.flags;
    packet.tcp.sequence = near(flow.client_next, form.other_sequence);
    packet.tcp.acknowledgment = near(flow.server_next, form.other_acknowledgment);
    if (form.flags.syn) {
      packet.tcp.options = options();
      flow.ends.push_back(packet.tcp.sequence + 1);
    }
    std::vector<uint8_t> bytes;
    if (form.payload) {
      packet.payload_length = payload_length();
      const bool variant = (which & 0x40) != 0;
      const SequenceNumber begin = packet.tcp.sequence + form.flags.syn;
      for (uint32_t i = 0; i < packet.payload_length; ++i)
        bytes.push_back(byte_at(number, variant, begin + i));
      if ((which & 0x20) != 0) {  // as a request that says what it is
        constexpr std::string_view method = "GET ";
        std::copy_n(method.begin(), std::min(method.size(), bytes.size()), bytes.begin());
      }
      flow.ends.push_back(begin + packet.payload_length);
      if ((which & 0x80) != 0) bytes.resize(bytes.size() / 2);  // cut by the capture
      flow.sent.push_back({begin, bytes});
    }
    packet.payload = flow.sent.empty() || !form.payload ? std::span<const uint8_t>()
                                                        : std::span(flow.sent.back().bytes);
    const SequenceNumber end = packet.tcp.sequence + packet.sequence_length();
    if (form.flags.syn || end > flow.client_next) flow.client_next = end;
    // A SYN with what >> 4 odd takes the four-tuple for another connection.
    if (form.flags.syn && (what & 0x10) != 0) packet.tcp.flags.ack = false;
    engine_->on_production(now_, packet);
  }

  void server_packet() {
    const uint8_t which = input_.u8();
    Flow& flow = flows_[which % flows_.size()];
    const Form form = this->form();
    net::Packet packet;
    packet.source = flow.key.server;
    packet.destination = flow.key.client;
    packet.tcp.flags = form.flags;
    // A SYN alone from a port of production's to another makes the server the client.
    if (form.flags.syn && flow.key.client.port == net::Port{8080}) packet.tcp.flags.ack = true;
    packet.tcp.sequence = near(flow.server_next, form.other_sequence);
    packet.tcp.acknowledgment = near(flow.client_next, form.other_acknowledgment);
    if (form.payload) packet.payload_length = payload_length();
    const SequenceNumber end = packet.tcp.sequence + packet.sequence_length();
    if (end > flow.server_next) flow.server_next = end;
    // Bytes that no client ever sends.
    const std::vector<uint8_t> bytes(packet.payload_length, 0xee);
    packet.payload = bytes;
    engine_->on_production(now_, packet);
  }

  void shadow_packet() {
    const uint8_t which = input_.u8();
    const Form form = this->form();
    net::Packet packet;
    if (sessions_.empty()) {
      packet.source = endpoint("10.8.0.1:80");
      packet.destination = endpoint("10.9.0.1:10001");
    } else {
      Session& session = sessions_[which % sessions_.size()];
      packet.source = session.target;
      packet.destination = session.source;
      packet.tcp.sequence = session.acknowledged;
      packet.tcp.acknowledgment = session.sent_end;
    }
    packet.tcp.flags = form.flags;
    packet.tcp.sequence = near(packet.tcp.sequence, form.other_sequence);
    packet.tcp.acknowledgment = near(packet.tcp.acknowledgment, form.other_acknowledgment);
    packet.tcp.window = static_cast<uint16_t>(input_.u8() * 0x101);
    if ((which & 0x80) != 0) packet.tcp.options = options();
    if ((which & 0x40) != 0) {
      const uint8_t blocks = input_.u8();
      for (int i = 0; i < blocks % 4; ++i) {
        const SequenceNumber begin = near(packet.tcp.acknowledgment, true);
        packet.tcp.options.sack_blocks.push_back({begin, begin + input_.u8() * 4U});
      }
    }
    if (form.payload) packet.payload_length = payload_length();
    engine_->on_shadow(now_, *stream_, packet);
  }

  // ---- what comes out

  void take(std::string_view batch) {
    while (!batch.empty()) {
      const auto parsed = net::parse_packet(as_bytes(batch), 0);
      const auto* packet = std::get_if<net::Packet>(&parsed);
      require(packet != nullptr && !packet->cut(), "what comes out is whole");
      const uint32_t length = packet->header_length + packet->payload_length;
      require(net::checksum_holds(*packet, as_bytes(batch.substr(0, length))),
              "its checksum holds");
      require(length <= 1500, "it fits the path");
      take_packet(*packet);
      batch.remove_prefix(length);
    }
  }

  void take_packet(const net::Packet& packet) {
    const net::TcpHeader& tcp = packet.tcp;
    auto found = std::find_if(sessions_.rbegin(), sessions_.rend(), [&](const Session& session) {
      return session.source == packet.source;
    });
    if (tcp.flags.syn) {
      require(!tcp.flags.ack && packet.payload_length == 0, "a SYN is nothing but a SYN");
      if (found != sessions_.rend() && found->initial == tcp.sequence &&
          found->target == packet.destination)
        return;  // sent again
      Session session;
      session.source = packet.source;
      session.target = packet.destination;
      session.initial = tcp.sequence;
      session.sent_end = tcp.sequence + 1;
      sessions_.push_back(session);
      return;
    }
    if (tcp.flags.rst) {
      require(packet.payload_length == 0, "a RST is nothing but a RST");
      return;
    }
    require(found != sessions_.rend() && found->target == packet.destination,
            "a session begins with a SYN");
    found->acknowledged = tcp.acknowledgment;
    if (packet.sequence_length() > 0) take_bytes(*found, packet);
  }

  void take_bytes(Session& session, const net::Packet& packet) {
    const auto begin = static_cast<uint32_t>(packet.tcp.sequence - session.initial - 1);
    const uint32_t end = begin + packet.payload_length;
    require(begin <= session.stream.size(), "nothing is passed over");
    require(!session.end || end <= *session.end, "nothing comes behind the FIN");
    if (packet.tcp.flags.fin) {
      require(!session.end || end == *session.end, "the FIN stays where it is");
      require(end >= session.stream.size(), "the FIN is at the end");
      session.end = end;
    }
    session.sent_end = packet.tcp.sequence + packet.sequence_length();
    if (session.stream.size() < end) session.stream.resize(end);
    for (uint32_t i = 0; i < packet.payload_length; ++i) {
      auto& byte = session.stream[begin + i];
      require(!byte || *byte == packet.payload[i], "what is sent again is the same");
      byte = packet.payload[i];
    }
    if (packet.payload_length > 0) look_for_origin(session, begin, packet.payload);
  }

  // The session's stream has to be a piece of what one client sent.
  void look_for_origin(Session& session, uint32_t at, std::span<const uint8_t> bytes) {
    if (!session.origins) {
      auto& origins = session.origins.emplace();
      for (const Flow& flow : flows_) {
        for (const Sent& sent : flow.sent) origins.push_back({&flow, sent.begin});
        for (const SequenceNumber end : flow.ends) origins.push_back({&flow, end});
      }
    }
    std::erase_if(*session.origins, [&](const Session::Origin& origin) {
      return origin.flow->matches(origin.begin + at, bytes) < bytes.size();
    });
    require(!session.origins->empty(), "the shadow gets what a client sent, in order");
  }

  // ---- what always holds

  void check() {
    const session::Counters counters = engine_->counters();
    uint64_t closed = 0;
    for (const uint64_t count : counters.closed) closed += count;
    require(counters.opened == counters.active + closed, "the sums close");
    require(counters.memory <= options_.limits.memory + one_packet, "memory is within its limit");
    require(counters.adopted <= counters.opened, "no more adopted than opened");
  }

  void drain() {
    Engine::set_uplink_full(*stream_, false);
    engine_->drain(now_);
    rewriter_.flush();
    check();
    require(engine_->counters().active == 0, "drain ends all sessions");
  }

  // Nothing comes in any more: each session ends of itself.
  void wait() {
    Engine::set_uplink_full(*stream_, false);
    run_engine();
    for (int steps = 0; engine_->deadline() != session::never; ++steps) {
      require(steps < 20000, "the engine comes to rest");
      now_ = std::max(now_, engine_->deadline());
      run_engine();
      rewriter_.flush();
      check();
    }
    require(engine_->counters().active == 0, "no session waits for ever");
  }

  Input& input_;
  Time now_{seconds(1)};
  bool drains_ = false;
  bool uplink_full_ = false;
  std::vector<Flow> flows_;
  std::vector<Session> sessions_;  // oldest first
  rewrite::Rewriter rewriter_{[this](std::string&& batch) { take(batch); }};
  Engine::Options options_;
  std::optional<Engine> engine_;
  session::Stream* stream_ = nullptr;
};

}  // namespace
}  // namespace trafficmirror::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  trafficmirror::fuzz::Input input({data, size});
  trafficmirror::fuzz::Run(input).run();
  return 0;
}
