// What is made for a TrafficMirror: the intercept and what belongs to it.
#pragma once

#include <string>
#include <vector>

#include "net/address.h"
#include "operator/abilities.h"
#include "operator/kube/secret.h"
#include "operator/mirror.h"

namespace trafficmirror::controller {

// What the operator was told, the same for all mirrors.
struct Settings {
  std::string operator_namespace;
  std::string sidecar_image;
  std::string intercept_image;
  std::string image_pull_policy{};  // empty: what the server makes of the image's tag
  std::vector<std::string> image_pull_secrets{};
};

constexpr uint16_t stream_port = 7443;
constexpr uint16_t http_port = 9464;  // probes, metrics and /status, of both programs

struct Target {
  net::ProductionPort production;
  net::Endpoint endpoint;
  auto operator<=>(const Target&) const = default;
};

struct WantedObject {
  kube::Resource resource;
  kube::Json object;
};

struct InterceptInput {
  std::vector<Target> targets;  // sorted
  bool stop_sidecars = false;
  // Of the intercepts, where these are not the Deployment's alone: those that the Service lists.
  std::vector<std::string> addresses;
  // The pods behind the targets; null where only their addresses are known.
  kube::Json shadow_selector;
  // Labels that production's namespace alone carries; null where there are none to tell it by.
  kube::Json production_namespace_labels;
  kube::SecretData intercept_leaf;  // tls.crt, tls.key, ca.crt
  kube::SecretData sidecar_leaf;
};

// In the order in which they are made. The disruption budget only where it is wanted.
std::vector<WantedObject> objects_for(const Mirror& mirror, const InterceptInput& input,
                                      const Settings& settings, const Abilities& abilities);

// The intercept's live configuration, as it stands in the ConfigMap.
std::string configuration_of(const Mirror& mirror, const std::vector<Target>& targets,
                             bool stop_sidecars);

// Where sidecars find the intercept.
net::HostPort intercept_address(const Mirror& mirror);

}  // namespace trafficmirror::controller
