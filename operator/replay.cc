#include "operator/replay.h"

#include <algorithm>

#include "operator/names.h"
#include "operator/pods.h"
#include "operator/selector.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* component = "replay";

// What the program says last, on the one line of a mistake or behind what it logged.
std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

// Where it ended by itself, well or not, its last words are its report; otherwise they are its
// log's.
bool has_report(const Container& ended) {
  return (ended.exit_code == 0 || ended.exit_code == 1) && !ended.message.empty();
}

std::string why_failed(const Json& job, const Container* ended) {
  if (!ended) {
    const Json* failed = condition_of(job, "Failed");
    return "its Job failed: " + (failed ? failed->value("message", "") : "");
  }
  if (has_report(*ended))
    return "it was stopped before its end, or not one byte of it reached the shadow: see "
           "status.replay.report";
  const std::string said = last_line(ended->message);
  return "it ended with exit code " + std::to_string(ended->exit_code) +
         (ended->reason.empty() || ended->reason == "Error" ? "" : " (" + ended->reason + ")") +
         (said.empty() ? "" : ": " + said);
}

}  // namespace

std::string replay_revision(const Mirror& mirror) {
  const Capture& capture = *mirror.capture;
  Json what = {capture.claim, capture.path, capture.speed,
               capture.loop,  capture.from, capture.until};
  for (const net::ProductionPort port : mirror.ports) what.push_back(port.to_string());
  return hash_of(what.dump());
}

Json replay_labels(const Mirror& mirror) {
  return {{names::instance_label, name_for(mirror.key)}, {names::component_label, component}};
}

bool is_replay(const Json& pod) {
  const Json& labels = labels_of(pod);
  return labels.is_object() && labels.value(names::component_label, "") == component &&
         labels.value(names::managed_by_label, "") == names::managed_by;
}

bool is_pod_of(const Json& pod, const Json& job) {
  const Json& labels = labels_of(pod);
  return labels.is_object() &&
         labels.value("controller-uid", "") == kube::text_at(job, "/metadata/uid");
}

WantedObject job_for(const Mirror& mirror, const SidecarSettings& sidecar) {
  Json labels = replay_labels(mirror);
  labels[names::managed_by_label] = names::managed_by;
  return {resources::jobs,
          {{"apiVersion", resources::jobs.group_version()},
           {"kind", "Job"},
           {"metadata",
            {{"name", name_for(mirror.key)},
             {"namespace", mirror.key.namespace_},
             {"labels", labels},
             {"annotations",
              {{names::mirror, to_text(mirror.key)}, {names::replay, replay_revision(mirror)}}}}},
           {"spec",
            {{"backoffLimit", 0},
             {"template",
              {{"metadata",
                {{"labels", labels}, {"annotations", {{names::mirror, to_text(mirror.key)}}}}},
               {"spec", replaying_pod(sidecar, *mirror.capture)}}}}}}};
}

bool is_end(const std::string& phase) {
  return phase == phases::succeeded || phase == phases::failed || phase == phases::stopped;
}

std::string capture_text(const Capture& capture) {
  return capture.path + " of PersistentVolumeClaim " + capture.claim;
}

Json replay_after(Json replay, const Json& job, const Json* pod, const std::string& container) {
  std::vector<Container> containers;
  if (pod) containers = containers_of(*pod, container);
  const Container* its = containers.empty() ? nullptr : &containers.front();
  const bool began = its && (its->state == Container::State::running ||
                             its->state == Container::State::terminated);
  const Container* ended = its && its->state == Container::State::terminated ? its : nullptr;
  const std::string before = replay.value("phase", "");
  // The Job's end may be seen before that of its pod, which has the last words.
  const bool is_over = ended || !pod || !is_alive(*pod);
  if (is_over && has_condition(job, "Complete")) {
    replay["phase"] = phases::succeeded;
  } else if (is_over && has_condition(job, "Failed")) {
    replay["phase"] = phases::failed;
    // Its pod may be gone by now.
    if (ended || before != phases::failed) replay["message"] = why_failed(job, ended);
  } else if (began) {
    replay["phase"] = phases::running;
  }
  if (ended && has_report(*ended)) {
    replay["report"] = ended->message;
    for (const char* progress : {"packets", "percent"}) replay.erase(progress);
  }
  return replay;
}

}  // namespace trafficmirror::controller
