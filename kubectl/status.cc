#include "kubectl/status.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "kubectl/text.h"
#include "operator/check.h"
#include "operator/kube/wall_time.h"
#include "operator/mirror.h"
#include "operator/names.h"
#include "operator/pods.h"
#include "operator/replay.h"
#include "operator/selector.h"

namespace trafficmirror::kubectl {
namespace {

using controller::condition_of;
using controller::Container;
using controller::Mirror;
using controller::Problem;
using controller::WallTime;
using kube::Json;

constexpr const char* indentation = "  ";
// In the order in which one is the cause of the next.
constexpr std::array<const char*, 5> conditions_by_cause{
    "Consented", "InterceptAvailable", "Attached", "ReplyPathVerified", "Mirroring"};

int64_t count_at(const Json& mirror, const char* pointer) {
  return mirror.value(Json::json_pointer(pointer), int64_t{0});
}

std::string age_at(const std::string& time, WallTime now) {
  const auto since = kube::time_of(time);
  return since ? age_of(std::chrono::floor<std::chrono::seconds>(now - *since)) : "?";
}

// What READY says of it, and why that is so in one word.
std::pair<std::string, std::string> state_of(const Json& mirror) {
  const auto problem = controller::problem_of(mirror);
  if (problem) return {"no", problem->reason.empty() ? "NotSeen" : problem->reason};
  const Json& ready = *condition_of(mirror, "Ready");
  return {ready.value("status", "") == "True" ? "yes" : "stopped", ready.value("reason", "")};
}

// The first cause first, which is what Ready says; and what else is wrong. What a condition says
// that follows from one before it, such as that nothing is known yet, is left out.
std::vector<std::vector<std::string>> causes_of(const Json& mirror, const Problem& problem) {
  std::vector<std::vector<std::string>> rows{
      {problem.reason.empty() ? "NotSeen" : problem.reason, problem.message}};
  if (problem.reason.empty()) return rows;
  std::set<std::string> told{problem.message};
  for (const char* type : conditions_by_cause) {
    const Json* condition = condition_of(mirror, type);
    if (!condition || condition->value("status", "") != "False") continue;
    if (told.insert(condition->value("message", "")).second)
      rows.push_back({condition->value("reason", ""), condition->value("message", "")});
  }
  return rows;
}

std::string told_of(const Leadership& leadership, bool any_mirrors) {
  switch (leadership.state) {
    case Leadership::State::leads:
      return "";
    case Leadership::State::nobody:
      return std::string("\n") + (any_mirrors ? "What is said above may be old: " : "") +
             leadership.text + "\n";
    case Leadership::State::unknown:
      return "\nNot checked: " + leadership.text + "\n";
  }
  return "";
}

std::string target_of(const Mirror& mirror) {
  std::string text;
  if (const auto* service = std::get_if<controller::ShadowService>(&mirror.shadow))
    text = "Service " + mirror.shadow_namespace + "/" + service->name;
  else
    text = "pods " + selector_text(std::get<Json>(mirror.shadow)) + " of namespace " +
           mirror.shadow_namespace;
  return text + (mirror.shadow_port ? ", port " + std::to_string(mirror.shadow_port->number) : "");
}

// What is copied from where, or replayed.
std::vector<std::string> source_row(const Mirror& mirror) {
  std::string ports;
  for (const net::ProductionPort port : mirror.ports)
    ports += (ports.empty() ? "" : ", ") + port.to_string();
  std::string percent = Json(mirror.percent).dump();
  if (percent.ends_with(".0")) percent.resize(percent.size() - 2);
  std::string filter = mirror.filter;  // may be of several lines
  std::replace(filter.begin(), filter.end(), '\n', ' ');
  if (!filter.empty()) filter = ", as far as they are " + filter;
  const std::string connections =
      (mirror.percent == 100 ? "all" : percent + "% of the") + " connections to port " + ports;
  if (!mirror.capture)
    return {"copies", connections + " of pods " + selector_text(mirror.selector) + filter};
  return {"replays", connections + " in " + capture_text(*mirror.capture) + filter};
}

// In one line, how far the replay is.
std::string replay_of(const Json& replay) {
  std::string text = replay.value("phase", "");
  if (replay.contains("packets"))
    text += ", " + with_commas(replay.value("packets", int64_t{0})) + " packets";
  if (replay.contains("percent"))
    text += ", " + std::to_string(replay.value("percent", 0)) + " % of the capture";
  return text;
}

std::string indented(const std::string& lines) {
  std::string text = indentation;
  for (const char each : lines) {
    text += each;
    if (each == '\n') text += indentation;
  }
  text.erase(text.find_last_not_of(" \n") + 1);
  return text + "\n";
}

// Why no sidecar runs in it, or nothing.
std::string lack_of(const Json& pod, const std::string& name) {
  const std::vector<Container> sidecars = controller::containers_of(pod, name);
  if (sidecars.empty()) return "no sidecar";
  const Container& last = sidecars.back();
  const std::string why = (last.reason.empty() ? "" : ": " + last.reason) +
                          (last.message.empty() ? "" : ": " + last.message);
  switch (last.state) {
    case Container::State::running:
      return "";
    case Container::State::waiting:
      return "its sidecar waits" + why;
    case Container::State::terminated:
      return "its sidecar ended with exit code " + std::to_string(last.exit_code) + why;
    case Container::State::unknown:
      break;
  }
  return "its sidecar is not started yet";
}

// Those that the mirror selects and that no sidecar runs in: name and why.
std::vector<std::pair<std::string, std::string>> pods_without(const Mirror& mirror,
                                                              const std::vector<Json>& pods) {
  std::vector<std::pair<std::string, std::string>> without;
  for (Json pod : pods) {
    controller::project_pod(pod);
    if (!controller::is_alive(pod) ||
        !controller::selects(mirror.selector, controller::labels_of(pod)))
      continue;
    if (std::string lack = lack_of(pod, controller::name_for(mirror.key)); !lack.empty())
      without.emplace_back(kube::key_of(pod).name, std::move(lack));
  }
  return without;
}

std::vector<std::vector<std::string>> rows_of_pods(const Json& mirror, const Mirror& parsed,
                                                   const kube::Result<std::vector<Json>>& pods) {
  constexpr size_t most = 10;
  std::string attached = kube::text_at(mirror, "/status/attached");
  if (const size_t slash = attached.find('/'); slash != std::string::npos)
    attached.replace(slash, 1, " of ");
  std::vector<std::vector<std::string>> rows{
      {"pods", (attached.empty() ? "none" : attached) + " have a sidecar"}};
  if (!pods) {
    rows.push_back({"", "which have none is not known: " + pods.error().message});
    return rows;
  }
  const auto without = pods_without(parsed, *pods);
  for (size_t i = 0; i < std::min(without.size(), most); ++i)
    rows.push_back({"", without[i].first + ": " + without[i].second});
  if (without.size() > most)
    rows.push_back({"", "and " + std::to_string(without.size() - most) + " more without"});
  return rows;
}

}  // namespace

std::string counts_of(const Json& mirror) {
  return with_commas(count_at(mirror, "/status/exchanges")) + " exchanges, " +
         with_commas(count_at(mirror, "/status/shed")) + " shed";
}

Told status_of_all(const std::vector<Json>& mirrors, const std::string& where,
                   const Leadership& leadership, WallTime now) {
  Told told{.text = "", .well = leadership.state != Leadership::State::nobody};
  if (mirrors.empty()) {
    told.text = "No TrafficMirrors in " + where + ".\n" + told_of(leadership, false);
    return told;
  }
  std::vector<std::vector<std::string>> rows{
      {"NAMESPACE", "NAME", "READY", "REASON", "PODS", "SESSIONS", "EXCHANGES", "SHED", "AGE"}};
  for (const Json& mirror : mirrors) {
    const kube::Key key = kube::key_of(mirror);
    const auto [ready, reason] = state_of(mirror);
    const std::string attached = kube::text_at(mirror, "/status/attached");
    rows.push_back({key.namespace_, key.name, ready, reason, attached.empty() ? "-" : attached,
                    with_commas(count_at(mirror, "/status/sessions")),
                    with_commas(count_at(mirror, "/status/exchanges")),
                    with_commas(count_at(mirror, "/status/shed")),
                    age_at(kube::text_at(mirror, "/metadata/creationTimestamp"), now)});
  }
  told.text = table_of(rows);
  for (const Json& mirror : mirrors)
    if (const auto problem = controller::problem_of(mirror)) {
      told.well = false;
      told.text += "\n" + to_text(kube::key_of(mirror)) + " is not Ready:\n" +
                   table_of(causes_of(mirror, *problem), indentation);
    }
  told.text += told_of(leadership, true);
  return told;
}

Told status_of_one(const Json& mirror, const kube::Result<std::vector<Json>>& pods,
                   const Leadership& leadership, WallTime now) {
  const std::string name = to_text(kube::key_of(mirror));
  const auto problem = controller::problem_of(mirror);
  Told told{.text = "", .well = !problem && leadership.state != Leadership::State::nobody};
  const auto [ready, reason] = state_of(mirror);
  std::set<std::string> said;
  if (problem) {
    const auto causes = causes_of(mirror, *problem);
    for (const auto& cause : causes) said.insert(cause.back());
    told.text = name + " is not Ready:\n" + table_of(causes, indentation);
  } else {
    told.text = name + (ready == "yes" ? " is Ready: " : " is stopped, as wanted: ") +
                condition_of(mirror, "Ready")->value("message", "") + "\n";
  }

  const controller::ParsedMirror parsed = controller::parse_mirror(mirror);
  std::vector<std::vector<std::string>> rows;
  if (parsed.problem.empty()) {
    rows.push_back(source_row(parsed.mirror));
    rows.push_back({"to", target_of(parsed.mirror)});
  }
  if (const std::string since = kube::text_at(mirror, "/status/startedAt"); !since.empty()) {
    const std::string& duration = parsed.mirror.duration_text;
    rows.push_back({"since", since + ", " + age_at(since, now) + " ago" +
                                 (duration.empty() ? "" : "; it ends after " + duration)});
  }
  const Json replay = mirror.value("/status/replay"_json_pointer, Json::object());
  if (!replay.empty())
    rows.push_back({"replay", replay_of(replay)});
  else if (parsed.problem.empty() && ready != "stopped" && !parsed.mirror.capture)
    for (auto& row : rows_of_pods(mirror, parsed.mirror, pods)) rows.push_back(std::move(row));
  rows.push_back({"sessions", with_commas(count_at(mirror, "/status/sessions")) + " now"});
  rows.push_back({"exchanges",
                  with_commas(count_at(mirror, "/status/exchanges")) + " answered by the shadow"});
  const int64_t shed = count_at(mirror, "/status/shed");
  rows.push_back(
      {"shed", with_commas(shed) + (shed == 0 ? "" : ", by reason in the sidecars' /metrics")});
  told.text += "\n" + table_of(rows, indentation);
  if (replay.contains("report")) told.text += "\n" + indented(replay.value("report", ""));

  rows.clear();
  for (const char* type : conditions_by_cause)
    if (const Json* condition = condition_of(mirror, type)) {
      const std::string message = condition->value("message", "");
      rows.push_back({type, condition->value("status", ""),
                      said.contains(message) ? condition->value("reason", "") : message});
    }
  if (!rows.empty()) told.text += "\n" + table_of(rows, indentation);
  told.text += told_of(leadership, true);
  return told;
}

}  // namespace trafficmirror::kubectl
