// Whether an operator leads, by its Lease.
#pragma once

#include <string>
#include <vector>

#include "operator/kube/client.h"
#include "operator/plan.h"

namespace trafficmirror::kubectl {

struct Leadership {
  enum class State { leads, nobody, unknown };
  State state = State::unknown;
  // "one leads", and with nobody or unknown why, and what to do.
  std::string text;
};

// `leases` are all of the operators' name: there may be several operators, each for other
// namespaces. A clock that goes wrong here makes one that leads look as if it did not.
Leadership judge_leadership(const std::vector<kube::Json>& leases, controller::WallTime now);

// Looks for it, and again for a few seconds where it seems that nobody leads, since the clocks may
// differ: a Lease that changes meanwhile is somebody's.
Leadership find_leadership(kube::Client& client);

}  // namespace trafficmirror::kubectl
