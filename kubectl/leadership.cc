#include "kubectl/leadership.h"

#include <algorithm>
#include <optional>
#include <thread>

#include "kubectl/text.h"
#include "operator/kube/leader_election.h"
#include "operator/kube/wall_time.h"
#include "operator/names.h"

namespace trafficmirror::kubectl {
namespace {

using controller::WallTime;
using kube::Json;

// It is renewed every two seconds.
constexpr std::chrono::seconds patience{5};
constexpr std::chrono::milliseconds between_looks{250};
constexpr const char* usual_namespace = "trafficmirror";

std::string see_its_pods(const std::string& namespace_) {
  return "kubectl get pods -n " + namespace_ +
         " -l app.kubernetes.io/name=trafficmirror-operator says whether it runs";
}

// In all namespaces where the user may look there, or else in the one that it usually is in.
kube::Result<std::vector<Json>> read_leases(kube::Client& client) {
  const std::string name = controller::names::lease;
  auto list = client.list(kube::leases, "", {.selection = {.fields = "metadata.name=" + name}});
  if (list) return std::vector<Json>((*list)["items"].begin(), (*list)["items"].end());
  if (list.error().kind != kube::ErrorKind::forbidden) return list.error();
  auto one = client.get(kube::leases, {usual_namespace, name});
  if (one) return std::vector<Json>{*std::move(one)};
  return one.error();
}

std::string renewals_of(const std::vector<Json>& leases) {
  std::string all;
  for (const Json& lease : leases) all += kube::text_at(lease, "/spec/renewTime") + " ";
  return all;
}

}  // namespace

Leadership judge_leadership(const std::vector<Json>& leases, WallTime now) {
  Leadership none{Leadership::State::nobody,
                  std::string("no operator has ever led in this cluster: ") + how_to_install};
  std::optional<WallTime> latest;
  for (const Json& lease : leases) {
    const std::string holder = kube::text_at(lease, "/spec/holderIdentity");
    const std::string namespace_ = kube::key_of(lease).namespace_;
    const auto renewed = kube::time_of(kube::text_at(lease, "/spec/renewTime"));
    const std::chrono::seconds duration(
        lease.value("/spec/leaseDurationSeconds"_json_pointer, int64_t{0}));
    if (!holder.empty() && renewed && now < *renewed + duration)
      return {Leadership::State::leads, holder + " leads, in namespace " + namespace_};
    if (latest && renewed && *renewed < *latest) continue;
    latest = renewed;
    none.text =
        "no operator leads: the Lease " + to_text(kube::key_of(lease)) +
        (holder.empty() ? " is nobody's" : " is " + holder + "'s") +
        (renewed ? ", renewed " + age_of(std::chrono::floor<std::chrono::seconds>(now - *renewed)) +
                       " ago"
                 : "") +
        "; " + see_its_pods(namespace_);
  }
  return none;
}

Leadership find_leadership(kube::Client& client) {
  const auto end = std::chrono::steady_clock::now() + patience;
  std::optional<std::string> first;
  while (true) {
    const auto leases = read_leases(client);
    if (!leases && leases.error().kind == kube::ErrorKind::not_found)
      return judge_leadership({}, std::chrono::system_clock::now());
    if (!leases)
      return {Leadership::State::unknown, "whether an operator leads: " + leases.error().message};
    Leadership leadership = judge_leadership(*leases, std::chrono::system_clock::now());
    const std::string renewals = renewals_of(*leases);
    if (!first) first = renewals;
    // By itself, or by a clock that goes differently from ours.
    const bool moves =
        renewals != *first && std::any_of(leases->begin(), leases->end(), [](const Json& lease) {
          return !kube::text_at(lease, "/spec/holderIdentity").empty();
        });
    if (moves) return {Leadership::State::leads, "an operator leads"};
    if (leadership.state == Leadership::State::leads || leases->empty() ||
        std::chrono::steady_clock::now() >= end)
      return leadership;
    std::this_thread::sleep_for(between_looks);
  }
}

}  // namespace trafficmirror::kubectl
