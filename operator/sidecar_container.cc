#include "operator/sidecar_container.h"

#include <array>
#include <utility>

#include "program/flags.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

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

// What all forms have in common.
Json container(const SidecarSettings& settings) {
  Json args = Json::array();
  const auto add = [&](const char* flag, const std::string& value) {
    args.push_back(flag);
    args.push_back(value);
  };
  for (const net::Port port : settings.ports) add("--port", std::to_string(port.number));
  if (!settings.interface.empty()) add("--interface", settings.interface);
  add("--intercept", program::to_text(settings.intercept));
  add("--tls-peer", settings.tls_peer);
  add("--memory-limit", quantity(settings.memory_limit));
  // A pod that ends is served until its last connection does.
  args.push_back("--outlive-production");

  return attached_container({.name = settings.name,
                             .image = settings.image,
                             .image_pull_policy = settings.image_pull_policy,
                             .capabilities = {"NET_RAW"},
                             .args = std::move(args),
                             .env = Json::array({variable_from_pod("POD_NAME", "metadata.name")})});
}

}  // namespace

Json ephemeral_container(const SidecarSettings& settings) {
  Json ephemeral = container(settings);
  ephemeral["args"].push_back("--give-up-after");
  ephemeral["args"].push_back(std::to_string(settings.give_up_after.count()) + "s");
  take_identity_from_environment(ephemeral, settings.secret);
  return ephemeral;
}

Json injected_container(const SidecarSettings& settings, InjectedAs form, Requests requests) {
  Json injected = container(settings);
  take_identity_from_files(injected, settings.name);
  injected["args"].push_back("--stay");
  Json limits = {{"cpu", cpu_limit}, {"memory", quantity(settings.memory_limit + other_memory)}};
  Json requested = {{"cpu", requested_cpu}, {"memory", requested_memory}};
  injected["resources"] = {{"requests", requests == Requests::limits ? limits : requested},
                           {"limits", limits}};
  if (form == InjectedAs::native_sidecar) injected["restartPolicy"] = "Always";
  return injected;
}

Json identity_volume(const SidecarSettings& settings) {
  return identity_volume(settings.name, settings.secret);
}

}  // namespace trafficmirror::controller
