// What sidecars and intercepts have in common as containers of pods that are somebody else's.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "operator/kube/object.h"

namespace trafficmirror::controller {

enum class InjectedAs {
  container,       // among the pod's containers
  native_sidecar,  // among its init containers, with restartPolicy Always (from 1.29 on)
};
enum class Requests {
  little,
  // As much as its limits, as every container of a pod of class Guaranteed has to, or the pod
  // would lose that class.
  limits,
};

// Of an ephemeral container's environment: it is another where the container's identity is, which
// it has for as long as it runs. The program does not look at it.
inline constexpr const char* identity_revision_variable = "TRAFFICMIRROR_IDENTITY_REVISION";

inline constexpr const char* identity_directory = "/etc/trafficmirror/tls";

struct Attached {
  std::string name;  // of the container, and of the volume with its identity
  std::string image;
  std::string image_pull_policy;  // empty: what the server makes of the image's tag
  std::vector<std::string> capabilities;
  // With arguments, and the environment.
  kube::Json args = kube::Json::array();
  kube::Json env = kube::Json::array();
};
// With these capabilities and no other right.
kube::Json attached_container(Attached attached);
// {"name": …, "valueFrom": …}, of a field of the pod, or of a Secret's key.
kube::Json variable_from_pod(const char* name, const char* field);
kube::Json variable_from_secret(const char* name, const std::string& secret, const char* key);

// For ephemeral ones, which can mount nothing that the pod has not. The kubelet waits with them
// until the Secret is there.
void take_identity_from_environment(kube::Json& container, const std::string& secret);
// For injected ones, with identity_volume() among the pod's volumes.
void take_identity_from_files(kube::Json& container, const std::string& volume);
// Optional, since a Secret that is not there must not hold the pod up.
kube::Json identity_volume(const std::string& name, const std::string& secret);

}  // namespace trafficmirror::controller
