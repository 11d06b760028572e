#include "operator/sidecar_container.h"

#include <array>
#include <utility>

#include "operator/names.h"
#include "program/flags.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* identity_directory = "/etc/trafficmirror/tls";

// What it needs when little is mirrored, so that it hardly weighs where the pod is scheduled.
constexpr const char* requested_cpu = "10m";
constexpr const char* requested_memory = "64Mi";
// A sidecar that is throttled falls behind and sheds sessions; one without a limit would take the
// node's time from production. Half a core copies more than ten thousand requests a second on
// kept-alive connections, or three thousand connections a second.
constexpr const char* cpu_limit = "500m";
// Beside --memory-limit: the capture ring (16 MiB), batches and headers of the stream (6 MiB), and
// the program with its libraries.
constexpr uint64_t other_memory = 64 << 20;

// "64Mi": a quantity of Kubernetes, which is also how the sidecar's flags take it.
std::string quantity(uint64_t bytes) {
  constexpr std::array<std::pair<int, const char*>, 3> units{{{30, "Gi"}, {20, "Mi"}, {10, "Ki"}}};
  for (const auto& [shift, unit] : units)
    if (bytes != 0 && bytes % (uint64_t{1} << shift) == 0)
      return std::to_string(bytes >> shift) + unit;
  return std::to_string(bytes);
}

Json variable_from_secret(const char* name, const std::string& secret, const char* key) {
  return {{"name", name}, {"valueFrom", {{"secretKeyRef", {{"name", secret}, {"key", key}}}}}};
}

// Within the volume. The Secret is named in it, so that the container's arguments are others when
// it is another Secret.
std::string credentials_path(const SidecarSettings& settings) {
  return settings.logins_secret + "/" + names::credentials;
}

// What all forms have in common.
Json container(const SidecarSettings& settings) {
  Json args = Json::array();
  const auto add = [&](const char* flag, const std::string& value) {
    args.push_back(flag);
    args.push_back(value);
  };
  for (const net::ProductionPort port : settings.ports) add("--port", port.to_string());
  if (!settings.interface.empty()) add("--interface", settings.interface);
  add("--intercept", program::to_text(settings.intercept));
  add("--tls-peer", settings.tls_peer);
  add("--memory-limit", quantity(settings.memory_limit));
  for (const Login& login : settings.logins)
    add("--protocol", std::to_string(login.port.number) + "=" + login.protocol);
  if (!settings.idle_timeout.empty()) add("--idle-timeout", settings.idle_timeout);
  if (!settings.response_timeout.empty()) add("--response-timeout", settings.response_timeout);
  // A pod that ends is served until its last connection does.
  args.push_back("--outlive-production");

  Json container = {
      {"name", settings.name},
      {"image", settings.image},
      {"args", std::move(args)},
      {"env", Json::array({{{"name", "POD_NAME"},
                            {"valueFrom", {{"fieldRef", {{"fieldPath", "metadata.name"}}}}}}})},
      {"securityContext",
       {{"capabilities", {{"drop", Json::array({"ALL"})}, {"add", Json::array({"NET_RAW"})}}},
        {"allowPrivilegeEscalation", false},
        {"privileged", false},
        {"readOnlyRootFilesystem", true},
        // A capability that is added takes effect only for root, whatever the pod says of its
        // containers in general.
        {"runAsUser", 0},
        {"runAsNonRoot", false},
        {"seccompProfile", {{"type", "RuntimeDefault"}}}}}};
  if (!settings.image_pull_policy.empty())
    container["imagePullPolicy"] = settings.image_pull_policy;
  return container;
}

}  // namespace

Json ephemeral_container(const SidecarSettings& settings) {
  Json ephemeral = container(settings);
  ephemeral["args"].push_back("--give-up-after");
  ephemeral["args"].push_back(std::to_string(settings.give_up_after.count()) + "s");
  Json& env = ephemeral["env"];
  env.push_back(variable_from_secret("TRAFFICMIRROR_TLS_CERTIFICATE", settings.secret, "tls.crt"));
  env.push_back(variable_from_secret("TRAFFICMIRROR_TLS_KEY", settings.secret, "tls.key"));
  env.push_back(variable_from_secret("TRAFFICMIRROR_TLS_CA", settings.secret, "ca.crt"));
  if (!settings.logins_secret.empty())
    env.push_back(variable_from_secret("TRAFFICMIRROR_CREDENTIALS", settings.logins_secret,
                                       names::credentials));
  return ephemeral;
}

Json injected_container(const SidecarSettings& settings, InjectedAs form, Requests requests) {
  Json injected = container(settings);
  Json& args = injected["args"];
  for (const auto& [flag, file] : {std::pair("--tls-certificate", "/tls.crt"),
                                   {"--tls-key", "/tls.key"},
                                   {"--tls-ca", "/ca.crt"}}) {
    args.push_back(flag);
    args.push_back(std::string(identity_directory) + file);
  }
  if (!settings.logins_secret.empty()) {
    args.push_back("--credentials");
    args.push_back(std::string(identity_directory) + "/" + credentials_path(settings));
  }
  args.push_back("--stay");
  injected["volumeMounts"] = Json::array(
      {{{"name", settings.name}, {"mountPath", identity_directory}, {"readOnly", true}}});
  Json limits = {{"cpu", cpu_limit}, {"memory", quantity(settings.memory_limit + other_memory)}};
  Json requested = {{"cpu", requested_cpu}, {"memory", requested_memory}};
  injected["resources"] = {{"requests", requests == Requests::limits ? limits : requested},
                           {"limits", limits}};
  if (form == InjectedAs::native_sidecar) injected["restartPolicy"] = "Always";
  return injected;
}

Json identity_volume(const SidecarSettings& settings) {
  constexpr int readable_by_owner = 0400;
  if (!settings.logins_secret.empty())
    return {{"name", settings.name},
            {"projected",
             {{"defaultMode", readable_by_owner},
              {"sources",
               {{{"secret", {{"name", settings.secret}, {"optional", true}}}},
                {{"secret",
                  {{"name", settings.logins_secret},
                   {"optional", true},
                   {"items", Json::array({{{"key", names::credentials},
                                           {"path", credentials_path(settings)}}})}}}}}}}}};
  return {
      {"name", settings.name},
      {"secret",
       {{"secretName", settings.secret}, {"optional", true}, {"defaultMode", readable_by_owner}}}};
}

}  // namespace trafficmirror::controller
