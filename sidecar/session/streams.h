// The streams to the intercept's replicas, as the engine uses them: what each leases, what goes its
// way, and which way a new session goes.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "sidecar/session/counters.h"
#include "sidecar/session/flow.h"
#include "sidecar/session/lease.h"
#include "sidecar/session/segment.h"
#include "sidecar/session/source_ports.h"
#include "sidecar/session/timer_heap.h"

namespace trafficmirror::session {

// One of them, with its sessions, to their end. Only the engine changes one.
struct Stream {
  struct Target : Lease::Target {
    // A shadow that refused or did not answer is not asked again before this.
    static constexpr Duration pause = std::chrono::seconds(1);

    // One that is down is left out until then, where there is another; then one session tries it.
    Time down_until = Time::min();

    bool is_up(Time now) const { return now >= down_until; }
    void set_down(Time now) { down_until = now + pause; }
    void set_up() { down_until = Time::min(); }
    void set_tried(Time now) {
      if (down_until != Time::min()) set_down(now);
    }
  };

  Stream(uint16_t its_number, uint64_t its_identity, SegmentSink& to, uint64_t seed)
      : number(its_number),
        identity(its_identity),
        sink(to),
        source_ports(seed),
        udp_source_ports(seed) {}

  // Returns the targets there were. What is known of those that stay is kept.
  std::vector<Target> take(const Lease& lease, bool for_udp);
  // The number of a target that is the same to the same port.
  std::optional<uint16_t> find(const Lease::Target& target) const;
  void clear_lease();
  // Where its segments go now.
  SegmentSink& open_sink() const;

  const uint16_t number;
  const uint64_t identity;
  SegmentSink& sink;
  SourcePorts source_ports;
  SourcePorts udp_source_ports;  // the same, for UDP, which numbers its own
  std::vector<Target> targets;
  bool has_lease = false;
  bool full = false;
  bool closed_to_new = false;

  std::vector<SessionEntry*> touched;  // may have something to put out; null where it is gone
  TimerHeap timers;
  size_t busy = 0;    // sessions of TCP
  Counters counters;  // of its sessions, since it was lost last
  Counters reported;  // the part of them that its intercept was told
};

// Where a new session goes.
struct Way {
  Stream* stream;
  uint16_t target_number;  // in the stream's targets

  Stream::Target& target() const { return stream->targets[target_number]; }
};

class Streams {
 public:
  explicit Streams(uint64_t seed) : seed_(seed) {}

  Stream& add(uint64_t identity, SegmentSink& sink);
  void remove(const Stream& stream);
  Stream& operator[](uint16_t number) const { return *streams_[number]; }
  const std::vector<Stream*>& all() const { return all_; }

  // Of the streams with room the one of the highest rank, which the flow gives each of them.
  // Several targets of one stream share the sessions of a port in the same way, so that a flow
  // stays with its own, and only those of one that goes or is down move. Where no stream will do,
  // the reason is that of the one that came closest.
  std::variant<Way, ShedReason> way_for(Time now, const FlowCopy& key,
                                        net::Protocol protocol = net::Protocol::tcp) const;
  // Whether a flow has a target that is not known to be down.
  bool has_way_up(Time now, const FlowCopy& key) const;
  // Whether an address and port is one that sessions come from.
  bool is_source(const net::Endpoint& client) const;

 private:
  const uint64_t seed_;
  std::vector<std::unique_ptr<Stream>> streams_;  // by number; null where one was removed
  std::vector<Stream*> all_;                      // few
  uint64_t added_ = 0;
};

}  // namespace trafficmirror::session
