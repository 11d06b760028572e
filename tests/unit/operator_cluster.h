// A cluster in which a mirror's life is played: it holds objects, does what plans say, and has
// kubelets that start and end containers. No operator runs, and no time passes but by pass().
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include "operator/kube/secret.h"
#include "operator/kube/wall_time.h"
#include "operator/names.h"
#include "operator/plan.h"
#include "operator/pods.h"
#include "operator/selector.h"

namespace trafficmirror::controller {

// The operator was killed, in place of one of its writes.
struct Killed {};

class Cluster {
 public:
  using Json = kube::Json;
  using Resource = kube::Resource;

  // Shop's three pods of app=checkout, one of another app; in shop-shadow, which consents, the
  // Service checkout-v2 with one endpoint; and a mirror of the former to the latter.
  Cluster() {
    add_namespace("shop");
    add_namespace("shop-shadow", {{names::accept_from, "shop"}});
    add_service("shop-shadow");
    for (const char* name : {"checkout-a", "checkout-b", "checkout-c"}) add_pod(name);
    add_pod("cart-a", {{"app", "cart"}});
    mirror = Json::parse(R"({
        "apiVersion": "trafficmirror.dev/v1alpha1", "kind": "TrafficMirror",
        "metadata": {"name": "checkout-v2", "namespace": "shop", "uid": "mirror-uid",
                     "generation": 1, "creationTimestamp": "2030-01-01T00:00:00Z"},
        "spec": {"source": {"selector": {"matchLabels": {"app": "checkout"}}, "ports": [8080],
                            "interface": "eth0", "attach": "Auto"},
                 "shadow": {"namespace": "shop-shadow", "service": {"name": "checkout-v2"}},
                 "clientAddress": "Masquerade",
                 "replicate": {"percent": 100},
                 "limits": {"memory": "64Mi", "maxSessions": 20000},
                 "intercept": {"replicas": 1},
                 "paused": false},
        "status": {}})");
  }

  // ---- what tests change

  WallTime now = std::chrono::system_clock::from_time_t(1'900'000'000);
  Json mirror;  // null when it is gone
  std::map<std::string, Json> namespaces;
  std::map<kube::Key, Json> services;
  std::map<kube::Key, Json> endpoints;
  std::map<std::string, Json> pods;         // of shop
  std::map<std::string, Json> shadow_pods;  // of shop-shadow, but for the intercept's
  std::map<std::string, Json> replay_pods;  // of shop, of Jobs
  std::vector<Mirror> earlier_mirrors;
  Settings settings{.operator_namespace = "trafficmirror",
                    .sidecar_image = "example.org/sidecar:1",
                    .intercept_image = "example.org/intercept:1"};
  Abilities abilities{.ephemeral_containers = true, .native_sidecars = true, .policy_v1 = true};
  CertificateLifetimes lifetimes;
  kube::SecretData ca = ca_of_all();

  // What goes wrong.
  std::map<std::string, std::string> refused;  // "objects" or "pod/NAME": the API server's message
  std::set<std::string> stubborn;              // pods whose sidecars do not end when told to
  std::map<std::string, Json> sidecar_state;   // by pod: what becomes of a sidecar that is started
  bool sidecars_are_started = true;
  bool intercepts_are_started = true;
  Json replay_state = Json::parse(R"({"running": {}})");  // of a Job's container
  Report::Replay replay_progress;
  bool streams_to_beside = true;  // sidecars have found the intercepts beside the shadow
  Json deployment_conditions;
  std::function<void(Json& pod)> intercept_pod_becomes = [](Json&) {};
  std::function<void(Reading&)> reading_becomes = [](Reading&) {};
  std::chrono::seconds configuration_delay{0};  // until an intercept's file follows its ConfigMap
  int writes_until_killed = -1;                 // -1: it lives

  // ---- what was done, "apply configmaps shop-shadow/trafficmirror-…", but for the status

  std::vector<std::string> writes;
  int status_writes = 0;

  // ---- the world

  void add_namespace(const std::string& name, const Json& annotations = Json::object(),
                     const Json& labels = Json::object()) {
    namespaces[name] = {
        {"metadata", {{"name", name}, {"labels", labels}, {"annotations", annotations}}}};
    namespaces[name]["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
  }

  void add_service(const std::string& namespace_, const std::string& address = "10.0.0.5") {
    const kube::Key key{namespace_, "checkout-v2"};
    services[key] = Json::parse(R"({"spec": {"selector": {"app": "checkout", "version": "v2"},
                                             "ports": [{"name": "http", "port": 8080},
                                                       {"name": "admin", "port": 9090}]}})");
    Json subset = Json::parse(R"({"ports": [{"name": "http", "port": 8000},
                                            {"name": "admin", "port": 9000}]})");
    subset["addresses"] = Json::array({{{"ip", address}}});
    endpoints[key] = {{"subsets", Json::array({subset})}};
  }

  // Intercepts are beside the shadow's pods, of which there is one, in place of the endpoint that
  // is nobody's; and all is labelled for the webhook.
  void preserve_clients() {
    edit("/clientAddress", "Preserve");
    const kube::Key service{"shop-shadow", "checkout-v2"};
    services[service]["spec"]["ports"][0]["targetPort"] = 8000;
    endpoints[service]["subsets"][0]["addresses"] = Json::array();
    for (const char* name : {"shop", "shop-shadow"})
      namespaces[name]["metadata"]["labels"][names::inject] = names::inject_enabled;
    add_shadow_pod("shadow-a", "10.0.0.6");
  }

  // Behind the Service, ready; through the webhook as below.
  void add_shadow_pod(const std::string& name, const std::string& address) {
    Json pod = {
        {"metadata",
         {{"name", name},
          {"namespace", "shop-shadow"},
          {"uid", "uid-" + name},
          {"labels", {{"app", "checkout"}, {"version", "v2"}, {names::inject, "enabled"}}}}},
        {"spec",
         {{"containers", Json::array({{{"name", "app"}, {"image", "example.org/checkout:2"}}})}}},
        {"status",
         {{"phase", "Running"},
          {"podIP", address},
          {"conditions", Json::array({{{"type", "Ready"}, {"status", "True"}}})}}}};
    const kube::Key service{"shop-shadow", "checkout-v2"};
    const Mirror parsed = parse_mirror(mirror).mirror;
    const auto targets =
        targets_of_new_pod(parsed, &services.at(service), labels_of(pod), pod["spec"]);
    if (parsed.is_intercepted_beside() && injects(parsed, mirror["status"], abilities)) {
      pod["spec"]["initContainers"].push_back(
          injected_container(intercept_settings(parsed, targets, settings),
                             InjectedAs::native_sidecar, Requests::little));
      pod["status"]["initContainerStatuses"].push_back(
          {{"name", intercept_container_for(parsed.key)},
           {"state", {{"running", Json::object()}}}});
    }
    shadow_pods[name] = std::move(pod);
    Json& subset = endpoints[service]["subsets"][0];
    subset["addresses"].push_back({{"ip", address}});
  }

  // Where the server has no ephemeral containers, or the mirror wants none, through the webhook.
  void add_pod(const std::string& name, const Json& labels = {{"app", "checkout"}}) {
    Json pod = {
        {"metadata", {{"name", name}, {"namespace", "shop"}, {"labels", labels}}},
        {"spec",
         {{"containers", Json::array({{{"name", "app"},
                                       {"image", "example.org/checkout:1"},
                                       {"ports", Json::array({{{"containerPort", 8080}},
                                                              {{"containerPort", 9090}}})}}})}}},
        {"status",
         {{"phase", "Running"},
          {"podIP", "10.0.1.7"},
          {"conditions", Json::array({{{"type", "Ready"}, {"status", "True"}}})}}}};
    if (!mirror.is_null()) {
      const Mirror parsed = parse_mirror(mirror).mirror;
      const auto labelled = [](const Json& object) {
        return object["metadata"]["labels"].value(names::inject, "") == names::inject_enabled;
      };
      if (labelled(namespaces["shop"]) && labelled(pod) && selects(parsed.selector, labels) &&
          injects(parsed, mirror["status"], abilities)) {
        pod["spec"]["initContainers"].push_back(injected_container(
            sidecar_settings(parsed, settings), InjectedAs::native_sidecar, Requests::little));
        pod["status"]["initContainerStatuses"].push_back(
            {{"name", name_for(parsed.key)}, {"state", {{"running", Json::object()}}}});
      }
    }
    pods[name] = std::move(pod);
  }

  // The mirror is made one whose source is a capture.
  void replay_a_capture() {
    mirror["spec"]["source"] = Json::parse(R"({
        "capture": {"claimName": "captures", "path": "web.pcap", "speed": "1x", "loop": 1},
        "ports": [8080], "interface": "eth0", "attach": "Auto"})");
    raise_generation();
  }

  // The replay's container ends, and its Job with it.
  void end_replay(int exit_code, const std::string& message, const std::string& why = "Completed") {
    ASSERT_EQ(replay_pods.size(), 1U);
    replay_pods.begin()->second["status"] = {
        {"phase", exit_code == 0 ? "Succeeded" : "Failed"},
        {"containerStatuses",
         Json::array({{{"name", name()},
                       {"state",
                        {{"terminated",
                          {{"exitCode", exit_code}, {"message", message}, {"reason", why}}}}}}})}};
    change_object(resources::jobs, {"shop", name()}, [&](Json& job) {
      job["status"]["conditions"] = Json::array(
          {{{"type", exit_code == 0 ? "Complete" : "Failed"},
            {"status", "True"},
            {"message", exit_code == 0 ? "" : "Job has reached the specified backoff limit"}}});
    });
  }

  // Of the spec, as kubectl edit does.
  void edit(const std::string& pointer, Json value) {
    mirror["spec"][Json::json_pointer(pointer)] = std::move(value);
    raise_generation();
  }
  void remove_from_spec(const std::string& map, const std::string& key) {
    mirror["spec"][Json::json_pointer(map)].erase(key);
    raise_generation();
  }
  void remove_mirror() {
    mirror["metadata"]["deletionTimestamp"] = kube::to_text(now);
    raise_generation();
  }

  void annotate(const std::string& namespace_, const std::string& accept_from) {
    namespaces[namespace_]["metadata"]["annotations"] = {{names::accept_from, accept_from}};
  }

  // What the sidecar of a pod that was attached last is now.
  void set_sidecar_state(const std::string& pod, Json state) {
    pods.at(pod)["status"]["ephemeralContainerStatuses"].back()["state"] = std::move(state);
  }
  Json terminated(int exit_code) const {
    return {{"terminated", {{"exitCode", exit_code}, {"finishedAt", kube::to_text(now)}}}};
  }

  // ---- what there is

  std::string name() const { return name_for({"shop", "checkout-v2"}); }

  Json condition(const std::string& type) const { return condition_of_status(status(), type); }
  static Json condition_of_status(const Json& status, const std::string& type) {
    for (const Json& entry : status.value("conditions", Json::array()))
      if (entry["type"] == type) return entry;
    return Json::object();
  }
  std::string reason(const std::string& type) const { return condition(type).value("reason", ""); }
  const Json& status() const { return mirror["status"]; }
  bool is_ready() const { return condition("Ready").value("status", "") == "True"; }

  // "deployments shop-shadow/trafficmirror-…", with NAME for what all are called.
  std::set<std::string> object_names() const {
    std::set<std::string> all;
    for (const auto& [place, owned] : objects_) all.insert(described(owned.resource, place.second));
    return all;
  }
  const Json* object(const Resource& resource, const kube::Key& key) const {
    const auto found = objects_.find({resource.plural, key});
    return found == objects_.end() ? nullptr : found->second.object.get();
  }
  std::string configuration(const std::string& namespace_ = "shop-shadow") const {
    const Json* map = object(resources::config_maps, {namespace_, name()});
    return map ? map->at("data").at("intercept.yaml").get<std::string>() : "";
  }
  void change_object(const Resource& resource, const kube::Key& key,
                     const std::function<void(Json&)>& change) {
    Observation::Owned& owned = objects_.at({resource.plural, key});
    Json object = *owned.object;
    change(object);
    owned.object = std::make_shared<Json>(std::move(object));
  }
  void lose_object(const Resource& resource, const kube::Key& key) {
    objects_.erase({resource.plural, key});
    if (resource == resources::jobs) replay_pods.clear();
  }

  // Names of the containers that are ours, "running" and so on behind each.
  std::vector<std::string> sidecars(const std::string& pod) const {
    std::vector<std::string> all;
    Json projected = pods.at(pod);
    project_pod(projected);
    for (const Container& container : containers_of(projected, name())) {
      const char* state = container.state == Container::State::running      ? "running"
                          : container.state == Container::State::terminated ? "terminated"
                          : container.state == Container::State::waiting    ? "waiting"
                                                                            : "unknown";
      std::string shown = container.name;
      all.push_back("NAME" + shown.substr(name().size()) + " " + state);
    }
    return all;
  }
  // Of the intercepts beside the shadow, likewise.
  std::vector<std::string> intercepts_beside(const std::string& pod) const {
    std::vector<std::string> all;
    Json projected = shadow_pods.at(pod);
    project_pod(projected);
    const std::string first = intercept_container_for({"shop", "checkout-v2"});
    for (const Container& container : containers_of(projected, first))
      all.push_back("NAME" + container.name.substr(first.size()) +
                    (container.state == Container::State::running      ? " running"
                     : container.state == Container::State::terminated ? " terminated"
                                                                       : " waiting"));
    return all;
  }
  // What their Service lists, of the Deployment's and of those.
  std::vector<std::string> listed() const {
    std::vector<std::string> addresses;
    if (const Json* object = this->object(resources::endpoints, {"shop-shadow", name()}))
      for (const Json& subset : object->at("subsets"))
        for (const Json& address : subset["addresses"]) addresses.push_back(address["ip"]);
    return addresses;
  }

  size_t running_sidecars() const {
    size_t count = 0;
    for (const auto& [pod, object] : pods)
      for (const std::string& sidecar : sidecars(pod)) count += sidecar.ends_with("running");
    return count;
  }
  std::vector<std::string> intercepts() const {
    std::vector<std::string> all;
    for (const auto& [key, intercept] : intercepts_) all.push_back(to_text(key));
    return all;
  }
  // An intercept has counted this since its start.
  void count(uint64_t exchanges, uint64_t shed) {
    for (auto& [key, intercept] : intercepts_) {
      intercept.exchanges += exchanges;
      intercept.shed += shed;
    }
  }
  void restart_intercepts() {
    for (auto& [key, intercept] : intercepts_) {
      ++intercept.restarts;
      intercept.exchanges = intercept.shed = 0;
    }
  }

  // ---- the operator

  Observation observe() const {
    Observation seen;
    seen.now = now;
    seen.mirror = parse_mirror(mirror);
    const Mirror& parsed = seen.mirror.mirror;
    seen.status = mirror["status"];
    seen.production_namespace = find(namespaces, parsed.key.namespace_);
    seen.shadow_namespace = find(namespaces, parsed.shadow_namespace);
    for (const auto& [name, object] : pods) {
      const SharedJson pod = projected(object);
      if (is_alive(*pod) &&
          ((seen.mirror.problem.empty() && selects(parsed.selector, labels_of(*pod))) ||
           !containers_of(*pod, name_for(parsed.key)).empty()))
        seen.pods.push_back(pod);
    }
    for (const auto& [name, pod] : replay_pods) seen.replay_pods.push_back(projected(pod));
    seen.earlier_mirrors = earlier_mirrors;
    if (const auto* service = std::get_if<ShadowService>(&parsed.shadow)) {
      const kube::Key key{parsed.shadow_namespace, service->name};
      seen.shadow_service = find(services, key);
      if (const auto found = endpoints.find(key); found != endpoints.end()) {
        Json object = found->second;
        project_endpoints(object);
        seen.endpoints = std::make_shared<Json>(std::move(object));
      }
    }
    for (const auto& [name, object] : shadow_pods) {
      const auto* selector = std::get_if<Json>(&parsed.shadow);
      if ((selector && selects(*selector, labels_of(object))) ||
          (seen.endpoints &&
           seen.endpoints->dump().find(object["status"]["podIP"].dump()) != std::string::npos) ||
          intercept_beside(object))
        seen.shadow_pods.push_back(projected(object));
      if (auto reading = reading_beside(object)) seen.readings[name] = *std::move(reading);
    }
    for (const auto& [place, owned] : objects_) {
      Json object = *owned.object;
      project_owned(object);
      seen.owned.push_back({owned.resource, std::make_shared<Json>(std::move(object))});
    }
    for (const auto& [key, intercept] : intercepts_) {
      seen.intercept_pods.push_back(projected(intercept.pod));
      seen.readings[key.name] = reading_of(key, intercept);
    }
    for (const auto& [what, message] : refusals_) seen.refusals[what] = {message};
    seen.ca = ca;
    return seen;
  }

  Plan plan() const { return plan_for(observe(), settings, abilities, lifetimes); }

  // Does what the plan says; whether there was anything to do.
  bool act(const Plan& plan) {
    const size_t before = writes.size();
    const int status_before = status_writes;
    if (plan.add_finalizer) {
      write("finalizer added");
      mirror["metadata"]["finalizers"].push_back(names::finalizer);
      return true;
    }
    if (apply_all(plan)) refusals_.erase("objects");
    for (const Observation::Owned& owned : plan.surplus) remove(owned);
    for (const kube::Key& pod : plan.to_notify) {
      write("notify " + pod.namespace_);
      intercepts_.at(pod).pod["metadata"]["annotations"][names::configuration] = plan.configuration;
    }
    for (const Attachment& attachment : plan.attachments) attach(attachment);
    if (plan.status != mirror["status"]) {
      if (writes_until_killed == 0) throw Killed{};
      if (writes_until_killed > 0) --writes_until_killed;
      ++status_writes;
      mirror["status"] = plan.status;
    }
    if (plan.remove_finalizer) {
      write("finalizer removed");
      EXPECT_TRUE(objects_.empty());
      Json& finalizers = mirror["metadata"]["finalizers"];
      finalizers.erase(std::find(finalizers.begin(), finalizers.end(), names::finalizer));
      if (finalizers.empty()) mirror = nullptr;
    }
    return writes.size() != before || status_writes != status_before;
  }

  // Kubelets and controllers; whether anything happened.
  bool run_kubelets() {
    bool any = run_deployments();
    any = run_jobs() || any;
    for (auto& [key, intercept] : intercepts_) any = look_at_configuration(key, intercept) || any;
    if (sidecars_are_started)
      for (auto& [name, pod] : pods) any = start_sidecars(name, pod) || any;
    for (auto& [name, pod] : shadow_pods) any = run_intercept_beside(name, pod) || any;
    for (auto& [key, intercept] : intercepts_)
      if (intercept.stops) any = stop_sidecars(key) || any;
    return any;
  }

  // Until nothing happens any more, in no time.
  void settle() {
    for (int round = 0; round < 100; ++round) {
      const bool acted = !mirror.is_null() && act(plan());
      if (!run_kubelets() && !acted) return;
    }
    ADD_FAILURE() << "comes to no rest; last of all: " << writes.back();
  }

  // So much time, looking again when plans ask for it.
  void pass(WallTime::duration duration) {
    const WallTime end = now + duration;
    settle();
    while (!mirror.is_null()) {
      std::optional<WallTime> next = plan().look_again;
      for (const auto& [key, intercept] : intercepts_)
        if (intercept.reads_at && (!next || *intercept.reads_at < *next)) next = intercept.reads_at;
      if (!next || *next > end) break;
      now = std::max(*next, now + std::chrono::seconds(1));
      settle();
    }
    now = std::max(now, end);
    settle();
  }

  // What an operator that was killed knows no more.
  void forget() { refusals_.clear(); }

  // All that was written since the last call.
  std::vector<std::string> take_writes() { return std::exchange(writes, {}); }

 private:
  struct Intercept {
    Json pod;
    std::string annotation;  // that its kubelet has seen
    std::optional<WallTime> reads_at;
    bool stops = false;  // what it read in its configuration last
    std::vector<std::string> targets;
    int restarts = 0;
    uint64_t exchanges = 0;
    uint64_t shed = 0;
  };

  static kube::SecretData ca_of_all() {
    static const kube::SecretData data =
        rotate_ca({}, std::chrono::system_clock::from_time_t(1'900'000'000), {}).data;
    return data;
  }

  template <typename Map>
  static SharedJson find(const Map& map, const typename Map::key_type& key) {
    const auto found = map.find(key);
    return found == map.end() ? nullptr : std::make_shared<Json>(found->second);
  }

  static SharedJson projected(Json pod) {
    project_pod(pod);
    return std::make_shared<Json>(std::move(pod));
  }

  void raise_generation() {
    mirror["metadata"]["generation"] = mirror["metadata"]["generation"].get<int>() + 1;
  }

  std::string described(const Resource& resource, const kube::Key& key) const {
    std::string text = resource.plural + " " + to_text(key);
    if (const size_t at = text.find(name()); at != std::string::npos)
      text.replace(at, name().size(), "NAME");
    return text;
  }

  void write(const std::string& what) {
    if (writes_until_killed == 0) throw Killed{};
    if (writes_until_killed > 0) --writes_until_killed;
    writes.push_back(what);
  }

  bool apply_all(const Plan& plan) {
    for (const WantedObject& wanted : plan.objects) {
      const kube::Key key = kube::key_of(wanted.object);
      Observation::Owned& place = objects_[{wanted.resource.plural, key}];
      Json object = wanted.object;
      if (place.object && place.object->contains("status"))
        object["status"] = place.object->at("status");
      if (place.object && object == *place.object) continue;
      if (const auto found = refused.find("objects"); found != refused.end()) {
        if (!place.object) objects_.erase({wanted.resource.plural, key});
        refusals_["objects"] = found->second;
        return false;
      }
      try {
        write("apply " + described(wanted.resource, key));
      } catch (const Killed&) {
        if (!place.object) objects_.erase({wanted.resource.plural, key});
        throw;
      }
      if (wanted.resource == resources::jobs) {
        EXPECT_FALSE(place.object) << "what a Job is made of can't be changed";
        object["metadata"]["uid"] = "uid-" + std::to_string(++uids_);
      }
      place = {wanted.resource, std::make_shared<Json>(std::move(object))};
    }
    return true;
  }

  void remove(const Observation::Owned& owned) {
    const kube::Key key = kube::key_of(*owned.object);
    write("remove " + described(owned.resource, key));
    lose_object(owned.resource, key);
  }

  void attach(const Attachment& attachment) {
    const auto found = refused.find("pod/" + attachment.pod.name);
    if (found != refused.end()) {
      refusals_[refusal_key(attachment)] = found->second;
      return;
    }
    write("attach " + attachment.pod.name);
    refusals_.erase(refusal_key(attachment));
    auto& its_pods = attachment.pod.namespace_ == "shop" ? pods : shadow_pods;
    Json& spec = its_pods.at(attachment.pod.name)["spec"];
    for (const char* list : {"containers", "initContainers", "ephemeralContainers"})
      for (const Json& other : spec.value(list, Json::array()))
        EXPECT_NE(other["name"], attachment.container["name"]) << "is taken, and for good";
    spec["ephemeralContainers"].push_back(attachment.container);
  }

  bool run_deployments() {
    bool any = false;
    std::set<kube::Key> wanted;
    for (auto& [place, owned] : objects_) {
      if (place.first != "deployments") continue;
      const Json& deployment = *owned.object;
      if (!deployment_conditions.is_null() &&
          deployment.value("/status/conditions"_json_pointer, Json()) != deployment_conditions) {
        Json changed = deployment;
        changed["status"]["conditions"] = deployment_conditions;
        owned.object = std::make_shared<Json>(std::move(changed));
        any = true;
      }
      if (!intercepts_are_started) continue;
      for (int i = 0; i < (*owned.object)["spec"]["replicas"]; ++i) {
        const kube::Key key{
            place.second.namespace_,
            place.second.name + "-" + place.second.namespace_ + "-" + std::to_string(i)};
        wanted.insert(key);
        if (intercepts_.contains(key)) continue;
        any = true;
        Json pod = (*owned.object)["spec"]["template"];
        pod["metadata"]["name"] = key.name;
        pod["metadata"]["namespace"] = key.namespace_;
        pod["metadata"]["uid"] = "uid-" + std::to_string(++uids_);
        pod["status"] = Json::parse(R"({
            "phase": "Running", "podIP": "10.0.2.9",
            "conditions": [{"type": "PodScheduled", "status": "True"},
                           {"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "intercept", "state": {"running": {}}}]})");
        intercept_pod_becomes(pod);
        Intercept& intercept = intercepts_[key];
        intercept.pod = std::move(pod);
        read_configuration(key, intercept);
      }
    }
    any = std::erase_if(intercepts_,
                        [&](const auto& entry) {
                          return intercepts_are_started && !wanted.contains(entry.first);
                        }) > 0 ||
          any;
    return any;
  }

  // One pod for each Job, once.
  bool run_jobs() {
    bool any = false;
    for (const auto& [place, owned] : objects_) {
      if (place.first != "jobs") continue;
      const std::string uid = kube::text_at(*owned.object, "/metadata/uid"), pod = "pod-of-" + uid;
      const bool is_new = !replay_pods.contains(pod);
      Json& its = replay_pods[pod];
      if (is_new) {
        its = owned.object->at("spec").at("template");
        its["metadata"]["name"] = pod;
        its["metadata"]["namespace"] = "shop";
        its["metadata"]["labels"]["controller-uid"] = uid;
      } else if (!its["status"]["containerStatuses"][0]["state"].contains("waiting")) {
        continue;
      }
      const Json before = its.value("status", Json());
      its["status"] = {
          {"phase", replay_state.contains("running") ? "Running" : "Pending"},
          {"containerStatuses", Json::array({{{"name", name()}, {"state", replay_state}}})}};
      any = any || its["status"] != before;
    }
    return any;
  }

  // Kubelets bring a ConfigMap to its pods when something else changes at the pod, and not for
  // long otherwise.
  bool look_at_configuration(const kube::Key& key, Intercept& intercept) {
    const std::string annotation =
        intercept.pod["metadata"]["annotations"].value(names::configuration, "");
    if (std::exchange(intercept.annotation, annotation) != annotation)
      intercept.reads_at = now + configuration_delay;
    if (!intercept.reads_at || now < *intercept.reads_at) return false;
    intercept.reads_at.reset();
    read_configuration(key, intercept);
    return true;
  }

  void read_configuration(const kube::Key& key, Intercept& intercept) {
    const std::string text = configuration(key.namespace_);
    if (text.empty()) return;
    const YAML::Node yaml = YAML::Load(text);
    intercept.stops = yaml["stop-sidecars"].as<bool>();
    intercept.targets.clear();
    for (const YAML::Node& target : yaml["target"])
      intercept.targets.push_back(target.as<std::string>());
  }

  // Calls `visit(pod, container, its state)` for sidecars that run and know this intercept.
  template <typename Visit>
  void for_connected(const std::string& namespace_, Visit&& visit) const {
    const std::string address = name() + "." + namespace_ + ".svc:7443";
    for (const auto& [pod, object] : pods)
      for (const auto& [list, statuses] :
           {std::pair("ephemeralContainers", "ephemeralContainerStatuses"),
            {"initContainers", "initContainerStatuses"}})
        for (const Json& container : object["spec"].value(list, Json::array()))
          for (const Json& status : object["status"].value(statuses, Json::array())) {
            const Json& args = container["args"];
            if (status["name"] == container["name"] && status["state"].contains("running") &&
                std::find(args.begin(), args.end(), address) != args.end())
              visit(pod, container["name"].get<std::string>(), statuses);
          }
  }

  bool start_sidecars(const std::string& name, Json& pod) {
    bool any = false;
    if (!pod["spec"].contains("ephemeralContainers")) return false;
    Json& statuses = pod["status"]["ephemeralContainerStatuses"];
    for (const Json& container : pod["spec"]["ephemeralContainers"]) {
      const auto found = std::find_if(statuses.begin(), statuses.end(), [&](const Json& status) {
        return status["name"] == container["name"];
      });
      const bool waits = found != statuses.end() && (*found)["state"].contains("waiting");
      if (found != statuses.end() && !waits) continue;
      Json state = {{"running", {{"startedAt", kube::to_text(now)}}}};
      if (const auto other = sidecar_state.find(name); other != sidecar_state.end()) {
        state = other->second;
        if (state.contains("terminated")) state["terminated"]["finishedAt"] = kube::to_text(now);
      } else if (!object(resources::secrets, {"shop", this->name() + "-sidecar"})) {
        state = {{"waiting",
                  {{"reason", "CreateContainerConfigError"}, {"message", "secret not found"}}}};
      }
      if (waits && (*found)["state"] == state) continue;
      any = true;
      if (waits)
        (*found)["state"] = state;
      else
        statuses.push_back({{"name", container["name"]}, {"state", state}});
    }
    return any;
  }

  // What is beside the shadow in this pod, as it was started last; null: nothing.
  static const Json* intercept_beside(const Json& pod) {
    const Json* last = nullptr;
    for (const char* list : {"initContainerStatuses", "ephemeralContainerStatuses"})
      if (pod["status"].contains(list))
        for (const Json& status : pod["status"][list]) last = &status;
    return last;
  }

  bool is_listed(const Json& pod) const {
    const auto all = listed();
    return std::find(all.begin(), all.end(), pod["status"]["podIP"]) != all.end();
  }

  // An ephemeral one ends when it is listed no longer.
  bool run_intercept_beside(const std::string& name, Json& pod) {
    Json& status = pod["status"];
    for (const Json& container : pod["spec"].value("ephemeralContainers", Json::array())) {
      Json& statuses = status["ephemeralContainerStatuses"];
      const auto found = std::find_if(statuses.begin(), statuses.end(), [&](const Json& one) {
        return one["name"] == container["name"];
      });
      if (found == statuses.end()) {
        const auto other = sidecar_state.find(name);
        Json state =
            other != sidecar_state.end() ? other->second : Json{{"running", Json::object()}};
        statuses.push_back({{"name", container["name"]}, {"state", std::move(state)}});
        return true;
      }
      if (!(*found)["state"].contains("running")) continue;
      if (is_listed(pod)) {
        was_listed_.insert(container["name"].get<std::string>() + name);
      } else if (was_listed_.contains(container["name"].get<std::string>() + name)) {
        (*found)["state"] = terminated(0);
        return true;
      }
    }
    return false;
  }

  std::optional<Reading> reading_beside(const Json& pod) const {
    const Json* status = intercept_beside(pod);
    if (!status || !(*status)["state"].contains("running")) return std::nullopt;
    Report report;
    report.ready = is_listed(pod);
    if (!report.ready)
      report.message = "it is not listed yet";
    else
      report.reply_path.push_back({.target = "8080=" + pod["status"]["podIP"].get<std::string>(),
                                   .verified = true,
                                   .message = ""});
    if (report.ready && streams_to_beside)
      for_connected("shop-shadow", [&](const std::string& sidecar, const std::string&,
                                       const std::string&) { report.sidecars[sidecar] = 4; });
    Reading reading{.report = report,
                    .problem = "",
                    .instance = kube::text_at(pod, "/metadata/uid") + "/" +
                                (*status)["name"].get<std::string>() + "/0"};
    reading_becomes(reading);
    return reading;
  }

  bool stop_sidecars(const kube::Key& intercept) {
    bool any = false;
    std::vector<std::pair<std::string, std::string>> told;
    for_connected(intercept.namespace_, [&](const std::string& pod, const std::string& container,
                                            const std::string& statuses) {
      if (statuses == "ephemeralContainerStatuses" && !stubborn.contains(pod))
        told.emplace_back(pod, container);
    });
    for (const auto& [pod, container] : told)
      for (Json& status : pods.at(pod)["status"]["ephemeralContainerStatuses"])
        if (status["name"] == container) {
          status["state"] = terminated(0);
          any = true;
        }
    return any;
  }

  Reading reading_of(const kube::Key& key, const Intercept& intercept) const {
    Report report;
    report.ready = true;
    for (const std::string& target : intercept.targets)
      report.reply_path.push_back({.target = target, .verified = true, .message = ""});
    for_connected(key.namespace_, [&](const std::string& pod, const std::string&,
                                      const std::string&) { report.sidecars[pod] = 4; });
    for (const auto& [pod, object] : replay_pods)
      if (is_running(object) && !intercept.stops) {
        report.sidecars[pod] = 4;
        report.replays[pod] = replay_progress;
      }
    report.exchanges = intercept.exchanges;
    report.shed = intercept.shed;
    Reading reading{.report = report,
                    .problem = "",
                    .instance = kube::text_at(intercept.pod, "/metadata/uid") + "/" +
                                std::to_string(intercept.restarts)};
    reading_becomes(reading);
    return reading;
  }

  std::map<std::pair<std::string, kube::Key>, Observation::Owned> objects_;
  std::map<kube::Key, Intercept> intercepts_;
  std::map<std::string, std::string> refusals_;
  std::set<std::string> was_listed_;
  int uids_ = 0;
};

}  // namespace trafficmirror::controller
