// When an intercept of several is to work, by what the resolver says of their name.
#include <vector>

#include <gtest/gtest.h>

#include "intercept/membership.h"

namespace trafficmirror::intercept {
namespace {

using Change = Listing::Change;

std::vector<Change> changes(const std::vector<std::optional<bool>>& answers) {
  Listing listing;
  std::vector<Change> all;
  for (const auto& answer : answers) all.push_back(listing.take(answer));
  return all;
}

TEST(Listing, JoinsOnceThatItIsListed) {
  EXPECT_EQ(changes({std::nullopt, false, false, true, true}),
            (std::vector{Change::none, Change::none, Change::none, Change::joined, Change::none}));
}

TEST(Listing, LeavesAfterAFewAnswersInARow) {
  EXPECT_EQ(changes({true, false, false, true, false, false, false}),
            (std::vector{Change::joined, Change::none, Change::none, Change::none, Change::none,
                         Change::none, Change::left}));
}

TEST(Listing, StaysWhereNobodyAnswers) {
  EXPECT_EQ(changes({true, std::nullopt, false, std::nullopt, std::nullopt, false, std::nullopt}),
            (std::vector{Change::joined, Change::none, Change::none, Change::none, Change::none,
                         Change::none, Change::none}));
}

}  // namespace
}  // namespace trafficmirror::intercept
