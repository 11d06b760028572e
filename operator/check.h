// Whether the operator and all mirrors work, for a look from outside such as `helm test`.
#pragma once

#include <chrono>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "operator/kube/client.h"

namespace trafficmirror::controller {

// Why a mirror is not Ready although it should be. One that was paused, or whose duration has
// elapsed, is as its user wants it.
struct Problem {
  std::string reason;  // one word; empty where the operator has said nothing of it yet
  std::string message;
};
std::optional<Problem> problem_of(const kube::Json& mirror);
// No sidecar runs any more, nor is anything else left.
bool is_stopped(const kube::Json& mirror);
// A line for each mirror that has a problem.
std::vector<std::string> problems_of(const std::vector<kube::Json>& mirrors);

// Looks again and again, for `patience` at most, until the lease was renewed under its eyes and no
// mirror has a problem. Prints what it found, and returns the program's exit code: 0, or 1 where
// that did not come about. `namespaces` are those of the mirrors; empty: all.
int check(kube::Client& client, const kube::Key& lease, const std::set<std::string>& namespaces,
          std::chrono::milliseconds patience);

}  // namespace trafficmirror::controller
