// A set of byte ranges of one stream: what arrived out of order, or what was acknowledged
// selectively. It is empty most of the time, when it costs a pointer, and else holds a handful, so
// a sorted vector serves best.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace trafficmirror::session {

template <typename Offset>
class RangeSet {
 public:
  struct Range {  // from begin up to, not including, end
    Offset begin;
    Offset end;
  };

  bool empty() const { return !ranges_; }
  std::span<const Range> ranges() const {
    return ranges_ ? std::span<const Range>(*ranges_) : std::span<const Range>();
  }

  // More ranges than this are no honest peer's doing: what would make another is left out, as if it
  // had been lost.
  static constexpr size_t max_ranges = 256;

  void insert(Offset begin, Offset end) {
    if (begin >= end) return;
    if (!ranges_) ranges_ = std::make_unique<std::vector<Range>>();
    auto first = std::find_if(ranges_->begin(), ranges_->end(),
                              [&](const Range& range) { return range.end >= begin; });
    auto last = first;
    for (; last != ranges_->end() && last->begin <= end; ++last) {
      begin = std::min(begin, last->begin);
      end = std::max(end, last->end);
    }
    if (first == last && ranges_->size() >= max_ranges) return;
    ranges_->insert(ranges_->erase(first, last), Range{begin, end});
  }

  // Removes everything before `offset`.
  void remove_before(Offset offset) {
    if (!ranges_) return;
    std::erase_if(*ranges_, [&](const Range& range) { return range.end <= offset; });
    if (ranges_->empty())
      clear();
    else
      ranges_->front().begin = std::max(ranges_->front().begin, offset);
  }

  void clear() { ranges_.reset(); }

  // The first offset from `offset` on that is not in the set, and how far nothing is (`limit` at
  // most).
  Range next_gap(Offset offset, Offset limit) const {
    for (const Range& range : ranges()) {
      if (range.end <= offset) continue;
      if (range.begin > offset) return {offset, std::min(range.begin, limit)};
      offset = range.end;
    }
    return {std::min(offset, limit), limit};
  }

  // Bytes in the set that lie before `limit`.
  uint64_t size_before(Offset limit) const {
    uint64_t size = 0;
    for (const Range& range : ranges())
      if (range.begin < limit) size += std::min(range.end, limit) - range.begin;
    return size;
  }

 private:
  std::unique_ptr<std::vector<Range>> ranges_;  // null or not empty
};

}  // namespace trafficmirror::session
