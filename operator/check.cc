#include "operator/check.h"

#include <iostream>
#include <thread>

#include "operator/kube/leader_election.h"
#include "operator/names.h"
#include "operator/pods.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr std::chrono::milliseconds between_looks{500};

struct Look {
  std::string renewed;  // when, as the lease says
  size_t mirrors = 0;
  std::vector<std::string> problems;
};

Look look(kube::Client& client, const kube::Key& lease, const std::set<std::string>& namespaces) {
  Look seen;
  if (const auto object = client.get(kube::leases, lease))
    seen.renewed = kube::text_at(*object, "/spec/renewTime");
  else
    seen.problems.push_back("the Lease " + to_text(lease) + ": " + object.error().message);
  std::vector<Json> mirrors;
  for (const std::string& name : namespaces.empty() ? std::set<std::string>{""} : namespaces) {
    const auto list = client.list(resources::mirrors, name);
    if (list)
      for (const Json& mirror : (*list)["items"]) mirrors.push_back(mirror);
    else
      seen.problems.push_back("TrafficMirrors: " + list.error().message);
  }
  seen.mirrors = mirrors.size();
  for (std::string& problem : problems_of(mirrors)) seen.problems.push_back(std::move(problem));
  return seen;
}

}  // namespace

bool is_stopped(const Json& mirror) {
  const Json* mirroring = condition_of(mirror, "Mirroring");
  return mirroring && mirroring->value("reason", "") == "Stopped";
}

std::optional<Problem> problem_of(const Json& mirror) {
  const Json* ready = condition_of(mirror, "Ready");
  const int64_t generation = mirror.value("/metadata/generation"_json_pointer, int64_t{0});
  if (!ready || ready->value("observedGeneration", int64_t{0}) != generation)
    return Problem{"", "the operator has not looked at it since it was changed"};
  const std::string reason = ready->value("reason", "");
  // Not by what its user has to put right, such as a namespace that does not consent.
  const bool is_wanted = mirror.value("/spec/paused"_json_pointer, false) ||
                         reason == "DurationOver" || reason == "Replayed";
  if (ready->value("status", "") == "True" || (is_wanted && is_stopped(mirror)))
    return std::nullopt;
  return Problem{reason, ready->value("message", "")};
}

std::vector<std::string> problems_of(const std::vector<Json>& mirrors) {
  std::vector<std::string> problems;
  for (const Json& mirror : mirrors)
    if (const auto problem = problem_of(mirror))
      problems.push_back(to_text(kube::key_of(mirror)) + ": " +
                         (problem->reason.empty() ? "" : problem->reason + ": ") +
                         problem->message);
  return problems;
}

int check(kube::Client& client, const kube::Key& lease, const std::set<std::string>& namespaces,
          std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  const std::string first = look(client, lease, namespaces).renewed;
  while (true) {
    std::this_thread::sleep_for(between_looks);
    Look seen = look(client, lease, namespaces);
    if (seen.renewed == first)
      seen.problems.push_back("no operator leads: " + to_text(lease) + " is not renewed");
    if (seen.problems.empty()) {
      std::cout << "the operator leads; TrafficMirrors: " << seen.mirrors
                << ", each of them Ready or stopped as wanted\n";
      return 0;
    }
    if (std::chrono::steady_clock::now() < end) continue;
    for (const std::string& problem : seen.problems) std::cout << problem << '\n';
    return 1;
  }
}

}  // namespace trafficmirror::controller
