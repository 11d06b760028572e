#include <atomic>

#include <gtest/gtest.h>

#include "operator/kube/events.h"
#include "tests/kube_server/kube_server.h"

namespace trafficmirror::kube {
namespace {

using namespace std::chrono_literals;
using Clock = EventRecorder::Clock;

const Resource events{.group = "", .version = "v1", .plural = "events"};

class KubeEvents : public testing::Test {
 protected:
  Json about(const std::string& name) {
    return {{"apiVersion", "trafficmirror.dev/v1alpha1"},
            {"kind", "TrafficMirror"},
            {"metadata", {{"name", name}, {"namespace", "shop"}, {"uid", "uid-of-" + name}}}};
  }
  void record(const std::string& name, const std::string& message = "Two pods.") {
    recorder_.record(about(name), EventType::normal, "Attached", message);
  }
  // Waits until an Event that was recorded last of all is there, so that those before it are, too.
  void settle() {
    const std::string mark = "mark" + std::to_string(++marks_);
    record(mark);
    ASSERT_TRUE(server_.wait_for(
        [&](const KubeServer::Request& request) {
          return request.method == "POST" && request.body.find(mark + ".") != std::string::npos;
        },
        1));
  }
  // The Events about `name`, in any order.
  std::vector<Json> events_of(const std::string& name) {
    const auto list = client_.list(events, "shop");
    std::vector<Json> result;
    if (list)
      for (const Json& event : list->at("items"))
        if (text_at(event, "/involvedObject/name") == name) result.push_back(event);
    return result;
  }

  KubeServer server_;
  Client client_{server_.config(), "test"};
  std::atomic<Clock::time_point> now_{Clock::time_point(1h)};
  int marks_ = 0;
  EventRecorder recorder_{client_,
                          {.component = "operator",
                           .instance = "operator-1",
                           .burst = 3,
                           .interval = 60s,
                           .now = [this] { return now_.load(); }}};
};

TEST_F(KubeEvents, SayWhatHappenedToWhat) {
  recorder_.record(about("m"), EventType::warning, "NoConsent", "Namespace b does not accept.");
  settle();
  const auto found = events_of("m");
  ASSERT_EQ(found.size(), 1U);
  const Json& event = found.front();
  EXPECT_EQ(text_at(event, "/type"), "Warning");
  EXPECT_EQ(text_at(event, "/reason"), "NoConsent");
  EXPECT_EQ(text_at(event, "/message"), "Namespace b does not accept.");
  EXPECT_EQ(text_at(event, "/involvedObject/kind"), "TrafficMirror");
  EXPECT_EQ(text_at(event, "/involvedObject/uid"), "uid-of-m");
  EXPECT_EQ(text_at(event, "/source/component"), "operator");
  EXPECT_EQ(text_at(event, "/reportingInstance"), "operator-1");
  EXPECT_EQ(event["count"], 1);
  EXPECT_EQ(text_at(event, "/firstTimestamp"), text_at(event, "/lastTimestamp"));
}

TEST_F(KubeEvents, CountWhatIsSaidAgain) {
  record("m");
  record("m");
  record("n");
  settle();
  ASSERT_EQ(events_of("m").size(), 1U);
  EXPECT_EQ(events_of("m").front()["count"], 2);
  EXPECT_EQ(events_of("n").front()["count"], 1);
  // What was said long ago is said anew.
  now_ = now_.load() + 11min;
  record("m");
  settle();
  EXPECT_EQ(events_of("m").size(), 2U);
}

TEST_F(KubeEvents, AreMadeAnewWhereTheServerForgotThem) {
  record("m");
  settle();
  server_.remove(events, key_of(events_of("m").front()));
  record("m");
  settle();
  ASSERT_EQ(events_of("m").size(), 1U);
  EXPECT_EQ(events_of("m").front()["count"], 1);
}

TEST_F(KubeEvents, AreLimitedForEachObject) {
  for (int i = 0; i < 10; ++i) record("m", "Message " + std::to_string(i));
  settle();
  EXPECT_EQ(events_of("m").size(), 3U);
  now_ = now_.load() + 60s;
  for (int i = 0; i < 10; ++i) record("m", "Later message " + std::to_string(i));
  settle();
  EXPECT_EQ(events_of("m").size(), 4U);
}

TEST_F(KubeEvents, LostOnesAreNoHarm) {
  server_.inject({.matches = has_method("POST"), .status = 500});
  record("m");
  record("m");
  settle();
  ASSERT_EQ(events_of("m").size(), 1U);
  EXPECT_EQ(events_of("m").front()["count"], 1);
}

TEST_F(KubeEvents, StopInTheMidst) {
  server_.inject({.matches = has_method("POST"), .hold = true});
  auto recorder = std::make_unique<EventRecorder>(client_, EventRecorder::Options{});
  recorder->record(about("m"), EventType::normal, "Attached", "Two pods.");
  ASSERT_TRUE(server_.wait_for_held(1));
  recorder->record(about("n"), EventType::normal, "Attached", "Two pods.");
  const auto begin = Clock::now();
  recorder.reset();
  EXPECT_LT(Clock::now() - begin, 1s);
  server_.release();
}

}  // namespace
}  // namespace trafficmirror::kube
