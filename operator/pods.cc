#include "operator/pods.h"

#include <algorithm>
#include <initializer_list>

#include "operator/attached_container.h"
#include "operator/kube/informer.h"
#include "operator/names.h"
#include "operator/selector.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* prefix = "trafficmirror-";
constexpr const char* intercept_container = "intercept";
// Where project_pod puts the revision of a container of ours.
constexpr const char* revision_field = "revision";

Json only(const Json& object, std::initializer_list<const char*> fields) {
  Json kept = Json::object();
  for (const char* field : fields)
    if (object.contains(field)) kept[field] = object[field];
  return kept;
}

bool is_ours(const std::string& container) {
  return container.starts_with(prefix) || container == intercept_container;
}

Json project_containers(const Json& containers, bool ports) {
  Json kept = Json::array();
  for (const Json& container : containers) {
    Json entry = only(container, {"name"});
    if (ports && container.contains("ports"))
      for (const Json& port : container["ports"])
        entry["ports"].push_back(only(port, {"containerPort", "protocol"}));
    if (is_ours(container.value("name", ""))) entry[revision_field] = revision_of(container);
    if (entry.size() > 1) kept.push_back(std::move(entry));
  }
  return kept;
}

const Json* status_of(const Json& pod, const char* list, const std::string& name) {
  const auto at = Json::json_pointer(std::string("/status/") + list);
  if (!pod.contains(at)) return nullptr;
  for (const Json& status : pod[at])
    if (status.value("name", "") == name) return &status;
  return nullptr;
}

void read_state(const Json& status, Container& container) {
  if (!status.contains("state")) return;
  const Json& state = status["state"];
  const auto read = [&](const char* field, Container::State value) {
    if (!state.contains(field)) return;
    container.state = value;
    container.reason = state[field].value("reason", "");
    container.message = state[field].value("message", "");
    container.exit_code = state[field].value("exitCode", int64_t{0});
    container.finished_at = kube::text_at(state[field], "/finishedAt");  // null: nobody knows
  };
  read("waiting", Container::State::waiting);
  read("running", Container::State::running);
  read("terminated", Container::State::terminated);
}

bool is_named(const std::string& container, const std::string& name) {
  if (!container.starts_with(name)) return false;
  const std::string rest = container.substr(name.size());
  return rest.empty() || (rest.size() > 1 && rest[0] == '-' &&
                          rest.find_first_not_of("0123456789", 1) == std::string::npos);
}

}  // namespace

const char* protocol_name(net::Protocol protocol) {
  return protocol == net::Protocol::udp ? "UDP" : "TCP";
}

bool is_of_protocol(const Json& port, net::Protocol protocol) {
  return port.value("protocol", "TCP") == protocol_name(protocol);
}

void project_metadata(Json& object) {
  Json metadata =
      only(object["metadata"], {"name", "namespace", "uid", "resourceVersion", "generation",
                                "deletionTimestamp", "labels", "annotations"});
  if (metadata.contains("annotations"))
    metadata["annotations"] = only(metadata["annotations"], {names::accept_from, names::mirror,
                                                             names::applied, names::configuration});
  Json kept = only(object, {"apiVersion", "kind"});
  kept["metadata"] = std::move(metadata);
  object = std::move(kept);
}

void project_pod(Json& pod) {
  Json kept = only(pod, {"apiVersion", "kind", "metadata"});
  project_metadata(kept);
  const Json& spec = pod["spec"];
  Json& kept_spec = kept["spec"] = Json::object();
  for (const char* list : {"containers", "initContainers", "ephemeralContainers"}) {
    if (!spec.contains(list)) continue;
    Json containers = project_containers(spec[list], list == std::string("containers"));
    if (!containers.empty()) kept_spec[list] = std::move(containers);
  }
  if (spec.value("hostNetwork", false)) kept_spec["hostNetwork"] = true;
  Json& status = kept["status"] = Json::object();
  if (pod.contains("status")) {
    status = only(pod["status"], {"phase", "podIP"});
    for (const char* list :
         {"containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"}) {
      if (!pod["status"].contains(list)) continue;
      for (const Json& entry : pod["status"][list])
        if (is_ours(entry.value("name", "")))
          status[list].push_back(only(entry, {"name", "state", "restartCount"}));
    }
    if (pod["status"].contains("conditions"))
      for (const Json& condition : pod["status"]["conditions"]) {
        const std::string type = condition.value("type", "");
        if (type == "Ready" || (type == "PodScheduled" && condition.value("status", "") != "True"))
          status["conditions"].push_back(only(condition, {"type", "status", "reason", "message"}));
      }
  }
  pod = std::move(kept);
}

void project_endpoints(Json& endpoints) {
  Json kept = only(endpoints, {"apiVersion", "kind", "metadata"});
  project_metadata(kept);
  if (endpoints.contains("subsets"))
    for (const Json& subset : endpoints["subsets"]) {
      Json entry = only(subset, {"ports"});
      if (subset.contains("addresses"))
        for (const Json& address : subset["addresses"])
          entry["addresses"].push_back(only(address, {"ip"}));
      kept["subsets"].push_back(std::move(entry));
    }
  endpoints = std::move(kept);
}

void project_owned(Json& object) {
  kube::strip(object);
  if (!object.contains("status")) return;
  object["status"] = only(object["status"], {"conditions", "availableReplicas"});
  if (object["status"].empty()) object.erase("status");
}

std::string revision_of(const Json& container) {
  std::string text;
  bool skip = false;
  if (container.contains("args"))
    for (const Json& argument : container["args"]) {
      const bool limit = argument == "--memory-limit";
      if (!skip && !limit) text += argument.dump() + "\n";
      skip = limit;
    }
  if (container.contains("env"))
    for (const Json& variable : container["env"]) {
      if (const auto secret = kube::text_at(variable, "/valueFrom/secretKeyRef/name");
          !secret.empty())
        text += secret + "\n";
      if (variable.value("name", "") == identity_revision_variable)
        text += variable.value("value", "");
    }
  return hash_of(text);
}

std::vector<Container> containers_of(const Json& pod, const std::string& name) {
  std::vector<Container> found;
  const auto look = [&](const char* list, const char* statuses, Container::Kind kind) {
    const auto at = Json::json_pointer(std::string("/spec/") + list);
    if (!pod.contains(at)) return;
    for (const Json& entry : pod[at]) {
      Container container;
      container.kind = kind;
      container.name = entry.value("name", "");
      if (!is_named(container.name, name)) continue;
      container.revision = entry.value(revision_field, "");
      if (const Json* status = status_of(pod, statuses, container.name))
        read_state(*status, container);
      found.push_back(std::move(container));
    }
  };
  look("containers", "containerStatuses", Container::Kind::container);
  look("initContainers", "initContainerStatuses", Container::Kind::init);
  look("ephemeralContainers", "ephemeralContainerStatuses", Container::Kind::ephemeral);
  return found;
}

bool is_alive(const Json& pod) {
  if (pod.contains("/metadata/deletionTimestamp"_json_pointer)) return false;
  const std::string phase = kube::text_at(pod, "/status/phase");
  return phase != "Succeeded" && phase != "Failed";
}

bool uses_host_network(const Json& pod) {
  return pod.value("/spec/hostNetwork"_json_pointer, false);
}

bool is_running(const Json& pod) {
  return is_alive(pod) && kube::text_at(pod, "/status/phase") == "Running";
}

const Json* condition_of(const Json& object, const std::string& type) {
  const auto at = "/status/conditions"_json_pointer;
  if (!object.contains(at)) return nullptr;
  for (const Json& condition : object[at])
    if (condition.value("type", "") == type) return &condition;
  return nullptr;
}

bool has_condition(const Json& object, const std::string& type) {
  const Json* condition = condition_of(object, type);
  return condition && condition->value("status", "") == "True";
}

bool pod_security_forbids(const Json& namespace_) {
  const Json& labels = labels_of(namespace_);
  if (!labels.is_object()) return false;
  const std::string level = labels.value("pod-security.kubernetes.io/enforce", "");
  return level == "baseline" || level == "restricted";
}

bool is_image_problem(const std::string& reason) {
  return reason == "ErrImagePull" || reason == "ImagePullBackOff" || reason == "InvalidImageName" ||
         reason == "ErrImageNeverPull" || reason == "RegistryUnavailable";
}

}  // namespace trafficmirror::controller
