// What has to be done for one TrafficMirror, and what is said of it in its status. Pure: what is
// seen goes in, what is to be done comes out. Doing all of it, seeing again and planning again ends
// where there is nothing more to do, from wherever it begins: no step is remembered but in the
// objects themselves.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "operator/certificate_rotation.h"
#include "operator/intercept_container.h"
#include "operator/kube/events.h"
#include "operator/kube/secret.h"
#include "operator/mirror.h"
#include "operator/objects.h"
#include "operator/report.h"
#include "operator/sidecar_container.h"

namespace trafficmirror::controller {

using SharedJson = std::shared_ptr<const kube::Json>;

// A refusal by the API server of something that was tried, until it is tried again with success.
struct Refusal {
  std::string message;
};

struct Observation {
  WallTime now;
  ParsedMirror mirror;
  kube::Json status;  // of the object as it is

  SharedJson production_namespace;  // null where there is none
  SharedJson shadow_namespace;
  // Those that spec.source.selector matches, alive, by name.
  std::vector<SharedJson> pods;
  // Mirrors of the same namespace that came earlier and are not stopped.
  std::vector<Mirror> earlier_mirrors;

  // What spec.shadow names.
  SharedJson shadow_service;
  SharedJson endpoints;
  // Alive, of the selector or behind these endpoints, or with an intercept of this mirror in them;
  // by name.
  std::vector<SharedJson> shadow_pods;

  // All that carries this mirror's annotation, with the kinds' resources.
  struct Owned {
    kube::Resource resource;
    SharedJson object;
  };
  std::vector<Owned> owned;
  std::vector<SharedJson> replay_pods;      // of Jobs, also those that have ended
  std::vector<SharedJson> intercept_pods;   // alive, of the Deployment
  std::map<std::string, Reading> readings;  // by the name of the intercept's pod
  // By "objects", or for an attachment by what refusal_key() says.
  std::map<std::string, Refusal> refusals;

  kube::SecretData ca;
};

struct Attachment {
  kube::Key pod;
  kube::Json container;
};

std::string refusal_key(const Attachment& attachment);

// Why a pod has no sidecar or intercept, or not the one that is wanted.
struct PodProblem {
  std::string pod;
  std::string reason;
  std::string message;
};

// An intercept beside the shadow, whose status is to be read; without an address, no more.
struct Beside {
  kube::Key pod;
  std::string address;
  std::string instance;  // of a Reading
};

struct Plan {
  // To be made so, or left so. Empty where nothing is to be made.
  std::vector<WantedObject> objects;
  // To be taken away, by what they are now.
  std::vector<Observation::Owned> surplus;
  std::vector<Attachment> attachments;
  std::vector<Beside> beside;
  // Pods of the intercept whose annotation does not say yet that their configuration is this.
  std::string configuration;
  std::vector<kube::Key> to_notify;
  bool add_finalizer = false;
  bool remove_finalizer = false;  // when the surplus is gone
  kube::Json status;
  std::optional<WallTime> look_again;

  // What the status was made out of.
  std::vector<Target> targets;
  std::vector<PodProblem> pod_problems;
  std::vector<PodProblem> shadow_problems;
};

Plan plan_for(const Observation& seen, const Settings& settings, const Abilities& abilities,
              const CertificateLifetimes& lifetimes);

// Whether sidecars, and intercepts beside the shadow, get into pods when these are created, and not
// later.
bool is_mirrored_by_injection(const Mirror& mirror, const Abilities& abilities);

// Whether an API server's refusal of a pod is Pod Security's, and what to do about that.
bool is_pod_security(const std::string& refusal);
std::string pod_security_cure(const std::string& namespace_, const std::string& capabilities);

// For the webhook: what a pod of this mirror gets when it is created; nothing where that is not the
// way, or not now.
bool injects(const Mirror& mirror, const kube::Json& status, const Abilities& abilities);
SidecarSettings sidecar_settings(const Mirror& mirror, const Settings& settings);
InterceptSettings intercept_settings(const Mirror& mirror, std::vector<OwnTarget> targets,
                                     const Settings& settings);
// Where production's ports lead to in a pod that is being created; empty where it is none of the
// shadow's. `service` is the one of spec.shadow, null where there is none.
std::vector<OwnTarget> targets_of_new_pod(const Mirror& mirror, const kube::Json* service,
                                          const kube::Json& labels, const kube::Json& spec);

// Events that tell of the difference of two status: conditions that changed.
struct Change {
  kube::EventType type;
  std::string reason;
  std::string message;
};
std::vector<Change> changes_between(const kube::Json& before, const kube::Json& after);

}  // namespace trafficmirror::controller
