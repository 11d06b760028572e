// What the engine counts. opened = active + the sum of closed, always.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "sidecar/session/time.h"

namespace trafficmirror::session {

// Why a session ended. Each ends for one reason.
enum class CloseReason : uint8_t {
  finished,          // both sides closed in order
  production_reset,  // production's connection was reset, and so was the shadow's, behind all its
                     // bytes
  flow_reused,       // production opened the four-tuple anew without a close that we saw
  shadow_refused,    // RST in answer to SYN
  shadow_reset,      // RST later
  shadow_closed,     // the shadow closed before production did; the rest goes on in a new session
  shadow_unresponsive,  // it did not acknowledge what was sent
  response_timeout,     // it did not answer an exchange
  fin_timeout,          // it kept its side open after ours was closed
  idle_timeout,         // nothing on the flow in production
  capture_gap,          // bytes that production received were not captured
  capture_ended,        // the capture that is replayed ends before the connection does
  memory_limit,
  lag_limit,          // an exchange was later than the longest lag there may be
  rate_limit,         // it was the newest when too many exchanges had begun
  stream_lost,        // the stream to the intercept broke
  target_gone,        // the target was taken out of the lease
  drained,            // the sidecar was asked to stop
  login_rejected,     // the shadow did not let the client in
  login_unsupported,  // the shadow or the client logs in in a way that is not known
  login_encrypted,    // production took up TLS, and nobody else can read what is said
  no_credentials,     // the shadow asks for a password that is not known
};
inline constexpr std::array close_reason_names = {
    "finished",        "production_reset", "flow_reused",         "shadow_refused",
    "shadow_reset",    "shadow_closed",    "shadow_unresponsive", "response_timeout",
    "fin_timeout",     "idle_timeout",     "capture_gap",         "capture_ended",
    "memory_limit",    "lag_limit",        "rate_limit",          "stream_lost",
    "target_gone",     "drained",          "login_rejected",      "login_unsupported",
    "login_encrypted", "no_credentials",
};

// Why something was not mirrored. Counted once for each connection production opened, and for each
// further exchange on a connection that has no session. Of UDP, for each datagram.
enum class ShedReason : uint8_t {
  mid_exchange,    // an open connection, or one whose session ended: the next exchange boundary is
                   // waited for
  filtered,        // --filter does not let it through
  sampled,         // not one of --percent
  session_limit,   // --max-sessions are open
  rate_limit,      // --max-rate exchanges a second have begun
  no_stream,       // there is no stream to the intercept
  no_target,       // the lease has no target for the port
  no_source_port,  // every leased source port is in use
  shadow_down,     // the shadow refused or did not answer a moment ago
  memory_limit,
  uplink_full,  // the stream does not take packets as fast as they come
  too_long,     // a datagram that the path to the shadow does not carry
  cut,          // a datagram of which the capture has only the beginning
  own_traffic,  // the "client" is the intercept itself: mirroring it would never end
};
inline constexpr std::array shed_reason_names = {
    "mid_exchange", "filtered",       "sampled",     "session_limit", "rate_limit",  "no_stream",
    "no_target",    "no_source_port", "shadow_down", "memory_limit",  "uplink_full", "too_long",
    "cut",          "own_traffic",
};

// How much later exchanges were sent to the shadow than production's client began them.
struct Lags {
  // Of the buckets; each holds what is not beyond its bound, and one more holds the rest.
  static constexpr std::array<Duration, 15> bounds = {
      std::chrono::milliseconds(1),   std::chrono::milliseconds(2),
      std::chrono::milliseconds(5),   std::chrono::milliseconds(10),
      std::chrono::milliseconds(20),  std::chrono::milliseconds(50),
      std::chrono::milliseconds(100), std::chrono::milliseconds(200),
      std::chrono::milliseconds(500), std::chrono::seconds(1),
      std::chrono::seconds(2),        std::chrono::seconds(5),
      std::chrono::seconds(10),       std::chrono::seconds(20),
      std::chrono::seconds(60)};

  std::array<uint64_t, bounds.size() + 1> exchanges{};
  uint64_t sum = 0;  // microseconds

  void count(Duration lag) {
    ++exchanges[static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), lag) -
                                    bounds.begin())];
    sum += static_cast<uint64_t>(lag.count());
  }
};

struct Counters {
  uint64_t opened = 0;
  uint64_t active = 0;
  std::array<uint64_t, close_reason_names.size()> closed{};
  std::array<uint64_t, shed_reason_names.size()> shed{};
  uint64_t adopted = 0;            // of the opened: flows that were already open
  uint64_t without_start = 0;      // flows of which packets were seen, and no SYN before them
  uint64_t exchanges = 0;          // answered by the shadow
  uint64_t bytes_to_shadow = 0;    // client bytes the shadow acknowledged; of UDP, sent
  uint64_t bytes_from_shadow = 0;  // received in order; of UDP, received
  uint64_t retransmits = 0;        // segments sent again
  Lags lags;
  uint64_t flows = 0;   // production connections known now
  uint64_t memory = 0;  // bytes held now

  uint64_t& operator[](CloseReason reason) { return closed[static_cast<size_t>(reason)]; }
  uint64_t operator[](CloseReason reason) const { return closed[static_cast<size_t>(reason)]; }
  uint64_t& operator[](ShedReason reason) { return shed[static_cast<size_t>(reason)]; }
  uint64_t operator[](ShedReason reason) const { return shed[static_cast<size_t>(reason)]; }

  // What was counted since; of what is now, such as `active`, what it is now.
  Counters since(const Counters& before) const {
    Counters difference = *this;
    difference.for_each_sum(before, [](uint64_t& its, uint64_t others) { its -= others; });
    return difference;
  }

  void add(const Counters& other) {
    for_each_sum(other, [](uint64_t& its, uint64_t others) { its += others; });
    active += other.active;
    flows += other.flows;
    memory += other.memory;
  }

 private:
  // All that only grows.
  template <typename Do>
  void for_each_sum(const Counters& other, Do&& change) {
    change(opened, other.opened);
    for (size_t i = 0; i < closed.size(); ++i) change(closed[i], other.closed[i]);
    for (size_t i = 0; i < shed.size(); ++i) change(shed[i], other.shed[i]);
    change(adopted, other.adopted);
    change(without_start, other.without_start);
    change(exchanges, other.exchanges);
    change(bytes_to_shadow, other.bytes_to_shadow);
    change(bytes_from_shadow, other.bytes_from_shadow);
    change(retransmits, other.retransmits);
    for (size_t i = 0; i < lags.exchanges.size(); ++i)
      change(lags.exchanges[i], other.lags.exchanges[i]);
    change(lags.sum, other.lags.sum);
  }
};

}  // namespace trafficmirror::session
