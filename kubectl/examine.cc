#include "kubectl/examine.h"

#include <utility>

#include "operator/mirror.h"
#include "operator/names.h"

namespace trafficmirror::kubectl {
namespace {

using kube::Client;
using kube::Json;
using kube::Key;
using kube::Resource;

namespace resources = controller::resources;

const kube::CallOptions as_dry_run{.dry_run = true};

Objects list(Client& client, const Resource& resource, const std::string& namespace_) {
  auto page = client.list(resource, namespace_);
  if (!page) return page.error();
  return std::vector<Json>((*page)["items"].begin(), (*page)["items"].end());
}

Objects one(Client& client, const Resource& resource, const Key& key) {
  auto object = client.get(resource, key);
  if (object) return std::vector<Json>{*std::move(object)};
  if (object.error().kind == kube::ErrorKind::not_found) return none();
  return object.error();
}

std::optional<kube::Error> error_of(const kube::Result<Json>& result) {
  if (result) return std::nullopt;
  return result.error();
}

// What the server makes of it, or what it has against it.
void try_mirror(Client& client, Examination& seen) {
  Json object = {{"apiVersion", seen.mirror.value("apiVersion", controller::names::api_version)},
                 {"kind", controller::names::kind},
                 {"spec", seen.mirror.value("spec", Json::object())}};
  for (const char* field : {"name", "namespace", "labels", "annotations"})
    if (seen.mirror["metadata"].contains(field))
      object["metadata"][field] = seen.mirror["metadata"][field];
  // Apply, which also says which fields the schema does not know.
  auto completed = client.apply(resources::mirrors, object, {.force = true}, as_dry_run);
  seen.refused = error_of(completed);
  if (completed) seen.mirror = *std::move(completed);
}

void try_pods(Client& client, Examination& seen) {
  const Trials trials = trials_for(seen);
  if (trials.intercept_pod)
    seen.intercept_refused =
        error_of(client.create(resources::pods, *trials.intercept_pod, as_dry_run));
  if (trials.pod_with_sidecar)
    seen.sidecar_refused =
        error_of(client.create(resources::pods, *trials.pod_with_sidecar, as_dry_run));
  if (trials.ephemeral)
    seen.sidecar_refused = error_of(client.patch(
        resources::pods, trials.ephemeral->pod,
        {{"spec", {{"ephemeralContainers", Json::array({trials.ephemeral->container})}}}},
        kube::PatchType::strategic, "ephemeralcontainers", as_dry_run));
}

}  // namespace

Examination examine(Client& client, const kube::Discovery& discovery, const Json& mirror,
                    const Leadership& leadership) {
  Examination seen;
  seen.now = std::chrono::system_clock::now();
  seen.server = discovery.version();
  seen.abilities = controller::abilities_of(discovery);
  seen.defined = discovery.has(resources::mirrors);
  seen.leadership = leadership;
  seen.wanted = seen.mirror = mirror;
  const Key key = kube::key_of(mirror);
  if (const auto applied = client.get(resources::mirrors, key)) seen.applied = *applied;
  try_mirror(client, seen);

  const controller::Mirror parsed = controller::parse_mirror(seen.mirror).mirror;
  const std::string& production = key.namespace_;
  const std::string& shadow = parsed.shadow_namespace;
  seen.production_namespace = one(client, resources::namespaces, {"", production});
  seen.mirrors = seen.defined ? list(client, resources::mirrors, production) : none();
  seen.pods = list(client, resources::pods, production);
  if (parsed.capture)
    seen.claim = one(client, resources::claims, {production, parsed.capture->claim});
  seen.production_policies = list(client, resources::network_policies, production);
  if (!parsed.logins_secret.empty())
    seen.logins_secret = one(client, resources::secrets, {production, parsed.logins_secret});
  if (!shadow.empty()) {  // or else it would be all namespaces
    seen.shadow_namespace = one(client, resources::namespaces, {"", shadow});
    seen.shadow_pods = list(client, resources::pods, shadow);
    seen.shadow_policies = list(client, resources::network_policies, shadow);
    if (const auto* service = std::get_if<controller::ShadowService>(&parsed.shadow)) {
      seen.shadow_service = one(client, resources::services, {shadow, service->name});
      seen.endpoints = one(client, resources::endpoints, {shadow, service->name});
    }
  }
  seen.webhooks = list(client, resources::webhook_configurations, "");
  try_pods(client, seen);
  return seen;
}

}  // namespace trafficmirror::kubectl
