// What of Kubernetes' younger abilities the API server has.
#pragma once

#include <string>
#include <vector>

#include "operator/kube/discovery.h"

namespace trafficmirror::controller {

constexpr kube::Version oldest_server{1, 20};

struct Abilities {
  bool ephemeral_containers = false;
  bool native_sidecars = false;
  bool policy_v1 = false;
};

// The group versions that abilities_of needs, and the mirrors' own.
std::vector<std::string> groups_to_discover();
Abilities abilities_of(const kube::Discovery& discovery);

}  // namespace trafficmirror::controller
