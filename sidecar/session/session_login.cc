// What a session does until its login is over.
#include <utility>
#include <vector>

#include "sidecar/session/login.h"
#include "sidecar/session/reassembly.h"
#include "sidecar/session/session.h"

namespace trafficmirror::session {
namespace {

// What a shadow says until it has let somebody in is far less; the intercept sends no more of it.
constexpr uint32_t most_of_shadow = 16 << 10;

}  // namespace

struct Session::LoginInHand {
  struct Held {
    Time at;
    AnswerSeen answer_seen;
    std::vector<uint8_t> bytes;
  };

  std::unique_ptr<Login> login;
  std::vector<uint8_t> client;        // said, and no whole message yet
  std::vector<uint8_t> shadow;        // likewise
  std::optional<Reassembly> arrival;  // of the shadow's bytes; none before it has answered the SYN
  uint64_t arrived = 0;
  bool more_under_way = false;  // as in Seen, when the client spoke last
  // What the client said and did behind its login.
  std::vector<Held> held;
  size_t held_bytes = 0;
  Time left_at;
  std::optional<AnswerSeen> finished;
  std::optional<CloseReason> reset;

  bool client_left() const { return finished || reset; }
};

Session::Session(const Connection::Options& options, Time now) : connection_(options, now) {}

Session::~Session() = default;

void Session::log_in(std::unique_ptr<Login> login) {
  has_login_ = true;
  login_ = std::make_unique<LoginInHand>();
  login_->login = std::move(login);
}

const Login::Failure* Session::login_failure() const {
  return login_ && login_->login->failure() ? &*login_->login->failure() : nullptr;
}

size_t Session::login_allocated() const {
  return sizeof(LoginInHand) + login_->client.capacity() + login_->shadow.capacity() +
         login_->held.capacity() * sizeof(LoginInHand::Held) + login_->held_bytes +
         (login_->arrival ? login_->arrival->allocated() : 0);
}

void Session::hold_back(Time now, std::span<const uint8_t> bytes, AnswerSeen answer_seen) {
  if (answer_seen) production_answer_ = 0;
  login_->held.push_back({now, answer_seen, {bytes.begin(), bytes.end()}});
  login_->held_bytes += bytes.size();
}

void Session::client_sent_in_login(Time now, std::span<const uint8_t> bytes,
                                   AnswerSeen answer_seen) {
  if (login_->login->client_is_over()) {
    hold_back(now, bytes, answer_seen);
    return;
  }
  if (!login_->login->asked()) began_at_ = waiting_since_ = now;
  login_->more_under_way = answer_seen && answer_seen->more_under_way;
  login_->client.insert(login_->client.end(), bytes.begin(), bytes.end());
  go_on_with_login(now);
}

void Session::client_left_in_login(Time now, std::optional<AnswerSeen> finished,
                                   std::optional<CloseReason> reset) {
  if (!login_->client_left()) login_->left_at = now;
  if (finished) login_->finished = finished;
  if (reset) login_->reset = reset;
  go_on_with_login(now);
}

void Session::shadow_sent_in_login(Time now, const net::Packet& packet, Counters& counters) {
  if (connection_.state() == Connection::State::syn_sent || login_->login->let_in()) return;
  const net::SequenceNumber first = connection_.shadow_first();
  std::optional<Reassembly>& arrival = login_->arrival;
  if (!arrival) arrival.emplace(first);
  const auto length = static_cast<uint32_t>(packet.payload.size());
  if (packet.tcp.sequence + length <= first + most_of_shadow)
    arrival->insert(packet.tcp.sequence, packet.payload, {},
                    [&](std::span<const uint8_t> bytes, const Reassembly::Sent& /*sent*/) {
                      login_->arrived += bytes.size();
                      login_->shadow.insert(login_->shadow.end(), bytes.begin(), bytes.end());
                    });
  const bool waited = login_waits();
  go_on_with_login(now);
  if (closing_) return;
  if (!login_ || login_->login->let_in()) {
    if (waited) ++counters.exchanges;
  } else if (login_->arrived < connection_.received()) {
    fail_login(CloseReason::login_unsupported,
               "it says more than is read of it, or the intercept is of an older version");
  } else if (connection_.shadow_finished()) {
    fail_login(CloseReason::login_rejected, "it closes the connection");
  }
}

void Session::fail_login(CloseReason reason, std::string why) {
  login_->login->fail(reason, std::move(why));
  close(reason);
}

void Session::go_on_with_login(Time now) {
  LoginInHand& in_hand = *login_;
  Login& login = *in_hand.login;
  if (closing_ || login.failure()) return;
  const auto take = [](std::vector<uint8_t>& said, size_t bytes) {
    said.erase(said.begin(), said.begin() + static_cast<std::ptrdiff_t>(bytes));
  };
  if (!login.client_is_over()) take(in_hand.client, login.client_said(in_hand.client));
  if (!login.failure() && !login.let_in()) take(in_hand.shadow, login.shadow_said(in_hand.shadow));
  const std::string messages = login.take_messages();
  connection_.append({reinterpret_cast<const uint8_t*>(messages.data()), messages.size()});
  connection_.allow(connection_.end());
  if (const auto& failure = login.failure()) {
    close(failure->reason);
    return;
  }
  if (login.client_is_over() && !in_hand.client.empty()) {
    // Whatever production's server said before it, the shadow has said its own.
    const AnswerSeen login_seen = Seen{0, in_hand.more_under_way};
    hold_back(now, in_hand.client, login.asked() ? login_seen : std::nullopt);
    in_hand.client.clear();
  }
  const bool client_is_done = login.client_is_over() || in_hand.client_left();
  if (login.let_in() ? client_is_done : !login.asked() && in_hand.client_left()) end_login(now);
}

// The session goes on as any other: as if the client had said it all now, but for when it did.
void Session::end_login(Time now) {
  const std::unique_ptr<LoginInHand> over = std::move(login_);
  received_before_ = connection_.received();
  const uint64_t answer = production_answer_;
  for (const LoginInHand::Held& held : over->held)
    client_sent(held.at, held.bytes, held.answer_seen);
  production_answer_ = answer;
  if (over->finished) {
    const bool greeted = over->held.empty() && *over->finished;
    client_finished(over->left_at, greeted ? AnswerSeen(Seen{0}) : *over->finished);
  }
  if (over->reset) client_reset(over->left_at, *over->reset);
  waiting_since_ = now;
}

bool Session::login_waits() const {
  return login_->login->asked() && !login_->login->let_in();
}

Time Session::held_back_since() const {
  return login_->held.empty() ? never : login_->held.front().at;
}

}  // namespace trafficmirror::session
