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
// in: acknowledgments merge and a batch in makes a batch out. But a UDP datagram is put out as it
// comes in (datagrams.h).
//
// Not thread-safe: one engine is one shard, run by one thread.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

#include "net/packet.h"
#include "sidecar/session/counters.h"
#include "sidecar/session/datagrams.h"
#include "sidecar/session/flow.h"
#include "sidecar/session/rate_limit.h"
#include "sidecar/session/session.h"
#include "sidecar/session/streams.h"

namespace trafficmirror::session {

// A session, and what the engine has to know about it.
struct SessionEntry : Timed {
  SessionEntry(uint16_t by, SourcePorts::Number port, uint16_t to,
               const Connection::Options& options, Time now)
      : source(port), stream(by), target(to), session(options, now) {}

  std::list<SessionEntry>::iterator self;
  SourcePorts::Number source;
  uint32_t accounted = 0;  // bytes of memory it is charged with
  uint16_t stream;         // its number
  uint16_t target;         // number in the stream's targets
  bool touched = false;    // is in the stream's `touched`
  bool busy = false;       // has a deadline: is counted in the stream's `busy`
  Flow* flow = nullptr;    // null once production's connection has ended
  Session session;
};

// What may change while the engine runs.
struct Limits {
  uint64_t memory = 64 << 20;  // bytes
  uint64_t sessions = UINT64_MAX;
  uint16_t copies = 1;   // sessions that mirror a connection, or a client of UDP
  double percent = 100;  // of production's connections
  uint32_t rate = 0;     // exchanges a second; 0: any
  // Whether a connection may be mirrored; none: each. It is asked again and again, and has to say
  // the same of the same.
  std::function<bool(const net::FlowKey&, net::Protocol)> filter{};
  Pacing pacing{};
};

class Engine {
 public:
  struct Options {
    std::vector<net::Port> ports;  // production's, of TCP
    std::vector<net::Port> udp_ports{};
    Limits limits;
    Duration idle_timeout = std::chrono::minutes(10);
    Duration response_timeout = std::chrono::seconds(60);
    uint64_t seed = 0;  // of the initial sequence numbers
    Logins logins{};
    // Called for each session that ends as its login has failed.
    std::function<void(const net::Endpoint& shadow, const Login::Failure&)> login_failed{};
  };

  explicit Engine(Options options);

  // -- the streams to the intercept's replicas
  // One that has no lease yet. `identity` tells it from the others: a flow's session goes to the
  // stream that its hash and the identities choose, always the same of the same, so that flows are
  // spread evenly, and one that comes or goes changes the way of no flow but its own. `sink` takes
  // its segments, during run() and whenever sessions are ended; it has to live as long.
  Stream& add_stream(uint64_t identity, SegmentSink& sink) { return streams_.add(identity, sink); }
  // Its sessions end as stream_lost.
  void remove_stream(Stream& stream);
  // A new lease replaces the one before: further ports, other targets, another path MTU.
  void set_lease(Time now, Stream& stream, const Lease& lease);
  // All its sessions end as stream_lost; their flows are taken up again at their next exchange, by
  // another stream or under the next lease.
  void stream_lost(Stream& stream);
  // While its uplink is full nothing is put out there and no session is opened; those that another
  // stream has room for go there. A session that ends meanwhile goes without its RST: the shadow
  // learns of it when the source port is used again.
  static void set_uplink_full(Stream& stream, bool full) { stream.full = full; }
  // It gets no more sessions, those it has live on.
  static void close_to_new_sessions(Stream& stream, bool closed) { stream.closed_to_new = closed; }
  static bool wants_more_source_ports(const Stream& stream) {
    return stream.source_ports.low() || stream.udp_source_ports.low();
  }

  // -- what was captured and received
  void on_production(Time now, const net::Packet& packet);
  void on_shadow(Time now, Stream& stream, const net::Packet& packet);
  // An open connection that was found between two exchanges, so that its next bytes can be
  // mirrored. Ignored where packets of it were seen already.
  void on_idle_flow(Time now, const net::FlowKey& key, Boundary boundary);

  // Sessions that are open live on, but for the newest where less memory would not hold them all.
  // They keep to another pacing at once.
  void set_limits(Time now, const Limits& limits);

  // Puts out what is due.
  void run(Time now);
  // When run() has something to do though nothing comes in.
  Time deadline() const;

  // -- a capture that is replayed, whose packets can wait as production's can't
  // The capture's own clock: by it connections fall idle and bytes count as missing. Without it
  // that is the time the other calls say. It does not go back.
  void set_production_time(Time at) { production_time_ = at; }
  // Whether there is a stream, and a target for one of the ports.
  bool has_target() const;
  // Whether the packet had better come later: there is no room left for it, or none for a session
  // that it would open.
  bool congested(Time now, const net::Packet& packet) const;
  // Whether a session has something to do before production says more, and so may make room.
  bool busy() const;
  // Nothing more comes of the connections there are. Their sessions end once all has been said and
  // answered.
  void end_flows(Time now);

  // Resets every session, puts the RSTs out, and opens no more.
  void drain(Time now);

  // Over all streams, those that are gone too.
  Counters counters() const;
  // What a stream's intercept is to be told next: what was counted since set_reported() of its
  // sessions, and of all that belongs to no stream, or to one that was lost. So whichever is told
  // first tells of the latter, and what all are told sums up to counters().
  Counters unreported(const Stream& stream) const;
  void set_reported(Stream& stream);

 private:
  // Why a connection is none of those that are mirrored, if not all are. Always the same answer for
  // the same, in all sidecars.
  std::optional<ShedReason> left_out(const net::FlowKey& key,
                                     net::Protocol protocol = net::Protocol::tcp) const {
    if (options_.limits.filter && !options_.limits.filter(key, protocol))
      return ShedReason::filtered;
    if (!sampled(key)) return ShedReason::sampled;
    return std::nullopt;
  }
  bool sampled(const net::FlowKey& key) const {
    return last_sampled_ == UINT64_MAX || std::hash<net::FlowKey>()(key) <= last_sampled_;
  }
  std::optional<bool> is_from_client(const net::Packet& packet) const;
  void on_client(Time now, Flow& flow, const net::Packet& packet);
  void on_server(Time now, Flow& flow, const net::Packet& packet);
  void on_copy(Time now, const FlowCopy& key, bool from_client, const net::Packet& packet);
  void on_syn(Time now, const FlowCopy& key, const net::Packet& packet);
  void take_client_bytes(Time now, Flow& flow, const net::Packet& packet);
  // Looks for the exchange boundary at which a flow without a session can be taken up.
  void watch_client_bytes(Time now, Flow& flow, const net::Packet& packet);
  void learn_protocol(const Flow& flow, const net::Packet& packet);
  bool is_exchange_behind_answer(const Flow& flow) const;
  bool has_login(const Flow& flow) const { return options_.logins.contains(flow.key->server.port); }
  // `server_next`: the end of what the server had sent when it acknowledged last.
  void look_for_gap(Time now, Flow& flow, net::SequenceNumber server_next);

  // Null where memory for one more is lacking, which is counted.
  Flow* add_flow(Time now, const FlowCopy& key);
  bool room_for(size_t bytes) const;
  void end_flow(Time now, Flow& flow, CloseReason reason);
  void end_flow_if_finished(Time now, Flow& flow);
  void on_flow_timer(Time now, Flow& flow);

  // Gives the flow a session, or counts why not. `syn`: the client's own, whose options are kept;
  // null to adopt a flow that is already open.
  bool mirror(Time now, Flow& flow, const net::Packet* syn);
  // Counts that the exchange in hand is not mirrored.
  void shed(Flow& flow, ShedReason reason);
  std::optional<ShedReason> beyond_limits(Time now, const Flow& flow);
  bool is_without_way(Time now, const FlowCopy& key, net::Protocol protocol) const;
  // Whether a packet of production's client makes a session of this copy.
  bool opens_session(const FlowCopy& key, const net::Packet& packet) const;
  // `client` is whose session it is, of which its source may be.
  std::variant<SessionEntry*, ShedReason> open_session(Time now, const Way& way,
                                                       const net::Endpoint& client,
                                                       const net::Packet* syn);
  Stream& stream_of(const SessionEntry& entry) { return streams_[entry.stream]; }
  Path path_of(const SessionEntry& entry);
  void touch(SessionEntry& entry);
  void set_busy(SessionEntry& entry, bool busy);
  void dispatch(Time now, SessionEntry& entry);
  // Ends and dispatches it at once.
  void close(Time now, SessionEntry& entry, CloseReason reason);
  void remove(Time now, SessionEntry& entry, CloseReason reason);
  void continue_in_new_session(Time now, SessionEntry& entry);
  // Brings the account of memory up to date; sheds sessions while it is over the limit.
  void account(Time now, SessionEntry& entry);
  void shed_newest(Time now);
  // Whether --max-sessions are open.
  bool all_sessions_open() const {
    return sessions_.size() + datagram_flows_.size() >= options_.limits.sessions;
  }

  // Of UDP.
  void on_datagram(Time now, const net::Packet& packet);
  // Why the datagram is not mirrored, if it isn't.
  std::optional<ShedReason> mirror_datagram(Time now, const FlowCopy& key,
                                            const net::Packet& packet);
  std::variant<Way, ShedReason> datagram_way_for(Time now, const FlowCopy& key);
  void on_answer(Stream& stream, const net::Packet& packet);
  bool is_datagram_for_production(const net::Packet& packet) const;
  void end_datagram_flow(const DatagramFlow& flow, CloseReason reason);
  template <typename Which>
  void end_datagram_flows(CloseReason reason, Which&& which);
  Path path_of(const DatagramFlow& flow) const;

  // Takes an exchange into account that began on a session.
  void count_exchange(Time now);

  // What flows go by.
  Time production_time(Time now) const { return production_time_.value_or(now); }

  Options options_;
  std::optional<Time> production_time_;
  Streams streams_;
  uint64_t last_sampled_ = UINT64_MAX;  // the highest hash of a flow's that is sampled
  RateLimit rate_limit_;
  bool draining_ = false;

  // What connections to a port begin with, as far as one was seen that does.
  enum class Protocol : uint8_t { http, other };
  std::map<net::Port, Protocol> protocols_;
  std::unordered_map<FlowCopy, Flow> flows_;
  uint16_t most_copies_ = 1;  // that there have been: when they are less, open sessions go on
  std::list<SessionEntry> sessions_;  // of all streams; the newest is the last
  TimerHeap flow_timers_;
  DatagramFlows datagram_flows_;
  Counters counters_;  // of what belongs to no stream, and of streams that were lost
  Counters reported_;  // the part of them that an intercept was told
};

}  // namespace trafficmirror::session
