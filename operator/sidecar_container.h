// The sidecar as a container of a production pod, in JSON as it stands in the pod.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "net/address.h"
#include "operator/attached_container.h"
#include "operator/kube/object.h"
#include "operator/mirror.h"

namespace trafficmirror::controller {

struct SidecarSettings {
  std::string name;  // of the container, and of the volume with its identity
  std::string image;
  std::string image_pull_policy{};  // empty: what the server makes of the image's tag
  std::vector<net::ProductionPort> ports;
  std::string interface {};  // empty: that of the default route
  net::HostPort intercept;
  std::string tls_peer;  // the intercept's identity
  std::string secret;    // with tls.crt, tls.key and ca.crt, in the pod's namespace
  uint64_t memory_limit = 64 << 20;
  std::vector<Login> logins{};
  // With the passwords of the logins, in the pod's namespace; empty: there are none.
  std::string logins_secret{};
  std::string idle_timeout{};  // both empty: the program's own
  std::string response_timeout{};
  // An ephemeral one that has had no stream for so long ends.
  std::chrono::seconds give_up_after = std::chrono::minutes(10);
};

// For the subresource "ephemeralcontainers" of a running pod. It has no resources, which the API
// forbids: it draws on those of the pod. Its identity and the passwords come from the environment,
// since it can mount nothing that the pod has not. The kubelet waits with it until the Secrets are
// there.
kube::Json ephemeral_container(const SidecarSettings& settings);

// For a pod that is being created; identity_volume() has to be among its volumes.
kube::Json injected_container(const SidecarSettings& settings, InjectedAs form, Requests requests);
// With the passwords, too. Optional, since a Secret that is not there must not hold the pod up.
kube::Json identity_volume(const SidecarSettings& settings);

// For a pod of its own, which replays a capture and needs no right for it. The last words of its
// container are its report, or where there is none its log's.
kube::Json replaying_pod(const SidecarSettings& settings, const Capture& capture);

}  // namespace trafficmirror::controller
