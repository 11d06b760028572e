#include "operator/intercept_container.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

// What it takes where little is mirrored, and what it may, beside a program that is being tried.
Json default_resources(Requests requests) {
  const Json little = {{"cpu", "10m"}, {"memory", "64Mi"}};
  const Json limits = {{"cpu", "1"}, {"memory", "256Mi"}};
  return {{"requests", requests == Requests::limits ? limits : little}, {"limits", limits}};
}

// What both forms have in common.
Json container(const InterceptSettings& settings) {
  Json args = Json::array();
  const auto add = [&](const char* flag, const std::string& value) {
    args.push_back(flag);
    args.push_back(value);
  };
  add("--interface", "eth0");
  for (const auto& [production, own] : settings.targets)
    // The kubelet puts the pod's address there. Brackets are for IPv6, and do IPv4 no harm.
    add("--target",
        std::to_string(production.number) + "=[$(POD_IP)]:" + std::to_string(own.number));
  add("--client-address", settings.client_address);
  add("--member-of", settings.member_of);
  add("--http", "0.0.0.0:" + std::to_string(beside_http_port));
  add("--tls-peer", settings.tls_peer);
  return attached_container({.name = settings.name,
                             .image = settings.image,
                             .image_pull_policy = settings.image_pull_policy,
                             .capabilities = {"NET_ADMIN", "NET_RAW"},
                             .args = std::move(args),
                             .env = Json::array({variable_from_pod("POD_IP", "status.podIP")})});
}

}  // namespace

Json ephemeral_container(const InterceptSettings& settings) {
  Json ephemeral = container(settings);
  take_identity_from_environment(ephemeral, settings.secret);
  ephemeral["env"].push_back(
      {{"name", identity_revision_variable}, {"value", settings.identity_revision}});
  return ephemeral;
}

Json injected_container(const InterceptSettings& settings, InjectedAs form, Requests requests) {
  Json injected = container(settings);
  take_identity_from_files(injected, settings.name);
  injected["args"].push_back("--stay");
  const bool given = settings.resources.is_object() && !settings.resources.empty();
  injected["resources"] = given ? settings.resources : default_resources(requests);
  if (form == InjectedAs::native_sidecar) injected["restartPolicy"] = "Always";
  return injected;
}

Json identity_volume(const InterceptSettings& settings) {
  return identity_volume(settings.name, settings.secret);
}

}  // namespace trafficmirror::controller
