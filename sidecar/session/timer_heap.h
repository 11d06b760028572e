// The engine's timers: a binary heap of deadlines. Each entry knows its place, so it can be moved
// and removed; a deadline that moves later stays where it is until it comes up, since most are
// moved many times before they do.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "sidecar/session/time.h"

namespace trafficmirror::session {

class TimerHeap;

// Base of what has a deadline. It must be removed from its heap before it goes.
class Timed {
 public:
  Timed() = default;
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  friend class TimerHeap;
  static constexpr size_t nowhere = static_cast<size_t>(-1);
  size_t index_ = nowhere;
};

class TimerHeap {
 public:
  // Has `timed` come up at `deadline` at the latest; it may come up earlier.
  void schedule(Timed& timed, Time deadline) {
    if (timed.index_ == Timed::nowhere) {
      if (deadline == never) return;
      // By a quarter, not to twice the size: there may be a hundred thousand.
      if (entries_.size() == entries_.capacity())
        entries_.reserve(entries_.size() + entries_.size() / 4 + 16);
      timed.index_ = entries_.size();
      entries_.push_back({deadline, &timed});
      sift_up(timed.index_);
    } else if (deadline < entries_[timed.index_].deadline) {
      entries_[timed.index_].deadline = deadline;
      sift_up(timed.index_);
    }
  }

  void remove(Timed& timed) {
    const size_t index = timed.index_;
    if (index == Timed::nowhere) return;
    timed.index_ = Timed::nowhere;
    const Entry last = entries_.back();
    entries_.pop_back();
    // Idle sessions have no timer, and the room theirs took is worth having back.
    if (entries_.size() < entries_.capacity() / 4 && entries_.capacity() > 1024)
      entries_.shrink_to_fit();
    if (index == entries_.size()) return;
    place(index, last);
    sift_up(index);
    sift_down(last.timed->index_);
  }

  Time next() const { return entries_.empty() ? never : entries_.front().deadline; }

  // Takes out what is due first; next() has to be due.
  Timed& pop() {
    Timed& timed = *entries_.front().timed;
    remove(timed);
    return timed;
  }

  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    Time deadline;
    Timed* timed;
  };

  void place(size_t index, const Entry& entry) {
    entries_[index] = entry;
    entry.timed->index_ = index;
  }
  void sift_up(size_t index) {
    const Entry entry = entries_[index];
    for (; index > 0 && entry.deadline < entries_[(index - 1) / 2].deadline;
         index = (index - 1) / 2)
      place(index, entries_[(index - 1) / 2]);
    place(index, entry);
  }
  void sift_down(size_t index) {
    const Entry entry = entries_[index];
    for (;;) {
      size_t child = 2 * index + 1;
      if (child >= entries_.size()) break;
      if (child + 1 < entries_.size() && entries_[child + 1].deadline < entries_[child].deadline)
        ++child;
      if (entry.deadline <= entries_[child].deadline) break;
      place(index, entries_[child]);
      index = child;
    }
    place(index, entry);
  }

  std::vector<Entry> entries_;
};

}  // namespace trafficmirror::session
