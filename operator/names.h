// What things are called that the operator makes or looks for.
#pragma once

#include <string>

#include "operator/kube/object.h"

namespace trafficmirror::controller {

constexpr uint64_t least_sidecar_memory = 1ULL << 20;
constexpr uint64_t most_sidecar_memory = 64ULL << 30;

namespace names {

constexpr const char* api_version = "trafficmirror.dev/v1alpha1";
constexpr const char* kind = "TrafficMirror";
constexpr const char* finalizer = "trafficmirror.dev/cleanup";
constexpr const char* field_manager = "trafficmirror-operator";

// Annotation of the shadow's Namespace: whose traffic it receives, "shop,shop-eu".
constexpr const char* accept_from = "trafficmirror.dev/accept-from";
// Label of namespaces and pods that the webhook may inject into.
constexpr const char* inject = "trafficmirror.dev/inject";
constexpr const char* inject_enabled = "enabled";
// Annotation of what was made for a mirror: "shop/checkout-v2".
constexpr const char* mirror = "trafficmirror.dev/mirror";
// Annotation: the hash of what was applied last.
constexpr const char* applied = "trafficmirror.dev/applied";
// Annotation of an intercept's pod: the hash of the configuration that it should have. Changing a
// pod makes its kubelet look at its volumes at once.
constexpr const char* configuration = "trafficmirror.dev/configuration";
// Annotation of a Job: the revision of what it replays.
constexpr const char* replay = "trafficmirror.dev/replay";

// Of the Secret with the passwords of logins: the key of the file.
constexpr const char* credentials = "credentials.yaml";

constexpr const char* managed_by_label = "app.kubernetes.io/managed-by";
constexpr const char* managed_by = "trafficmirror";
constexpr const char* component_label = "app.kubernetes.io/component";
constexpr const char* instance_label = "app.kubernetes.io/instance";

constexpr const char* ca_secret = "trafficmirror-ca";
constexpr const char* webhook_secret = "trafficmirror-webhook";
// By which one of several operators leads.
constexpr const char* lease = "trafficmirror-operator";
// One of the MutatingWebhookConfiguration's webhooks, whatever that one is called.
constexpr const char* inject_webhook = "inject.trafficmirror.dev";

}  // namespace names

namespace resources {

inline const kube::Resource mirrors{"trafficmirror.dev", "v1alpha1", "trafficmirrors"};
inline const kube::Resource pods{"", "v1", "pods"};
inline const kube::Resource namespaces{"", "v1", "namespaces", false};
inline const kube::Resource services{"", "v1", "services"};
inline const kube::Resource endpoints{"", "v1", "endpoints"};
inline const kube::Resource config_maps{"", "v1", "configmaps"};
inline const kube::Resource secrets{"", "v1", "secrets"};
inline const kube::Resource service_accounts{"", "v1", "serviceaccounts"};
inline const kube::Resource deployments{"apps", "v1", "deployments"};
inline const kube::Resource jobs{"batch", "v1", "jobs"};
inline const kube::Resource claims{"", "v1", "persistentvolumeclaims"};
inline const kube::Resource network_policies{"networking.k8s.io", "v1", "networkpolicies"};
inline const kube::Resource disruption_budgets{"policy", "v1", "poddisruptionbudgets"};
inline const kube::Resource disruption_budgets_beta{"policy", "v1beta1", "poddisruptionbudgets"};
inline const kube::Resource webhook_configurations{"admissionregistration.k8s.io", "v1",
                                                   "mutatingwebhookconfigurations", false};

}  // namespace resources

// What is made for a mirror, in whatever namespace, has this name: fit for a Service, and another
// one for each mirror.
std::string name_for(const kube::Key& mirror);
// Of an intercept beside the shadow, as a container of its pods.
std::string intercept_container_for(const kube::Key& mirror);
// The sidecars' Secret, in production's namespace.
std::string sidecar_secret_for(const kube::Key& mirror);

// The mirror that an object was made for, by its annotation; nothing of ours has none.
kube::Key mirror_of(const kube::Json& object);

// 16 hexadecimal digits, the same in every run.
std::string hash_of(const std::string& text);

}  // namespace trafficmirror::controller
