// One production connection as its packets tell it, whether it is mirrored or not: where its
// client's stream stands, what the server has received and sent, and where one exchange ends and
// the next begins.
#pragma once

#include <optional>

#include "net/packet.h"
#include "sidecar/session/reassembly.h"
#include "sidecar/session/session.h"
#include "sidecar/session/timer_heap.h"

namespace trafficmirror::session {

struct SessionEntry;  // the engine's

enum class Boundary : uint8_t {
  unknown,
  likely,   // the kernel could not tell whether a request came behind the last answer: the bytes
            // themselves have to
  certain,  // the flow is new, or was seen idle behind an answer
};

// Traffic is multiplied by mirroring each connection as several flows, which know nothing of each
// other.
struct FlowCopy : net::FlowKey {
  uint16_t copy = 0;

  auto operator<=>(const FlowCopy&) const = default;
};

struct Flow : Timed {
  const FlowCopy* key = nullptr;    // where the engine keeps it
  SessionEntry* session = nullptr;  // none: not mirrored, until the next exchange boundary
  Time last_seen;

  // The client's stream. While there is no session nothing is held, and next() is simply the end of
  // what was seen; unknown where the flow was first seen in its middle and the client has not
  // spoken yet.
  std::optional<Reassembly> client;
  std::optional<net::SequenceNumber> client_fin;  // the sequence number the FIN takes
  std::optional<net::SequenceNumber> syn;         // its initial one, if the SYN was seen

  // The server's side.
  std::optional<net::SequenceNumber> server_syn;       // its initial one, if the SYN-ACK was seen
  std::optional<net::SequenceNumber> server_next;      // end of what it has sent
  std::optional<net::SequenceNumber> server_received;  // what it has acknowledged of the client's

  // The end of the server's bytes that the client had seen when it last spoke: a client that has
  // seen more begins a new exchange.
  std::optional<net::SequenceNumber> answer_seen;
  // Where a session took the flow up without knowing that nothing came before. It is held until the
  // server says that it has what came before; bytes that were captured later than those behind them
  // show that it was in the midst of an exchange.
  std::optional<net::SequenceNumber> taken_up_blindly_at;
  Time retry_at = Time::min();  // a shadow that was down is not asked again before
  // Bytes that the server said to have received before they were captured.
  struct Gap {
    Time deadline;  // what is missing by then was lost by the capture
    net::SequenceNumber at;
    net::SequenceNumber end;
    // The end of what the server had sent by then: whoever sends the bytes again may acknowledge
    // more, but when they were sent first the client had seen no more than this.
    net::SequenceNumber server_next;
  };
  std::unique_ptr<Gap> gap;

  net::SequenceNumber client_fin_acknowledgment;
  // Bits, as there are a hundred thousand of these.
  bool client_finished : 1 = false;  // everything up to the FIN was seen
  bool server_finished : 1 = false;
  bool counted : 1 = false;  // the exchange in hand is, with the session that ended before it
  bool spoke_behind_answer : 1 = false;  // while there was no session
  // Why the connection's start was not mirrored. It is counted once its first exchange is not
  // either, so that no connection is counted twice.
  std::optional<ShedReason> start_shed;
  // Whether what the client sends next begins an exchange, though no answer was seen before it.
  Boundary boundary = Boundary::unknown;

  // What new bytes of answer a client that sends this acknowledgment has seen; none: it goes on
  // with its exchange.
  Session::AnswerSeen new_answer(net::SequenceNumber acknowledgment) const {
    // The server's FIN is no answer: a shadow may leave it to the client to close first.
    if (server_finished && acknowledgment == *server_next) acknowledgment = acknowledgment - 1U;
    if (!answer_seen || acknowledgment <= *answer_seen) return std::nullopt;
    return Session::Seen{static_cast<uint64_t>(acknowledgment - *answer_seen)};
  }
  // The server has sent more than this acknowledges.
  bool more_under_way(net::SequenceNumber acknowledgment) const {
    return server_next && *server_next - (server_finished ? 1U : 0U) > acknowledgment;
  }
  void saw_answer(net::SequenceNumber acknowledgment) {
    if (!answer_seen || acknowledgment > *answer_seen) answer_seen = acknowledgment;
  }
  void saw_server_acknowledgment(net::SequenceNumber acknowledgment) {
    if (!server_received || acknowledgment > *server_received) server_received = acknowledgment;
  }
  // Bytes are missing that the server says it has (a FIN counts as one).
  bool missing_bytes() const {
    return client && server_received && *server_received > client->next() &&
           !(client_fin && client->next() == *client_fin);
  }
};

}  // namespace trafficmirror::session

// That of the first copy is the connection's own.
template <>
struct std::hash<trafficmirror::session::FlowCopy> {
  size_t operator()(const trafficmirror::session::FlowCopy& key) const noexcept {
    return std::hash<trafficmirror::net::FlowKey>()(key) + key.copy * 0x9e3779b97f4a7c15U;
  }
};
