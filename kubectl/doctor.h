// `kubectl trafficmirror doctor`: what keeps a mirror from working, before it is applied or after.
// Pure: what was asked of the API server, and what it answered, goes in; a line for each check
// comes out. The operator's own judgement (operator/plan.h) is what most of them say.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kubectl/leadership.h"
#include "operator/abilities.h"
#include "operator/kube/discovery.h"
#include "operator/kube/result.h"
#include "operator/plan.h"

namespace trafficmirror::kubectl {

// Objects, or why there are none.
using Objects = kube::Result<std::vector<kube::Json>>;
inline Objects none() {
  return std::vector<kube::Json>{};
}

// What is asked of the server without anything being made (dry run), so that its own admission
// speaks: Pod Security, quotas, policies.
struct Trials {
  std::optional<kube::Json> intercept_pod;
  // One of these two. The former is that of the replay where there is one.
  std::optional<kube::Json> pod_with_sidecar;
  std::optional<controller::Attachment> ephemeral;
};

struct Examination {
  controller::WallTime now;
  kube::Version server;
  controller::Abilities abilities;
  bool defined = true;  // the server knows TrafficMirror
  Leadership leadership;

  kube::Json wanted;  // as it stands in the file
  kube::Json mirror;  // with the server's defaults, where it takes it; otherwise the same
  std::optional<kube::Error> refused;  // what the server has against it
  kube::Json applied;                  // as it is in the cluster already; null if it is not

  // What production's namespace has. Of an object that does not exist, the list is empty.
  Objects production_namespace = none();
  Objects mirrors = none();
  Objects pods = none();
  Objects claim = none();  // of a capture
  Objects production_policies = none();
  Objects logins_secret = none();  // where the mirror names one
  // And the shadow's.
  Objects shadow_namespace = none();
  Objects shadow_service = none();
  Objects endpoints = none();
  Objects shadow_pods = none();
  Objects shadow_policies = none();

  Objects webhooks = none();  // MutatingWebhookConfigurations

  // What the server said to the trials; nothing where it would do it, or was not asked.
  std::optional<kube::Error> intercept_refused, sidecar_refused;
};

// What to try, out of all but the answers to it.
Trials trials_for(const Examination& seen);

struct Finding {
  enum class Level { ok, warning, failure, unchecked };
  Level level = Level::ok;
  std::string check;
  std::string text;  // what, and the cure
};
std::vector<Finding> findings_of(const Examination& seen);

std::string text_of(const std::vector<Finding>& findings);
// None of them is a failure.
bool is_well(const std::vector<Finding>& findings);

}  // namespace trafficmirror::kubectl
