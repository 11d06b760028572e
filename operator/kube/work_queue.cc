#include "operator/kube/work_queue.h"

#include <algorithm>
#include <utility>

namespace trafficmirror::kube {

void WorkQueue::add(const Key& key) {
  const std::lock_guard lock(mutex_);
  add_now(key);
}

void WorkQueue::add_now(const Key& key) {
  if (shut_down_ || !waiting_.insert(key).second) return;
  if (at_work_.contains(key)) return;  // done() takes it from there
  ready_.push_back(key);
  changed_.notify_one();
}

void WorkQueue::add_after(const Key& key, std::chrono::milliseconds delay) {
  const std::lock_guard lock(mutex_);
  if (shut_down_) return;
  if (delay <= std::chrono::milliseconds::zero()) return add_now(key);
  const auto at = options_.now() + delay;
  const auto [known, is_new] = later_.emplace(key, at);
  if (!is_new) {
    if (known->second <= at) return;
    const auto [begin, end] = by_time_.equal_range(known->second);
    by_time_.erase(
        std::find_if(begin, end, [&](const auto& entry) { return entry.second == key; }));
    known->second = at;
  }
  by_time_.emplace(at, key);
  // The worker that waits may have to wait for less.
  changed_.notify_one();
}

void WorkQueue::retry(const Key& key) {
  std::chrono::milliseconds delay = options_.first_retry;
  {
    const std::lock_guard lock(mutex_);
    int& failures = failures_[key];
    for (int i = 0; i < failures && delay < options_.longest_retry; ++i) delay *= 2;
    ++failures;
  }
  add_after(key, std::min(delay, options_.longest_retry));
}

void WorkQueue::forget(const Key& key) {
  const std::lock_guard lock(mutex_);
  failures_.erase(key);
}

std::optional<Key> WorkQueue::get() {
  std::unique_lock lock(mutex_);
  while (true) {
    if (shut_down_) return std::nullopt;
    if (auto key = take()) return key;
    if (by_time_.empty())
      changed_.wait(lock);
    else
      changed_.wait_for(lock, by_time_.begin()->first - options_.now());
  }
}

std::optional<Key> WorkQueue::try_get() {
  const std::lock_guard lock(mutex_);
  if (shut_down_) return std::nullopt;
  return take();
}

void WorkQueue::take_over_due() {
  const auto now = options_.now();
  while (!by_time_.empty() && by_time_.begin()->first <= now) {
    const Key key = by_time_.begin()->second;
    by_time_.erase(by_time_.begin());
    later_.erase(key);
    add_now(key);
  }
}

std::optional<Key> WorkQueue::take() {
  take_over_due();
  if (ready_.empty()) return std::nullopt;
  Key key = std::move(ready_.front());
  ready_.pop_front();
  waiting_.erase(key);
  at_work_.insert(key);
  return key;
}

void WorkQueue::done(const Key& key) {
  const std::lock_guard lock(mutex_);
  at_work_.erase(key);
  if (!waiting_.contains(key) || shut_down_) return;
  ready_.push_back(key);
  changed_.notify_one();
}

void WorkQueue::shut_down() {
  const std::lock_guard lock(mutex_);
  shut_down_ = true;
  changed_.notify_all();
}

size_t WorkQueue::size() const {
  const std::lock_guard lock(mutex_);
  return ready_.size();
}

}  // namespace trafficmirror::kube
