#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "operator/kube/work_queue.h"

namespace trafficmirror::kube {
namespace {

using namespace std::chrono_literals;

class KubeWorkQueue : public testing::Test {
 protected:
  std::string next() {
    const auto key = queue_.try_get();
    return key ? key->name : "none";
  }

  WorkQueue::Clock::time_point now_{};
  WorkQueue queue_{{.first_retry = 100ms, .longest_retry = 1s, .now = [this] { return now_; }}};
  const Key a_{"shop", "a"};
  const Key b_{"shop", "b"};
};

TEST_F(KubeWorkQueue, HandsOutEachKeyOnceAndInOrder) {
  queue_.add(b_);
  queue_.add(a_);
  queue_.add(b_);
  EXPECT_EQ(queue_.size(), 2U);
  EXPECT_EQ(next(), "b");
  EXPECT_EQ(next(), "a");
  EXPECT_EQ(next(), "none");
}

TEST_F(KubeWorkQueue, KeepsAKeyBackWhileItIsWorkedOn) {
  queue_.add(a_);
  EXPECT_EQ(next(), "a");
  queue_.add(a_);
  queue_.add(a_);
  EXPECT_EQ(next(), "none");
  queue_.done(a_);
  EXPECT_EQ(next(), "a");
  queue_.done(a_);
  EXPECT_EQ(next(), "none");
}

TEST_F(KubeWorkQueue, AddsLater) {
  queue_.add_after(a_, 200ms);
  queue_.add_after(a_, 100ms);  // the earliest holds
  queue_.add_after(a_, 300ms);
  queue_.add_after(b_, 0ms);
  EXPECT_EQ(next(), "b");
  now_ += 99ms;
  EXPECT_EQ(next(), "none");
  now_ += 1ms;
  EXPECT_EQ(next(), "a");
  queue_.done(a_);
  now_ += 1s;
  EXPECT_EQ(next(), "none");
}

TEST_F(KubeWorkQueue, RetriesLaterAndLater) {
  for (const auto delay : {100ms, 200ms, 400ms, 800ms, 1000ms, 1000ms}) {
    queue_.retry(a_);
    now_ += delay - 1ms;
    EXPECT_EQ(next(), "none") << delay.count();
    now_ += 1ms;
    EXPECT_EQ(next(), "a") << delay.count();
    queue_.done(a_);
  }
  queue_.retry(b_);
  now_ += 100ms;
  EXPECT_EQ(next(), "b") << "each key has a count of its own";
  queue_.forget(a_);
  queue_.retry(a_);
  now_ += 100ms;
  EXPECT_EQ(next(), "a");
}

TEST_F(KubeWorkQueue, IsEmptyOnceItIsShutDown) {
  queue_.add(a_);
  queue_.shut_down();
  queue_.add(b_);
  EXPECT_EQ(next(), "none");
  EXPECT_EQ(queue_.get(), std::nullopt);
}

TEST(KubeWorkQueueThreads, WakesWorkersForWhatIsAddedAndDue) {
  WorkQueue queue;
  std::atomic<int> got = 0;
  std::atomic<int> at_work = 0;
  std::atomic<bool> twice = false;
  std::vector<std::thread> workers;
  workers.reserve(4);
  for (int i = 0; i < 4; ++i)
    workers.emplace_back([&] {
      while (const auto key = queue.get()) {
        if (key->name == "one" && ++at_work > 1) twice = true;
        std::this_thread::yield();
        if (key->name == "one") --at_work;
        queue.done(*key);
        if (key->name == "last") queue.shut_down();
        ++got;
      }
    });
  queue.add_after({"", "later"}, 1ms);
  for (int i = 0; i < 1000; ++i) queue.add({"", "one"});
  queue.add_after({"", "last"}, 10ms);
  for (std::thread& worker : workers) worker.join();
  EXPECT_FALSE(twice);
  EXPECT_GE(got, 3);
}

}  // namespace
}  // namespace trafficmirror::kube
