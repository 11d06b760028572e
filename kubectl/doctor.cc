#include "kubectl/doctor.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "kubectl/network_policy.h"
#include "kubectl/text.h"
#include "operator/certificate_rotation.h"
#include "operator/check.h"
#include "operator/names.h"
#include "operator/pods.h"
#include "operator/replay.h"
#include "operator/selector.h"

namespace trafficmirror::kubectl {
namespace {

using controller::condition_of;
using controller::labels_of;
using controller::Mirror;
using controller::Observation;
using controller::ParsedMirror;
using controller::Plan;
using controller::selects;
using controller::SharedJson;
using kube::Error;
using kube::ErrorKind;
using kube::Json;
using Level = Finding::Level;

namespace names = controller::names;

// The trials' containers are of no image that anybody has: which one it will be is the operator's.
const controller::Settings stand_in{.operator_namespace = "trafficmirror",
                                    .sidecar_image = "trafficmirror-sidecar",
                                    .intercept_image = "trafficmirror-intercept"};

// From this version on the server looks at Pod Security's labels by itself.
constexpr kube::Version with_pod_security{1, 23};

// The first field of `wanted` that is not in `actual`: the server drops what its schema has not,
// and some versions say nothing of it.
std::optional<std::string> unknown_field(const Json& wanted, const Json& actual,
                                         const std::string& path) {
  if (!wanted.is_object()) return std::nullopt;
  for (const auto& [key, value] : wanted.items()) {
    const std::string its_path = path + "." + key;
    if (value.is_null()) continue;
    if (!actual.is_object() || !actual.contains(key)) return its_path;
    if (auto unknown = unknown_field(value, actual[key], its_path)) return unknown;
  }
  return std::nullopt;
}

std::string ports_text(const std::vector<net::ProductionPort>& ports) {
  std::string text;
  for (const net::ProductionPort port : ports)
    text += (text.empty() ? "port " : ", ") + port.to_string();
  return text;
}

// RBAC's words; others refuse with the same code.
bool is_lack_of_rights(const Error& error) {
  return error.kind == ErrorKind::forbidden &&
         error.message.find("is forbidden: User \"") != std::string::npos;
}

// It says nothing of the object.
bool is_no_answer(const Error& error) {
  return is_lack_of_rights(error) || error.kind == ErrorKind::network ||
         error.kind == ErrorKind::timeout || error.kind == ErrorKind::unauthorized ||
         error.message.find("does not support dry run") != std::string::npos;
}

// Those of the list that the selector matches and that are not about to end.
std::vector<Json> alive(const Objects& pods, const Json& selector) {
  std::vector<Json> found;
  if (pods)
    for (const Json& pod : *pods)
      if (controller::is_alive(pod) && selects(selector, labels_of(pod))) found.push_back(pod);
  return found;
}

Json replaying_pod(const Mirror& mirror) {
  Json pod = controller::job_for(mirror, controller::sidecar_settings(mirror, stand_in))
                 .object["spec"]["template"];
  pod["apiVersion"] = "v1";
  pod["kind"] = "Pod";
  pod["metadata"]["namespace"] = mirror.key.namespace_;
  pod["metadata"]["generateName"] = "trafficmirror-doctor-";
  return pod;
}

// Those that stream to the intercept: of a capture the one that replays it.
std::vector<Json> production_pods(const Examination& seen, const Mirror& mirror) {
  if (mirror.capture) {
    std::vector<Json> pods{replaying_pod(mirror)};
    pods.front()["metadata"]["name"] = "of the replay";
    return pods;
  }
  return alive(seen.pods, mirror.selector);
}

std::vector<Json> shadow_pods(const Examination& seen, const Mirror& mirror) {
  if (const auto* selector = std::get_if<Json>(&mirror.shadow))
    return alive(seen.shadow_pods, *selector);
  if (!seen.shadow_service || seen.shadow_service->empty()) return {};
  const Json selector =
      seen.shadow_service->front().value("/spec/selector"_json_pointer, Json::object());
  if (selector.empty()) return {};
  return alive(seen.shadow_pods, {{"matchLabels", selector}});
}

// As a controller would make it anew, and with the sidecar in it.
Json pod_with_sidecar(const Json& pod, const Mirror& mirror,
                      const controller::Abilities& abilities) {
  const controller::SidecarSettings settings = controller::sidecar_settings(mirror, stand_in);
  Json spec = pod["spec"];
  spec.erase("nodeName");
  spec.erase("ephemeralContainers");
  const bool native = abilities.native_sidecars;
  if (controller::containers_of(pod, settings.name).empty()) {
    spec[native ? "initContainers" : "containers"].push_back(controller::injected_container(
        settings,
        native ? controller::InjectedAs::native_sidecar : controller::InjectedAs::container,
        controller::Requests::little));
    spec["volumes"].push_back(controller::identity_volume(settings));
  }
  Json metadata = {{"generateName", "trafficmirror-doctor-"}, {"namespace", mirror.key.namespace_}};
  for (const char* field : {"labels", "annotations"})
    if (pod["metadata"].contains(field)) metadata[field] = pod["metadata"][field];
  return {{"apiVersion", "v1"}, {"kind", "Pod"}, {"metadata", metadata}, {"spec", spec}};
}

Json intercept_pod(const Mirror& mirror, const controller::Abilities& abilities) {
  const auto objects = controller::objects_for(mirror, {}, stand_in, abilities);
  const auto deployment =
      std::find_if(objects.begin(), objects.end(), [](const controller::WantedObject& object) {
        return object.resource == controller::resources::deployments;
      });
  Json pod = deployment->object["spec"]["template"];
  pod["apiVersion"] = "v1";
  pod["kind"] = "Pod";
  pod["metadata"]["namespace"] = mirror.shadow_namespace;
  pod["metadata"]["generateName"] = "trafficmirror-doctor-";
  pod["spec"].erase("serviceAccountName");  // it is made with the mirror
  return pod;
}

// All checks of one mirror, one after the other.
class Doctor {
 public:
  explicit Doctor(const Examination& seen)
      : seen_(seen),
        parsed_(controller::parse_mirror(seen.mirror)),
        mirror_(parsed_.mirror),
        injected_(controller::is_mirrored_by_injection(mirror_, seen.abilities)),
        runs_(!seen.applied.is_null() &&
              seen.applied.value("spec", Json()) == seen.mirror.value("spec", Json())) {}

  std::vector<Finding> examine() {
    check_server();
    check_operator();
    const bool readable = check_spec();
    if (readable) {
      check_consent();
      const Plan plan = plan_as_if_all_agreed();
      if (!mirror_.logins_secret.empty()) check_logins();
      if (mirror_.capture) {
        check_claim();
        check_replay_admission();
      } else {
        check_pods(plan);
        if (injected_) check_injection();
        check_sidecar_admission();
      }
      check_shadow(plan);
      check_intercept_admission();
      check_policies(plan);
      check_reply_path();
    }
    check_status();
    return std::move(findings_);
  }

 private:
  void add(Level level, const std::string& check, const std::string& text) {
    findings_.push_back({level, check, text});
  }
  void ok(const std::string& check, const std::string& text) { add(Level::ok, check, text); }
  void warn(const std::string& check, const std::string& text) { add(Level::warning, check, text); }
  void fail(const std::string& check, const std::string& text) { add(Level::failure, check, text); }
  // Whether there is something to check; it says why not.
  bool has(const Objects& objects, const std::string& check) {
    if (!objects) add(Level::unchecked, check, objects.error().message);
    return static_cast<bool>(objects);
  }

  // ---- the cluster

  void check_server() {
    const std::string version = "Kubernetes " + std::to_string(seen_.server.major) + "." +
                                std::to_string(seen_.server.minor);
    if (seen_.server < controller::oldest_server)
      return fail("server", version + ": 1.20 or later is needed");
    if (mirror_.attach == controller::Attach::ephemeral && !seen_.abilities.ephemeral_containers)
      return fail("server", version +
                                " can't attach to running pods (1.25 and later can): set "
                                "spec.source.attach to Auto or Sidecar");
    if (mirror_.capture) return ok("server", version);
    ok("server",
       version + (injected_ ? ": sidecars are injected into pods as they are created"
                            : ": sidecars are attached to running pods, without a restart"));
  }

  void check_operator() {
    if (!seen_.defined)
      return fail("operator",
                  std::string("the API server does not know TrafficMirror: ") + how_to_install);
    switch (seen_.leadership.state) {
      case Leadership::State::leads:
        return ok("operator", seen_.leadership.text);
      case Leadership::State::nobody:
        return fail("operator", seen_.leadership.text);
      case Leadership::State::unknown:
        return add(Level::unchecked, "operator", seen_.leadership.text);
    }
  }

  // Whether the spec can be read, and so be checked further.
  bool check_spec() {
    const bool readable = parsed_.problem.empty();
    if (seen_.refused && seen_.defined && !is_no_answer(*seen_.refused))
      fail("spec", seen_.refused->message);
    else if (!readable)
      fail("spec", parsed_.problem);
    else if (const auto unknown = unknown_field(seen_.wanted.value("spec", Json()),
                                                seen_.mirror.value("spec", Json()), "spec"))
      fail("spec", *unknown + " is no field of a TrafficMirror: kubectl explain trafficmirror." +
                       unknown->substr(0, unknown->rfind('.')) + " names those there are");
    else if (!seen_.defined)
      add(Level::unchecked, "spec", "the API server does not know its schema");
    else if (seen_.refused)
      add(Level::unchecked, "spec", seen_.refused->message);
    else
      ok("spec", "the API server takes it");
    return readable;
  }

  void check_consent() {
    if (mirror_.shadow_namespace != mirror_.key.namespace_ &&
        !has(seen_.shadow_namespace, "consent"))
      return;
    Observation seen = observation();
    seen.shadow_namespace = first_of(seen_.shadow_namespace);
    const Plan plan = plan_for(seen, stand_in, seen_.abilities, {});
    const Json consented = condition(plan.status, "Consented");
    add(consented.value("status", "") == "True" ? Level::ok : Level::failure, "consent",
        consented.value("message", ""));
  }

  // ---- the operator's judgement

  static Json condition(const Json& status, const std::string& type) {
    for (const Json& entry : status.value("conditions", Json::array()))
      if (entry.value("type", "") == type) return entry;
    return Json::object();
  }

  static SharedJson first_of(const Objects& objects) {
    if (!objects || objects->empty()) return nullptr;
    return std::make_shared<Json>(objects->front());
  }

  template <typename Project>
  static SharedJson projected(Json object, Project&& project) {
    project(object);
    return std::make_shared<Json>(std::move(object));
  }

  // What the operator would see, of a mirror that has just been applied and is neither paused nor
  // over.
  Observation observation() const {
    Observation seen;
    seen.now = seen_.now;
    seen.mirror = parsed_;
    seen.mirror.mirror.has_finalizer = true;
    seen.mirror.mirror.deleted = false;
    seen.mirror.mirror.paused = false;
    seen.status = Json::object();
    seen.production_namespace = first_of(seen_.production_namespace);
    // What could not be read has a line of its own.
    if (!seen_.production_namespace)
      seen.production_namespace =
          std::make_shared<Json>(Json{{"metadata",
                                       {{"name", mirror_.key.namespace_},
                                        {"labels", {{names::inject, names::inject_enabled}}}}}});
    for (const Json& pod : production_pods(seen_, mirror_))
      seen.pods.push_back(projected(pod, controller::project_pod));
    seen.earlier_mirrors = earlier_mirrors();
    seen.shadow_service = first_of(seen_.shadow_service);
    if (seen_.endpoints && !seen_.endpoints->empty())
      seen.endpoints = projected(seen_.endpoints->front(), controller::project_endpoints);
    for (const Json& pod : shadow_pods(seen_, mirror_))
      seen.shadow_pods.push_back(projected(pod, controller::project_pod));
    seen.ca = controller::rotate_ca({}, seen_.now, {}).data;
    return seen;
  }

  // Those that have their ports before it.
  std::vector<Mirror> earlier_mirrors() const {
    std::vector<Mirror> earlier;
    if (!seen_.mirrors) return earlier;
    const auto order = [](const Mirror& mirror) { return std::pair(mirror.created, mirror.key); };
    const Mirror own = controller::parse_mirror(seen_.applied).mirror;
    for (const Json& object : *seen_.mirrors) {
      const ParsedMirror other = controller::parse_mirror(object);
      if (other.mirror.key == mirror_.key || !other.problem.empty() || other.mirror.deleted ||
          other.mirror.paused || controller::is_stopped(object))
        continue;
      if (seen_.applied.is_null() || order(other.mirror) < order(own))
        earlier.push_back(other.mirror);
    }
    return earlier;
  }

  // Consent is a check of its own, and must not hide the others.
  Plan plan_as_if_all_agreed() const {
    Observation seen = observation();
    seen.shadow_namespace = std::make_shared<Json>(
        Json{{"metadata",
              {{"name", mirror_.shadow_namespace},
               {"annotations", {{names::accept_from, mirror_.key.namespace_}}}}}});
    return plan_for(seen, stand_in, seen_.abilities, {});
  }

  // ---- production

  void check_claim() {
    if (!has(seen_.claim, "claim")) return;
    const std::string name = mirror_.key.namespace_ + "/" + mirror_.capture->claim;
    if (seen_.claim->empty())
      return fail("claim", "there is no PersistentVolumeClaim " + name +
                               ": create it, or correct spec.source.capture.claimName");
    ok("claim", "PersistentVolumeClaim " + name + " is there, " +
                    seen_.claim->front().value("/status/phase"_json_pointer, "Pending") +
                    "; whether it has the file shows when it is replayed");
  }

  void check_pods(const Plan& plan) {
    if (!has(seen_.pods, "pods")) return;
    const std::vector<Json> pods = production_pods(seen_, mirror_);
    if (pods.empty()) return fail("pods", condition(plan.status, "Attached").value("message", ""));
    // Once it runs, the operator knows best which sidecars are as it wants them.
    const Json* attached = runs_ ? condition_of(seen_.applied, "Attached") : nullptr;
    if (attached && attached->value("status", "") == "True")
      return ok("pods", attached->value("message", ""));
    const bool any = tell_of_pods("pods", plan.pod_problems, pods.size());
    if (!seen_.mirrors)
      add(Level::unchecked, "pods",
          "whether another TrafficMirror has their ports: " + seen_.mirrors.error().message);
    if (any) return;
    const bool declared = std::any_of(pods.begin(), pods.end(), [](const Json& pod) {
      return std::any_of(pod["spec"]["containers"].begin(), pod["spec"]["containers"].end(),
                         [](const Json& container) { return container.contains("ports"); });
    });
    const std::string matched =
        counted(pods.size(), "pod") + " of namespace " + mirror_.key.namespace_ +
        (pods.size() == 1 ? " matches" : " match") + " spec.source.selector";
    if (declared)
      ok("pods", matched + ", with " + ports_text(mirror_.ports));
    else
      warn("pods", matched + ", and declares no ports: see for yourself that it listens on " +
                       ports_text(mirror_.ports));
  }

  // What is wrong with many is one line. Whether there is anything to tell.
  bool tell_of_pods(const std::string& check, const std::vector<controller::PodProblem>& of_each,
                    size_t pods) {
    std::vector<std::pair<controller::PodProblem, std::vector<std::string>>> problems;
    for (const controller::PodProblem& problem : of_each) {
      const auto found = std::find_if(problems.begin(), problems.end(), [&](const auto& other) {
        return other.first.message == problem.message;
      });
      if (found != problems.end())
        found->second.push_back(problem.pod);
      else
        problems.push_back({problem, {problem.pod}});
    }
    bool any = false;
    for (const auto& [problem, whose] : problems) {
      const auto level = level_of(problem.reason);
      if (!level) continue;
      any = true;
      add(*level, check,
          counted(whose.size(), "pod") + " of " + std::to_string(pods) + " (" + list_of(whose) +
              "): " + problem.message);
    }
    return any;
  }

  // Of a pod's problem, in the operator's words; nothing where it is none of the user's, or has a
  // line of its own.
  static std::optional<Level> level_of(const std::string& reason) {
    static const std::set<std::string> untold{
        "Attaching", "WaitingForIntercept", "PodSecurityForbids", "EphemeralContainersUnavailable",
        // Of what only a running operator knows: certificates, and what intercepts say.
        "OldInterceptRuns", "InterceptNotReady"};
    static const std::set<std::string> passing{"PodNotRunning", "SidecarEnded", "OldSidecarRuns",
                                               "RestartNeeded", "InterceptEnded"};
    if (untold.contains(reason)) return std::nullopt;
    return passing.contains(reason) ? Level::warning : Level::failure;
  }

  void check_injection() {
    const char* const check = "injection";
    if (!has(seen_.webhooks, check)) return;
    std::string problem = "no MutatingWebhookConfiguration has the webhook " +
                          std::string(names::inject_webhook) +
                          ": install the operator with it, by the chart's webhook.enabled";
    for (const Json& configuration : *seen_.webhooks)
      for (const Json& webhook : configuration.value("webhooks", Json::array())) {
        if (webhook.value("name", "") != names::inject_webhook) continue;
        const std::string name = "MutatingWebhookConfiguration " + kube::key_of(configuration).name;
        // There may be several operators, each with its own.
        if (!kube::text_at(webhook, "/clientConfig/caBundle").empty())
          return ok(check, name + " injects into labelled pods of labelled namespaces");
        problem =
            name +
            " has no caBundle, which the operator writes when it leads: does it run, and with "
            "--webhook?";
      }
    fail(check, problem);
  }

  // Of the Secret no more than that it is there.
  void check_logins() {
    const char* const check = "logins";
    if (!has(seen_.logins_secret, check)) return;
    const std::string secret = "Secret " + mirror_.key.namespace_ + "/" + mirror_.logins_secret;
    if (seen_.logins_secret->empty())
      return fail(check, "there is no " + secret + ": kubectl create secret generic " +
                             mirror_.logins_secret + " -n " + mirror_.key.namespace_ +
                             " --from-file=" + names::credentials);
    if (!seen_.logins_secret->front().value("data", Json::object()).contains(names::credentials))
      return fail(check, secret + " has no key " + names::credentials +
                             ", with the passwords of the shadow's users");
    ok(check, secret + " has " + names::credentials);
  }

  // What the server said to a pod with these capabilities, or what the namespace's label says.
  void check_admission(const std::string& what, bool asked, const std::optional<Error>& refused,
                       const Objects& namespace_, const std::string& name,
                       const std::string& capabilities) {
    const std::string check = "admission";
    const std::string cure = controller::pod_security_cure(name, capabilities);
    const bool known = namespace_ && !namespace_->empty();
    const bool label_forbids = known && controller::pod_security_forbids(namespace_->front());
    if (asked && refused && controller::is_pod_security(refused->message)) return fail(check, cure);
    if (asked && refused && !is_no_answer(*refused))
      return warn(check,
                  "the API server refuses " + what +
                      " (of an image that stands in for the operator's): " + refused->message);
    if (asked && !refused) {
      if (label_forbids)
        return warn(check, cure + ". The API server takes " + what +
                               " from you, since it does not look at that label or exempts you");
      return ok(check, "namespace " + name + " takes " + what + ", as a dry run says");
    }
    if (!known)
      return add(Level::unchecked, check,
                 asked ? refused->message : "namespace " + name + " can't be looked at");
    if (label_forbids)
      return add(seen_.server < with_pod_security ? Level::warning : Level::failure, check, cure);
    ok(check, "the labels of namespace " + name + " do not forbid " + capabilities);
  }

  // It needs no right that a namespace could forbid.
  void check_replay_admission() {
    const char* const check = "admission";
    const std::string what = "the replay's pod";
    if (!seen_.sidecar_refused)
      return ok(check,
                "namespace " + mirror_.key.namespace_ + " takes " + what + ", as a dry run says");
    if (is_no_answer(*seen_.sidecar_refused))
      return add(Level::unchecked, check, seen_.sidecar_refused->message);
    warn(check, "the API server refuses " + what +
                    " (of an image that stands in for the "
                    "operator's): " +
                    seen_.sidecar_refused->message);
  }

  void check_sidecar_admission() {
    const Trials trials = trials_for(seen_);
    // The operator's webhook goes by the label, whatever the server makes of it.
    if (injected_ && seen_.production_namespace && !seen_.production_namespace->empty() &&
        controller::pod_security_forbids(seen_.production_namespace->front()))
      return fail("admission", controller::pod_security_cure(mirror_.key.namespace_, "NET_RAW"));
    check_admission("a pod with the sidecar", trials.ephemeral || trials.pod_with_sidecar,
                    seen_.sidecar_refused, seen_.production_namespace, mirror_.key.namespace_,
                    "NET_RAW");
  }

  // ---- the shadow

  void check_shadow(const Plan& plan) {
    const bool service = std::holds_alternative<controller::ShadowService>(mirror_.shadow);
    if (service ? !(has(seen_.shadow_service, "shadow") && has(seen_.endpoints, "shadow"))
                : !has(seen_.shadow_pods, "shadow"))
      return;
    const Json available = condition(plan.status, "InterceptAvailable");
    static const std::set<std::string> no_targets{"ServiceNotFound", "ServicePortNotFound",
                                                  "NoEndpoints"};
    if (no_targets.contains(available.value("reason", "")))
      return fail("shadow", available.value("message", ""));
    std::vector<std::string> targets;
    for (const controller::Target& target : plan.targets)
      targets.push_back(target.endpoint.to_string());
    ok("shadow", counted(targets.size(), "ready endpoint") + ": " + list_of(targets));
    const std::vector<Json> pods = shadow_pods(seen_, mirror_);
    if (!mirror_.is_intercepted_beside() || !has(seen_.shadow_pods, "shadow pods")) return;
    if (!tell_of_pods("shadow pods", plan.shadow_problems, pods.size()))
      ok("shadow pods", "an intercept is put beside " + counted(pods.size(), "pod") +
                            (injected_ ? ", as they are created" : ", without a restart"));
  }

  void check_intercept_admission() {
    check_admission("the intercept's pod", trials_for(seen_).intercept_pod.has_value(),
                    seen_.intercept_refused, seen_.shadow_namespace, mirror_.shadow_namespace,
                    "NET_ADMIN and NET_RAW");
  }

  // ---- the way between them

  static std::vector<std::string> names_of_port(const Json& pod, net::ProductionPort wanted) {
    std::vector<std::string> found;
    for (const Json& container : pod["spec"].value("containers", Json::array()))
      for (const Json& port : container.value("ports", Json::array()))
        if (port.value("containerPort", 0) == wanted.number &&
            controller::is_of_protocol(port, wanted.protocol) && port.contains("name"))
          found.push_back(port["name"]);
    return found;
  }

  OtherPod intercept() const {
    const SharedJson namespace_ = first_of(seen_.shadow_namespace);
    return {.labels = intercept_pod(mirror_, seen_.abilities)["metadata"]["labels"],
            .namespace_ = mirror_.shadow_namespace,
            .namespace_labels = namespace_ ? labels_of(*namespace_) : Json::object()};
  }

  struct Blocked {
    Admission::Kind kind;
    std::vector<std::string> policies;
    std::vector<std::string> pods;
  };

  // The pods that policies keep from the intercept, those of one kind and policies together.
  void add_blocked(std::vector<Blocked>& all, const Admission& admission, const Json& pod) {
    if (admission.kind == Admission::Kind::admitted) return;
    const auto found = std::find_if(all.begin(), all.end(), [&](const Blocked& blocked) {
      return blocked.kind == admission.kind && blocked.policies == admission.policies;
    });
    if (found == all.end())
      all.push_back({admission.kind, admission.policies, {kube::key_of(pod).name}});
    else
      found->pods.push_back(kube::key_of(pod).name);
  }

  void tell(const std::vector<Blocked>& all, const std::string& namespace_, const std::string& what,
            const std::string& cure) {
    for (const Blocked& blocked : all) {
      const std::string whose = "NetworkPolicy " + list_of(blocked.policies) + " of namespace " +
                                namespace_ + " on " + counted(blocked.pods.size(), "pod") + " (" +
                                list_of(blocked.pods) + ") ";
      if (blocked.kind == Admission::Kind::by_address)
        warn("NetworkPolicy", whose + "admits " + what +
                                  " by addresses at most: see that the intercept's is among them");
      else
        fail("NetworkPolicy", whose + "does not admit " + what + ": " + cure);
    }
  }

  // On the way of the streams from production's pods to the shadow's own.
  void add_blocked_beside(std::vector<Blocked>& blocked_out, std::vector<Blocked>& blocked_in) {
    const SharedJson production = first_of(seen_.production_namespace);
    const SharedJson shadow = first_of(seen_.shadow_namespace);
    const auto other = [](const Json& pod, const std::string& namespace_, const SharedJson& space) {
      return OtherPod{.labels = labels_of(pod),
                      .namespace_ = namespace_,
                      .namespace_labels = space ? labels_of(*space) : Json::object()};
    };
    const std::vector<Json> from = production_pods(seen_, mirror_);
    const std::vector<Json> to = shadow_pods(seen_, mirror_);
    if (from.empty() || to.empty()) return;
    for (const Json& pod : from)
      add_blocked(blocked_out,
                  admission_of(*seen_.production_policies, Direction::egress, pod,
                               other(to.front(), mirror_.shadow_namespace, shadow),
                               {.number = controller::stream_port, .names = {}}),
                  pod);
    for (const Json& pod : to)
      add_blocked(blocked_in,
                  admission_of(*seen_.shadow_policies, Direction::ingress, pod,
                               other(from.front(), mirror_.key.namespace_, production),
                               {.number = controller::stream_port, .names = {}}),
                  pod);
  }

  void check_policies(const Plan& plan) {
    const char* const check = "NetworkPolicy";
    const OtherPod other = intercept();
    const std::string its_labels =
        std::string(names::component_label) + "=intercept of namespace " + mirror_.shadow_namespace;
    const bool out = has(seen_.production_policies, check);
    const bool in = has(seen_.shadow_policies, check);
    std::vector<Blocked> blocked_out, blocked_in;
    if (out)
      for (const Json& pod : production_pods(seen_, mirror_))
        add_blocked(blocked_out,
                    admission_of(*seen_.production_policies, Direction::egress, pod, other,
                                 {.number = controller::stream_port, .names = {"stream"}}),
                    pod);
    std::set<net::ProductionPort> ports;
    for (const controller::Target& target : plan.targets)
      ports.insert({target.endpoint.port.number, target.production.protocol});
    if (mirror_.is_intercepted_beside()) {
      // What goes to the shadow's program does not leave its pod.
      ports.clear();
      if (out && in) add_blocked_beside(blocked_out, blocked_in);
    }
    if (in)
      for (const Json& pod : shadow_pods(seen_, mirror_))
        for (const net::ProductionPort port : ports)
          add_blocked(blocked_in,
                      admission_of(*seen_.shadow_policies, Direction::ingress, pod, other,
                                   {.number = port.number,
                                    .protocol = port.protocol,
                                    .names = names_of_port(pod, port)}),
                      pod);
    tell(blocked_out, mirror_.key.namespace_, "streams to the intercept",
         "allow egress to pods with " + its_labels +
             (mirror_.is_intercepted_beside() ? ", and to the shadow's pods" : "") + ", TCP port " +
             std::to_string(controller::stream_port));
    std::string to;
    for (const net::ProductionPort port : ports)
      to += (to.empty() ? "" : ", ") + std::string(controller::protocol_name(port.protocol)) +
            " port " + std::to_string(port.number);
    if (mirror_.is_intercepted_beside())
      tell(blocked_in, mirror_.shadow_namespace, "streams to the intercepts beside them",
           "allow ingress from the pods of spec.source of namespace " + mirror_.key.namespace_ +
               ", TCP port " + std::to_string(controller::stream_port));
    else
      tell(blocked_in, mirror_.shadow_namespace, "the intercept",
           "allow ingress from pods with " + its_labels + ", " + to);
    if (out && in && blocked_out.empty() && blocked_in.empty())
      ok(check, "none is in the way to the intercept, nor in that to the shadow");
  }

  void check_reply_path() {
    std::vector<std::string> on_node;
    for (const Json& pod : shadow_pods(seen_, mirror_))
      if (controller::uses_host_network(pod)) on_node.push_back(kube::key_of(pod).name);
    if (!on_node.empty())
      warn("reply path", counted(on_node.size(), "pod") + " of the shadow (" + list_of(on_node) +
                             ") uses the network of its node (spec.hostNetwork), where policies "
                             "for pods do not reach: run the shadow without");
    const Json* verified = runs_ ? condition_of(seen_.applied, "ReplyPathVerified") : nullptr;
    const std::string status = verified ? verified->value("status", "") : "";
    if (status == "True" || status == "False")
      return add(status == "True" ? Level::ok : Level::failure, "reply path",
                 verified->value("message", ""));
    if (on_node.empty() && mirror_.is_intercepted_beside())
      ok("reply path",
         "replies turn around in the shadow's pods; before an intercept there takes a stream, it "
         "proves by a handshake of its own that they do");
    else if (on_node.empty())
      ok("reply path",
         std::string("replies go to the intercept's own address; ") +
             (mirror_.has_tcp() ? "before it takes a stream, it proves by a handshake of its own "
                                  "that they come back"
                                : "that those to datagrams come back can't be proven beforehand"));
  }

  // What the operator says of it by now.
  void check_status() {
    if (!runs_) return;
    if (const auto problem = controller::problem_of(seen_.applied))
      return fail("status",
                  (problem->reason.empty() ? "" : problem->reason + ": ") + problem->message);
    ok("status", condition_of(seen_.applied, "Ready")->value("message", ""));
  }

  const Examination& seen_;
  const ParsedMirror parsed_;
  const Mirror& mirror_;
  const bool injected_;
  const bool runs_;  // what the status says is about this spec
  std::vector<Finding> findings_;
};

}  // namespace

Trials trials_for(const Examination& seen) {
  Trials trials;
  const ParsedMirror parsed = controller::parse_mirror(seen.mirror);
  if (!parsed.problem.empty()) return trials;
  const Mirror& mirror = parsed.mirror;
  if (!seen.shadow_namespace || !seen.shadow_namespace->empty())
    trials.intercept_pod = intercept_pod(mirror, seen.abilities);
  if (mirror.capture) {
    trials.pod_with_sidecar = replaying_pod(mirror);
    return trials;
  }
  const std::vector<Json> pods = production_pods(seen, mirror);
  if (pods.empty()) return trials;
  if (controller::is_mirrored_by_injection(mirror, seen.abilities)) {
    trials.pod_with_sidecar = pod_with_sidecar(pods.front(), mirror, seen.abilities);
  } else if (seen.abilities.ephemeral_containers) {
    const auto running = std::find_if(pods.begin(), pods.end(), controller::is_running);
    if (running == pods.end()) return trials;
    controller::SidecarSettings settings = controller::sidecar_settings(mirror, stand_in);
    settings.name += "-doctor";  // the mirror's own may be there
    trials.ephemeral =
        controller::Attachment{kube::key_of(*running), controller::ephemeral_container(settings)};
  }
  return trials;
}

std::vector<Finding> findings_of(const Examination& seen) {
  return Doctor(seen).examine();
}

std::string text_of(const std::vector<Finding>& findings) {
  std::vector<std::vector<std::string>> rows;
  for (const Finding& finding : findings) {
    const bool unchecked = finding.level == Level::unchecked;
    const char* mark = finding.level == Level::ok        ? "ok"
                       : finding.level == Level::warning ? "WARN"
                       : finding.level == Level::failure ? "FAIL"
                                                         : "?";
    rows.push_back({mark, finding.check, (unchecked ? "not checked: " : "") + finding.text});
  }
  return table_of(rows);
}

bool is_well(const std::vector<Finding>& findings) {
  return std::none_of(findings.begin(), findings.end(),
                      [](const Finding& finding) { return finding.level == Level::failure; });
}

}  // namespace trafficmirror::kubectl
