#include "operator/sidecar_container.h"

#include <array>
#include <utility>

#include "operator/names.h"
#include "program/flags.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* capture_directory = "/capture";
constexpr const char* termination_message = "/dev/termination-log";  // Kubernetes' default

// Who replays a capture: nobody that a file could belong to by chance.
constexpr int replaying_user = 65532;

// What it needs when little is mirrored, so that it hardly weighs where the pod is scheduled.
constexpr const char* requested_cpu = "10m";
constexpr const char* requested_memory = "64Mi";
// A sidecar that is throttled falls behind and sheds sessions; one without a limit would take the
// node's time from production. Half a core copies more than ten thousand requests a second on
// kept-alive connections, or three thousand connections a second.
constexpr const char* cpu_limit = "500m";
// A replay is beside nobody, and as fast as it may be: its two threads that work are one each for
// the file and for the sessions.
constexpr const char* replay_cpu_limit = "2";
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

// Within the volume. The Secret is named in it, so that the container's arguments are others when
// it is another Secret.
std::string credentials_path(const SidecarSettings& settings) {
  return settings.logins_secret + "/" + names::credentials;
}

// What all forms have in common.
Json common(const SidecarSettings& settings) {
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

  return attached_container({.name = settings.name,
                             .image = settings.image,
                             .image_pull_policy = settings.image_pull_policy,
                             .capabilities = {"NET_RAW"},
                             .args = std::move(args),
                             .env = Json::array({variable_from_pod("POD_NAME", "metadata.name")})});
}

// Beside production.
Json container(const SidecarSettings& settings) {
  Json container = common(settings);
  // A pod that ends is served until its last connection does.
  container["args"].push_back("--outlive-production");
  return container;
}

void take_secrets_from_files(const SidecarSettings& settings, Json& container) {
  take_identity_from_files(container, settings.name);
  if (settings.logins_secret.empty()) return;
  container["args"].push_back("--credentials");
  container["args"].push_back(std::string(identity_directory) + "/" + credentials_path(settings));
}

Json volume_of_secrets(const SidecarSettings& settings, int mode, bool optional) {
  Json volume = {{"name", settings.name}};
  if (settings.logins_secret.empty()) {
    volume["secret"] = {
        {"secretName", settings.secret}, {"optional", optional}, {"defaultMode", mode}};
    return volume;
  }
  const Json identity = {{"name", settings.secret}, {"optional", optional}};
  const Json logins = {
      {"name", settings.logins_secret},
      {"optional", optional},
      {"items",
       Json::array({{{"key", names::credentials}, {"path", credentials_path(settings)}}})}};
  volume["projected"] = {{"defaultMode", mode},
                         {"sources", Json::array({{{"secret", identity}}, {{"secret", logins}}})}};
  return volume;
}

}  // namespace

Json ephemeral_container(const SidecarSettings& settings) {
  Json ephemeral = container(settings);
  ephemeral["args"].push_back("--give-up-after");
  ephemeral["args"].push_back(std::to_string(settings.give_up_after.count()) + "s");
  take_identity_from_environment(ephemeral, settings.secret);
  if (!settings.logins_secret.empty())
    ephemeral["env"].push_back(variable_from_secret("TRAFFICMIRROR_CREDENTIALS",
                                                    settings.logins_secret, names::credentials));
  return ephemeral;
}

Json injected_container(const SidecarSettings& settings, InjectedAs form, Requests requests) {
  Json injected = container(settings);
  take_secrets_from_files(settings, injected);
  injected["args"].push_back("--stay");
  Json limits = {{"cpu", cpu_limit}, {"memory", quantity(settings.memory_limit + other_memory)}};
  Json requested = {{"cpu", requested_cpu}, {"memory", requested_memory}};
  injected["resources"] = {{"requests", requests == Requests::limits ? limits : requested},
                           {"limits", limits}};
  if (form == InjectedAs::native_sidecar) injected["restartPolicy"] = "Always";
  return injected;
}

Json identity_volume(const SidecarSettings& settings) {
  constexpr int readable_by_owner = 0400;
  return volume_of_secrets(settings, readable_by_owner, true);
}

Json replaying_pod(const SidecarSettings& settings, const Capture& capture) {
  Json replay = common(settings);
  take_secrets_from_files(settings, replay);
  const auto add = [&](const char* flag, const std::string& value) {
    replay["args"].push_back(flag);
    replay["args"].push_back(value);
  };
  add("--pcap", std::string(capture_directory) + "/" + capture.path);
  add("--speed", capture.speed);
  add("--loop", std::to_string(capture.loop));
  if (!capture.from.empty()) add("--from", capture.from);
  if (!capture.until.empty()) add("--until", capture.until);
  add("--report", termination_message);
  replay["terminationMessagePath"] = termination_message;
  replay["terminationMessagePolicy"] = "FallbackToLogsOnError";
  constexpr const char* claim_volume = "capture";
  replay["volumeMounts"].push_back(
      {{"name", claim_volume}, {"mountPath", capture_directory}, {"readOnly", true}});
  Json& security = replay["securityContext"];
  security["capabilities"].erase("add");
  security["runAsUser"] = security["runAsGroup"] = replaying_user;
  security["runAsNonRoot"] = true;
  replay["resources"] = {
      {"requests", {{"cpu", requested_cpu}, {"memory", requested_memory}}},
      {"limits",
       {{"cpu", replay_cpu_limit}, {"memory", quantity(settings.memory_limit + other_memory)}}}};

  constexpr int readable_by_all = 0444;  // root owns it, and nobody else is in this pod
  return {{"restartPolicy", "Never"},
          {"automountServiceAccountToken", false},
          // Long enough to reset what is open at the shadow.
          {"terminationGracePeriodSeconds", 15},
          {"containers", Json::array({replay})},
          {"volumes", Json::array({volume_of_secrets(settings, readable_by_all, false),
                                   {{"name", claim_volume},
                                    {"persistentVolumeClaim",
                                     {{"claimName", capture.claim}, {"readOnly", true}}}}})}};
}

}  // namespace trafficmirror::controller
