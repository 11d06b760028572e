// The uplink against an intercept in this process.
#include "sidecar/uplink/uplink.h"

#include <condition_variable>
#include <mutex>
#include <optional>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "trafficmirror/v1/mirror.grpc.pb.h"

namespace trafficmirror::uplink {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
constexpr seconds patience(10);

v1::InterceptMessage lease_message() {
  v1::InterceptMessage message;
  v1::SourceRange& source = *message.mutable_lease()->add_sources();
  source.set_address(std::string("\x0a\x00\x00\x01", 4));
  source.set_first_port(10000);
  source.set_last_port(10255);
  v1::Target& target = *message.mutable_lease()->add_targets();
  target.set_production_port(80);
  target.set_address(std::string("\x0a\x00\x00\x02", 4));
  target.set_port(8080);
  target.set_path_mtu(1450);
  return message;
}

// Answers each stream's hello with `first`, keeps what comes up, and can end its streams or stop
// reading them.
class Intercept final : public v1::Mirror::Service {
 public:
  explicit Intercept(v1::InterceptMessage first = lease_message(), int port = 0)
      : first_(std::move(first)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Intercept() override { stop(); }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      reading_ = true;
      changed_.notify_all();
    }
    server_->Shutdown(std::chrono::system_clock::now());
  }

  net::Port port() const { return {static_cast<uint16_t>(port_)}; }
  void pause_reading(bool paused) {
    const std::lock_guard lock(mutex_);
    reading_ = !paused;
    changed_.notify_all();
  }
  std::string packets() {
    const std::lock_guard lock(mutex_);
    return packets_;
  }
  template <typename Condition>
  bool wait_for(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, condition);
  }

  // To be read inside of wait_for(), or when the stream has ended.
  v1::Hello hello;
  std::string packets_;
  std::vector<v1::Statistics> statistics;
  bool asked_for_ports = false;
  bool ended = false;

 private:
  grpc::Status Stream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::InterceptMessage, v1::SidecarMessage>* stream) override {
    v1::SidecarMessage message;
    stream->Read(&message);
    {
      const std::lock_guard lock(mutex_);
      hello = message.hello();
    }
    stream->Write(first_);
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return reading_; });
      }
      if (!stream->Read(&message)) break;
      const std::lock_guard lock(mutex_);
      if (message.has_packets()) packets_ += message.packets().packets();
      if (message.has_statistics()) statistics.push_back(message.statistics());
      if (message.has_more_source_ports()) asked_for_ports = true;
      changed_.notify_all();
      if (message.has_packets() && message.packets().packets() == "echo") {
        v1::InterceptMessage headers;
        headers.mutable_headers()->set_headers("headers");
        stream->Write(headers);
      }
    }
    const std::lock_guard lock(mutex_);
    ended = !context->IsCancelled();
    changed_.notify_all();
    return grpc::Status::OK;
  }

  const v1::InterceptMessage first_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reading_ = true;
};

Uplink::Options options_for(net::Port port) {
  return {
      .intercept = {"127.0.0.1", port}, .name = "pod-1", .version = "1.2.3", .ports = {{80}, {81}}};
}

// Runs the uplink as its owner does, until an event of the type comes.
template <typename Wanted>
std::optional<Wanted> next(Uplink& uplink) {
  const auto deadline = Uplink::Clock::now() + patience;
  while (Uplink::Clock::now() < deadline) {
    uplink.run(Uplink::Clock::now());
    const auto wait = std::chrono::ceil<milliseconds>(
        std::min(uplink.next_dial(), Uplink::Clock::now() + milliseconds(100)) -
        Uplink::Clock::now());
    pollfd events{uplink.descriptor(), POLLIN, 0};
    ::poll(&events, 1, static_cast<int>(std::max<int64_t>(wait.count(), 0)));
    for (Event& event : uplink.take_events())
      if (auto* wanted = std::get_if<Wanted>(&event)) return std::move(*wanted);
  }
  return std::nullopt;
}

TEST(Uplink, SaysHelloAndGetsALease) {
  Intercept intercept;
  Uplink uplink(options_for(intercept.port()));
  const auto lease = next<session::Lease>(uplink);
  ASSERT_TRUE(lease);
  ASSERT_EQ(lease->sources.size(), 1U);
  EXPECT_EQ(lease->sources[0].address.to_string(), "10.0.0.1");
  EXPECT_EQ(lease->sources[0].first.number, 10000);
  EXPECT_EQ(lease->sources[0].last.number, 10255);
  ASSERT_EQ(lease->targets.size(), 1U);
  EXPECT_EQ(lease->targets[0].production_port.number, 80);
  EXPECT_EQ(lease->targets[0].endpoint.to_string(), "10.0.0.2:8080");
  EXPECT_EQ(lease->targets[0].path_mtu, 1450);
  // The lease came behind the hello.
  EXPECT_EQ(intercept.hello.name(), "pod-1");
  EXPECT_EQ(intercept.hello.version(), "1.2.3");
  EXPECT_EQ(intercept.hello.ports_size(), 2);
  EXPECT_EQ(uplink.counters().streams, 1U);
}

TEST(Uplink, CarriesPacketsUpInOrderAndHeadersDown) {
  Intercept intercept;
  Uplink uplink(options_for(intercept.port()));
  ASSERT_TRUE(next<session::Lease>(uplink));
  for (int i = 0; i < 1000; ++i) uplink.send(std::to_string(i) + ",");
  uplink.ask_for_more_source_ports();
  EXPECT_TRUE(intercept.wait_for([&] { return intercept.packets_.ends_with(",999,"); }));
  EXPECT_TRUE(intercept.wait_for([&] { return intercept.asked_for_ports; }));
  std::string expected;
  for (int i = 0; i < 1000; ++i) expected += std::to_string(i) + ",";
  EXPECT_EQ(intercept.packets(), expected);
  uplink.send("echo");
  const auto headers = next<Headers>(uplink);
  ASSERT_TRUE(headers);
  EXPECT_EQ(headers->bytes, "headers");
}

TEST(Uplink, DialsAgainWithin200MillisecondsOfALoss) {
  auto intercept = std::make_unique<Intercept>();
  const net::Port port = intercept->port();
  Uplink uplink(options_for(port));
  ASSERT_TRUE(next<session::Lease>(uplink));
  intercept->stop();
  ASSERT_TRUE(next<StreamLost>(uplink));
  EXPECT_LE(uplink.next_dial() - Uplink::Clock::now(), milliseconds(200));
  intercept.reset();
  intercept = std::make_unique<Intercept>(lease_message(), port.number);
  EXPECT_TRUE(next<session::Lease>(uplink));
  EXPECT_EQ(uplink.counters().streams, 2U);
}

TEST(Uplink, WaitsLongerBetweenVainAttemptsButNeverLong) {
  net::Port port;
  {
    const Intercept gone;
    port = gone.port();
  }
  Uplink uplink(options_for(port));
  for (int i = 0; i < 4; ++i) {
    const auto lost = next<StreamLost>(uplink);
    ASSERT_TRUE(lost);
    EXPECT_NE(lost->reason, "");
    // Half to one and a half of 100 ms, 200 ms, 400 ms, …
    const auto pause = uplink.next_dial() - Uplink::Clock::now();
    EXPECT_LE(pause, milliseconds(150 << i));
    EXPECT_GE(pause, milliseconds(50 << i) - milliseconds(45));
  }
}

TEST(Uplink, IsFullWhenNobodyTakesThePacketsAndDropsOnlyFarBeyond) {
  Intercept intercept;
  Uplink uplink(options_for(intercept.port()));
  ASSERT_TRUE(next<session::Lease>(uplink));
  intercept.pause_reading(true);
  const std::string batch(64 << 10, 'x');
  size_t sent = 0;
  while (!uplink.full()) {
    uplink.send(std::string(batch));
    ASSERT_LT(++sent, 1000U) << "it never fills";
  }
  EXPECT_EQ(uplink.counters().dropped_batches, 0U);
  while (uplink.counters().dropped_batches == 0) {
    uplink.send(std::string(batch));
    ASSERT_LT(++sent, 1000U) << "it never drops";
  }
  intercept.pause_reading(false);
  EXPECT_TRUE(
      intercept.wait_for([&] { return intercept.packets_.size() == (sent - 1) * batch.size(); }));
  EXPECT_FALSE(uplink.full());
}

TEST(Uplink, FinishesBehindEverythingItWasGiven) {
  Intercept intercept;
  Uplink uplink(options_for(intercept.port()));
  ASSERT_TRUE(next<session::Lease>(uplink));
  const std::string batch(1 << 20, 'x');
  uplink.send(std::string(batch));
  uplink.send("last");
  uplink.finish(patience);
  EXPECT_TRUE(intercept.wait_for([&] { return intercept.ended; }));
  EXPECT_EQ(intercept.packets(), batch + "last");
}

TEST(Uplink, EndsAStreamBehindEverythingAndDialsAgain) {
  Intercept intercept;
  Uplink uplink(options_for(intercept.port()));
  ASSERT_TRUE(next<session::Lease>(uplink));
  uplink.send("last");
  uplink.end_stream();
  EXPECT_FALSE(uplink.report({})) << "it would not go out any more";
  EXPECT_TRUE(next<StreamLost>(uplink));
  EXPECT_TRUE(intercept.wait_for([&] { return intercept.ended; }));
  EXPECT_EQ(intercept.packets(), "last");
  EXPECT_TRUE(next<session::Lease>(uplink));
}

TEST(Uplink, EndsAStreamWhoseLeaseMakesNoSense) {
  v1::InterceptMessage nonsense = lease_message();
  nonsense.mutable_lease()->mutable_sources(0)->set_address("three");
  Intercept intercept(nonsense);
  Uplink uplink(options_for(intercept.port()));
  const auto lost = next<StreamLost>(uplink);
  ASSERT_TRUE(lost);
  EXPECT_EQ(lost->reason, "the intercept's lease makes no sense");
  EXPECT_EQ(uplink.counters().streams, 0U);
}

TEST(Uplink, HandsOverWhatTheConfigurationSays) {
  v1::InterceptMessage message;
  message.mutable_configuration()->set_percent(12.5);
  Intercept intercept(message);
  Uplink uplink(options_for(intercept.port()));
  const auto configuration = next<Configuration>(uplink);
  ASSERT_TRUE(configuration);
  EXPECT_EQ(configuration->limits, (program::Limits{12.5, {}, 0}));
}

TEST(Uplink, EndsAStreamWhoseConfigurationMakesNoSense) {
  v1::InterceptMessage message;
  message.mutable_configuration()->set_percent(-1);
  {
    Intercept intercept(message);
    Uplink uplink(options_for(intercept.port()));
    const auto lost = next<StreamLost>(uplink);
    ASSERT_TRUE(lost);
    EXPECT_EQ(lost->reason, "the intercept says a limit that is out of its bounds");
  }
  message.mutable_configuration()->set_percent(1);
  message.mutable_configuration()->set_filter("prot 80");
  Intercept intercept(message);
  Uplink uplink(options_for(intercept.port()));
  const auto lost = next<StreamLost>(uplink);
  ASSERT_TRUE(lost);
  EXPECT_EQ(lost->reason,
            "the intercept says --filter prot 80, which here is no pcap filter: can't parse filter "
            "expression: syntax error");
}

TEST(Uplink, ADrainEndsTheStreamOrTheProgram) {
  v1::InterceptMessage message;
  message.mutable_drain();
  {
    Intercept intercept(message);
    Uplink uplink(options_for(intercept.port()));
    const auto lost = next<StreamLost>(uplink);
    ASSERT_TRUE(lost);
    EXPECT_EQ(lost->reason, "the intercept is ending");
  }
  message.mutable_drain()->set_end(true);
  Intercept intercept(message);
  Uplink uplink(options_for(intercept.port()));
  EXPECT_TRUE(next<Stop>(uplink));
}

TEST(Uplink, ReportsWhatWasCountedBehindThePackets) {
  Intercept intercept;
  Uplink uplink(options_for(intercept.port()));
  session::Counters counters;
  EXPECT_FALSE(uplink.report(counters)) << "there is no stream";
  ASSERT_TRUE(next<session::Lease>(uplink));
  counters.active = 3;
  counters.opened = 7;
  counters.exchanges = 20;
  counters[session::CloseReason::finished] = 4;
  counters[session::ShedReason::sampled] = 9;
  intercept.pause_reading(true);
  // The transport may take some more behind what fills it; at last a report waits, and none is
  // taken behind it.
  size_t reports = 0;
  do {
    while (!uplink.full()) uplink.send(std::string(64 << 10, 'x'));
    EXPECT_LT(reports, 100U);
  } while (uplink.report(counters) && ++reports < 100);
  EXPECT_GT(reports, 0U);
  intercept.pause_reading(false);
  EXPECT_TRUE(intercept.wait_for([&] { return intercept.statistics.size() == reports; }));
  const v1::Statistics& got = intercept.statistics[0];
  EXPECT_EQ(got.sessions(), 3U);
  EXPECT_EQ(got.sessions_opened(), 7U);
  EXPECT_EQ(got.exchanges(), 20U);
  EXPECT_EQ(got.sessions_closed_size(), 1);
  EXPECT_EQ(got.sessions_closed().at("finished"), 4U);
  EXPECT_EQ(got.shed_size(), 1);
  EXPECT_EQ(got.shed().at("sampled"), 9U);
  EXPECT_FALSE(got.has_replay());
  EXPECT_TRUE(uplink.report(counters, ReplayProgress{.packets = 1200, .percent = 40}));
  EXPECT_TRUE(intercept.wait_for([&] { return intercept.statistics.size() > reports; }));
  EXPECT_EQ(intercept.statistics[reports].replay().packets(), 1200U);
  EXPECT_EQ(intercept.statistics[reports].replay().percent(), 40U);
}

TEST(Counters, SinceIsTheDifferenceOfWhatOnlyGrows) {
  session::Counters before;
  before.opened = 5;
  before[session::CloseReason::finished] = 2;
  before[session::ShedReason::no_stream] = 1;
  before.active = 3;
  session::Counters now = before;
  now.opened = 6;
  now[session::CloseReason::finished] = 3;
  now[session::ShedReason::no_stream] = 5;
  now.exchanges = 8;
  const session::Counters since = now.since(before);
  EXPECT_EQ(since.opened, 1U);
  EXPECT_EQ(since[session::CloseReason::finished], 1U);
  EXPECT_EQ(since[session::ShedReason::no_stream], 4U);
  EXPECT_EQ(since.exchanges, 8U);
  EXPECT_EQ(since.active, 3U);
}

TEST(Uplink, ThatNeverGotAStreamFinishesAtOnce) {
  Uplink uplink(options_for({1}));
  uplink.run(Uplink::Clock::now());
  uplink.finish(seconds(3600));
}

}  // namespace
}  // namespace trafficmirror::uplink
