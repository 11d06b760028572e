// What a session does with a login that is its own: what is sent, in which order and when, though
// production's login was longer or shorter. The protocol here: a client says "user N", N times
// "proof", then whatever it likes; a shadow "ask" or "in", each message ending with a dot.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "sidecar/session/engine.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::session {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr const char* client_address = "192.0.2.7:40001";
constexpr const char* server_address = "10.1.0.1:80";
constexpr net::TcpFlags syn{.syn = true}, syn_ack{.syn = true, .ack = true},
    data{.psh = true, .ack = true}, ack{.ack = true}, fin{.fin = true, .ack = true},
    rst{.rst = true, .ack = true};

class DottedLogin : public Login {
 public:
  size_t client_said(std::span<const uint8_t> bytes) override {
    const std::string said(bytes.begin(), bytes.end());
    size_t taken = 0;
    if (!asked() && said.starts_with("user.")) {
      send("user.");
      set_asked();
      taken = 5;
    }
    if (said.starts_with("raw.")) set_let_in();
    if (!asked() && !let_in()) return 0;
    while (said.compare(taken, 6, "proof.") == 0) taken += 6;
    if (taken < said.size() && said[taken] != 'p') set_client_is_over();
    return taken;
  }
  size_t shadow_said(std::span<const uint8_t> bytes) override {
    const std::string said(bytes.begin(), bytes.end());
    size_t taken = 0;
    for (size_t dot = said.find('.'); dot != std::string::npos; dot = said.find('.', taken)) {
      const std::string message = said.substr(taken, dot - taken);
      taken = dot + 1;
      if (message == "ask") send("a longer proof of the session's own.");
      if (message == "in") set_let_in();
      if (message == "no") fail(CloseReason::login_rejected, "it says no");
    }
    return taken;
  }
};

class LoginSession : public testing::Test, protected SegmentSink {
 protected:
  LoginSession() { lease(stream); }

  void lease(Stream& to) {
    engine.set_lease(now, to,
                     {{{*net::IpAddress::parse("10.9.0.1"), net::Port{10000}, net::Port{10100}}},
                      {{net::Port{80}, *net::Endpoint::parse("10.2.0.1:8080"), 1500}}});
  }
  void capture(const char* from, const char* to, const tests::Segment& segment) {
    engine.on_production(now, tests::parsed(tests::packet(from, to, segment)));
    engine.run(now);
  }
  // Production's client and server, each of whom has seen all that the other said.
  void client(const std::string& said, net::TcpFlags flags = data) {
    capture(client_address, server_address, {client_next, server_next, flags, said});
    client_next += static_cast<uint32_t>(said.size()) + flags.fin;
  }
  void server(const std::string& said, net::TcpFlags flags = data) {
    capture(server_address, client_address, {server_next, client_next, flags, said});
    server_next += static_cast<uint32_t>(said.size()) + flags.fin;
  }
  void open() {
    capture(client_address, server_address, {.flags = syn});
    capture(server_address, client_address, {.acknowledgment = 1, .flags = syn_ack});
    shadow("", syn_ack);
  }
  // The shadow has received all that was sent, and says this; of which `payload` is there.
  void shadow(const std::string& said, net::TcpFlags flags = data) {
    shadow_at(said_by_shadow, said, flags);
    said_by_shadow += static_cast<uint32_t>(said.size()) + flags.syn + flags.fin;
  }
  void shadow_at(uint32_t sequence, const std::string& said, net::TcpFlags flags = data) {
    net::Packet packet;
    packet.source = path.target;
    packet.destination = path.source;
    packet.tcp.flags = flags;
    packet.tcp.sequence = net::SequenceNumber(sequence);
    packet.tcp.acknowledgment = end;
    packet.tcp.window = 65535;
    packet.payload_length = static_cast<uint32_t>(said.size());
    if (whole) packet.payload = tests::bytes_of(said);
    engine.on_shadow(now, stream, packet);
    engine.run(now);
  }
  void send(const Path& to, const Segment& segment) override {
    path = to;
    if (segment.header.flags.syn) {
      begin = end = segment.header.sequence + 1;
      return;
    }
    if (segment.header.flags.rst) resets += 1;
    if (segment.header.flags.fin) fins += 1;
    if (segment.length == 0 && !segment.header.flags.fin) return;
    std::string bytes(segment.length, '\0');
    if (segment.length > 0)
      segment.queue->copy(segment.payload, segment.length,
                          reinterpret_cast<uint8_t*>(bytes.data()));
    if (segment.header.sequence + segment.length + segment.header.flags.fin <= end) return;
    EXPECT_EQ(segment.header.sequence, end) << "in order, without a gap";
    end = segment.header.sequence + segment.length + segment.header.flags.fin;
    sent += bytes;
  }
  // What was sent since it was asked last.
  std::string sent_now() { return std::exchange(sent, {}); }
  uint64_t closed(CloseReason reason) { return engine.counters()[reason]; }
  uint64_t shed(ShedReason reason) { return engine.counters()[reason]; }

  Engine::Options options() {
    Engine::Options options;
    options.ports = {net::Port{80}};
    options.logins[net::Port{80}] = [] { return std::make_unique<DottedLogin>(); };
    options.login_failed = [this](const net::Endpoint& shadow, const Login::Failure& failure) {
      failures.push_back(shadow.to_string() + ": " + failure.why);
    };
    return options;
  }

  std::vector<std::string> failures;
  Time now{seconds(1)};
  Engine engine{options()};
  Stream& stream = engine.add_stream(0, *this);
  Path path;
  bool whole = true;
  net::SequenceNumber begin, end;
  uint32_t client_next = 1, server_next = 1, said_by_shadow = 5000;
  int resets = 0, fins = 0;
  std::string sent;
};

TEST_F(LoginSession, GoesOnBehindALoginOfItsOwn) {
  open();
  client("user.");
  EXPECT_EQ(sent_now(), "user.");
  server("prove it by a nonce");
  client("proof.");
  EXPECT_EQ(sent_now(), "") << "that proves nothing to the shadow";
  server("in.");
  client("query 1");
  EXPECT_EQ(sent_now(), "") << "it waits for the login";
  shadow("ask.");
  EXPECT_EQ(sent_now(), "a longer proof of the session's own.");
  shadow("in.");
  EXPECT_EQ(sent_now(), "query 1");
  server("answer 1");
  client("query 2");
  EXPECT_EQ(sent_now(), "") << "the turns are as ever";
  shadow("answer 1");
  EXPECT_EQ(sent_now(), "query 2");
  EXPECT_EQ(engine.counters().exchanges, 2U);
}

TEST_F(LoginSession, WaitsForNoAnswerToWhatTheLoginSaidLess) {
  open();
  client("user.");
  shadow("in.");
  server("a long way of asking");
  client("proof.");
  server("another long one");
  client("proof.");
  server("in.");
  client("query 1");
  EXPECT_EQ(sent_now(), "user.query 1");
  shadow("answer 1");
  server("answer 1");
  client("query 2");
  EXPECT_EQ(sent_now(), "query 2");
}

TEST_F(LoginSession, TakesNothingOfTheLoginForAnAnswerThoughTheServerSpeaksUnasked) {
  open();
  client("user.");
  server("in.");
  const uint32_t seen = server_next;
  server("notice");
  capture(client_address, server_address, {client_next, seen, data, "query 1"});
  client_next += 7;
  shadow("ask.ask.ask.");
  shadow("in.");
  EXPECT_TRUE(sent_now().ends_with("query 1"));
  shadow("", ack);
  server("answer 1");
  client("query 2");
  EXPECT_EQ(sent_now(), "");
  shadow("noticeanswer 1");
  EXPECT_EQ(sent_now(), "query 2");
}

TEST_F(LoginSession, HoldsAllThatTheClientSaysMeanwhileInItsTurns) {
  open();
  client("user.");
  server("in.");
  client("query 1");
  server("answer 1");
  client("query 2");
  client(", more of it");
  server("answer 2!");
  client("bye");
  client("", fin);
  EXPECT_EQ(sent_now(), "user.");
  now += milliseconds(300);
  shadow("in.");
  EXPECT_EQ(sent_now(), "query 1");
  shadow("answer 1");
  EXPECT_EQ(sent_now(), "query 2, more of it");
  EXPECT_EQ(fins, 0);
  shadow("answer 2!");
  EXPECT_EQ(sent_now(), "bye");
  EXPECT_EQ(fins, 1);
  shadow("", fin);
  EXPECT_EQ(closed(CloseReason::finished), 1U);
  // The first was 300 ms late, by the time at which production's client said it.
  EXPECT_GE(engine.counters().lags.sum, 900'000U);
}

TEST_F(LoginSession, ReadsWhatTheShadowSendsInAnotherOrder) {
  open();
  client("user.");
  sent_now();
  shadow_at(5003, "k.");
  shadow_at(5001, "a");
  EXPECT_EQ(sent_now(), "");
  shadow_at(5001, "as");
  shadow_at(5001, "as");
  EXPECT_EQ(sent_now(), "a longer proof of the session's own.");
  said_by_shadow = 5005;
  shadow("in.");
  client("query");
  EXPECT_EQ(sent_now(), "query");
}

TEST_F(LoginSession, SendsAgainWhatIsLost) {
  open();
  client("user.");
  const net::SequenceNumber first = end;
  sent_now();
  end = begin;  // the shadow has nothing of it
  now = engine.deadline();
  engine.run(now);
  EXPECT_EQ(end, first);
  EXPECT_EQ(sent_now(), "user.");
}

TEST_F(LoginSession, EndsWhereTheShadowSaysNo) {
  open();
  client("user.");
  server("in.");
  client("query 1");
  shadow("no.");
  EXPECT_EQ(closed(CloseReason::login_rejected), 1U);
  EXPECT_EQ(resets, 1);
  EXPECT_EQ(failures, std::vector<std::string>{"10.2.0.1:8080: it says no"});
  server("answer 1");
  client("query 2");
  EXPECT_EQ(shed(ShedReason::mid_exchange), 1U);
  EXPECT_EQ(engine.counters().opened, 1U) << "behind its login it can't be taken up";
  EXPECT_EQ(engine.counters().active, 0U);
}

TEST_F(LoginSession, EndsWhereTheShadowClosesInTheMidstOfIt) {
  open();
  client("user.");
  shadow("", fin);
  EXPECT_EQ(closed(CloseReason::login_rejected), 1U);
  EXPECT_EQ(failures, std::vector<std::string>{"10.2.0.1:8080: it closes the connection"});
}

TEST_F(LoginSession, EndsWhereTheInterceptSendsHeadersAlone) {
  whole = false;
  open();
  client("user.");
  shadow("ask.");
  EXPECT_EQ(closed(CloseReason::login_unsupported), 1U);
}

TEST_F(LoginSession, EndsWhereTheShadowAnswersNothing) {
  open();
  client("user.");
  server("in.");
  client("query");
  shadow("", ack);
  while (engine.counters().active > 0 && engine.deadline() != never) {
    now = engine.deadline();
    engine.run(now);
  }
  EXPECT_EQ(closed(CloseReason::response_timeout), 1U);
  EXPECT_LE(now, Time(seconds(62)));
}

TEST_F(LoginSession, IsNeverLaterThanItMayBe) {
  Limits limits;
  limits.pacing.max_lag = milliseconds(500);
  engine.set_limits(now, limits);
  open();
  client("user.");
  shadow("", ack);
  server("in.");
  now += seconds(2);
  client("query");
  EXPECT_EQ(engine.deadline(), now + milliseconds(500));
  now = engine.deadline();
  engine.run(now);
  EXPECT_EQ(closed(CloseReason::lag_limit), 1U);
}

TEST_F(LoginSession, LetsAClientBeSilent) {
  open();
  now += seconds(300);
  engine.run(now);
  client("user.");
  shadow("in.");
  now += seconds(300);
  engine.run(now);
  EXPECT_EQ(engine.counters().active, 1U);
  client("query");
  EXPECT_EQ(sent_now(), "user.query");
}

TEST_F(LoginSession, LeavesWithAClientThatSaidNothing) {
  open();
  client("", fin);
  EXPECT_EQ(fins, 1);
  shadow("", fin);
  EXPECT_EQ(closed(CloseReason::finished), 1U);
}

TEST_F(LoginSession, LeavesWithAClientThatGaveUpItsLogin) {
  open();
  client("user.");
  server("prove it");
  client("", fin);
  EXPECT_EQ(fins, 0);
  shadow("ask.");
  shadow("in.");
  EXPECT_EQ(fins, 1) << "there is no answer to wait for";
  shadow("", fin);
  EXPECT_EQ(closed(CloseReason::finished), 1U);
}

TEST_F(LoginSession, IsResetBehindAllThatItsClientSaid) {
  open();
  client("user.");
  server("in.");
  client("query");
  client("", rst);
  EXPECT_EQ(resets, 0);
  shadow("in.");
  EXPECT_EQ(sent_now(), "user.query");
  shadow("answer");
  EXPECT_EQ(resets, 1);
  EXPECT_EQ(closed(CloseReason::production_reset), 1U);
}

TEST_F(LoginSession, IsAnyOtherWhereThereIsNoLogin) {
  open();
  client("raw.with what follows");
  EXPECT_EQ(sent_now(), "raw.with what follows");
}

TEST_F(LoginSession, IsOfNoFlowWhoseStartWasNotSeen) {
  client("query 1");
  server("answer 1");
  client("query 2");
  server("answer 2");
  client("query 3");
  EXPECT_EQ(engine.counters().opened, 0U);
  EXPECT_EQ(shed(ShedReason::mid_exchange), 3U);
}

TEST_F(LoginSession, IsOfNoIdleFlow) {
  engine.on_idle_flow(
      now, {*net::Endpoint::parse(client_address), *net::Endpoint::parse(server_address)},
      Boundary::certain);
  client("query 1");
  EXPECT_EQ(engine.counters().opened, 0U);
  EXPECT_EQ(shed(ShedReason::mid_exchange), 1U);
}

TEST_F(LoginSession, BeginsWithTheFirstBytesWhereThereWasNoStreamForTheSyn) {
  engine.stream_lost(stream);
  capture(client_address, server_address, {.flags = syn});
  capture(server_address, client_address, {.acknowledgment = 1, .flags = syn_ack});
  lease(stream);
  client("user.");
  shadow("", syn_ack);
  EXPECT_EQ(sent_now(), "user.");
}

TEST_F(LoginSession, IsNotTakenUpOnceItsStreamIsLost) {
  open();
  client("user.");
  shadow("in.");
  server("in.");
  engine.stream_lost(stream);
  lease(stream);
  client("query 1");
  server("answer");
  client("query 2");
  EXPECT_EQ(engine.counters().opened, 1U);
  EXPECT_EQ(shed(ShedReason::mid_exchange), 2U);
}

TEST_F(LoginSession, GoesOnInNoOtherWhereTheShadowCloses) {
  open();
  client("user.");
  shadow("in.");
  server("in.");
  client("query 1");
  server("answer");
  client("query 2");
  shadow("answer", fin);
  EXPECT_EQ(closed(CloseReason::shadow_closed), 1U);
  EXPECT_EQ(engine.counters().opened, 1U);
}

TEST_F(LoginSession, GivesItsMemoryBack) {
  open();
  const uint64_t before = engine.counters().memory;
  client("user.");
  server("in.");
  client(std::string(1000, 'q'));
  EXPECT_GT(engine.counters().memory, before + 1000);
  shadow("in.");
  shadow("answer");
  EXPECT_LT(engine.counters().memory, before);
}

}  // namespace
}  // namespace trafficmirror::session
