#include "sidecar/session/session.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace trafficmirror::session {
namespace {

// An answer shorter than production's is over when its last segment carried PSH and nothing came
// for this long. Bounds around two round trips: answers written in several parts follow each other
// within one.
constexpr Duration min_quiet = std::chrono::milliseconds(2);
constexpr Duration max_quiet = std::chrono::milliseconds(50);
// A client that does not take turns is held back no longer than this by a shadow that says nothing.
constexpr Duration max_wait = std::chrono::milliseconds(50);
constexpr Duration least_silence = std::chrono::seconds(1);

// RFC 9113 section 3.4: many streams share the connection, and neither side waits for the other.
bool begins_http2(std::span<const uint8_t> bytes) {
  constexpr std::string_view preface = "PRI * HTTP/2.0\r\n";
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())
      .starts_with(preface);
}

CloseReason reason_of(Connection::Ending ending) {
  switch (ending) {
    case Connection::Ending::refused:
      return CloseReason::shadow_refused;
    case Connection::Ending::reset:
      return CloseReason::shadow_reset;
    case Connection::Ending::stalled:
      return CloseReason::shadow_unresponsive;
    case Connection::Ending::finished:
    case Connection::Ending::aborted:
      break;
  }
  return CloseReason::finished;
}

}  // namespace

void Session::client_sent(Time now, std::span<const uint8_t> bytes, AnswerSeen answer_seen) {
  if (login_) {
    client_sent_in_login(now, bytes, answer_seen);
    return;
  }
  if (answer_seen) wait_for_turn(now, *answer_seen);
  if (connection_.end() == ClientOffset(0)) {
    began_at_ = now;
    if (begins_http2(bytes)) rhythm_ = Rhythm::http2;
  }
  connection_.append(bytes);
  if (turns_.all_begun()) exchange_open_ = true;
}

void Session::client_finished(Time now, AnswerSeen answer_seen) {
  if (login_)
    client_left_in_login(now, answer_seen, std::nullopt);
  else
    leave(now, Farewell::fin, answer_seen);
}

void Session::client_reset(Time now, CloseReason reason) {
  if (login_) {
    client_left_in_login(now, std::nullopt, reason);
    return;
  }
  reset_reason_ = reason;
  if (farewell_ == Farewell::none) reset_unanswered_ = production_answer_ == 0;
  // Even a client that left without reading gives the shadow the time to answer, as production's
  // server had it. One whose capture ended has not left: it would have read what there was.
  bool answer_due = exchange_open_ || !turns_.all_begun();
  uint64_t answer = 1;
  if (reason == CloseReason::capture_ended) {
    answer = std::max(answer, production_answer_);
    answer_due = answer_due || connection_.received() - received_before_ < production_answer_;
  }
  leave(now, Farewell::reset, answer_due ? AnswerSeen(Seen{answer}) : std::nullopt);
}

void Session::leave(Time now, Farewell farewell, AnswerSeen answer_seen) {
  // A RST behind the FIN waits for the same answer: a turn of its own would wait for one more.
  const bool left_already = farewell_ != Farewell::none;
  if (left_already && farewell != Farewell::reset) return;
  farewell_ = farewell;
  waiting_since_ = now;
  if (answer_seen && !left_already) wait_for_turn(now, *answer_seen);
}

void Session::wait_for_turn(Time now, const Seen& seen) {
  if (turns_.all_begun()) waiting_since_ = now;
  if (seen.more_under_way && rhythm_ == Rhythm::turns) rhythm_ = Rhythm::free;
  turns_.push_back({connection_.end(), seen.bytes, now, seen.sent_again});
  production_answer_ = 0;
}

void Session::close(CloseReason reason) {
  if (closed_ || closing_) return;
  closing_ = reason;
  connection_.abort();
}

void Session::process(Time now, const net::Packet& packet, Counters& counters) {
  const ClientOffset acknowledged = connection_.acknowledged();
  const uint64_t received = connection_.received();
  connection_.process(now, packet);
  counters.bytes_to_shadow += connection_.acknowledged() - acknowledged;
  counters.bytes_from_shadow += connection_.received() - received;
  if (login_) shadow_sent_in_login(now, packet, counters);
}

// The turn rule: the shadow has all of the exchange before, and has answered it. That it has is
// known by as many bytes as production's answer had, or, as the shadow's answer may be shorter, by
// PSH and a quiet time. Where the two sides do not take turns (pipelining, many streams on one
// connection, a server that speaks without being asked) the shadow may have said before what there
// was to say: then the quiet time alone ends the wait, and so does patience, since the client did
// not wait for the server's end either.
//
// Of what was let go ahead of its turn the answers follow each other, and only their bytes, which
// need not be as many as production's, tell them apart. That is enough to count them by, and to go
// on waiting for answers where the session has caught up. But a farewell, which may keep a server
// from answering, waits until they are as many to the byte and always were, or for a long silence.
bool Session::answered(Time now) const {
  const Turn& turn = turns_.next();
  if (now >= patience_ends(turn)) return true;
  if (connection_.acknowledged() < turn.begin) return false;
  if (connection_.shadow_finished()) return true;
  const uint64_t answer = connection_.received() - received_before_;
  const bool sure = ahead_ == Ahead::no || !next_is_farewell();
  if (sure ? answer >= turn.answer : ahead_ == Ahead::in_step && answer == turn.answer) return true;
  return now >= quiet_at();
}

bool Session::next_is_farewell() const {
  return turns_.next().begin == connection_.end();
}

Time Session::quiet_at() const {
  const uint64_t received = connection_.received();
  if (received == 0 || !connection_.received_to_push()) return never;
  // Its answer may have been taken for one to an exchange before.
  const bool unknown = received == received_before_ &&
                       (turns_.next_is_let_go() || connection_.last_received_at() > began_at_);
  if (ahead_ != Ahead::no && (next_is_farewell() || unknown))
    return std::max(connection_.last_received_at(), connection_.last_sent_at()) + long_silence();
  if (received > received_before_) return connection_.last_received_at() + quiet();
  if (rhythm_ != Rhythm::turns)
    return std::max(connection_.last_received_at(), began_at_) + quiet();
  return never;
}

// For how long a shadow has to say nothing more that was given exchanges ahead of their turn:
// longer than it was at the last one of them, and for half of the time that it has where it has
// said nothing since it was given that.
Duration Session::long_silence() const {
  const Duration most = connection_.give_up() / 2;
  const Duration answering = connection_.last_received_at() - began_at_;
  return answering > Duration::zero() ? std::min(std::max(2 * answering, least_silence), most)
                                      : most;
}

Time Session::patience_ends(const Turn& turn) const {
  // What a shadow that has closed did not take goes on in another session, from a turn on. And a
  // server that is left need not answer any more: a farewell waits.
  if (rhythm_ != Rhythm::free || connection_.shadow_finished() || turn.begin == connection_.end())
    return never;
  // A shadow that is still speaking is waited for.
  if (connection_.received() == 0 || !connection_.received_to_push()) return never;
  return std::max(turn.since + max_wait, connection_.last_received_at() + quiet());
}

void Session::count_answer(Counters& counters) {
  if (!exchange_open_) return;
  exchange_open_ = false;
  ++counters.exchanges;
}

void Session::begin_next_exchange(Time now, Counters& counters) {
  const Turn turn = turns_.next();
  // A shadow that has closed did not answer all that it was given ahead.
  if (connection_.shadow_finished() && turns_.next_is_let_go() &&
      connection_.received() == received_before_)
    exchange_open_ = false;
  else
    count_answer(counters);
  const uint64_t answered = received_before_ + turn.answer;
  // A shadow that is ahead of production, or was given exchanges ahead of their turn, has already
  // said a part of what the next turns wait for.
  if (rhythm_ == Rhythm::turns && !turns_.next_is_let_go())
    received_before_ = connection_.received();
  else
    received_before_ = std::min(connection_.received(), answered);
  began_at_ = turns_.next_is_let_go() ? turn.let_go_at : now;
  if (ahead_ != Ahead::no && !turns_.next_is_let_go())
    ahead_ = ahead_ == Ahead::in_step && connection_.received() == answered ? Ahead::no
                                                                            : Ahead::out_of_step;
  turns_.begin_next();
  if (turn.begin == connection_.end()) turns_.sent();  // a farewell has no bytes
  exchange_open_ = turn.begin < (turns_.all_begun() ? connection_.end() : turns_.next().begin);
}

bool Session::goes_ahead(const Turn& turn, const Pacing& pacing) const {
  if (pacing.turns == Turns::off) return true;
  if (pacing.turns == Turns::wait && !catching_up_) return false;
  // A server that is left need not answer any more: a farewell waits.
  return connection_.acknowledged() >= turn.begin && turn.begin < connection_.end();
}

void Session::take_turns(Time now, const Pacing& pacing, Counters& counters) {
  if (held_ || login_) return;
  bool begun = false;
  while (!turns_.all_begun() && answered(now)) {
    if (connection_.shadow_finished() && !turns_.next_is_let_go() &&
        turns_.next().begin < connection_.end()) {
      // The shadow closed where production did not, and the client goes on: in a connection of its
      // own.
      count_answer(counters);
      close(CloseReason::shadow_closed);
      return;
    }
    begin_next_exchange(now, counters);
    begun = true;
  }
  if (begun && ahead_ == Ahead::in_step && connection_.received() != received_before_)
    ahead_ = Ahead::out_of_step;
  for (const Turn* turn = turns_.first_held_back(); turn != nullptr && goes_ahead(*turn, pacing);
       turn = turns_.first_held_back()) {
    turns_.let_go(now);
    if (ahead_ == Ahead::no) ahead_ = Ahead::in_step;
  }
  const Turn* const held_back = turns_.first_held_back();
  connection_.allow(held_back != nullptr ? held_back->begin : connection_.end());
  // The answer in hand may be complete though nobody waits for it.
  const uint64_t answer = connection_.received() - received_before_;
  const uint64_t expected = turns_.all_begun() ? production_answer_ : turns_.next().answer;
  if (exchange_open_ && expected > 0 && answer >= expected) count_answer(counters);
  if (held_back != nullptr) return;
  if (farewell_ == Farewell::fin) connection_.close();
  if (farewell_ == Farewell::reset && connection_.acknowledged() == connection_.end())
    close(reset_reason_);
}

void Session::dispatch(Time now, const Pacing& pacing, const Outlet& out, Counters& counters) {
  if (closed_) return;
  if (!closing_ && now >= lag_deadline(pacing)) {
    if (pacing.over_lag == OverLag::shed)
      close(CloseReason::lag_limit);
    else
      catching_up_ = true;
  }
  if (!closing_) take_turns(now, pacing, counters);
  if (!closed_ && !closing_ && now >= response_deadline()) close(timeout_reason());
  const uint32_t retransmits = connection_.retransmits();
  const ClientOffset sent = connection_.sent();
  connection_.dispatch(now, out);
  counters.retransmits += connection_.retransmits() - retransmits;
  count_lags(now, sent, counters);
  if (catching_up_ && unsent_since() == never) catching_up_ = false;
  if (connection_.ended() && !closed_)
    closed_ = connection_.ending() == Connection::Ending::aborted
                  ? closing_.value_or(CloseReason::finished)
                  : reason_of(connection_.ending());
}

// The first exchange of a session has a turn only where the server was the first to speak.
bool Session::first_has_no_turn() const {
  const Turn* const first = turns_.first_unsent();
  return connection_.end() > ClientOffset(0) &&
         (first == nullptr || first->begin > ClientOffset(0));
}

Time Session::unsent_since() const {
  if (connection_.sent() == ClientOffset(0) && first_has_no_turn()) return began_at_;
  if (login_) return held_back_since();
  const Turn* const first = turns_.first_unsent();
  return first != nullptr && first->begin < connection_.end() ? first->since : never;
}

Time Session::lag_deadline(const Pacing& pacing) const {
  if (pacing.max_lag == Duration::zero() || catching_up_) return never;
  const Time since = unsent_since();
  return since == never ? never : since + pacing.max_lag;
}

void Session::count_lags(Time now, ClientOffset sent_before, Counters& counters) {
  if (connection_.sent() == sent_before) return;
  if (sent_before == ClientOffset(0) && first_has_no_turn()) counters.lags.count(now - began_at_);
  for (const Turn* turn = turns_.first_unsent();
       turn != nullptr && turn->begin < connection_.sent(); turn = turns_.first_unsent()) {
    counters.lags.count(now - turn->since);
    turns_.sent();
  }
}

CloseReason Session::timeout_reason() const {
  if (login_) return CloseReason::response_timeout;
  if (farewell_ == Farewell::reset && reset_unanswered_ &&
      connection_.acknowledged() == connection_.end())
    return reset_reason_;
  return turns_.all_begun() ? CloseReason::fin_timeout : CloseReason::response_timeout;
}

Time Session::response_deadline() const {
  if (login_ ? !login_waits() : turns_.all_begun() && farewell_ == Farewell::none) return never;
  return std::max(waiting_since_, connection_.last_progress()) + connection_.give_up();
}

Time Session::deadline(const Pacing& pacing) const {
  Time at = std::min({connection_.deadline(), response_deadline(), lag_deadline(pacing)});
  if (turns_.all_begun()) return at;
  const Turn& turn = turns_.next();
  if (connection_.acknowledged() >= turn.begin) at = std::min(at, quiet_at());
  return std::min(at, patience_ends(turn));
}

Duration Session::quiet() const {
  if (rhythm_ == Rhythm::http2) return max_quiet;
  return std::clamp(2 * connection_.smoothed_round_trip(), min_quiet, max_quiet);
}

void Session::take_rest_of(Session& other) {
  const Turn& first = *other.turns_.first_held_back();
  const uint64_t gone = first.begin.value();
  connection_.put_unsent(other.connection_.take_unsent());
  // The first exchange of the rest has its turn now.
  began_at_ = first.since;
  for (size_t i = 0; i < other.turns_.further(); ++i) {
    Turn turn = other.turns_.further(i);
    turn.begin = ClientOffset(turn.begin.value() - gone);
    turns_.push_back(turn);
  }
  rhythm_ = other.rhythm_;
  exchange_open_ = true;
  production_answer_ = other.production_answer_;
  waiting_since_ = other.waiting_since_;
  farewell_ = other.farewell_;
  reset_reason_ = other.reset_reason_;
  reset_unanswered_ = other.reset_unanswered_;
}

}  // namespace trafficmirror::session
