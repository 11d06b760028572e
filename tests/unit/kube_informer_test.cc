#include <condition_variable>
#include <map>
#include <mutex>

#include <gtest/gtest.h>

#include "operator/kube/informer.h"
#include "tests/kube_server/kube_server.h"

namespace trafficmirror::kube {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

const Resource pods{.group = "", .version = "v1", .plural = "pods"};

Json pod(const std::string& name, const std::string& value = "") {
  return {{"metadata", {{"name", name}, {"namespace", "shop"}, {"labels", {{"app", "checkout"}}}}},
          {"spec", {{"value", value}}}};
}

class KubeInformer : public testing::Test {
 protected:
  KubeInformer() {
    for (const char* name : {"a", "b", "c"}) server_.put(pods, pod(name));
  }

  Informer::Options options() {
    Informer::Options options;
    options.resource = pods;
    options.changed = [this](const Key& key) {
      const std::lock_guard lock(mutex_);
      ++told_[key.name];
      changed_.notify_all();
    };
    options.first_retry = 1ms;
    options.longest_retry = 20ms;
    return options;
  }

  // Waits until the informer has told of `name` so often; false after ten seconds.
  bool told(const std::string& name, int times) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 10s, [&] { return told_[name] >= times; });
  }

  static std::string value(const Informer& informer, const std::string& name) {
    const auto object = informer.get({"shop", name});
    return object ? text_at(*object, "/spec/value") : "none";
  }

  // What the watch is told while it can't be reached has to be in the copy afterwards.
  void expect_recovery(const Informer& informer) {
    server_.put(pods, pod("after", "1"));
    EXPECT_TRUE(told("after", 1));
    EXPECT_EQ(value(informer, "after"), "1");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, int> told_;
  KubeServer server_;
  Client client_{server_.config(), "test"};
};

TEST_F(KubeInformer, FollowsWhatIsThere) {
  server_.inject({.matches = is_list, .hold = true});
  Informer::Options with_transform = options();
  with_transform.transform = strip;
  Json full = pod("full");
  full["metadata"]["managedFields"] = {1, 2};
  full["metadata"]["annotations"] = {{"kubectl.kubernetes.io/last-applied-configuration", "{}"},
                                     {"mine", "x"}};
  server_.put(pods, full);
  const Informer informer(client_, with_transform);
  ASSERT_TRUE(server_.wait_for(is_list, 1));
  EXPECT_FALSE(informer.has_synced());
  EXPECT_FALSE(informer.wait_until_synced(0ms));
  server_.release();
  ASSERT_TRUE(informer.wait_until_synced(10s));
  EXPECT_EQ(informer.list().size(), 4U);
  EXPECT_EQ(informer.list("shop").size(), 4U);
  EXPECT_EQ(informer.list("shoe").size(), 0U);
  ASSERT_TRUE(told("a", 1));

  ASSERT_TRUE(server_.wait_for_watches(1));
  server_.put(pods, pod("a", "2"));
  ASSERT_TRUE(told("a", 2));
  EXPECT_EQ(value(informer, "a"), "2");
  server_.remove(pods, {"shop", "a"});
  ASSERT_TRUE(told("a", 3));
  EXPECT_EQ(value(informer, "a"), "none");
  server_.put(pods, full);
  ASSERT_TRUE(told("full", 2));
  const auto kept = informer.get({"shop", "full"});
  EXPECT_FALSE(kept->at("metadata").contains("managedFields"));
  EXPECT_EQ(kept->at("metadata").at("annotations"), Json({{"mine", "x"}}));
  EXPECT_EQ(server_.count(is_list), 1U);
}

TEST_F(KubeInformer, ListsInPages) {
  Informer::Options small = options();
  small.page_size = 2;
  const Informer informer(client_, small);
  ASSERT_TRUE(informer.wait_until_synced(10s));
  EXPECT_EQ(informer.list().size(), 3U);
  EXPECT_EQ(server_.count(is_list), 2U);
}

TEST_F(KubeInformer, BeginsAnewWhereThePagesEndEarly) {
  server_.inject({.matches =
                      [](const KubeServer::Request& request) {
                        return request.query.find("continue=") != std::string::npos;
                      },
                  .status = 410,
                  .reason = "Expired"});
  Informer::Options small = options();
  small.page_size = 2;
  const Informer informer(client_, small);
  ASSERT_TRUE(informer.wait_until_synced(10s));
  EXPECT_EQ(informer.list().size(), 3U);
  EXPECT_EQ(server_.count(is_list), 4U);
}

TEST_F(KubeInformer, SelectsByLabelsAndFields) {
  Informer::Options selecting = options();
  selecting.namespace_ = "shop";
  selecting.selection = {"app=checkout", "metadata.name!=b"};
  const Informer informer(client_, selecting);
  ASSERT_TRUE(informer.wait_until_synced(10s));
  EXPECT_EQ(informer.list().size(), 2U);
  ASSERT_TRUE(server_.wait_for_watches(1));
  server_.put(pods, pod("b"));
  expect_recovery(informer);
  EXPECT_EQ(value(informer, "b"), "none");
}

TEST_F(KubeInformer, TriesAgainUntilTheListComes) {
  server_.inject({.matches = is_list, .times = 3, .status = 500});
  const Informer informer(client_, options());
  ASSERT_TRUE(informer.wait_until_synced(10s));
  EXPECT_EQ(server_.count(is_list), 4U);
}

TEST_F(KubeInformer, WaitsAsLongAsItIsAskedTo) {
  server_.inject({.matches = is_list, .status = 429, .retry_after = "1"});
  const auto begin = Clock::now();
  const Informer informer(client_, options());
  ASSERT_TRUE(informer.wait_until_synced(10s));
  EXPECT_GE(Clock::now() - begin, 1s);
}

TEST_F(KubeInformer, GivesUpAListThatDoesNotCome) {
  server_.inject({.matches = is_list, .hold = true});
  Informer::Options impatient = options();
  impatient.list_timeout = 50ms;
  const Informer informer(client_, impatient);
  ASSERT_TRUE(informer.wait_until_synced(10s));
  server_.release();
}

TEST_F(KubeInformer, ListsAnewWhenItsVersionIsGone) {
  const Informer informer(client_, options());
  ASSERT_TRUE(server_.wait_for_watches(1));
  // While the watch is away, one object changes, one goes, one comes, and all of it is forgotten.
  server_.inject({.matches = is_watch, .times = -1, .status = 503});
  server_.cut_watches();
  ASSERT_TRUE(server_.wait_for_watches(0));
  server_.put(pods, pod("a", "2"));
  server_.remove(pods, {"shop", "b"});
  server_.put(pods, pod("d", "new"));
  server_.compact();
  server_.clear_faults();
  ASSERT_TRUE(told("d", 1));
  EXPECT_EQ(value(informer, "a"), "2");
  EXPECT_EQ(value(informer, "b"), "none");
  EXPECT_EQ(value(informer, "d"), "new");
  ASSERT_TRUE(told("a", 2));
  ASSERT_TRUE(told("b", 2));
  EXPECT_EQ(server_.count(is_list), 2U);
  expect_recovery(informer);
  EXPECT_TRUE(told("c", 1));
  const std::lock_guard lock(mutex_);
  EXPECT_EQ(told_["c"], 1) << "it did not change";
}

TEST_F(KubeInformer, ListsAnewWhenTheWatchIsRefusedAsGone) {
  server_.inject({.matches = is_watch, .status = 410, .reason = "Expired"});
  const Informer informer(client_, options());
  ASSERT_TRUE(server_.wait_for(is_list, 2));
  ASSERT_TRUE(server_.wait_for_watches(1));
  expect_recovery(informer);
}

TEST_F(KubeInformer, GoesOnWhereAWatchWasCut) {
  const Informer informer(client_, options());
  for (int i = 1; i <= 3; ++i) {
    ASSERT_TRUE(server_.wait_for_watches(1));
    server_.cut_watches();
    ASSERT_TRUE(server_.wait_for(is_watch, static_cast<size_t>(i) + 1));
    server_.put(pods, pod("a", std::to_string(i)));
    ASSERT_TRUE(told("a", i + 1));
    EXPECT_EQ(value(informer, "a"), std::to_string(i));
  }
  EXPECT_EQ(server_.count(is_list), 1U);
}

TEST_F(KubeInformer, GoesOnBehindABookmark) {
  const Informer informer(client_, options());
  ASSERT_TRUE(server_.wait_for_watches(1));
  // The server sends bookmarks for what a watch of pods does not see.
  const Json other = server_.put({"", "v1", "services"}, pod("x"));
  const std::string version = text_at(other, "/metadata/resourceVersion");
  const auto watches_from_there = [&](const KubeServer::Request& request) {
    return request.watch &&
           request.query.find("resourceVersion=" + version + "&") != std::string::npos;
  };
  // Cut again and again, since the bookmark may not have been read yet.
  const auto give_up = Clock::now() + 10s;
  while (server_.count(watches_from_there) == 0 && Clock::now() < give_up) {
    const size_t before = server_.count(is_watch);
    ASSERT_TRUE(server_.wait_for_watches(1));
    server_.cut_watches();
    ASSERT_TRUE(server_.wait_for(is_watch, before + 1));
  }
  EXPECT_GE(server_.count(watches_from_there), 1U);
  EXPECT_EQ(server_.count(is_list), 1U);
}

TEST_F(KubeInformer, GivesUpAWatchThatSaysNothing) {
  server_.inject({.matches = is_watch, .hold = true});
  Informer::Options impatient = options();
  impatient.watch_timeout = 20ms;
  impatient.grace = 20ms;
  const Informer informer(client_, impatient);
  // The first is never answered.
  ASSERT_TRUE(server_.wait_for(is_watch, 2));
  expect_recovery(informer);
  server_.release();
}

TEST_F(KubeInformer, BacksOffFromAServerThatEndsEveryWatchAtOnce) {
  server_.inject({.matches = is_watch, .times = -1, .cut = true});
  Informer::Options slow = options();
  slow.first_retry = 10min;
  slow.longest_retry = 10min;
  const auto informer = std::make_unique<Informer>(client_, slow);
  ASSERT_TRUE(server_.wait_for(is_watch, 1));
  ASSERT_TRUE(server_.wait_for_watches(0));
  // It waits now, and another client finds the server at peace.
  EXPECT_TRUE(client_.get(pods, {"shop", "a"}));
  EXPECT_EQ(server_.count(is_watch), 1U);
}

TEST_F(KubeInformer, StopsAtOnce) {
  const auto stop = [&](std::unique_ptr<Informer> informer) {
    const auto begin = Clock::now();
    informer.reset();
    EXPECT_LT(Clock::now() - begin, 1s);
  };
  // In the midst of a watch, of a list, and of the wait for another try.
  auto watching = std::make_unique<Informer>(client_, options());
  ASSERT_TRUE(server_.wait_for_watches(1));
  stop(std::move(watching));

  server_.inject({.matches = is_list, .hold = true});
  const size_t lists = server_.count(is_list);
  auto listing = std::make_unique<Informer>(client_, options());
  ASSERT_TRUE(server_.wait_for(is_list, lists + 1));
  stop(std::move(listing));
  server_.release();

  server_.inject({.matches = is_list, .times = -1, .status = 500});
  Informer::Options patient = options();
  patient.first_retry = 10min;
  patient.longest_retry = 10min;
  auto waiting = std::make_unique<Informer>(client_, patient);
  ASSERT_TRUE(server_.wait_for(is_list, lists + 2));
  stop(std::move(waiting));
}

}  // namespace
}  // namespace trafficmirror::kube
