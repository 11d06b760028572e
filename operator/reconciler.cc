#include "operator/reconciler.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include <spdlog/spdlog.h>

#include "operator/kube/events.h"
#include "operator/kube/informer_set.h"
#include "operator/kube/wall_time.h"
#include "operator/kube/work_queue.h"
#include "operator/names.h"
#include "operator/pods.h"
#include "operator/replay.h"
#include "operator/report_reader.h"
#include "operator/selector.h"
#include "program/metrics.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;
using kube::Key;

// Pods and endpoints come in crowds; one look is enough for many.
constexpr std::chrono::milliseconds crowd{100};
// What is no object's own change and must not be forgotten, such as what the clock brings about.
const Key certificates_key{"", "certificates"};

// Whether all that is in `wanted` is so in `actual`, whatever else is there. The API server fills
// in defaults, so that elements of lists may have more, but lists no more elements.
bool holds(const Json& actual, const Json& wanted) {
  if (wanted.is_object()) {
    if (!actual.is_object()) return wanted.empty();
    return std::all_of(wanted.items().begin(), wanted.items().end(), [&](const auto& item) {
      const auto found = actual.find(item.key());
      if (found == actual.end()) {
        // Empty ones are left out by the server.
        return item.value().is_structured() ? item.value().empty() : item.value().is_null();
      }
      return holds(*found, item.value());
    });
  }
  if (wanted.is_array()) {
    if (!actual.is_array() || actual.size() != wanted.size()) return false;
    for (size_t i = 0; i < wanted.size(); ++i)
      if (!holds(actual[i], wanted[i])) return false;
    return true;
  }
  if (wanted.is_number() && actual.is_number()) return wanted.get<double>() == actual.get<double>();
  return actual == wanted;
}

// The status without what counts.
Json without_counters(Json status) {
  for (const char* field : {"sessions", "exchanges", "shed", "counted"}) status.erase(field);
  if (status.contains("replay"))
    for (const char* field : {"packets", "percent"}) status["replay"].erase(field);
  return status;
}

// As a merge patch (RFC 7386), which takes away only what it names.
Json patch_from(const Json& before, Json after) {
  for (const auto& [field, value] : before.items()) {
    Json& its = after[field];  // null where there is none any more
    if (value.is_object() && its.is_object()) its = patch_from(value, its);
  }
  return after;
}

void project_service(Json& service) {
  Json spec = service.value("spec", Json::object());
  project_metadata(service);
  for (const char* field : {"ports", "selector", "clusterIP"})
    if (spec.contains(field)) service["spec"][field] = std::move(spec[field]);
}

}  // namespace

class Reconciler::Implementation {
 public:
  Implementation(kube::Client& client, Options options)
      : client_(client),
        options_(std::move(options)),
        events_(client, {.component = names::field_manager, .instance = options_.instance}),
        reader_({.interval = options_.report_interval,
                 .changed = [this](const Key& pod) { report_changed(pod); }}) {
    // Mirrors first: all others ask for them.
    mirrors_ =
        follow(resources::mirrors, kube::strip, [this](const Key& key) { mirror_changed(key); });
    namespaces_ = follow(resources::namespaces, project_metadata, [this](const Key& key) {
      add_where(key.name, [](const Mirror&) { return true; });
    });
    pods_ = follow(resources::pods, project_pod, [this](const Key& key) { pod_changed(key); });
    services_ = follow(resources::services, project_service, [this](const Key& key) {
      shadow_changed(key);
      owned_changed(*services_, key);
    });
    endpoints_ = follow(resources::endpoints, project_endpoints, [this](const Key& key) {
      shadow_changed(key);
      owned_changed(*endpoints_, key);
    });
    const auto& budgets = options_.abilities.policy_v1 ? resources::disruption_budgets
                                                       : resources::disruption_budgets_beta;
    for (const kube::Resource& resource :
         {resources::secrets, resources::config_maps, resources::service_accounts,
          resources::deployments, resources::network_policies, resources::jobs, budgets}) {
      auto& place = owned_.emplace_back(resource, nullptr);
      place.second =
          follow(resource, project_owned,
                 [this, &place](const Key& key) { owned_changed(*place.second, key); },
                 {.labels = std::string(names::managed_by_label) + "=" + names::managed_by});
    }
    for (auto& [resource, informer] : owned_)
      if (resource == resources::secrets) secrets_ = informer.get();
    if (!options_.webhook.empty())
      webhooks_ = follow(
          resources::webhook_configurations, [](Json& object) { kube::strip(object); },
          [this](const Key&) { add(certificates_key); },
          {.fields = "metadata.name=" + options_.webhook});
    started_ = true;
    for (const SharedJson& mirror : mirrors_->list()) mirror_changed(kube::key_of(*mirror));
  }

  ~Implementation() { stop_leading(); }

  std::optional<std::string> not_ready() const {
    for (const kube::InformerSet* informer : all_informers())
      if (!informer->has_synced()) return "the cluster's objects have not all been read yet";
    return std::nullopt;
  }

  void lead() {
    stop_leading();
    auto queue = std::make_shared<kube::WorkQueue>();
    {
      const std::lock_guard lock(mutex_);
      queue_ = queue;
    }
    auto all_added = std::make_shared<std::once_flag>();
    for (int i = 0; i < options_.workers; ++i)
      workers_.emplace_back([this, queue, all_added](const std::stop_token& stop) {
        if (!wait_until_synced(stop)) return;
        std::call_once(*all_added, [&] { add_all(*queue); });
        work(*queue);
      });
  }

  void stop_leading() {
    std::shared_ptr<kube::WorkQueue> queue;
    {
      const std::lock_guard lock(mutex_);
      queue = std::exchange(queue_, nullptr);
    }
    if (queue) queue->shut_down();
    workers_.clear();
  }

  std::vector<Injection> injections_for(const NewPod& pod) const {
    const SharedJson space = namespaces_->get({"", pod.namespace_});
    if (!space || pod_security_forbids(*space)) return {};
    const InjectedAs form =
        options_.abilities.native_sidecars ? InjectedAs::native_sidecar : InjectedAs::container;
    std::vector<Injection> injections;
    std::vector<std::pair<Parsed, bool>> selecting;
    for (const auto& parsed : mirrors_of(pod.namespace_)) {
      const Mirror& mirror = parsed->mirror;
      if (!parsed->problem.empty() || !selects(mirror.selector, pod.labels)) continue;
      const bool active = injects_now(mirror);
      const bool taken = std::any_of(selecting.begin(), selecting.end(), [&](const auto& earlier) {
        return earlier.second && shares_port(earlier.first->mirror, mirror);
      });
      if (active && !taken)
        injections.push_back({sidecar_settings(mirror, options_.settings), form});
      selecting.emplace_back(parsed, active);
    }
    if (auto intercept = intercept_for(pod)) injections.push_back({*std::move(intercept), form});
    return injections;
  }

  void on_webhook_identity(std::function<void(const KeyPair&)> use) {
    const std::lock_guard lock(identity_mutex_);
    use_identity_ = std::move(use);
    pass_identity();
  }

  std::vector<prometheus::MetricFamily> metrics() const {
    const std::lock_guard lock(mutex_);
    return {
        program::gauge("trafficmirror_operator_leading", "1 while this one leads", queue_ ? 1 : 0),
        program::gauge("trafficmirror_operator_mirrors", "TrafficMirrors known", parsed_.size()),
        program::gauge("trafficmirror_operator_queue_length", "TrafficMirrors to look at",
                       queue_ ? queue_->size() : 0),
        program::counter("trafficmirror_operator_reconciliations_total",
                         "looks at one TrafficMirror", reconciliations_.load()),
        program::counter("trafficmirror_operator_writes_total",
                         "requests that change something, but Events and the Lease",
                         writes_.load()),
        program::counter("trafficmirror_operator_refused_writes_total",
                         "those of them that the API server refused, or did not answer",
                         refused_writes_.load())};
  }

 private:
  using Parsed = std::shared_ptr<const ParsedMirror>;

  std::unique_ptr<kube::InformerSet> follow(const kube::Resource& resource,
                                            std::function<void(Json&)> transform,
                                            std::function<void(const Key&)> changed,
                                            kube::Selection selection = {}) {
    const kube::Informer::Options all{
        .resource = resource,
        .selection = std::move(selection),
        .transform = std::move(transform),
        // Not before all informers are there: lead() begins with a look at everything.
        .changed = [this, changed = std::move(changed)](const Key& key) {
          if (started_) changed(key);
        }};
    std::set<std::string> namespaces = options_.watched_namespaces;
    // Its own CA is a Secret too.
    if (resource == resources::secrets && !namespaces.empty())
      namespaces.insert(options_.settings.operator_namespace);
    std::vector<kube::Informer::Options> each;
    if (namespaces.empty() || resource == resources::webhook_configurations)
      each.push_back(all);
    else
      for (const std::string& name : namespaces) {
        each.push_back(all);
        if (resource == resources::namespaces)
          each.back().selection.fields = "metadata.name=" + name;
        else
          each.back().namespace_ = name;
      }
    return std::make_unique<kube::InformerSet>(client_, std::move(each));
  }

  std::vector<const kube::InformerSet*> all_informers() const {
    std::vector<const kube::InformerSet*> all{mirrors_.get(), namespaces_.get(), pods_.get(),
                                              services_.get(), endpoints_.get()};
    for (const auto& [resource, informer] : owned_) all.push_back(informer.get());
    if (webhooks_) all.push_back(webhooks_.get());
    return all;
  }

  // ---- who has to be looked at when something changes

  void add(const Key& mirror, std::chrono::milliseconds after = std::chrono::milliseconds(0)) {
    std::shared_ptr<kube::WorkQueue> queue;
    {
      const std::lock_guard lock(mutex_);
      queue = queue_;
    }
    if (!queue) return;
    if (after.count() > 0)
      queue->add_after(mirror, after);
    else
      queue->add(mirror);
  }

  bool injects_now(const Mirror& mirror) const {
    const SharedJson object = mirrors_->get(mirror.key);
    return object && injects(mirror, object->value("status", Json::object()), options_.abilities);
  }

  // Of the oldest mirror that has the pod for its shadow: a network namespace has room for one.
  std::optional<InterceptSettings> intercept_for(const NewPod& pod) const {
    std::vector<Parsed> mirrors;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [key, parsed] : parsed_)
        if (parsed->mirror.shadow_namespace == pod.namespace_ && parsed->problem.empty() &&
            parsed->mirror.is_intercepted_beside())
          mirrors.push_back(parsed);
    }
    std::sort(mirrors.begin(), mirrors.end(), is_older);
    for (const Parsed& parsed : mirrors) {
      const Mirror& mirror = parsed->mirror;
      const auto* named = std::get_if<ShadowService>(&mirror.shadow);
      const SharedJson service =
          named ? services_->get({mirror.shadow_namespace, named->name}) : nullptr;
      auto targets = targets_of_new_pod(mirror, service.get(), pod.labels, pod.spec);
      if (!targets.empty() && injects_now(mirror))
        return intercept_settings(mirror, std::move(targets), options_.settings);
    }
    return std::nullopt;
  }

  static bool is_older(const Parsed& a, const Parsed& b) {
    return std::pair(a->mirror.created, a->mirror.key) <
           std::pair(b->mirror.created, b->mirror.key);
  }

  // Mirrors of a production namespace, in order of their age.
  std::vector<Parsed> mirrors_of(const std::string& namespace_) const {
    std::vector<Parsed> found;
    {
      const std::lock_guard lock(mutex_);
      for (auto at = parsed_.lower_bound({namespace_, ""});
           at != parsed_.end() && at->first.namespace_ == namespace_; ++at)
        found.push_back(at->second);
    }
    std::sort(found.begin(), found.end(), is_older);
    return found;
  }

  static bool shares_port(const Mirror& a, const Mirror& b) {
    return std::any_of(a.ports.begin(), a.ports.end(), [&](net::ProductionPort port) {
      return std::find(b.ports.begin(), b.ports.end(), port) != b.ports.end();
    });
  }

  // Mirrors that a namespace is production's or the shadow's of.
  template <typename Predicate>
  void add_where(const std::string& namespace_, Predicate&& concerns) {
    std::vector<Key> keys;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [key, parsed] : parsed_)
        if ((key.namespace_ == namespace_ || parsed->mirror.shadow_namespace == namespace_) &&
            concerns(parsed->mirror))
          keys.push_back(key);
    }
    for (const Key& key : keys) add(key, crowd);
  }

  void mirror_changed(const Key& key) {
    const SharedJson object = mirrors_->get(key);
    Parsed before, after;
    bool concerns_others = !object;
    if (object) {
      auto parsed = std::make_shared<ParsedMirror>(parse(*object));
      // What others may have to make room for, or take over.
      const std::string claim = std::to_string(parsed->mirror.generation) +
                                (parsed->mirror.deleted ? " deleted" : "") +
                                (is_stopped(*object) ? " stopped" : "");
      after = std::move(parsed);
      const std::lock_guard lock(mutex_);
      concerns_others = std::exchange(claims_[key], claim) != claim;
    }
    {
      const std::lock_guard lock(mutex_);
      auto& place = parsed_[key];
      before = std::exchange(place, after);
      names_[name_for(key)] = key;
      if (!after) {
        parsed_.erase(key);
        claims_.erase(key);
      }
    }
    if (concerns_others)
      for (const Parsed& other : mirrors_of(key.namespace_))
        if ((after && shares_port(after->mirror, other->mirror)) ||
            (before && shares_port(before->mirror, other->mirror)))
          add(other->mirror.key);
    add(key);
  }

  ParsedMirror parse(const Json& object) const {
    ParsedMirror parsed = parse_mirror(object);
    const std::string& shadow = parsed.mirror.shadow_namespace;
    if (parsed.problem.empty() && !watches(shadow))
      parsed.problem = "spec.shadow.namespace: the operator may not look into " + shadow +
                       "; add it to the chart's watchNamespaces";
    return parsed;
  }

  bool watches(const std::string& namespace_) const {
    return options_.watched_namespaces.empty() || options_.watched_namespaces.contains(namespace_);
  }

  // It has no claim on its pods: it mirrors nothing, whatever its spec.
  static bool is_stopped(const Json& object) {
    for (const Json& condition : object.value("/status/conditions"_json_pointer, Json::array()))
      if (condition.value("type", "") == "Mirroring") {
        const std::string reason = condition.value("reason", "");
        return reason == "Stopped" || reason == "Stopping";
      }
    return false;
  }

  void pod_changed(const Key& key) {
    const SharedJson pod = pods_->get(key);
    const Key intercept_of = pod ? mirror_of(*pod) : Key{};
    if (!intercept_of.name.empty() && is_replay(*pod)) return add(intercept_of, crowd);
    if (!intercept_of.name.empty()) {
      follow_intercept(key, *pod);
      add(intercept_of, crowd);
      return;
    }
    if (!pod) reader_.forget(key);
    add_where(key.namespace_, [&](const Mirror& mirror) {
      if (!pod || is_beside(mirror, key, *pod)) return true;
      if (mirror.key.namespace_ == key.namespace_ &&
          (selects(mirror.selector, labels_of(*pod)) ||
           !containers_of(*pod, name_for(mirror.key)).empty()))
        return true;
      const auto* selector = std::get_if<Json>(&mirror.shadow);
      return selector && selects(*selector, labels_of(*pod));
    });
  }

  void follow_intercept(const Key& key, const Json& pod) {
    int64_t restarts = 0;
    for (const Json& status : pod.value("/status/containerStatuses"_json_pointer, Json::array()))
      restarts += status.value("restartCount", int64_t{0});
    reader_.follow(key, is_alive(pod) ? kube::text_at(pod, "/status/podIP") : "", http_port,
                   kube::text_at(pod, "/metadata/uid") + "/" + std::to_string(restarts));
  }

  // An intercept of this mirror's is in that pod of the shadow's.
  static bool is_beside(const Mirror& mirror, const Key& key, const Json& pod) {
    return mirror.shadow_namespace == key.namespace_ &&
           !containers_of(pod, intercept_container_for(mirror.key)).empty();
  }

  void report_changed(const Key& key) {
    const SharedJson pod = pods_->get(key);
    if (!pod) return;
    if (const Key mirror = mirror_of(*pod); !mirror.name.empty()) return add(mirror);
    bool any = false;
    add_where(key.namespace_, [&](const Mirror& mirror) {
      const bool its = is_beside(mirror, key, *pod);
      any = any || its;
      return its;
    });
    if (!any) reader_.forget(key);  // of a mirror that is gone, or leads elsewhere now
  }

  void shadow_changed(const Key& key) {
    add_where(key.namespace_, [&](const Mirror& mirror) {
      const auto* service = std::get_if<ShadowService>(&mirror.shadow);
      return service && service->name == key.name && mirror.shadow_namespace == key.namespace_;
    });
  }

  void owned_changed(const kube::InformerSet& informer, const Key& key) {
    const SharedJson object = informer.get(key);
    if (object) {
      if (const Key mirror = mirror_of(*object); !mirror.name.empty()) return add(mirror);
    }
    if (key.namespace_ == options_.settings.operator_namespace &&
        (key.name == names::ca_secret || key.name == names::webhook_secret)) {
      const std::lock_guard lock(identity_mutex_);
      pass_identity();
      return add(certificates_key);
    }
    if (object) return;
    Key mirror;
    {
      const std::lock_guard lock(mutex_);
      std::string name = key.name;
      if (name.ends_with("-sidecar")) name.resize(name.size() - std::string("-sidecar").size());
      if (const auto found = names_.find(name); found != names_.end()) mirror = found->second;
    }
    if (!mirror.name.empty()) add(mirror);
  }

  // ---- working

  bool wait_until_synced(const std::stop_token& stop) const {
    for (const kube::InformerSet* informer : all_informers())
      while (!informer->wait_until_synced(std::chrono::milliseconds(200)))
        if (stop.stop_requested()) return false;
    return true;
  }

  void work(kube::WorkQueue& queue) {
    while (const auto key = queue.get()) {
      const bool done =
          *key == certificates_key ? keep_certificates(queue) : reconcile(*key, queue);
      if (done)
        queue.forget(*key);
      else
        queue.retry(*key);
      queue.done(*key);
    }
  }

  // Everything once: also what was left by one that is no more.
  void add_all(kube::WorkQueue& queue) {
    queue.add(certificates_key);
    for (const SharedJson& mirror : mirrors_->list()) mirror_changed(kube::key_of(*mirror));
    for (const SharedJson& pod : pods_->list())
      if (!mirror_of(*pod).name.empty()) pod_changed(kube::key_of(*pod));
    for (const auto& [resource, informer] : owned_)
      for (const SharedJson& object : informer->list())
        if (const Key mirror = mirror_of(*object); !mirror.name.empty()) queue.add(mirror);
    for (const auto* informer : {services_.get(), endpoints_.get()})
      for (const SharedJson& object : informer->list())
        if (const Key mirror = mirror_of(*object); !mirror.name.empty()) queue.add(mirror);
  }

  // Counts a write, and logs one that failed.
  bool wrote(const kube::Result<Json>& result, const std::string& what, bool not_found_is_fine) {
    ++writes_;
    if (result) return true;
    if (not_found_is_fine && result.error().kind == kube::ErrorKind::not_found) return true;
    ++refused_writes_;
    spdlog::warn("{}: {}", what, result.error().message);
    return false;
  }

  std::vector<Observation::Owned> owned_by(const Key& mirror) const {
    std::vector<Observation::Owned> found;
    for (const auto& [resource, informer] : owned_)
      for (const SharedJson& object : informer->list())
        if (mirror_of(*object) == mirror) found.push_back({resource, object});
    for (const auto& [resource, informer] : {std::pair(resources::services, services_.get()),
                                             {resources::endpoints, endpoints_.get()}})
      for (const SharedJson& object : informer->list())
        if (mirror_of(*object) == mirror) found.push_back({resource, object});
    return found;
  }

  Observation observe(const SharedJson& object) const {
    Observation seen;
    seen.now = std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now());
    seen.mirror = parse(*object);
    const Mirror& mirror = seen.mirror.mirror;
    seen.status = object->value("status", Json::object());
    seen.production_namespace = namespaces_->get({"", mirror.key.namespace_});
    seen.shadow_namespace = namespaces_->get({"", mirror.shadow_namespace});
    const std::string name = name_for(mirror.key);
    const bool readable = seen.mirror.problem.empty();
    for (const SharedJson& pod : pods_->list(mirror.key.namespace_)) {
      if (is_replay(*pod)) {
        if (mirror_of(*pod) == mirror.key) seen.replay_pods.push_back(pod);
        continue;
      }
      if (!is_alive(*pod)) continue;
      if ((readable && mirror_of(*pod).name.empty() && selects(mirror.selector, labels_of(*pod))) ||
          !containers_of(*pod, name).empty())
        seen.pods.push_back(pod);
    }
    for (const Parsed& other : mirrors_of(mirror.key.namespace_)) {
      if (other->mirror.key == mirror.key) break;  // those behind it are younger
      const SharedJson its = mirrors_->get(other->mirror.key);
      if (its && other->problem.empty() && !other->mirror.deleted && !other->mirror.paused &&
          !is_stopped(*its))
        seen.earlier_mirrors.push_back(other->mirror);
    }
    if (const auto* service = std::get_if<ShadowService>(&mirror.shadow)) {
      seen.shadow_service = services_->get({mirror.shadow_namespace, service->name});
      seen.endpoints = endpoints_->get({mirror.shadow_namespace, service->name});
    }
    const std::set<std::string> addresses = addresses_in(seen.endpoints);
    for (const SharedJson& pod : pods_->list(mirror.shadow_namespace)) {
      if (!is_alive(*pod) || is_replay(*pod)) continue;
      const auto* selector = std::get_if<Json>(&mirror.shadow);
      if (mirror_of(*pod) == mirror.key) {
        seen.intercept_pods.push_back(pod);
        const Key key = kube::key_of(*pod);
        if (const auto reading = reader_.get(key)) seen.readings[key.name] = *reading;
      } else if ((readable && selector && selects(*selector, labels_of(*pod))) ||
                 addresses.contains(kube::text_at(*pod, "/status/podIP")) ||
                 is_beside(mirror, kube::key_of(*pod), *pod)) {
        seen.shadow_pods.push_back(pod);
        const Key key = kube::key_of(*pod);
        if (const auto reading = reader_.get(key)) seen.readings[key.name] = *reading;
      }
    }
    std::sort(seen.shadow_pods.begin(), seen.shadow_pods.end(),
              [](const SharedJson& a, const SharedJson& b) {
                return kube::key_of(*a) < kube::key_of(*b);
              });
    seen.owned = owned_by(mirror.key);
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = refusals_.find(mirror.key); found != refusals_.end())
        seen.refusals = found->second;
    }
    seen.ca = ca();
    return seen;
  }

  static std::set<std::string> addresses_in(const SharedJson& endpoints) {
    std::set<std::string> addresses;
    if (endpoints)
      for (const Json& subset : endpoints->value("subsets", Json::array()))
        for (const Json& address : subset.value("addresses", Json::array()))
          addresses.insert(address.value("ip", ""));
    return addresses;
  }

  kube::SecretData ca() const {
    const SharedJson secret =
        secrets_->get({options_.settings.operator_namespace, names::ca_secret});
    return secret ? kube::data_of(*secret) : kube::SecretData{};
  }

  // Returns whether all of it went well.
  bool reconcile(const Key& key, kube::WorkQueue& queue) {
    ++reconciliations_;
    const SharedJson object = mirrors_->get(key);
    if (!object) return remove_all(owned_by(key));
    if (ca().empty()) {
      queue.add_after(key, std::chrono::seconds(1));
      return true;
    }
    const Observation seen = observe(object);
    const Plan plan = plan_for(seen, options_.settings, options_.abilities, options_.lifetimes);
    if (plan.add_finalizer) return add_finalizer(*object);
    for (const Beside& beside : plan.beside)
      reader_.follow(beside.pod, beside.address, beside_http_port, beside.instance);
    bool done = apply_all(key, seen, plan);
    done = remove_all(plan.surplus) && done;
    done = notify(plan) && done;
    done = attach(key, plan) && done;
    done = write_status(key, *object, seen, plan, queue) && done;
    if (plan.remove_finalizer) done = remove_finalizer(*object) && done;
    if (plan.look_again) {
      const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(
          *plan.look_again - std::chrono::system_clock::now());
      queue.add_after(key, std::max(wait, std::chrono::milliseconds(100)));
    }
    return done;
  }

  bool set_finalizers(const Json& object, Json finalizers) {
    // With the resource version, so that nobody else's finalizer gets lost.
    const Json patch = {{"metadata",
                         {{"finalizers", std::move(finalizers)},
                          {"resourceVersion", object["metadata"]["resourceVersion"]}}}};
    const Key key = kube::key_of(object);
    return wrote(client_.patch(resources::mirrors, key, patch), "the finalizer of " + to_text(key),
                 true);
  }

  bool add_finalizer(const Json& object) {
    Json finalizers = object.value("/metadata/finalizers"_json_pointer, Json::array());
    finalizers.push_back(names::finalizer);
    return set_finalizers(object, std::move(finalizers));
  }

  bool remove_finalizer(const Json& object) {
    Json kept = Json::array();
    for (const Json& finalizer : object.value("/metadata/finalizers"_json_pointer, Json::array()))
      if (finalizer != names::finalizer) kept.push_back(finalizer);
    return set_finalizers(object, std::move(kept));
  }

  void set_refusal(const Key& mirror, const std::string& what, const kube::Error* error) {
    const std::lock_guard lock(mutex_);
    if (error) {
      refusals_[mirror][what] = {error->message};
    } else if (const auto found = refusals_.find(mirror); found != refusals_.end()) {
      found->second.erase(what);
      if (found->second.empty()) refusals_.erase(found);
    }
  }

  bool apply_all(const Key& mirror, const Observation& seen, const Plan& plan) {
    for (const WantedObject& wanted : plan.objects) {
      Json object = wanted.object;
      object["metadata"]["annotations"][names::applied] = hash_of(wanted.object.dump());
      const auto is_it = [&](const Observation::Owned& owned) {
        return owned.resource == wanted.resource &&
               kube::key_of(*owned.object) == kube::key_of(object);
      };
      const auto found = std::find_if(seen.owned.begin(), seen.owned.end(), is_it);
      if (found != seen.owned.end() && holds(*found->object, object)) continue;
      const auto result = client_.apply(wanted.resource, object, {.force = true});
      if (!wrote(result, object.value("kind", "") + " " + to_text(kube::key_of(object)), false)) {
        set_refusal(mirror, "objects", &result.error());
        return false;  // what comes behind needs it
      }
    }
    set_refusal(mirror, "objects", nullptr);
    return true;
  }

  bool remove_all(const std::vector<Observation::Owned>& surplus) {
    bool done = true;
    for (const Observation::Owned& owned : surplus) {
      if (owned.object->contains("/metadata/deletionTimestamp"_json_pointer)) continue;
      const Key key = kube::key_of(*owned.object);
      kube::DeleteOptions options{.uid = kube::text_at(*owned.object, "/metadata/uid")};
      // It is gone when its pod is, and so no other replay begins before.
      if (owned.resource == resources::jobs) options.propagation = "Foreground";
      done = wrote(client_.remove(owned.resource, key, options),
                   owned.resource.plural + " " + to_text(key), true) &&
             done;
    }
    return done;
  }

  bool notify(const Plan& plan) {
    bool done = true;
    for (const Key& pod : plan.to_notify)
      done =
          wrote(client_.patch(resources::pods, pod,
                              {{"metadata",
                                {{"annotations", {{names::configuration, plan.configuration}}}}}}),
                "pod " + to_text(pod), true) &&
          done;
    return done;
  }

  bool attach(const Key& mirror, const Plan& plan) {
    bool done = true;
    for (const Attachment& attachment : plan.attachments) {
      const auto result =
          client_.patch(resources::pods, attachment.pod,
                        {{"spec", {{"ephemeralContainers", Json::array({attachment.container})}}}},
                        kube::PatchType::strategic, "ephemeralcontainers");
      const bool well = wrote(result, "attaching to pod " + to_text(attachment.pod), true);
      set_refusal(mirror, refusal_key(attachment), well ? nullptr : &result.error());
      if (!well) add(mirror);  // its status says why
      done = well && done;
    }
    return done;
  }

  bool write_status(const Key& key, const Json& object, const Observation& seen, const Plan& plan,
                    kube::WorkQueue& queue) {
    if (plan.status == seen.status) return true;
    const auto now = std::chrono::steady_clock::now();
    if (without_counters(plan.status) == without_counters(seen.status)) {
      const std::lock_guard lock(mutex_);
      const auto last = written_.find(key);
      if (last != written_.end() && now - last->second < options_.counters_interval) {
        queue.add_after(key, std::chrono::duration_cast<std::chrono::milliseconds>(
                                 options_.counters_interval - (now - last->second)));
        return true;
      }
    }
    // With the resource version: what was seen may be old.
    Json patch = patch_from(seen.status, plan.status);
    const auto result =
        client_.patch(resources::mirrors, key,
                      {{"metadata", {{"resourceVersion", object["metadata"]["resourceVersion"]}}},
                       {"status", std::move(patch)}},
                      kube::PatchType::merge, "status");
    if (!result && result.error().kind == kube::ErrorKind::conflict) {
      queue.add_after(key, crowd);  // there is a newer one, which the informer is about to have
      return true;
    }
    if (!wrote(result, "the status of " + to_text(key), true)) return false;
    {
      const std::lock_guard lock(mutex_);
      written_[key] = now;
    }
    for (const Change& change : changes_between(seen.status, plan.status))
      events_.record(object, change.type, change.reason, change.message);
    return true;
  }

  // ---- certificates

  // Makes the Secret what it has to be. Two operators never do that at the same time for long, but
  // the one that comes second must not overwrite what the first has handed out already.
  bool write_secret(const std::string& name, const kube::SecretData& data) {
    const Key key{options_.settings.operator_namespace, name};
    const SharedJson before = secrets_->get(key);
    if (before && kube::data_of(*before) == data) return true;
    Json object = {{"apiVersion", "v1"},
                   {"kind", "Secret"},
                   {"metadata",
                    {{"name", name},
                     {"namespace", key.namespace_},
                     {"labels", {{names::managed_by_label, names::managed_by}}}}},
                   {"type", "Opaque"},
                   {"data", kube::data_field(data)}};
    if (!before) return wrote(client_.create(resources::secrets, object), "Secret " + name, false);
    object["metadata"]["resourceVersion"] = (*before)["metadata"]["resourceVersion"];
    return wrote(client_.update(resources::secrets, object), "Secret " + name, false);
  }

  bool keep_certificates(kube::WorkQueue& queue) {
    const WallTime now = std::chrono::system_clock::now();
    const kube::SecretData before = ca();
    const RotatedSecret rotated = rotate_ca(before, now, options_.lifetimes);
    WallTime look_again = rotated.look_again;
    if (!write_secret(names::ca_secret, rotated.data)) return false;
    if (rotated.data != before) add_everyone(queue);
    if (!options_.webhook.empty()) {
      const SharedJson secret =
          secrets_->get({options_.settings.operator_namespace, names::webhook_secret});
      const RotatedSecret leaf =
          rotate_leaf(secret ? kube::data_of(*secret) : kube::SecretData{}, rotated.data,
                      Names{.dns = {options_.webhook_host}}, now, options_.lifetimes);
      look_again = std::min(look_again, leaf.look_again);
      if (!write_secret(names::webhook_secret, leaf.data)) return false;
      if (!publish_ca(leaf.data)) return false;
    }
    queue.add_after(certificates_key,
                    std::max(std::chrono::milliseconds(100),
                             std::chrono::duration_cast<std::chrono::milliseconds>(
                                 look_again - std::chrono::system_clock::now())));
    return true;
  }

  void add_everyone(kube::WorkQueue& queue) {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, parsed] : parsed_) queue.add(key);
  }

  // The API server trusts the webhook by what stands in its configuration, which is the chart's but
  // for that.
  bool publish_ca(const kube::SecretData& leaf) {
    const SharedJson configuration = webhooks_->get({"", options_.webhook});
    if (!configuration) return true;  // when it comes, we are called again
    const Json data = kube::data_field({{"ca", leaf.at("ca.crt")}});
    Json webhooks = configuration->value("webhooks", Json::array());
    bool differs = false;
    for (Json& webhook : webhooks) {
      differs = differs || webhook["clientConfig"].value("caBundle", "") != data["ca"];
      webhook["clientConfig"]["caBundle"] = data["ca"];
    }
    if (!differs) return true;
    return wrote(
        client_.patch(
            resources::webhook_configurations, {"", options_.webhook},
            {{"metadata", {{"resourceVersion", (*configuration)["metadata"]["resourceVersion"]}}},
             {"webhooks", std::move(webhooks)}}),
        "MutatingWebhookConfiguration " + options_.webhook, true);
  }

  // With identity_mutex_ held.
  void pass_identity() {
    if (!use_identity_) return;
    const SharedJson secret =
        secrets_->get({options_.settings.operator_namespace, names::webhook_secret});
    if (!secret) return;
    const kube::SecretData data = kube::data_of(*secret);
    const auto value = [&](const char* key) {
      const auto found = data.find(key);
      return found == data.end() ? std::string() : found->second;
    };
    const KeyPair identity{value("tls.crt"), value("tls.key")};
    if (identity.certificate.empty() || identity == identity_) return;
    identity_ = identity;
    use_identity_(identity);
  }

  kube::Client& client_;
  const Options options_;
  kube::EventRecorder events_;

  mutable std::mutex mutex_;
  std::shared_ptr<kube::WorkQueue> queue_;  // null: somebody else leads
  std::map<Key, Parsed> parsed_;
  std::map<Key, std::string> claims_;
  std::map<std::string, Key> names_;
  std::map<Key, std::map<std::string, Refusal>> refusals_;
  std::map<Key, std::chrono::steady_clock::time_point> written_;

  std::mutex identity_mutex_;
  std::function<void(const KeyPair&)> use_identity_;
  KeyPair identity_;

  std::atomic<uint64_t> reconciliations_{0};
  std::atomic<uint64_t> writes_{0};
  std::atomic<uint64_t> refused_writes_{0};
  std::atomic<bool> started_{false};

  ReportReader reader_;
  std::unique_ptr<kube::InformerSet> mirrors_, namespaces_, pods_, services_, endpoints_, webhooks_;
  std::deque<std::pair<kube::Resource, std::unique_ptr<kube::InformerSet>>> owned_;
  kube::InformerSet* secrets_ = nullptr;
  std::vector<std::jthread> workers_;
};

Reconciler::Reconciler(kube::Client& client, Options options)
    : implementation_(std::make_unique<Implementation>(client, std::move(options))) {}
Reconciler::~Reconciler() = default;
std::optional<std::string> Reconciler::not_ready() const {
  return implementation_->not_ready();
}
void Reconciler::lead() {
  implementation_->lead();
}
void Reconciler::follow() {
  implementation_->stop_leading();
}
std::vector<Injection> Reconciler::injections_for(const NewPod& pod) const {
  return implementation_->injections_for(pod);
}
void Reconciler::on_webhook_identity(std::function<void(const KeyPair&)> use) {
  implementation_->on_webhook_identity(std::move(use));
}
std::vector<prometheus::MetricFamily> Reconciler::metrics() const {
  return implementation_->metrics();
}

}  // namespace trafficmirror::controller
