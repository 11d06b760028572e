// The intercept beside the shadow, as a container of one of its pods: it works in the pod's network
// namespace, on the pod's own address, while the intercepts' Service lists that.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "net/address.h"
#include "operator/attached_container.h"
#include "operator/kube/object.h"

namespace trafficmirror::controller {

// Of /status; beside the shadow's own program, which may well have the other one.
constexpr uint16_t beside_http_port = 19465;

// A production port, and where its traffic goes to in this pod.
using OwnTarget = std::pair<net::Port, net::Port>;

struct InterceptSettings {
  std::string name;  // of the container, and of the volume with its identity
  std::string image;
  std::string image_pull_policy{};  // empty: what the server makes of the image's tag
  std::vector<OwnTarget> targets;
  std::string client_address;  // as its flag takes it
  std::string member_of;       // what the Service is found by
  std::string tls_peer;        // the sidecars' identity
  std::string secret;          // with tls.crt, tls.key and ca.crt, in the pod's namespace
  // Another one where the Secret's identity is; of ephemeral containers.
  std::string identity_revision{};
  kube::Json resources{};  // of injected ones; null: some
};

// As ephemeral_container() of sidecar_container.h. It ends when the Service lists it no longer.
kube::Json ephemeral_container(const InterceptSettings& settings);
// For a pod that is being created. Its work begins and ends with being listed, and it stays.
kube::Json injected_container(const InterceptSettings& settings, InjectedAs form,
                              Requests requests);
kube::Json identity_volume(const InterceptSettings& settings);

}  // namespace trafficmirror::controller
