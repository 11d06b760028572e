// `kubectl trafficmirror stop`.
#pragma once

#include <chrono>
#include <ostream>

#include "operator/kube/client.h"

namespace trafficmirror::kubectl {

enum class Stop {
  pause,   // the object stays, and goes on when spec.paused is false again
  remove,  // it is deleted
};

// Stops a mirror, waits until nothing of it runs any more, and prints what was counted in the end.
// Returns the exit code: 0, or 1 where that did not come about within `patience`. Throws
// program::StartError where the server does not do it.
int stop(kube::Client& client, const kube::Key& mirror, Stop how,
         std::chrono::milliseconds patience, std::ostream& out);

}  // namespace trafficmirror::kubectl
