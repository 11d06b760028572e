// One session: the simulated client of one production flow. It decides when the client's bytes are
// due, turn by turn; Connection decides how they travel.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>

#include "sidecar/session/connection.h"
#include "sidecar/session/counters.h"
#include "sidecar/session/login.h"

namespace trafficmirror::session {

// When an exchange is sent that production's client began behind an answer.
enum class Turns : uint8_t {
  wait,   // when the shadow has answered the one before
  eager,  // when the shadow has received the one before
  off,    // at once, as production's client did
};
// What becomes of a session whose exchange is later than it may be.
enum class OverLag : uint8_t {
  shed,      // it ends
  catch_up,  // it is eager until nothing of it waits any more
};
// How closely a session follows production's client.
struct Pacing {
  Turns turns = Turns::wait;
  // From when the client began an exchange until the first byte of it is sent; 0: however long.
  Duration max_lag{0};
  OverLag over_lag = OverLag::shed;

  bool operator==(const Pacing&) const = default;
};

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

  Session(const Connection::Options& options, Time now);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Before anything else: what the client says first is a login, which the session holds itself.
  void log_in(std::unique_ptr<Login> login);
  // Null unless that has failed.
  const Login::Failure* login_failure() const;

  // Until release() nothing of the client's is sent, only the SYN.
  void hold() { held_ = true; }
  void release() { held_ = false; }

  // -- what production did
  void client_sent(Time now, std::span<const uint8_t> bytes, AnswerSeen answer_seen);
  void client_finished(Time now, AnswerSeen answer_seen);
  // Goes out as a RST behind everything before it. `reason` is what the session's end will be
  // counted as.
  void client_reset(Time now, CloseReason reason);
  void server_sent(uint64_t bytes) { production_answer_ += bytes; }

  // Ends the session with a RST at the next dispatch.
  void close(CloseReason reason);

  // -- what the shadow did
  void process(Time now, const net::Packet& packet, Counters& counters);

  // Puts out what is due.
  void dispatch(Time now, const Pacing& pacing, const Outlet& out, Counters& counters);
  Time deadline(const Pacing& pacing) const;
  // Set once the session has ended.
  std::optional<CloseReason> closed() const { return closed_; }

  // Where a session ended as shadow_closed: what the next one, which takes its place, has to carry.
  // What was let go is no part of it, as the shadow may have read it. An exchange of which it is
  // not known where it begins can't be the first on a connection, and none of HTTP/2 can: its
  // headers refer to earlier ones (RFC 7541 section 2.3.2). What is behind a login needs one first.
  bool has_rest() const {
    const Turn* const first = turns_.first_held_back();
    return closed_ == CloseReason::shadow_closed && first != nullptr && !first->sent_again &&
           rhythm_ != Rhythm::http2 && !has_login_;
  }
  void take_rest_of(Session& other);

  Connection& connection() { return connection_; }
  const Connection& connection() const { return connection_; }
  size_t allocated() const {
    return connection_.allocated() + turns_.allocated() + (login_ ? login_allocated() : 0);
  }

 private:
  // The start of an exchange behind the one in hand.
  struct Turn {
    ClientOffset begin;
    uint64_t answer;   // bytes of production's answer to the exchange before
    Time since;        // when production's client began it
    bool sent_again;   // as in Seen
    Time let_go_at{};  // where it was before it began
  };
  // The turns that are still of interest, oldest first. Each of them is
  //   let go  its bytes may be sent,
  //   sent    the first of them was, and
  //   begun   it is the exchange in hand, as the one before is answered.
  // Mostly that is one moment; but a narrow window holds back what was let go, and who is not
  // waited for lets go before it begins. Costs a pointer while there are none, as is so in most
  // sessions at most times.
  class TurnQueue {
   public:
    bool all_begun() const { return !held_ || held_->begun == held_->turns.size(); }
    // The one to begin next; not where all have begun.
    const Turn& next() const { return held_->turns[held_->begun]; }
    bool next_is_let_go() const { return held_->let_go > held_->begun; }
    // Null where there is none.
    const Turn* first_held_back() const { return held_ ? held_->at(held_->let_go) : nullptr; }
    const Turn* first_unsent() const { return held_ ? held_->at(held_->sent) : nullptr; }
    // Those behind first_held_back().
    size_t further() const { return held_ ? held_->turns.size() - held_->let_go - 1 : 0; }
    const Turn& further(size_t index) const { return held_->turns[held_->let_go + 1 + index]; }

    void push_back(const Turn& turn) {
      if (!held_) held_ = std::make_unique<Held>();
      held_->turns.push_back(turn);
    }
    // What lets the next one go, too.
    void begin_next() {
      ++held_->begun;
      held_->let_go = std::max(held_->let_go, held_->begun);
      forget();
    }
    void let_go(Time now) { held_->turns[held_->let_go++].let_go_at = now; }
    void sent() {
      ++held_->sent;
      forget();
    }
    // A deque takes blocks of 512 bytes, and at first a map of eight of them.
    size_t allocated() const {
      return held_ ? sizeof(Held) + 8 * sizeof(void*) +
                         (held_->turns.size() * sizeof(Turn) / 512 + 1) * 512
                   : 0;
    }

   private:
    struct Held {
      std::deque<Turn> turns;
      size_t begun = 0;  // so many of the first
      size_t let_go = 0;
      size_t sent = 0;

      const Turn* at(size_t index) const { return index < turns.size() ? &turns[index] : nullptr; }
    };
    void forget() {
      for (; held_->begun > 0 && held_->sent > 0; --held_->begun, --held_->let_go, --held_->sent)
        held_->turns.pop_front();
      if (held_->turns.empty()) held_.reset();
    }
    std::unique_ptr<Held> held_;
  };
  enum class Farewell : uint8_t { none, fin, reset };
  // Whether exchanges were let go before the one before them was answered. Then it is only by the
  // lengths of production's answers that it is known which of them the shadow is at, and out of
  // step its own were found to be others.
  enum class Ahead : uint8_t { no, in_step, out_of_step };
  enum class Rhythm : uint8_t {
    turns,  // the client speaks when the server is done, as far as is known
    free,   // the client has spoken while the server did
    http2,  // likewise, but more streams at once than production had may be too many
  };

  // Until the login is over.
  struct LoginInHand;
  void client_sent_in_login(Time now, std::span<const uint8_t> bytes, AnswerSeen answer_seen);
  void client_left_in_login(Time now, std::optional<AnswerSeen> finished,
                            std::optional<CloseReason> reset);
  void shadow_sent_in_login(Time now, const net::Packet& packet, Counters& counters);
  void hold_back(Time now, std::span<const uint8_t> bytes, AnswerSeen answer_seen);
  void go_on_with_login(Time now);
  void fail_login(CloseReason reason, std::string why);
  void end_login(Time now);
  bool login_waits() const;  // for the shadow
  Time held_back_since() const;
  size_t login_allocated() const;

  void leave(Time now, Farewell farewell, AnswerSeen answer_seen);
  void wait_for_turn(Time now, const Seen& seen);
  // Whether the exchange in hand is, so that the next may begin.
  bool answered(Time now) const;
  bool next_is_farewell() const;
  Duration long_silence() const;
  void begin_next_exchange(Time now, Counters& counters);
  void count_answer(Counters& counters);
  void take_turns(Time now, const Pacing& pacing, Counters& counters);
  // Whether a turn may be let go before the exchange in hand is answered.
  bool goes_ahead(const Turn& turn, const Pacing& pacing) const;
  // When production's client began the first exchange of which nothing was sent yet; never: none.
  Time unsent_since() const;
  bool first_has_no_turn() const;
  Time lag_deadline(const Pacing& pacing) const;
  void count_lags(Time now, ClientOffset sent_before, Counters& counters);
  Duration quiet() const;
  // When the shadow, if it says nothing more, counts as having answered the exchange in hand.
  Time quiet_at() const;
  // When the wait for a turn ends that has been long.
  Time patience_ends(const Turn& turn) const;
  Time response_deadline() const;
  CloseReason timeout_reason() const;

  Connection connection_;
  TurnQueue turns_;
  std::unique_ptr<LoginInHand> login_;  // null where there is none, and once it is over
  // Bytes of the shadow's that answered the exchanges before the one in hand, and those that
  // production has sent for the latest one so far.
  uint64_t received_before_ = 0;
  uint64_t production_answer_ = 0;
  // The exchange in hand; the first of a session in production, so that its lag is known.
  Time began_at_;
  Time waiting_since_;
  // Bits, as there are a hundred thousand of these.
  Rhythm rhythm_ : 2 = Rhythm::turns;
  Farewell farewell_ : 2 = Farewell::none;
  Ahead ahead_ : 2 = Ahead::no;
  bool held_ : 1 = false;
  bool has_login_ : 1 = false;  // that began with one
  bool catching_up_ : 1 = false;
  bool exchange_open_ : 1 = false;  // the exchange in hand has bytes and its answer was not counted
  bool reset_unanswered_ : 1 = false;  // production's server had not answered either when it came
  CloseReason reset_reason_ = CloseReason::production_reset;
  std::optional<CloseReason> closed_;
  std::optional<CloseReason> closing_;  // set by close(): the RST is still to be sent
};

}  // namespace trafficmirror::session
