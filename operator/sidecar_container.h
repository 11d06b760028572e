// The sidecar as a container of a production pod, in JSON as it stands in the pod.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "net/address.h"
#include "operator/attached_container.h"
#include "operator/kube/object.h"

namespace trafficmirror::controller {

struct SidecarSettings {
  std::string name;  // of the container, and of the volume with its identity
  std::string image;
  std::string image_pull_policy{};  // empty: what the server makes of the image's tag
  std::vector<net::Port> ports;
  std::string interface {};  // empty: that of the default route
  net::HostPort intercept;
  std::string tls_peer;  // the intercept's identity
  std::string secret;    // with tls.crt, tls.key and ca.crt, in the pod's namespace
  uint64_t memory_limit = 64 << 20;
  // An ephemeral one that has had no stream for so long ends.
  std::chrono::seconds give_up_after = std::chrono::minutes(10);
};

// For the subresource "ephemeralcontainers" of a running pod. It has no resources, which the API
// forbids: it draws on those of the pod. Its identity comes from the environment, since it can
// mount nothing that the pod has not. The kubelet waits with it until the Secret is there.
kube::Json ephemeral_container(const SidecarSettings& settings);

// For a pod that is being created; identity_volume() has to be among its volumes.
kube::Json injected_container(const SidecarSettings& settings, InjectedAs form, Requests requests);
kube::Json identity_volume(const SidecarSettings& settings);

}  // namespace trafficmirror::controller
