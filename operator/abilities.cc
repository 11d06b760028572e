#include "operator/abilities.h"

#include "operator/names.h"

namespace trafficmirror::controller {

std::vector<std::string> groups_to_discover() {
  return {"v1", resources::disruption_budgets.group_version(), resources::mirrors.group_version()};
}

Abilities abilities_of(const kube::Discovery& discovery) {
  return {.ephemeral_containers = discovery.ephemeral_containers(),
          .native_sidecars = discovery.native_sidecars(),
          .policy_v1 = discovery.has(resources::disruption_budgets)};
}

}  // namespace trafficmirror::controller
