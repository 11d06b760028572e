// kubectl/ is the plugin of kubectl, kubectl-trafficmirror: what a person reads of mirrors
// (status), what keeps one from working (doctor, and examine, which asks the API server for it),
// and their end (stop). status, doctor, text and network_policy are pure.
//
// This header: `kubectl trafficmirror status`: what a person reads of mirrors. Pure: objects in,
// text out.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kubectl/leadership.h"
#include "operator/kube/object.h"
#include "operator/kube/result.h"
#include "operator/plan.h"

namespace trafficmirror::kubectl {

struct Told {
  std::string text;
  bool well = true;  // nothing is wrong that should be told by the exit code
};

// All of the mirrors that were asked for, in a table, and below it what is wrong with each.
// `where` is "namespace shop", for where there are none.
Told status_of_all(const std::vector<kube::Json>& mirrors, const std::string& where,
                   const Leadership& leadership, controller::WallTime now);

// One on its own, with all that is known of it. `pods` are those of its namespace, as the server
// has them.
Told status_of_one(const kube::Json& mirror, const kube::Result<std::vector<kube::Json>>& pods,
                   const Leadership& leadership, controller::WallTime now);

// "10,234 exchanges and 3 sheds": what was counted so far.
std::string counts_of(const kube::Json& mirror);

}  // namespace trafficmirror::kubectl
