#include "kubectl/stop.h"

#include <thread>

#include "kubectl/leadership.h"
#include "kubectl/status.h"
#include "operator/check.h"
#include "operator/names.h"
#include "operator/pods.h"
#include "program/start_error.h"

namespace trafficmirror::kubectl {
namespace {

using kube::Json;

constexpr std::chrono::milliseconds between_looks{250};

// It is about the spec as it is now.
bool is_up_to_date(const Json& mirror) {
  const auto at = "/metadata/generation"_json_pointer;
  return mirror.value("/status/observedGeneration"_json_pointer, int64_t{0}) >=
         mirror.value(at, int64_t{0});
}

}  // namespace

int stop(kube::Client& client, const kube::Key& key, Stop how, std::chrono::milliseconds patience,
         std::ostream& out) {
  const auto& mirrors = controller::resources::mirrors;
  const std::string name = to_text(key);
  auto begun = how == Stop::pause ? client.patch(mirrors, key, {{"spec", {{"paused", true}}}})
                                  : client.get(mirrors, key);
  if (!begun) throw program::StartError("TrafficMirror " + name + ": " + begun.error().message);
  Json last = *std::move(begun);
  const std::string uid = kube::text_at(last, "/metadata/uid");
  if (how == Stop::remove)
    if (const auto removed = client.remove(mirrors, key, {.uid = uid}); !removed)
      throw program::StartError("TrafficMirror " + name + ": " + removed.error().message);

  const auto end = std::chrono::steady_clock::now() + patience;
  while (true) {
    const auto now = client.get(mirrors, key);
    const bool gone = !now && now.error().kind == kube::ErrorKind::not_found;
    const bool another = now && kube::text_at(*now, "/metadata/uid") != uid;
    if (gone || another) {
      out << name << " is gone: " << counts_of(last) << "\n";
      return 0;
    }
    if (now) last = *now;  // an answer that fails is asked for again
    if (how == Stop::pause && is_up_to_date(last) && controller::is_stopped(last)) {
      out << name << " is stopped: " << counts_of(last) << "\n";
      return 0;
    }
    if (std::chrono::steady_clock::now() >= end) break;
    std::this_thread::sleep_for(between_looks);
  }
  const Leadership leadership = find_leadership(client);
  out << name << (how == Stop::pause ? " is paused" : " is deleted")
      << ", but has not ended within " << std::chrono::ceil<std::chrono::seconds>(patience).count()
      << " s";
  const Json* mirroring = controller::condition_of(last, "Mirroring");
  if (leadership.state == Leadership::State::nobody)
    out << ": " << leadership.text;
  else if (mirroring && is_up_to_date(last))
    out << ": " << mirroring->value("reason", "") << ": " << mirroring->value("message", "");
  out << "\n";
  return 1;
}

}  // namespace trafficmirror::kubectl
