// Clients that speak UDP. There is no connection to simulate: a flow is a client's address and port
// and the port of production's that it sends to, and its session a leased source port that each of
// its datagrams leaves from, as it came. What ends one is silence.
//
// This is the table of them, by what they are due for. It sends nothing and reads no clock.
#pragma once

#include <array>
#include <list>
#include <optional>
#include <unordered_map>

#include "sidecar/session/counters.h"
#include "sidecar/session/flow.h"
#include "sidecar/session/source_ports.h"
#include "sidecar/session/time.h"

namespace trafficmirror::session {

struct DatagramFlow {
  FlowCopy key;
  uint16_t stream = 0;  // number in the engine's streams
  uint16_t target = 0;  // number in the stream's targets
  SourcePorts::Number source{};
  uint64_t sent = 0;        // datagrams
  uint64_t unanswered = 0;  // of these; each answer is one's
  Time last_seen{};         // by production's time
  Time last_sent{};
};

class DatagramFlows {
 public:
  // RFC 4787 section 4.3: a mapping lasts two minutes at least, and may be shorter where the
  // protocol is known to need less. Most clients of DNS take another port for each question, so
  // that a flow that has said one thing is over with its answer.
  static constexpr Duration longest_silence = std::chrono::minutes(2);
  static constexpr Duration longest_silence_behind_first = std::chrono::seconds(10);
  // For so long an answer is waited for, even where source ports are wanted, or where production's
  // time flies.
  static constexpr Duration patience = std::chrono::seconds(1);

  // No flow is silent for longer than `idle_timeout`.
  explicit DatagramFlows(Duration idle_timeout) : idle_timeout_(idle_timeout) {}

  bool contains(const FlowCopy& key) const { return by_key_.contains(key); }
  // Pointers are good until the flow is removed. Null where there is none.
  DatagramFlow* find(const FlowCopy& key);
  // By where its answers go to.
  DatagramFlow* find(uint16_t stream, SourcePorts::Number source);
  DatagramFlow& add(DatagramFlow flow);
  // The flow's client has sent a datagram.
  void sent(DatagramFlow& flow, Time production_time, Time now);
  void remove(const DatagramFlow& flow);

  // Nothing more comes of the flows there are: each waits for its answer, until `deadline`.
  void end(Time deadline);
  bool ending(const DatagramFlow& flow) const;

  // One that has been silent for too long in production, or ends and was not answered. Null where
  // there is none.
  DatagramFlow* due(Time production_time, Time now);
  // When there will be one, by each of both times.
  Time next_by_production() const;
  Time next_by_now() const { return lists_[waiting_for_answer].empty() ? never : end_; }
  // One that gives its source port up to another; null where all are needed.
  const DatagramFlow* least_needed(Time production_time) const;

  template <typename Do>
  void for_each(Do&& action) {  // which may remove the flow
    for (List& list : lists_)
      for (auto next = list.begin(); next != list.end();) action(*next++);
  }
  bool empty() const { return by_key_.empty(); }
  size_t size() const { return by_key_.size(); }

  // What one costs: beside the flow the nodes of a list and two maps, their buckets, and the
  // allocator's rounding.
  static constexpr size_t flow_size = sizeof(DatagramFlow) + 160;

 private:
  using List = std::list<DatagramFlow>;
  enum Kind : uint8_t { said_one_thing, said_more, waiting_for_answer };
  struct Place {
    List::iterator flow;
    Kind kind;
  };
  static uint64_t number(uint16_t stream, SourcePorts::Number source) {
    return uint64_t{stream} << 32 | static_cast<uint32_t>(source);
  }
  Duration silence(Kind kind) const;
  void move(Place& place, Kind to);

  const Duration idle_timeout_;
  std::array<List, 3> lists_;  // by kind; who was silent for longest is the first
  std::unordered_map<FlowCopy, Place> by_key_;
  std::unordered_map<uint64_t, DatagramFlow*> by_source_;
  Time end_ = never;
};

}  // namespace trafficmirror::session
