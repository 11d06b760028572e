// Streams to all replicas of an intercept: intercepts in this process, on addresses of loopback, a
// name whose addresses the test says, and a clock that is put forward.
#include "sidecar/replicas.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "tests/unit/tcp_packets.h"
#include "trafficmirror/v1/mirror.grpc.pb.h"

namespace trafficmirror::sidecar {
namespace {

using session::CloseReason;
using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = Replicas::Clock;
// Less than lies between two look-ups.
constexpr seconds patience(5);

std::string address_of(int number) {
  return "127.0.0." + std::to_string(number);
}

// The replica with a number: leases 10.9.0.NUMBER and keeps what is sent.
class Intercept final : public v1::Mirror::Service {
 public:
  // Of port 0 one that is free.
  explicit Intercept(int number, int port = 0) : number_(number) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_of(number) + ":" + std::to_string(port),
                             grpc::InsecureServerCredentials(), &port_);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Intercept() override { stop(); }
  // Every stream ends, and whatever was on its way.
  void stop() {
    pause_reading(false);
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }
  bool listens() const { return port_ != 0; }
  int port() const { return port_; }
  void pause_reading(bool paused) {
    const std::lock_guard lock(mutex_);
    paused_ = paused;
    changed_.notify_all();
  }

  struct Seen {
    std::string packets;
    uint64_t opened = 0;
    uint64_t sessions = 0;
    std::map<std::string, uint64_t> closed;
    std::map<std::string, uint64_t> shed;
    size_t streams = 0;
    size_t ended = 0;  // by the sidecar
  };
  Seen seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }
  size_t syns() const {
    size_t count = 0;
    const std::string packets = seen().packets;
    for (const net::Packet& packet : tests::split(packets, true)) {
      count += packet.tcp.flags.syn;
      EXPECT_EQ(packet.source.address.to_string(), "10.9.0." + std::to_string(number_));
    }
    return count;
  }
  std::optional<v1::Configuration> configuration;
  bool stops_sidecars = false;

 private:
  grpc::Status Stream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::InterceptMessage, v1::SidecarMessage>* stream) override {
    v1::SidecarMessage message;
    stream->Read(&message);
    v1::InterceptMessage said;
    if (configuration) {
      *said.mutable_configuration() = *configuration;
      stream->Write(said);
    }
    v1::SourceRange& source = *said.mutable_lease()->add_sources();
    source.set_address(std::string("\x0a\x09\x00", 3) + static_cast<char>(number_));
    source.set_first_port(10000);
    source.set_last_port(10999);
    v1::Target& target = *said.mutable_lease()->add_targets();
    target.set_production_port(80);
    target.set_address(std::string("\x0a\x02\x00\x01", 4));
    target.set_port(8080);
    target.set_path_mtu(1500);
    {
      const std::lock_guard lock(mutex_);
      ++seen_.streams;
    }
    stream->Write(said);
    if (stops_sidecars) {
      said.mutable_drain()->set_end(true);
      stream->Write(said);
    }
    while (stream->Read(&message)) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !paused_; });
      if (message.has_packets()) seen_.packets += message.packets().packets();
      if (!message.has_statistics()) continue;
      seen_.opened += message.statistics().sessions_opened();
      seen_.sessions = message.statistics().sessions();
      for (const auto& [reason, count] : message.statistics().sessions_closed())
        seen_.closed[reason] += count;
      for (const auto& [reason, count] : message.statistics().shed()) seen_.shed[reason] += count;
    }
    // A sidecar that does not wait for what it sent last cancels right behind it.
    for (int i = 0; i < 20 && !context->IsCancelled(); ++i)
      std::this_thread::sleep_for(milliseconds(5));
    const std::lock_guard lock(mutex_);
    if (!context->IsCancelled()) ++seen_.ended;
    return grpc::Status::OK;
  }

  const int number_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool paused_ = false;
  Seen seen_;
};

// What the name resolves to, and how often it was asked for.
struct Name {
  std::mutex mutex;
  uplink::Found found = std::vector<std::string>{};
  size_t asked = 0;
};

class ReplicasTest : public testing::Test {
 protected:
  // Replicas 1 to `count`, all at one port.
  void start(int count, const std::string& host = "intercept.test") {
    for (int attempt = 0; attempt < 20; ++attempt) {
      intercepts.clear();
      bool all = true;
      for (int number = 1; number <= count; ++number)
        all = start_one(number, number == 1 ? 0 : port()) && all;
      if (all) break;
    }
    ASSERT_EQ(intercepts.size(), static_cast<size_t>(count));
    resolve_to_first(count);
    sidecar = std::make_unique<Replicas>(
        uplink::Uplink::Options{.intercept = {host, {static_cast<uint16_t>(port())}},
                                .name = "pod-1",
                                .version = "1",
                                .ports = {{80}}},
        engine, [its = name](const std::string& asked_for) {
          EXPECT_EQ(asked_for, "intercept.test");
          const std::lock_guard lock(its->mutex);
          ++its->asked;
          return its->found;
        });
  }
  bool start_one(int number, int at_port) {
    auto intercept = std::make_unique<Intercept>(number, at_port);
    if (!intercept->listens()) return false;
    intercepts[number] = std::move(intercept);
    return true;
  }
  int port() const { return intercepts.at(1)->port(); }

  void resolve(uplink::Found to) {
    const std::lock_guard lock(name->mutex);
    name->found = std::move(to);
  }
  void resolve_to_first(int count) {
    std::vector<std::string> addresses;
    for (int number = 1; number <= count; ++number) addresses.push_back(address_of(number));
    resolve(addresses);
  }
  size_t asked() const {
    const std::lock_guard lock(name->mutex);
    return name->asked;
  }

  // As the shard does.
  void step() {
    std::vector<pollfd> waiting;
    sidecar->for_each_descriptor([&](int descriptor) {
      waiting.push_back({descriptor, POLLIN, 0});
    });
    ::poll(waiting.data(), waiting.size(), 10);
    const Clock::time_point now = Clock::now() + ahead;
    const Replicas::Said what = sidecar->take_events(now, engine_now);
    if (what.configuration) said.configuration = what.configuration;
    said.stop = said.stop || what.stop;
    sidecar->run(now);
    engine.run(engine_now);
    sidecar->flush();
  }
  template <typename Condition>
  testing::AssertionResult comes(Condition condition) {
    const auto deadline = Clock::now() + patience;
    while (!condition()) {
      if (Clock::now() > deadline) return testing::AssertionFailure() << "not in time";
      step();
    }
    return testing::AssertionSuccess();
  }
  size_t up() const {
    size_t count = 0;
    for (const auto& [intercept, is_up] : sidecar->streams()) count += is_up;
    return count;
  }
  Clock::duration until_deadline() const { return sidecar->deadline() - (Clock::now() + ahead); }
  // All of so many have a stream, and their name was looked up since.
  testing::AssertionResult settles(size_t count) {
    if (auto came = comes([&] { return are_up(count); }); !came) return came;
    ahead += seconds(2);
    return comes([&] { return until_deadline() > seconds(8) && until_deadline() <= seconds(10); });
  }
  bool are_up(size_t count) const { return up() == count && sidecar->streams().size() == count; }

  // So many connections of production's, each a session.
  // Connections, each with a request.
  void open(size_t count) {
    for (size_t i = 0; i < count; ++i, ++opened) {
      const std::string client = "192.0.2.1:" + std::to_string(1024 + opened);
      for (const tests::Segment& segment :
           {tests::Segment{.flags = {.syn = true}},
            tests::Segment{
                .sequence = 1, .acknowledgment = 1, .flags = {.ack = true}, .payload = "x"}}) {
        const std::string packet = tests::packet(client, "10.1.0.1:80", segment);
        engine.on_production(engine_now, tests::parsed(packet));
      }
    }
    engine.run(engine_now);
    sidecar->flush();
  }
  size_t syns() const {
    size_t count = 0;
    for (const auto& [number, intercept] : intercepts) count += intercept->syns();
    return count;
  }
  static session::Engine::Options options() {
    session::Engine::Options options;
    options.ports = {net::Port{80}};
    return options;
  }

  std::shared_ptr<Name> name = std::make_shared<Name>();
  std::map<int, std::unique_ptr<Intercept>> intercepts;
  session::Engine engine{options()};
  std::unique_ptr<Replicas> sidecar;
  const session::Time engine_now{seconds(1)};  // stands still: nothing is sent again
  Clock::duration ahead{0};
  Replicas::Said said;
  size_t opened = 0;
};

TEST_F(ReplicasTest, SessionsAreSpreadOverAllAddressesOfTheName) {
  start(3);
  EXPECT_EQ(sidecar->streams(),
            (std::vector{std::pair("intercept.test:" + std::to_string(port()), false)}));
  ASSERT_TRUE(comes([&] { return are_up(3); }));
  open(300);
  ASSERT_TRUE(comes([&] { return syns() == 300; }));
  for (const auto& [number, intercept] : intercepts) EXPECT_GT(intercept->syns(), 60U);
  EXPECT_EQ(sidecar->counters().streams, 3U);
}

TEST_F(ReplicasTest, AnAddressIsNeverLookedUp) {
  start(1, "127.0.0.1");
  ASSERT_TRUE(comes([&] { return are_up(1); }));
  ahead += hours(1);
  step();
  EXPECT_EQ(asked(), 0U);
  EXPECT_EQ(sidecar->streams()[0].first, "127.0.0.1:" + std::to_string(port()));
}

TEST_F(ReplicasTest, ANewAddressIsFoundWithinTenSeconds) {
  start(3);
  resolve_to_first(2);
  ASSERT_TRUE(settles(2));
  resolve_to_first(3);
  ahead += seconds(10);
  ASSERT_TRUE(comes([&] { return are_up(3); }));
  open(100);
  EXPECT_TRUE(comes([&] { return syns() == 100 && intercepts[3]->syns() > 0; }));
}

TEST_F(ReplicasTest, AnAddressThatGoesKeepsItsSessionsAndGetsNoNewOnes) {
  start(2);
  ASSERT_TRUE(comes([&] { return are_up(2); }));
  open(100);
  ASSERT_TRUE(comes([&] { return syns() == 100; }));
  const size_t its = intercepts[2]->syns();
  ASSERT_GT(its, 0U);

  resolve_to_first(1);
  ahead += seconds(10);
  ASSERT_TRUE(comes([&] { return are_up(1); }));
  open(100);
  ASSERT_TRUE(comes([&] { return intercepts[1]->syns() == 200 - its; }));
  EXPECT_EQ(intercepts[2]->syns(), its);
  EXPECT_EQ(engine.counters().active, 200U);
  EXPECT_EQ(intercepts[2]->seen().ended, 0U);

  // With the last of its sessions its stream ends, and its intercept has been told of all of them.
  session::Limits none;
  none.memory = 1;
  engine.set_limits(engine_now, none);
  ASSERT_EQ(engine.counters().active, 0U);
  ASSERT_TRUE(comes([&] { return intercepts[2]->seen().ended == 1; }));
  EXPECT_EQ(intercepts[2]->seen().opened, its);
  EXPECT_EQ(intercepts[2]->seen().closed["memory_limit"], its);
  ahead += seconds(10);
  const size_t asked_before = asked();
  ASSERT_TRUE(comes([&] { return asked() > asked_before; }));
  EXPECT_EQ(intercepts[2]->seen().streams, 1U) << "it was dialled again";
  EXPECT_EQ(sidecar->counters().streams, 2U) << "what it counted went with it";
}

TEST_F(ReplicasTest, AnAddressThatIsBackInTimeLosesNothing) {
  start(2);
  ASSERT_TRUE(comes([&] { return are_up(2); }));
  open(100);
  resolve_to_first(1);
  ahead += seconds(10);
  ASSERT_TRUE(comes([&] { return are_up(1); }));
  resolve_to_first(2);
  ahead += seconds(10);
  ASSERT_TRUE(comes([&] { return are_up(2); }));
  const size_t before = intercepts[2]->syns();
  open(100);
  ASSERT_TRUE(comes([&] { return syns() == 200; }));
  EXPECT_GT(intercepts[2]->syns(), before);
  EXPECT_EQ(sidecar->counters().streams, 2U);
  EXPECT_EQ(engine.counters().active, 200U);
}

TEST_F(ReplicasTest, ALookUpThatFailsChangesNothing) {
  start(2);
  ASSERT_TRUE(comes([&] { return are_up(2); }));
  open(100);
  resolve("the name server is gone");
  for (int i = 0; i < 3; ++i) {
    const size_t before = asked();
    // It is asked again a while after the answer, which comes when its thread is done.
    ASSERT_TRUE(comes([&] {
      ahead += seconds(1);
      return asked() > before;
    }));
  }
  step();
  EXPECT_TRUE(are_up(2));
  EXPECT_EQ(engine.counters().active, 100U);
  open(100);
  EXPECT_EQ(engine.counters().active, 200U);
}

TEST_F(ReplicasTest, WithoutAnAddressItAsksSoonerAndSaysWhy) {
  start(1);
  resolve("intercept.test can't be looked up");
  ASSERT_TRUE(comes([&] { return sidecar->problem() == "intercept.test can't be looked up"; }));
  EXPECT_EQ(up(), 0U);
  EXPECT_LE(until_deadline(), seconds(2));
  resolve_to_first(1);
  ahead += seconds(2);
  EXPECT_TRUE(comes([&] { return are_up(1); }));
}

TEST_F(ReplicasTest, OneThatIsLostTakesOnlyItsSessionsAndTheNameIsLookedUpAtOnce) {
  start(3);
  ASSERT_TRUE(settles(3));
  open(300);
  ASSERT_TRUE(comes([&] { return syns() == 300; }));
  const size_t its = intercepts[2]->syns();
  resolve(std::vector{address_of(1), address_of(3)});
  ahead += seconds(1);  // behind the look-up before
  const size_t before = asked();
  intercepts[2]->stop();
  ASSERT_TRUE(comes([&] { return asked() > before && are_up(2); }));
  EXPECT_EQ(engine.counters()[CloseReason::stream_lost], its);
  EXPECT_EQ(engine.counters().active, 300 - its);
  EXPECT_NE(sidecar->problem(), "");
  open(100);
  ASSERT_TRUE(comes([&] { return intercepts[1]->syns() + intercepts[3]->syns() == 400 - its; }));
}

TEST_F(ReplicasTest, OneThatIsNotThereIsDialledAgainAndAgainButNotLookedUp) {
  start(1);
  resolve_to_first(2);
  ASSERT_TRUE(comes([&] { return up() == 1 && !sidecar->problem().empty(); }));
  ahead += seconds(2);
  size_t before = asked();
  ASSERT_TRUE(comes([&] { return asked() > before; }));
  before = asked();
  for (int i = 0; i < 2; ++i) {
    const auto until = Clock::now() + milliseconds(300);
    ASSERT_TRUE(comes([&] { return Clock::now() > until; }));
    ahead += seconds(2);
  }
  step();
  EXPECT_EQ(asked(), before);
}

TEST_F(ReplicasTest, OneThatIsLostIsDialledAgainWhileItIsAnAddress) {
  start(2);
  ASSERT_TRUE(comes([&] { return are_up(2); }));
  const int at = port();
  intercepts[2]->stop();
  ASSERT_TRUE(comes([&] { return up() == 1; }));
  EXPECT_EQ(sidecar->streams().size(), 2U);
  ASSERT_TRUE(start_one(2, at));
  EXPECT_TRUE(comes([&] { return are_up(2); }));
}

TEST_F(ReplicasTest, ItIsWithoutAStreamOnlyWhenThereIsNoneToAny) {
  start(2);
  EXPECT_EQ(sidecar->without_stream(), Clock::duration(0));
  ASSERT_TRUE(comes([&] { return are_up(2); }));
  const int at = port();
  for (const int one : {2, 1}) {
    intercepts[one]->stop();
    ASSERT_TRUE(comes([&] { return up() == 1; }));
    ahead += hours(1);
    step();
    EXPECT_EQ(sidecar->without_stream(), Clock::duration(0));
    ASSERT_TRUE(start_one(one, at));
    ASSERT_TRUE(comes([&] { return are_up(2); }));
  }
  intercepts[1]->stop();
  intercepts[2]->stop();
  ASSERT_TRUE(comes([&] { return up() == 0; }));
  EXPECT_LT(sidecar->without_stream(), hours(1));
  ahead += hours(1);
  step();
  EXPECT_GE(sidecar->without_stream(), hours(1));
}

TEST_F(ReplicasTest, NeverHavingHadAStreamCountsFromTheStart) {
  start(1);
  resolve("nothing");
  step();
  ahead += hours(1);
  step();
  EXPECT_GE(sidecar->without_stream(), hours(1));
}

TEST_F(ReplicasTest, WhatAnyOfThemSaysGoesForTheWholeSidecar) {
  start(2);
  intercepts[2]->configuration.emplace().set_percent(12.5);
  intercepts[2]->stops_sidecars = true;
  ASSERT_TRUE(comes([&] { return are_up(2) && said.configuration && said.stop; }));
  EXPECT_EQ(said.configuration->limits.percent, 12.5);
}

TEST_F(ReplicasTest, WhatTheyAreToldSumsUp) {
  start(3);
  ASSERT_TRUE(comes([&] { return are_up(3); }));
  session::Limits limits;
  limits.sessions = 200;
  engine.set_limits(engine_now, limits);
  open(230);
  ASSERT_TRUE(comes([&] { return syns() == 200; }));
  const auto sum = [&](auto of) {
    uint64_t total = 0;
    for (const auto& [number, intercept] : intercepts) total += of(intercept->seen());
    return total;
  };
  const auto shed = [](Intercept::Seen seen) { return seen.shed["session_limit"]; };
  const auto sessions = [](const Intercept::Seen& seen) { return seen.sessions; };
  const auto told_opened = [](const Intercept::Seen& seen) { return seen.opened; };
  sidecar->report();
  ASSERT_TRUE(comes([&] { return sum(sessions) == 200 && sum(shed) == 30; }));
  EXPECT_EQ(sum(told_opened), 200U);
  for (const auto& [number, intercept] : intercepts) {
    EXPECT_EQ(intercept->seen().opened, intercept->syns());
    EXPECT_TRUE(shed(intercept->seen()) == 0 || shed(intercept->seen()) == 30);
  }

  // One goes, and had not been told of the last ones: another is.
  open(10);
  const size_t its = intercepts[3]->syns();
  intercepts[3]->stop();
  ASSERT_TRUE(comes([&] { return up() == 2; }));
  sidecar->report();
  EXPECT_TRUE(comes([&] {
    return sum(shed) == 40 &&
           sum([](Intercept::Seen seen) { return seen.closed["stream_lost"]; }) == its;
  }));
  EXPECT_EQ(sum(told_opened), 200U);
}

TEST_F(ReplicasTest, AtTheEndEverythingGoesOut) {
  start(3);
  ASSERT_TRUE(comes([&] { return are_up(3); }));
  open(300);
  engine.drain(engine_now);
  sidecar->flush();
  sidecar->report();
  sidecar->finish(patience);
  EXPECT_EQ(syns(), 300U);
  for (const auto& [number, intercept] : intercepts) {
    EXPECT_EQ(intercept->seen().ended, 1U);
    EXPECT_EQ(intercept->seen().closed["drained"], intercept->syns());
  }
}

TEST_F(ReplicasTest, AtTheEndOneThatTakesNothingHoldsUpNoOther) {
  start(3);
  ASSERT_TRUE(comes([&] { return are_up(3); }));
  intercepts[1]->pause_reading(true);
  open(300);
  const auto began = Clock::now();
  sidecar->finish(seconds(1));
  EXPECT_LT(Clock::now() - began, seconds(2));
  EXPECT_EQ(intercepts[2]->seen().ended, 1U);
  EXPECT_EQ(intercepts[3]->seen().ended, 1U);
}

TEST_F(ReplicasTest, OfManyAddressesSomeAreLeftOut) {
  start(1);
  resolve_to_first(20);
  ASSERT_TRUE(comes([&] { return sidecar->streams().size() == Replicas::most; }));
  // Whatever it takes of them later, it gives up none for another.
  const auto before = sidecar->streams();
  resolve_to_first(40);
  const size_t asked_before = asked();
  ahead += seconds(10);
  ASSERT_TRUE(comes([&] { return asked() > asked_before; }));
  step();
  const auto names = [](const auto& streams) {
    std::vector<std::string> all;
    all.reserve(streams.size());
    for (const auto& [intercept, is_up] : streams) all.push_back(intercept);
    return all;
  };
  EXPECT_EQ(names(sidecar->streams()), names(before));
}

TEST(Addresses, AreLookedUpAndEachIsThereOnce) {
  const uplink::Found found = uplink::look_up("localhost");
  ASSERT_TRUE(std::holds_alternative<std::vector<std::string>>(found));
  EXPECT_EQ(std::get<std::vector<std::string>>(found), std::vector<std::string>{"127.0.0.1"});
  EXPECT_EQ(std::get<std::vector<std::string>>(uplink::look_up("::1")),
            std::vector<std::string>{"::1"});
  const std::string long_name(64, 'x');  // than any: no name server is asked
  const uplink::Found none = uplink::look_up(long_name);
  ASSERT_TRUE(std::holds_alternative<std::string>(none));
  EXPECT_TRUE(std::get<std::string>(none).starts_with(long_name + " can't be looked up: "));
  EXPECT_TRUE(uplink::is_address("10.0.0.1"));
  EXPECT_TRUE(uplink::is_address("fd00::1"));
  EXPECT_FALSE(uplink::is_address("localhost"));
}

TEST(Addresses, ThatAreTooManyAreChosenAmongByEachSidecarForItself) {
  std::vector<std::string> all;
  for (int number = 1; number <= 40; ++number) all.push_back(address_of(number));
  EXPECT_EQ(uplink::choose(all, {}, 40, "pod-1"), all);
  std::map<std::string, size_t> chosen;
  for (int pod = 0; pod < 100; ++pod) {
    const std::string sidecar = "pod-" + std::to_string(pod);
    const auto its = uplink::choose(all, {}, 16, sidecar);
    EXPECT_EQ(its.size(), 16U);
    EXPECT_EQ(its, uplink::choose(all, {}, 16, sidecar));
    for (const std::string& address : its) ++chosen[address];
  }
  EXPECT_EQ(chosen.size(), all.size()) << "one is left out by all of them";
  const std::vector<std::string> current(all.begin() + 20, all.begin() + 36);
  EXPECT_EQ(uplink::choose(all, current, 16, "pod-1"), current);
}

}  // namespace
}  // namespace trafficmirror::sidecar
