// Keys of objects that somebody has to look at.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "operator/kube/object.h"

namespace trafficmirror::kube {

// A key that is added again while it waits is there once; one that is added while somebody works on
// it waits until that is done. So no two workers have the same key at the same time, and no change
// is missed. For use by any number of threads:
//
//   while (const auto key = queue.get()) {
//     if (reconcile(*key)) queue.forget(*key); else queue.retry(*key);
//     queue.done(*key);
//   }
class WorkQueue {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    // Between tries of one key; doubled each time.
    std::chrono::milliseconds first_retry = std::chrono::milliseconds(200);
    std::chrono::milliseconds longest_retry = std::chrono::minutes(2);
    std::function<Clock::time_point()> now = Clock::now;
  };

  WorkQueue() : WorkQueue(Options()) {}
  explicit WorkQueue(Options options) : options_(std::move(options)) {}

  void add(const Key& key);
  // Of several times for one key the earliest holds.
  void add_after(const Key& key, std::chrono::milliseconds delay);
  // add_after, the later the more often since forget().
  void retry(const Key& key);
  // The key's next retry is a first one again.
  void forget(const Key& key);

  // Waits for a key that is due, and gives it to this worker until done(). Nothing once it is shut
  // down, even if keys are left.
  std::optional<Key> get();
  // The same without waiting.
  std::optional<Key> try_get();
  void done(const Key& key);

  // Lets all workers go; what is added from then on is dropped.
  void shut_down();

  // Keys that are due and that nobody works on.
  size_t size() const;

 private:
  // All with the lock held.
  void add_now(const Key& key);
  void take_over_due();
  std::optional<Key> take();

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Key> ready_;
  std::set<Key> waiting_;  // those of ready_, and those added while they are worked on
  std::set<Key> at_work_;
  std::map<Key, Clock::time_point> later_;
  std::multimap<Clock::time_point, Key> by_time_;  // later_, by time
  std::map<Key, int> failures_;
  bool shut_down_ = false;
};

}  // namespace trafficmirror::kube
