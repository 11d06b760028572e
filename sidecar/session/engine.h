// sidecar/session/ is the heart of the project: one simulated TCP client for each production
// connection, which sends the shadow what production's server received, exactly or not at all.
//
// It does no I/O, reads no clock and knows nothing of capture or gRPC. Production's packets, the
// shadow's headers and the time go in; segments for the shadow come out. How a segment finds its
// way through:
//
//   captured packet ─► Engine ─► Flow (what production is doing) ─► Reassembly (client bytes in
//   order)
//                                   └─► Session (turns: when are they due) ─► Connection (TCP
//                                   towards the shadow)
//   shadow's header ─► Engine ─────────► Session ─► Connection
//
// Input only changes state; run() puts out everything that has come due, once, however much came
// in: acknowledgments merge and a batch in makes a batch out.
//
// Not thread-safe: one engine is one shard, run by one thread.
#pragma once

#include <list>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

#include "net/packet.h"
#include "sidecar/session/counters.h"
#include "sidecar/session/flow.h"
#include "sidecar/session/lease.h"
#include "sidecar/session/segment.h"
#include "sidecar/session/session.h"
#include "sidecar/session/source_ports.h"

namespace trafficmirror::session {

// A session, and what the engine has to know about it.
struct SessionEntry : Timed {
  SessionEntry(SourcePorts::Number port, uint16_t to, const Connection::Options& options, Time now)
      : source(port), target(to), session(options, now) {}

  std::list<SessionEntry>::iterator self;
  SourcePorts::Number source;
  uint32_t accounted = 0;  // bytes of memory it is charged with
  uint16_t target;         // number in Engine::targets_
  bool touched = false;    // is in Engine::touched_
  Flow* flow = nullptr;    // null once production's connection has ended
  Session session;
};

// What may change while the engine runs.
struct Limits {
  uint64_t memory = 64 << 20;  // bytes
  uint64_t sessions = UINT64_MAX;
  double percent = 100;  // of production's connections
};

class Engine {
 public:
  struct Options {
    std::vector<net::Port> ports;  // production's
    Limits limits;
    Duration idle_timeout = std::chrono::minutes(10);
    Duration response_timeout = std::chrono::seconds(60);
    uint64_t seed = 0;  // of the initial sequence numbers
  };

  // `sink` takes the segments during run(); it must outlive the engine.
  Engine(Options options, SegmentSink& sink);

  // -- the stream to the intercept
  // A new lease replaces the one before: further ports, other targets, another path MTU.
  void set_lease(Time now, const Lease& lease);
  // All sessions end as stream_lost; their flows are taken up again under the next lease.
  void stream_lost();
  // While the uplink is full nothing is put out and no session is opened. A session that ends
  // meanwhile goes without its RST: the shadow learns of it when the source port is used again.
  void set_uplink_full(bool full) { uplink_full_ = full; }
  bool wants_more_source_ports() const { return source_ports_.low(); }

  // -- what was captured and received
  void on_production(Time now, const net::Packet& packet);
  void on_shadow(Time now, const net::Packet& packet);
  // An open connection that was found between two exchanges, so that its next bytes can be
  // mirrored. Ignored where packets of it were seen already.
  void on_idle_flow(Time now, const net::FlowKey& key, Boundary boundary);

  // Sessions that are open live on, but for the newest where less memory would not hold them all.
  void set_limits(Time now, const Limits& limits);
  // Of all connections without a session nothing is known any more, as when the capture was away.
  void forget_flows();

  // Puts out what is due.
  void run(Time now);
  // When run() has something to do though nothing comes in.
  Time deadline() const;

  // Resets every session, puts the RSTs out, and opens no more.
  void drain(Time now);

  const Counters& counters();

 private:
  // Whether a connection is one of those that are mirrored, if not all are. Always the same answer
  // for the same, in all sidecars.
  bool sampled(const net::FlowKey& key) const {
    return last_sampled_ == UINT64_MAX || std::hash<net::FlowKey>()(key) <= last_sampled_;
  }
  std::optional<bool> is_from_client(const net::Packet& packet) const;
  void on_client(Time now, Flow& flow, const net::Packet& packet);
  void on_server(Time now, Flow& flow, const net::Packet& packet);
  void on_syn(Time now, const net::FlowKey& key, const net::Packet& packet);
  void take_client_bytes(Time now, Flow& flow, const net::Packet& packet);
  // Looks for the exchange boundary at which a flow without a session can be taken up.
  void watch_client_bytes(Time now, Flow& flow, const net::Packet& packet);
  // `server_next`: the end of what the server had sent when it acknowledged last.
  void look_for_gap(Time now, Flow& flow, net::SequenceNumber server_next);

  // Null where memory for one more is lacking, which is counted.
  Flow* add_flow(Time now, const net::FlowKey& key);
  bool room_for(size_t bytes) const;
  void end_flow(Time now, Flow& flow, CloseReason reason);
  void end_flow_if_finished(Time now, Flow& flow);
  void on_flow_timer(Time now, Flow& flow);

  // Gives the flow a session, or counts why not. `syn`: the client's own, whose options are kept;
  // null to adopt a flow that is already open.
  bool mirror(Time now, Flow& flow, const net::Packet* syn);
  std::optional<ShedReason> beyond_limits(const Flow& flow) const;
  std::variant<SessionEntry*, ShedReason> open_session(Time now, const Lease::Target* target,
                                                       const net::Packet* syn);
  std::optional<ShedReason> reason_to_shed() const;
  const Lease::Target* target_for(const net::FlowKey& key) const;
  Path path_of(const SessionEntry& entry) const;
  // Where segments go now.
  SegmentSink& sink();
  void touch(SessionEntry& entry);
  void dispatch(Time now, SessionEntry& entry);
  // Ends and dispatches it at once.
  void close(Time now, SessionEntry& entry, CloseReason reason);
  void remove(Time now, SessionEntry& entry, CloseReason reason);
  void continue_in_new_session(Time now, SessionEntry& entry);
  // Brings the account of memory up to date; sheds sessions while it is over the limit.
  void account(Time now, SessionEntry& entry);
  void shed_newest(Time now);

  Options options_;
  SegmentSink& sink_;
  std::vector<Lease::Target> targets_;
  SourcePorts source_ports_;
  uint64_t last_sampled_ = UINT64_MAX;  // the highest hash of a flow's that is sampled
  bool has_lease_ = false;
  bool uplink_full_ = false;
  bool draining_ = false;

  std::unordered_map<net::FlowKey, Flow> flows_;
  std::list<SessionEntry> sessions_;    // the newest is the last
  std::vector<SessionEntry*> touched_;  // may have something to put out; null where it is gone
  TimerHeap session_timers_;
  TimerHeap flow_timers_;
  Counters counters_;
};

}  // namespace trafficmirror::session
