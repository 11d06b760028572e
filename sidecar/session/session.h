// One session: the simulated client of one production flow. It decides when the client's bytes are
// due, turn by turn; Connection decides how they travel.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>

#include "sidecar/session/connection.h"
#include "sidecar/session/counters.h"

namespace trafficmirror::session {

class Session {
 public:
  // What the client had seen of the answer to an exchange when it began the next one. A new
  // exchange waits until the shadow has answered the one before; without a value the bytes belong
  // to the exchange in hand and do not wait.
  struct Seen {
    uint64_t bytes;
    // The server had sent more than this: the client does not wait until the server is done, and
    // what it says next need not be an answer to what the client says now.
    bool more_under_way = false;
    // The bytes were captured only when they were sent again, with an acknowledgment of that later
    // time: the exchange may begin behind their start.
    bool sent_again = false;
  };
  using AnswerSeen = std::optional<Seen>;

  Session(const Connection::Options& options, Time now) : connection_(options, now) {}

  // Until release() nothing of the client's is sent, only the SYN.
  void hold() { held_ = true; }
  void release() { held_ = false; }

  // -- what production did
  void client_sent(Time now, std::span<const uint8_t> bytes, AnswerSeen answer_seen);
  void client_finished(Time now, AnswerSeen answer_seen) { leave(now, Farewell::fin, answer_seen); }
  // Goes out as a RST behind everything before it. `reason` is what the session's end will be
  // counted as.
  void client_reset(Time now, CloseReason reason);
  void server_sent(uint64_t bytes) { production_answer_ += bytes; }

  // Ends the session with a RST at the next dispatch.
  void close(CloseReason reason);

  // -- what the shadow did
  void process(Time now, const net::Packet& packet, Counters& counters);

  // Puts out what is due.
  void dispatch(Time now, const Outlet& out, Counters& counters);
  Time deadline() const;
  // Set once the session has ended.
  std::optional<CloseReason> closed() const { return closed_; }

  // Where a session ended as shadow_closed: what the next one, which takes its place, has to carry.
  // An exchange of which it is not known where it begins can't be the first on a connection, and
  // none of HTTP/2 can: its headers refer to earlier ones (RFC 7541 section 2.3.2).
  bool has_rest() const {
    return closed_ == CloseReason::shadow_closed && !turns_.empty() && !turns_.front().sent_again &&
           rhythm_ != Rhythm::http2;
  }
  void take_rest_of(Session& other);

  Connection& connection() { return connection_; }
  const Connection& connection() const { return connection_; }
  size_t allocated() const { return connection_.allocated() + turns_.allocated(); }

 private:
  // The start of an exchange that may not begin yet.
  struct Turn {
    ClientOffset begin;
    uint64_t answer;  // bytes of production's answer to the exchange before
    Time since;       // when production's client began it
    bool sent_again;  // as in Seen
  };
  // Costs a pointer while there are none, as is so in most sessions at most times.
  class Turns {
   public:
    bool empty() const { return !turns_; }
    size_t size() const { return turns_ ? turns_->size() : 0; }
    const Turn& operator[](size_t index) const { return (*turns_)[index]; }
    const Turn& front() const { return turns_->front(); }
    void push_back(const Turn& turn) {
      if (!turns_) turns_ = std::make_unique<std::deque<Turn>>();
      turns_->push_back(turn);
    }
    void pop_front() {
      turns_->pop_front();
      if (turns_->empty()) turns_.reset();
    }
    // A deque takes blocks of 512 bytes, and at first a map of eight of them.
    size_t allocated() const {
      return turns_ ? sizeof(std::deque<Turn>) + 8 * sizeof(void*) +
                          (size() * sizeof(Turn) / 512 + 1) * 512
                    : 0;
    }

   private:
    std::unique_ptr<std::deque<Turn>> turns_;  // null or not empty
  };
  enum class Farewell : uint8_t { none, fin, reset };
  enum class Rhythm : uint8_t {
    turns,  // the client speaks when the server is done, as far as is known
    free,   // the client has spoken while the server did
    http2,  // likewise, but more streams at once than production had may be too many
  };

  void leave(Time now, Farewell farewell, AnswerSeen answer_seen);
  void wait_for_turn(Time now, const Seen& seen);
  bool answered(const Turn& turn, Time now) const;
  void begin_next_exchange(Time now, Counters& counters);
  void count_answer(Counters& counters);
  void take_turns(Time now, Counters& counters);
  Duration quiet() const;
  // When the shadow, if it says nothing more, counts as having answered the exchange in hand.
  Time quiet_at() const;
  // When the wait for a turn ends that has been long.
  Time patience_ends(const Turn& turn) const;
  Time response_deadline() const;
  CloseReason timeout_reason() const;

  Connection connection_;
  Turns turns_;  // exchanges still waiting for their turn, oldest first
  // Bytes of the shadow's that answered the exchanges before the one in hand, and those that
  // production has sent for this one so far.
  uint64_t received_before_ = 0;
  uint64_t production_answer_ = 0;
  Time began_at_;  // the exchange in hand
  Time waiting_since_;
  Rhythm rhythm_ = Rhythm::turns;
  Farewell farewell_ = Farewell::none;
  bool held_ = false;
  bool exchange_open_ = false;  // the exchange in hand has bytes and its answer was not counted
  CloseReason reset_reason_ = CloseReason::production_reset;
  bool reset_unanswered_ = false;  // production's server had not answered either when it came
  std::optional<CloseReason> closed_;
  std::optional<CloseReason> closing_;  // set by close(): the RST is still to be sent
};

}  // namespace trafficmirror::session
