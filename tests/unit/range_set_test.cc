#include "sidecar/session/range_set.h"

#include <gtest/gtest.h>

namespace trafficmirror::session {
namespace {

TEST(RangeSetTest, HoldsNoMoreRangesThanItMay) {
  RangeSet<uint64_t> set;
  const uint64_t most = RangeSet<uint64_t>::max_ranges;
  for (uint64_t i = 0; i < 2 * most; ++i) set.insert(10 * i, 10 * i + 1);
  EXPECT_EQ(set.ranges().size(), most);
  EXPECT_EQ(set.ranges().back().begin, 10 * (most - 1));
}

// Otherwise what was missing could never come any more.
TEST(RangeSetTest, TakesWhatJoinsRangesWhereItIsFull) {
  RangeSet<uint64_t> set;
  const uint64_t most = RangeSet<uint64_t>::max_ranges;
  for (uint64_t i = 0; i < most; ++i) set.insert(10 * i, 10 * i + 1);
  set.insert(1, 10);
  EXPECT_EQ(set.ranges().size(), most - 1);
  EXPECT_EQ(set.ranges().front().end, 11u);
}

}  // namespace
}  // namespace trafficmirror::session
