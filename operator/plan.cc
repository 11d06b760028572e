#include "operator/plan.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <set>
#include <utility>

#include "operator/certificate_rotation.h"
#include "operator/kube/wall_time.h"
#include "operator/names.h"
#include "operator/pods.h"
#include "operator/replay.h"
#include "operator/selector.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

// Sidecars that do not end within this, once told to, are left to themselves: one without an
// intercept gives up after ten minutes.
constexpr std::chrono::seconds stop_within{30};
// An intercept that has heard the end of a replay has said by then what was counted.
constexpr std::chrono::seconds replay_counted_within{10};
constexpr std::chrono::seconds first_attach_pause{10};
constexpr std::chrono::seconds longest_attach_pause{600};
// As many as sidecars have streams to, but for that to the Deployment's.
constexpr size_t most_beside = 15;
constexpr const char* intercepts_capabilities = "NET_ADMIN and NET_RAW";

struct Verdict {
  std::string status;  // "True", "False" or "Unknown"
  std::string reason;
  std::string message;
};
Verdict yes(std::string reason, std::string message) {
  return {"True", std::move(reason), std::move(message)};
}
Verdict no(std::string reason, std::string message) {
  return {"False", std::move(reason), std::move(message)};
}
Verdict unknown(std::string reason, std::string message) {
  return {"Unknown", std::move(reason), std::move(message)};
}

std::string count_of(size_t part, size_t whole, const std::string& what) {
  return std::to_string(part) + " of " + std::to_string(whole) + " " + what;
}

// All of plan_for's state on the way.
class Planner {
 public:
  Planner(const Observation& seen, const Settings& settings, const Abilities& abilities,
          const CertificateLifetimes& lifetimes)
      : seen_(seen),
        mirror_(seen.mirror.mirror),
        settings_(settings),
        abilities_(abilities),
        lifetimes_(lifetimes),
        injected_(is_mirrored_by_injection(mirror_, abilities)),
        name_(name_for(mirror_.key)) {}

  Plan plan() {
    if (!mirror_.deleted && !mirror_.has_finalizer) {
      plan_.add_finalizer = true;  // before there is anything to clean up
      plan_.status = seen_.status;
      return std::move(plan_);
    }
    const Verdict consented = consent();
    read_started();
    look_at_replay();
    stopped_ = why_stopped(consented);
    if (!stopped_) find_targets();
    look_at_shadow_pods();
    look_at_pods();
    decide_stopping();
    if (stopped_)
      take_down();
    else
      put_up();
    write_status(consented);
    plan_.targets = std::move(targets_);
    return std::move(plan_);
  }

 private:
  // ---- whether

  Verdict consent() const {
    const std::string& shadow = mirror_.shadow_namespace;
    const std::string& production = mirror_.key.namespace_;
    // None was named, or one that the operator may not look into.
    if (!seen_.mirror.problem.empty() && !seen_.shadow_namespace)
      return unknown("InvalidSpec", seen_.mirror.problem);
    if (shadow == production) return yes("SameNamespace", "the shadow is in the same namespace");
    if (!seen_.shadow_namespace)
      return no("ShadowNamespaceNotFound", "there is no namespace " + shadow +
                                               ": create it, or correct spec.shadow.namespace");
    if (seen_.shadow_namespace->contains("/metadata/deletionTimestamp"_json_pointer))
      return no("ShadowNamespaceTerminating", "namespace " + shadow +
                                                  " is being deleted: create it anew when it is "
                                                  "gone, or correct spec.shadow.namespace");
    const Json annotations =
        seen_.shadow_namespace->value("/metadata/annotations"_json_pointer, Json::object());
    const std::string list = annotations.value(names::accept_from, "");
    size_t begin = 0;
    while (begin <= list.size()) {
      size_t end = list.find(',', begin);
      if (end == std::string::npos) end = list.size();
      std::string entry = list.substr(begin, end - begin);
      std::erase(entry, ' ');
      if (entry == production)
        return yes("Granted", "namespace " + shadow + " accepts traffic of " + production);
      begin = end + 1;
    }
    return no("NotGranted", "namespace " + shadow + " does not accept traffic of " + production +
                                ": kubectl annotate namespace " + shadow + " " +
                                names::accept_from + "=" +
                                (list.empty() ? production : list + "," + production) +
                                (list.empty() ? "" : " --overwrite"));
  }

  void read_started() {
    if (mirror_.paused || seen_.status.value("duration", "") != mirror_.duration_text) return;
    started_ = kube::time_of(seen_.status.value("startedAt", ""));
  }

  bool is_over() const {
    return mirror_.duration && started_ && seen_.now >= *started_ + *mirror_.duration;
  }

  std::optional<Verdict> why_stopped(const Verdict& consented) const {
    if (mirror_.deleted)
      return no("Deleting", "the sidecars are stopped, and what was made is removed");
    if (!seen_.mirror.problem.empty()) return no("InvalidSpec", seen_.mirror.problem);
    if (consented.status != "True") return consented;
    if (mirror_.paused) return no("Paused", "spec.paused is true: set it to false to go on");
    if (is_over())
      return no("DurationOver", "it mirrored for spec.duration, " + mirror_.duration_text +
                                    ": change that, or pause and go on, to begin anew");
    return why_replay_ended();
  }

  // ---- the replay of a capture

  // What has become of it: out of its status, and of its Job and that one's pod where they are.
  void look_at_replay() {
    if (seen_.status.contains("replay")) replay_ = seen_.status["replay"];
    // What can't be read may be it again later.
    if (!seen_.mirror.problem.empty() || mirror_.deleted) return;
    if (!mirror_.capture) {
      replay_ = nullptr;
      return;
    }
    const std::string revision = replay_revision(mirror_);
    if (mirror_.paused) {
      // Going on begins it anew, as it does a duration.
      if (!replay_.is_null()) replay_.erase("revision");
      return;
    }
    if (replay_.is_null() || replay_.value("revision", "") != revision)
      replay_ = {{"revision", revision}, {"phase", phases::pending}};
    for (const Observation::Owned& owned : seen_.owned) {
      const Json& job = *owned.object;
      if (owned.resource != resources::jobs ||
          job.contains("/metadata/deletionTimestamp"_json_pointer))
        continue;
      const Json annotations = job.value("/metadata/annotations"_json_pointer, Json::object());
      if (annotations.value(names::replay, "") == revision) job_ = owned.object;
    }
    if (job_)
      look_at_job();
    else if (phase() == phases::running)
      replay_["phase"] = phases::stopped;
    read_progress();
  }

  void look_at_job() {
    bool has_another = false;
    for (const SharedJson& pod : seen_.replay_pods) {
      if (!is_pod_of(*pod, *job_)) continue;
      if (!replay_.contains("pod") || replay_["pod"] == kube::key_of(*pod).name)
        replay_pod_ = pod;
      else
        has_another = true;
    }
    // Servers before 1.26 replace a pod that was taken away, which would replay all of it again.
    if (has_another && !is_end(phase())) replay_["phase"] = phases::stopped;
    if (phase() == phases::stopped) return;
    replay_ = replay_after(std::move(replay_), *job_, replay_pod_.get(), name_);
    if (replay_pod_ && phase() != phases::pending) replay_["pod"] = kube::key_of(*replay_pod_).name;
  }

  std::string phase() const { return replay_.is_null() ? "" : replay_.value("phase", ""); }

  // Each intercept is told the same, sooner or later.
  void read_progress() {
    if (phase() != phases::running || !replay_pod_) return;
    for (const auto& [pod, reading] : seen_.readings) {
      if (!reading.report) continue;
      const auto found = reading.report->replays.find(kube::key_of(*replay_pod_).name);
      if (found == reading.report->replays.end() ||
          found->second.packets < replay_.value("packets", uint64_t{0}))
        continue;
      replay_["packets"] = found->second.packets;
      if (found->second.percent) replay_["percent"] = *found->second.percent;
    }
  }

  std::optional<Verdict> why_replay_ended() const {
    if (!mirror_.capture || !is_end(phase())) return std::nullopt;
    const std::string what = capture_text(*mirror_.capture);
    const std::string anew = "; to replay it anew, set spec.paused to true and back to false";
    if (phase() == phases::succeeded)
      return no("Replayed", what + " was replayed: see status.replay.report" + anew);
    if (phase() == phases::failed)
      return no("ReplayFailed", what + ": " + replay_.value("message", "") + anew);
    return no("ReplayStopped", what + " was not replayed to its end" + anew);
  }

  // It stays for its log, and until another is wanted.
  bool is_kept(const Observation::Owned& owned) const {
    return job_ && owned.object == job_ && (!stopped_ || is_end(phase())) &&
           phase() != phases::stopped;
  }

  void end_replay() {
    if (phase() == phases::running) replay_["phase"] = phases::stopped;
    for (const Observation::Owned& owned : seen_.owned)
      if (owned.resource == resources::jobs && !is_kept(owned)) plan_.surplus.push_back(owned);
  }

  // Not before all is well that it needs; and once, as what has a Job or had one is not Pending.
  void begin_replay() {
    const bool any_job = std::any_of(seen_.owned.begin(), seen_.owned.end(), [](const auto& owned) {
      return owned.resource == resources::jobs;
    });
    if (any_job || stopping_ || phase() != phases::pending || no_targets_ ||
        ready_intercepts() == 0 || judge_reply_path().status != "True")
      return;
    plan_.objects.push_back(job_for(mirror_, sidecar_settings(mirror_, settings_)));
  }

  // ---- the shadow

  void find_targets() {
    if (const auto* service = std::get_if<ShadowService>(&mirror_.shadow))
      find_targets_of(*service);
    else
      find_targets_by_selector(std::get<Json>(mirror_.shadow));
    std::sort(targets_.begin(), targets_.end());
    targets_.erase(std::unique(targets_.begin(), targets_.end()), targets_.end());
  }

  void add_target(net::ProductionPort production, const std::string& address, uint16_t port) {
    if (const auto parsed = net::IpAddress::parse(address))
      targets_.push_back({production, {*parsed, net::Port{port}}});
  }

  void find_targets_of(const ShadowService& service) {
    const std::string whole = mirror_.shadow_namespace + "/" + service.name;
    if (!seen_.shadow_service) {
      no_targets_ = no("ServiceNotFound", "there is no Service " + whole +
                                              ": create it, or correct spec.shadow.service.name");
      return;
    }
    const Json spec = seen_.shadow_service->value("spec", Json::object());
    if (spec.contains("selector") && !spec["selector"].empty())
      shadow_selector_ = {{"matchLabels", spec["selector"]}};
    const Json ports = spec.value("ports", Json::array());
    for (const net::ProductionPort production : mirror_.ports) {
      const net::ProductionPort wanted = mirror_.shadow_port_of(production);
      const auto found = std::find_if(ports.begin(), ports.end(), [&](const Json& port) {
        return port.value("port", 0) == wanted.number && is_of_protocol(port, wanted.protocol);
      });
      if (found == ports.end()) {
        if (no_targets_) continue;
        std::string has;
        for (const Json& port : ports)
          has += (has.empty() ? "" : ", ") + std::to_string(port.value("port", 0)) +
                 (is_of_protocol(port, net::Protocol::udp) ? "/udp" : "");
        no_targets_ = no("ServicePortNotFound",
                         "Service " + whole + " has no port " + wanted.to_string() + ", only " +
                             has + ": correct spec.shadow.service.port, or the Service");
        continue;
      }
      const size_t before = targets_.size();
      const std::string name = found->value("name", "");
      const Json subsets =
          seen_.endpoints ? seen_.endpoints->value("subsets", Json::array()) : Json::array();
      for (const Json& subset : subsets)
        for (const Json& port : subset.value("ports", Json::array())) {
          if (port.value("name", "") != name || !is_of_protocol(port, wanted.protocol)) continue;
          for (const Json& address : subset.value("addresses", Json::array()))
            add_target(production, address.value("ip", ""), port.value("port", uint16_t{0}));
        }
      if (targets_.size() == before && !no_targets_)
        no_targets_ = no("NoEndpoints", "Service " + whole + " has no ready endpoints for port " +
                                            wanted.to_string() +
                                            ": do its pods run, and does its selector match them?");
    }
  }

  void find_targets_by_selector(const Json& selector) {
    shadow_selector_ = selector;
    for (const SharedJson& pod : seen_.shadow_pods) {
      if (!selects(selector, labels_of(*pod)) || !has_condition(*pod, "Ready")) continue;
      for (const net::ProductionPort production : mirror_.ports)
        add_target(production, kube::text_at(*pod, "/status/podIP"),
                   mirror_.shadow_port_of(production).number);
    }
    if (targets_.empty())
      no_targets_ = no("NoEndpoints", "no pod of namespace " + mirror_.shadow_namespace +
                                          " that spec.shadow.selector matches is ready: do they "
                                          "run, and do they carry its labels?");
  }

  // ---- containers in others' pods

  // Of one kind: sidecars beside production, intercepts beside the shadow.
  struct Kind {
    std::string noun;  // "sidecar"
    std::string name;  // of the first container
    std::string namespace_;
    SharedJson space;  // its Namespace
    const char* capabilities;
    const char* image_flag;
    // Reasons.
    const char* old_runs;
    const char* not_starting;
    const char* ended;
    bool waits_for_intercept;
    std::vector<Attachment>& possible;  // to be done
    // The container of this name, for a running pod.
    std::function<Json(const std::string& name)> ephemeral;
    std::string revision;  // empty: any

    // "a sidecar", "an intercept"
    std::string one() const { return (noun.front() == 'i' ? "an " : "a ") + noun; }
  };

  struct AttachedState {
    bool selected = false;
    bool running = false;  // of whatever revision
    bool ephemeral = false;
    bool attached = false;
    std::string reason;  // why not attached
    std::string message;
  };

  template <typename AnySettings>
  std::string revision_for(const AnySettings& container) const {
    if (!injected_) return revision_of(ephemeral_container(container));
    return revision_of(injected_container(container, InjectedAs::container, Requests::little));
  }

  Kind sidecars() {
    SidecarSettings settings = sidecar_settings(mirror_, settings_);
    return {.noun = "sidecar",
            .name = name_,
            .namespace_ = mirror_.key.namespace_,
            .space = seen_.production_namespace,
            .capabilities = "NET_RAW",
            .image_flag = "--sidecar-image",
            .old_runs = "OldSidecarRuns",
            .not_starting = "SidecarNotStarting",
            .ended = "SidecarEnded",
            .waits_for_intercept = true,
            .possible = possible_attachments_,
            .ephemeral =
                [settings](const std::string& name) mutable {
                  settings.name = name;
                  return ephemeral_container(settings);
                },
            .revision = revision_for(settings)};
  }

  Kind intercepts(const std::vector<OwnTarget>& targets) {
    InterceptSettings settings = intercept_settings(mirror_, targets, settings_);
    const kube::SecretData& identity = intercept_leaf();
    settings.identity_revision = hash_of(identity.at("tls.crt") + identity.at("ca.crt"));
    return {.noun = "intercept",
            .name = settings.name,
            .namespace_ = mirror_.shadow_namespace,
            .space = seen_.shadow_namespace,
            .capabilities = intercepts_capabilities,
            .image_flag = "--intercept-image",
            .old_runs = "OldInterceptRuns",
            .not_starting = "InterceptNotStarting",
            .ended = "InterceptEnded",
            .waits_for_intercept = false,
            .possible = intercept_attachments_,
            .ephemeral =
                [settings](const std::string& name) mutable {
                  settings.name = name;
                  return ephemeral_container(settings);
                },
            // What a pod that is not ready would receive is not known.
            .revision = targets.empty() ? "" : revision_for(settings)};
  }

  // None of the containers' ports, where they say any, is this one.
  static bool lacks_port(const Json& pod, net::ProductionPort port) {
    bool any = false;
    for (const Json& container : pod["spec"].value("containers", Json::array()))
      for (const Json& declared : container.value("ports", Json::array())) {
        any = true;
        if (declared.value("containerPort", 0) == port.number &&
            is_of_protocol(declared, port.protocol))
          return false;
      }
    return any;
  }

  std::optional<std::string> taken_by(const Json& pod) const {
    for (const Mirror& other : seen_.earlier_mirrors) {
      const bool shares =
          std::any_of(mirror_.ports.begin(), mirror_.ports.end(), [&](net::ProductionPort port) {
            return std::find(other.ports.begin(), other.ports.end(), port) != other.ports.end();
          });
      if (shares && selects(other.selector, labels_of(pod))) return other.key.name;
    }
    return std::nullopt;
  }

  void look_at_pods() {
    const bool readable = seen_.mirror.problem.empty();
    std::optional<Kind> sidecar;
    if (readable) sidecar.emplace(sidecars());
    for (const SharedJson& pod : seen_.pods) {
      AttachedState state;
      state.selected = readable && selects(mirror_.selector, labels_of(*pod));
      const std::vector<Container> containers = containers_of(*pod, name_);
      for (const Container& container : containers)
        if (container.state == Container::State::running) {
          state.running = true;
          state.ephemeral = container.kind == Container::Kind::ephemeral;
        }
      if (state.selected && !judge_source(*pod, state)) judge(*pod, *sidecar, containers, state);
      // A sidecar that is not (or no longer) wanted as it is, and that can be told to end.
      if (state.running && state.ephemeral && !state.attached) ++strays_;
      if (state.running && state.ephemeral) ++running_ephemeral_;
      if (state.selected) {
        ++matched_;
        if (state.running) ++running_;
        if (state.attached)
          ++attached_;
        else
          plan_.pod_problems.push_back({kube::key_of(*pod).name, state.reason, state.message});
      }
    }
  }

  static void set_problem(AttachedState& state, std::string reason, std::string message) {
    state.reason = std::move(reason);
    state.message = std::move(message);
  }

  // Whether something keeps the pod's traffic from being copied, whatever is beside it.
  bool judge_source(const Json& pod, AttachedState& state) const {
    if (const auto other = taken_by(pod)) {
      set_problem(state, "PortTaken",
                  "TrafficMirror " + *other +
                      ", which is older, mirrors one of its ports already: take another port or "
                      "another selector, or delete that one");
      return true;
    }
    for (const net::ProductionPort port : mirror_.ports)
      if (lacks_port(pod, port)) {
        set_problem(state, "PortNotFound",
                    "no container declares port " + port.to_string() +
                        ": correct spec.source.ports, or the container's ports");
        return true;
      }
    if (!uses_host_network(pod)) return false;
    set_problem(
        state, "HostNetwork",
        "it uses the network of its node (spec.hostNetwork), where a sidecar would copy the "
        "traffic of others too: run the workload without, or the sidecar by hand");
    return true;
  }

  void judge(const Json& pod, const Kind& kind, const std::vector<Container>& containers,
             AttachedState& state) {
    const auto problem = [&](std::string reason, std::string message) {
      set_problem(state, std::move(reason), std::move(message));
    };
    const Container* last = containers.empty() ? nullptr : &containers.back();
    if (!last) return judge_without(pod, kind, state);
    switch (last->state) {
      case Container::State::running:
        if (kind.revision.empty() || last->revision == kind.revision) {
          state.attached = true;
        } else if (last->kind == Container::Kind::ephemeral) {
          problem(kind.old_runs,
                  kind.one() +
                      " with other settings has not ended though it was told to: wait for it, "
                      "or restart the workload");
        } else {
          problem("RestartNeeded",
                  "its " + kind.noun + " was injected with other settings: restart the workload");
        }
        return;
      case Container::State::waiting:
        if (is_image_problem(last->reason))
          return problem("ImagePullFailed",
                         "the " + kind.noun + "'s image can't be pulled (" + last->reason +
                             "): " + last->message + "; see the operator's " + kind.image_flag +
                             ", and whether the node may pull it. A pod keeps the image that was "
                             "attached to it");
        if (last->reason == "CrashLoopBackOff" || last->reason.ends_with("Error"))
          return problem(kind.not_starting, "the " + kind.noun + " does not start (" +
                                                last->reason + "): " + last->message);
        return problem("Attaching", "the " + kind.noun + " is being started");
      case Container::State::terminated:
        return judge_ended(pod, kind, containers, state);
      case Container::State::unknown:
        return problem("Attaching", "the " + kind.noun + " is not started yet");
    }
  }

  void judge_without(const Json& pod, const Kind& kind, AttachedState& state) {
    if (injected_) {
      state.reason = "RestartNeeded";
      state.message =
          "it was created before the mirror: restart the workload (kubectl rollout "
          "restart), and its new pods get " +
          kind.one();
      const auto labelled = [&](const Json& object) {
        const Json& labels = labels_of(object);
        return labels.is_object() && labels.value(names::inject, "") == names::inject_enabled;
      };
      const std::string label = std::string(names::inject) + "=" + names::inject_enabled;
      if (!kind.space || !labelled(*kind.space)) {
        state.reason = "NamespaceNotLabelled";
        state.message = kind.noun +
                        "s are injected in labelled namespaces only: kubectl label namespace " +
                        kind.namespace_ + " " + label + ", then restart the workload";
      } else if (!labelled(pod)) {
        state.reason = "PodsNotLabelled";
        state.message = kind.noun + "s are injected into labelled pods only: put the label " +
                        label + " into the workload's pod template";
      } else if (pod_security_forbids(*kind.space)) {
        state.reason = "PodSecurityForbids";
        state.message = pod_security_cure(kind.namespace_, kind.capabilities);
      }
      return;
    }
    if (mirror_.attach == Attach::ephemeral && !abilities_.ephemeral_containers) {
      state.reason = "EphemeralContainersUnavailable";
      state.message =
          "this cluster can't attach to running pods (Kubernetes 1.25 and later can): "
          "set spec.source.attach to Auto or Sidecar";
      return;
    }
    if (!is_running(pod)) {
      state.reason = "PodNotRunning";
      state.message = "it does not run yet; " + kind.one() + " is attached when it does";
      return;
    }
    attach(pod, kind, kind.name, state);
  }

  void judge_ended(const Json& pod, const Kind& kind, const std::vector<Container>& containers,
                   AttachedState& state) {
    const Container& last = containers.back();
    state.reason = kind.ended;
    state.message = "the " + kind.noun + " ended with exit code " + std::to_string(last.exit_code) +
                    (last.reason.empty() ? "" : " (" + last.reason + ")") +
                    (last.message.empty() ? "" : ": " + last.message) +
                    "; another one follows. kubectl logs -n " + kind.namespace_ + " " +
                    kube::key_of(pod).name + " -c " + last.name + " says why";
    if (last.kind != Container::Kind::ephemeral) return;  // the kubelet starts it again
    if (injected_) return judge_without(pod, kind, state);
    const auto failures = std::count_if(containers.begin(), containers.end(), [](const auto& c) {
      return c.state == Container::State::terminated && c.exit_code != 0;
    });
    // Also one that ended well, as it was told, is followed by another only when the intercepts
    // have had the time to hear that nobody is to end any more.
    const int doublings = last.exit_code == 0 ? 0 : std::min(static_cast<int>(failures) - 1, 10);
    const auto pause = std::min(first_attach_pause * (1 << doublings), longest_attach_pause);
    // A node that was lost does not say when.
    const auto ended = kube::time_of(last.finished_at);
    if (ended && seen_.now < *ended + pause) {
      if (!stopped_) look_again_at(*ended + pause);
      return;
    }
    attach(pod, kind, kind.name + "-" + std::to_string(containers.size() + 1), state);
  }

  // To be done; a sidecar, if there is an intercept to talk to by then.
  void attach(const Json& pod, const Kind& kind, const std::string& container,
              AttachedState& state) {
    const Attachment attachment{kube::key_of(pod), kind.ephemeral(container)};
    kind.possible.push_back(attachment);
    const auto refused = seen_.refusals.find(refusal_key(attachment));
    if (refused == seen_.refusals.end()) {
      const bool waits = kind.waits_for_intercept && ready_intercepts() == 0;
      state.reason = waits ? "WaitingForIntercept" : "Attaching";
      state.message = "the " + kind.noun +
                      (waits ? " is attached when an intercept is ready" : " is being attached");
    } else if (is_pod_security(refused->second.message)) {
      state.reason = "PodSecurityForbids";
      state.message = pod_security_cure(kind.namespace_, kind.capabilities);
    } else {
      state.reason = "AttachRefused";
      state.message = "the API server refuses the " + kind.noun +
                      ", which is tried again: " + refused->second.message;
    }
  }

  // ---- the shadow's pods, where intercepts are beside them

  void look_at_shadow_pods() {
    const std::string container = intercept_container_for(mirror_.key);
    for (const SharedJson& pod : seen_.shadow_pods) {
      const std::vector<Container> containers = containers_of(*pod, container);
      const bool running =
          !containers.empty() && containers.back().state == Container::State::running;
      const std::string address = kube::text_at(*pod, "/status/podIP");
      const bool wanted = !stopped_ && mirror_.is_intercepted_beside();
      const std::string instance =
          containers.empty() ? "" : instance_of(*pod, containers.back().name);
      plan_.beside.push_back({kube::key_of(*pod), wanted && running ? address : "", instance});
      if (wanted) look_at_shadow_pod(*pod, containers, address);
    }
  }

  void look_at_shadow_pod(const Json& pod, const std::vector<Container>& containers,
                          const std::string& address) {
    std::vector<OwnTarget> targets;
    for (const Target& target : targets_)
      if (target.endpoint.address.to_string() == address)
        targets.emplace_back(net::Port{target.production.number}, target.endpoint.port);
    const bool selected =
        shadow_selector_.is_null() ? !targets.empty() : selects(shadow_selector_, labels_of(pod));
    // One that is not ready yet gets none; that which it has is no worse for its not being ready.
    if (!selected || (targets.empty() && containers.empty())) return;
    ++shadow_pods_;
    const std::string name = kube::key_of(pod).name;
    AttachedState state;
    if (uses_host_network(pod))
      set_problem(state, "HostNetwork",
                  "it uses the network of its node (spec.hostNetwork), where an intercept would "
                  "turn the traffic of others around too: run the shadow without, or with "
                  "clientAddress Masquerade");
    else if (listed_.size() == most_beside)
      set_problem(state, "InterceptNotReady",
                  "sidecars have streams to " + std::to_string(most_beside) +
                      " intercepts beside a shadow at most: let it have no more pods");
    else
      judge(pod, intercepts(targets), containers, state);
    if (state.attached) {
      listed_.push_back(address);
      const auto reading = seen_.readings.find(name);
      const bool read = reading != seen_.readings.end() && reading->second.report;
      if (read && reading->second.report->ready) {
        ++ready_beside_;
        return;
      }
      set_problem(state, "InterceptNotReady",
                  read ? reading->second.report->message
                       : "the intercept has not said how it is" +
                             (reading != seen_.readings.end() ? ": " + reading->second.problem
                                                              : std::string()));
    }
    plan_.shadow_problems.push_back({name, state.reason, state.message});
  }

  static std::string instance_of(const Json& pod, const std::string& container) {
    int64_t restarts = 0;
    for (const char* list :
         {"containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"})
      for (const Json& status :
           pod.value(Json::json_pointer(std::string("/status/") + list), Json::array()))
        if (status.value("name", "") == container)
          restarts = status.value("restartCount", int64_t{0});
    return kube::text_at(pod, "/metadata/uid") + "/" + container + "/" + std::to_string(restarts);
  }

  // ---- stopping

  // In whatever namespace: there are two while spec.shadow.namespace changes.
  bool has_intercept() const {
    return std::any_of(seen_.owned.begin(), seen_.owned.end(), [](const Observation::Owned& owned) {
      return owned.resource == resources::deployments;
    });
  }

  // The names of the pods whose sidecars have a stream; to an intercept that sessions go through.
  enum class StreamTo { any, carrying };
  std::set<std::string> connected(StreamTo to) const {
    std::set<std::string> sidecars;
    for (const auto& [pod, reading] : seen_.readings) {
      if (!reading.report) continue;
      if (to == StreamTo::carrying && mirror_.is_intercepted_beside() && is_of_deployment(pod))
        continue;
      for (const auto& [name, sessions] : reading.report->sidecars) sidecars.insert(name);
    }
    return sidecars;
  }

  bool is_of_deployment(const std::string& pod) const {
    return std::any_of(
        seen_.intercept_pods.begin(), seen_.intercept_pods.end(),
        [&](const SharedJson& intercept) { return kube::key_of(*intercept).name == pod; });
  }

  void decide_stopping() {
    // Sidecars that must end: all of them, or those that are not wanted as they are.
    const bool some_left =
        stopped_ ? running_ephemeral_ > 0 || !connected(StreamTo::any).empty() : strays_ > 0;
    if (!stopped_ && strays_ == 0) return;
    stopping_since_ = kube::time_of(seen_.status.value("stoppingSince", ""));
    // What the spec asks for since then has half a minute of its own.
    const bool edited = seen_.status.value("observedGeneration", int64_t{0}) != mirror_.generation;
    if (!stopping_since_ || edited) stopping_since_ = seen_.now;
    WallTime until = *stopping_since_ + stop_within;
    if (!some_left && why_replay_ended()) until = *stopping_since_ + replay_counted_within;
    stopping_ = (some_left || why_replay_ended()) && has_intercept() && seen_.now < until;
    if (stopping_) look_again_at(until);
  }

  static std::string told_to_stop(std::string configuration) {
    const std::string go = "stop-sidecars: false";
    const size_t at = configuration.rfind(go);
    if (at != std::string::npos) configuration.replace(at, go.size(), "stop-sidecars: true");
    return configuration;
  }

  // The same ConfigMap, whosever spec it was made of, telling sidecars to stop.
  void tell_to_stop(const Observation::Owned& owned) {
    const Json& before = *owned.object;
    const auto at = "/data/intercept.yaml"_json_pointer;
    if (!before.contains(at)) return;
    Json object = {{"apiVersion", "v1"}, {"kind", "ConfigMap"}};
    for (const char* field : {"name", "namespace", "labels"})
      if (before["metadata"].contains(field)) object["metadata"][field] = before["metadata"][field];
    object["metadata"]["annotations"] = {{names::mirror, to_text(mirror_.key)}};
    const std::string configuration = told_to_stop(before[at].get<std::string>());
    object["data"]["intercept.yaml"] = configuration;
    plan_.objects.push_back({resources::config_maps, std::move(object)});
    notify(configuration, kube::key_of(before).namespace_);
  }

  void take_down() {
    end_replay();
    if (!stopping_) {
      for (const Observation::Owned& owned : seen_.owned)
        if (owned.resource != resources::jobs) plan_.surplus.push_back(owned);
      plan_.remove_finalizer = mirror_.deleted && mirror_.has_finalizer && seen_.owned.empty();
      return;
    }
    for (const Observation::Owned& owned : seen_.owned)
      if (owned.resource == resources::config_maps) tell_to_stop(owned);
  }

  // ---- running

  const Observation::Owned* owned(const kube::Resource& resource, const kube::Key& key) const {
    for (const Observation::Owned& owned : seen_.owned)
      if (owned.resource == resource && kube::key_of(*owned.object) == key) return &owned;
    return nullptr;
  }

  kube::SecretData leaf(const std::string& namespace_, const std::string& secret,
                        const std::string& identity) {
    const Observation::Owned* before = owned(resources::secrets, {namespace_, secret});
    const RotatedSecret rotated =
        rotate_leaf(before ? kube::data_of(*before->object) : kube::SecretData{}, seen_.ca,
                    Names{.uris = {identity}}, seen_.now, lifetimes_);
    look_again_at(rotated.look_again);
    return rotated.data;
  }

  const kube::SecretData& intercept_leaf() {
    if (intercept_leaf_.empty())
      intercept_leaf_ = leaf(mirror_.shadow_namespace, name_, intercept_identity(mirror_.key));
    return intercept_leaf_;
  }

  // Of the Deployment's, which tells sidecars what to do, and of those beside the shadow.
  std::vector<std::string> addresses_beside() const {
    std::vector<std::string> addresses = listed_;
    for (const SharedJson& pod : seen_.intercept_pods)
      if (const std::string address = kube::text_at(*pod, "/status/podIP");
          is_in_shadow_namespace(*pod) && has_condition(*pod, "Ready") && !address.empty())
        addresses.push_back(address);
    return addresses;
  }

  void put_up() {
    InterceptInput input;
    if (mirror_.is_intercepted_beside())
      input.addresses = addresses_beside();
    else
      input.targets = targets_;
    input.stop_sidecars = stopping_;
    input.shadow_selector = shadow_selector_;
    if (seen_.production_namespace) {
      const Json& labels = labels_of(*seen_.production_namespace);
      // Set by the API server itself from 1.21 on.
      constexpr const char* by_name = "kubernetes.io/metadata.name";
      if (labels.is_object() && labels.contains(by_name))
        input.production_namespace_labels = {{by_name, labels[by_name]}};
    }
    input.intercept_leaf = intercept_leaf();
    input.sidecar_leaf = leaf(mirror_.key.namespace_, sidecar_secret_for(mirror_.key),
                              sidecar_identity(mirror_.key));
    plan_.objects = objects_for(mirror_, input, settings_, abilities_);
    notify(configuration_of(mirror_, input.targets, stopping_), mirror_.shadow_namespace);
    begin_replay();

    for (const Observation::Owned& owned : seen_.owned) {
      const bool wanted =
          is_kept(owned) ||
          std::any_of(plan_.objects.begin(), plan_.objects.end(), [&](const WantedObject& object) {
            return object.resource == owned.resource &&
                   kube::key_of(object.object) == kube::key_of(*owned.object);
          });
      if (wanted) continue;
      if (!stopping_ || owned.resource == resources::jobs)
        plan_.surplus.push_back(owned);
      else if (owned.resource == resources::config_maps)
        tell_to_stop(owned);  // of the namespace where the shadow was before
    }
    if (!stopping_ && ready_intercepts() > 0) plan_.attachments = std::move(possible_attachments_);
    std::move(intercept_attachments_.begin(), intercept_attachments_.end(),
              std::back_inserter(plan_.attachments));
    if (mirror_.duration && started_) look_again_at(*started_ + *mirror_.duration);
  }

  // The intercepts of that namespace, in place of those named before.
  void notify(const std::string& configuration, const std::string& namespace_) {
    plan_.configuration = hash_of(configuration);
    plan_.to_notify.clear();
    for (const SharedJson& pod : seen_.intercept_pods) {
      if (kube::key_of(*pod).namespace_ != namespace_) continue;
      const Json annotations = pod->value("/metadata/annotations"_json_pointer, Json::object());
      if (annotations.value(names::configuration, "") != plan_.configuration)
        plan_.to_notify.push_back(kube::key_of(*pod));
    }
  }

  // Those of before are elsewhere while spec.shadow.namespace changes.
  bool is_in_shadow_namespace(const Json& pod) const {
    return kube::key_of(pod).namespace_ == mirror_.shadow_namespace;
  }

  size_t ready_of_deployment() const {
    return static_cast<size_t>(std::count_if(
        seen_.intercept_pods.begin(), seen_.intercept_pods.end(), [&](const SharedJson& pod) {
          return is_in_shadow_namespace(*pod) && has_condition(*pod, "Ready");
        }));
  }

  // Those that sessions go through. Beside the shadow, they are of no use without the Deployment's.
  size_t ready_intercepts() const {
    const size_t ready = ready_of_deployment();
    return mirror_.is_intercepted_beside() && ready > 0 ? ready_beside_ : ready;
  }

  // ---- what is said of it

  Verdict judge_attached() const {
    if (matched_ == 0)
      return no("NoPods", "no pod of namespace " + mirror_.key.namespace_ +
                              " matches spec.source.selector: compare it with the pods' labels");
    const std::string count = count_of(attached_, matched_, "pods have a sidecar");
    if (attached_ == matched_) return yes("AllAttached", count);
    if (stopping_)
      return no("Stopping", count +
                                "; others are attached when those have ended that are not "
                                "wanted as they are, within half a minute");
    const PodProblem& first = plan_.pod_problems.front();
    return no(first.reason, count + "; pod " + first.pod + ": " + first.message);
  }

  Verdict judge_intercept() const {
    if (no_targets_) return *no_targets_;
    if (const auto refused = seen_.refusals.find("objects"); refused != seen_.refusals.end())
      return no("ApplyRefused",
                "the API server refuses what the mirror needs, which is tried again: " +
                    refused->second.message);
    const Observation::Owned* deployment =
        owned(resources::deployments, {mirror_.shadow_namespace, name_});
    if (!deployment) return no("Deploying", "the intercept is being deployed");
    const size_t ready = ready_of_deployment();
    if (ready > 0 && mirror_.is_intercepted_beside()) return judge_beside();
    if (ready > 0)
      return yes("Available",
                 count_of(ready, static_cast<size_t>(mirror_.replicas), "intercepts are ready"));
    if (const Json* failure = condition_of(*deployment->object, "ReplicaFailure");
        failure && failure->value("status", "") == "True") {
      const std::string message = failure->value("message", "");
      if (is_pod_security(message))
        return no("PodSecurityForbids",
                  pod_security_cure(mirror_.shadow_namespace, intercepts_capabilities));
      return no("PodsRefused", "namespace " + mirror_.shadow_namespace +
                                   " refuses the intercept's pods; make room for them: " + message);
    }
    for (const SharedJson& pod : seen_.intercept_pods)
      if (is_in_shadow_namespace(*pod))
        if (const auto problem = problem_of_intercept(*pod)) return *problem;
    return no("Deploying", "no intercept is ready yet");
  }

  Verdict judge_beside() const {
    if (shadow_pods_ == 0)
      return no("NoShadowPods",
                "the endpoints of the shadow are no pods of namespace " + mirror_.shadow_namespace +
                    ", which an intercept could be beside: set spec.clientAddress to Masquerade");
    std::string message =
        count_of(ready_beside_, shadow_pods_, "shadow pods have an intercept that is ready");
    if (plan_.shadow_problems.empty()) return yes("Available", message);
    const PodProblem& first = plan_.shadow_problems.front();
    message += "; pod " + first.pod + ": " + first.message;
    return ready_beside_ > 0 ? yes("Available", message) : no(first.reason, message);
  }

  std::optional<Verdict> problem_of_intercept(const Json& pod) const {
    const std::string name = kube::key_of(pod).name;
    if (const Json* scheduled = condition_of(pod, "PodScheduled"))
      return no("Unschedulable", "pod " + name + " finds no node; see spec.intercept: " +
                                     scheduled->value("message", ""));
    for (const Container& container : containers_of(pod, "intercept")) {
      if (container.state == Container::State::waiting && is_image_problem(container.reason))
        return no("ImagePullFailed",
                  "pod " + name + ": the intercept's image can't be pulled (" + container.reason +
                      "): " + container.message +
                      "; see the operator's --intercept-image, and whether the node may pull it");
      if (container.reason == "CrashLoopBackOff" || container.state == Container::State::terminated)
        return no("InterceptCrashes", "pod " + name +
                                          ": the intercept ends again and again; kubectl logs -n " +
                                          mirror_.shadow_namespace + " " + name + " says why");
    }
    const auto reading = seen_.readings.find(name);
    if (reading != seen_.readings.end() && reading->second.report && !reading->second.report->ready)
      return no("InterceptNotReady", "pod " + name + ": " + reading->second.report->message);
    return std::nullopt;
  }

  Verdict judge_reply_path() const {
    std::string problem = "no intercept has said so yet";
    bool any = false;
    for (const auto& [pod, reading] : seen_.readings) {
      if (!reading.report) {
        problem = "pod " + pod + ": " + reading.problem;
        continue;
      }
      for (const Report::ReplyPath& path : reading.report->reply_path) {
        any = true;
        if (!path.verified)
          return no("NotVerified", "pod " + pod + ", target " + path.target + ": " + path.message);
      }
    }
    if (any && !mirror_.has_tcp())
      return yes("Verified",
                 "there is a route to the shadow; that its answers to datagrams come back can't be "
                 "proven beforehand");
    if (any) return yes("Verified", "the shadow's replies come back to the intercept");
    return unknown("NoReport", problem);
  }

  Verdict judge_mirroring() const {
    if (no_targets_) return *no_targets_;
    const bool read = std::any_of(seen_.readings.begin(), seen_.readings.end(),
                                  [](const auto& entry) { return entry.second.report; });
    if (!read) return unknown("NoReport", "no intercept has said so yet");
    const std::set<std::string> names = connected(StreamTo::carrying);
    const auto streams = static_cast<size_t>(
        std::count_if(seen_.pods.begin(), seen_.pods.end(), [&](const SharedJson& pod) {
          return selects(mirror_.selector, labels_of(*pod)) &&
                 names.contains(kube::key_of(*pod).name);
        }));
    if (streams == 0)
      return no("NoStream",
                "no sidecar has a stream to an intercept: their logs say why, such as a "
                "NetworkPolicy in the way");
    return yes("Streaming", count_of(streams, matched_, "pods stream to the intercept"));
  }

  Verdict judge_replay() const {
    const std::string what = capture_text(*mirror_.capture);
    if (stopping_) return no("Stopping", "sidecars end that are not wanted any more");
    if (phase() == phases::running) {
      const bool runs = replay_pod_ && is_running(*replay_pod_);
      if (runs && !connected(StreamTo::carrying).contains(kube::key_of(*replay_pod_).name))
        return no("NoStream", "the replay has no stream to an intercept: " + log_of_replay() +
                                  " says why, such as a NetworkPolicy in the way");
      return yes("Replaying", what + " is replayed");
    }
    if (!job_)
      return no("WaitingForIntercept",
                what + " is replayed when an intercept is ready and its reply path proven");
    if (!replay_pod_)
      return no("ReplayStarting", "its Job has no pod yet: kubectl describe job -n " +
                                      mirror_.key.namespace_ + " " + name_ +
                                      " says why, if that lasts");
    return problem_of_replay(*replay_pod_);
  }

  std::string log_of_replay() const {
    return "kubectl logs -n " + mirror_.key.namespace_ + " " + kube::key_of(*replay_pod_).name;
  }

  // Of its pod that does not run yet.
  Verdict problem_of_replay(const Json& pod) const {
    const std::string name = kube::key_of(pod).name, claim = mirror_.capture->claim;
    if (const Json* scheduled = condition_of(pod, "PodScheduled")) {
      const std::string message = scheduled->value("message", "");
      if (message.find("persistentvolumeclaim \"" + claim + "\" not found") != std::string::npos)
        return no("ClaimNotFound", "there is no PersistentVolumeClaim " + mirror_.key.namespace_ +
                                       "/" + claim +
                                       ": create it, or correct spec.source.capture.claimName");
      return no("Unschedulable", "pod " + name + " finds no node: " + message);
    }
    for (const Container& container : containers_of(pod, name_)) {
      if (is_image_problem(container.reason))
        return no("ImagePullFailed", "pod " + name + ": the sidecar's image can't be pulled (" +
                                         container.reason + "): " + container.message +
                                         "; see the operator's --sidecar-image, and whether the "
                                         "node may pull it");
      if (container.reason.ends_with("Error"))
        return no("ReplayStarting", "pod " + name + " does not start (" + container.reason +
                                        "): " + container.message);
    }
    return no("ReplayStarting", "the replay is being started: kubectl describe pod -n " +
                                    mirror_.key.namespace_ + " " + name + " says more");
  }

  void write_status(const Verdict& consented) {
    Verdict attached, intercept, reply_path, mirroring;
    if (stopped_) {
      const std::string reason = stopping_ ? "Stopping" : "Stopped";
      attached = intercept = mirroring = no(reason, stopped_->message);
      reply_path = unknown(reason, stopped_->message);
    } else {
      attached = mirror_.capture ? yes("", "") : judge_attached();
      intercept = judge_intercept();
      reply_path = judge_reply_path();
      mirroring = mirror_.capture ? judge_replay() : judge_mirroring();
    }
    Verdict ready = yes(mirror_.capture ? mirroring.reason : "Mirroring", mirroring.message);
    if (stopped_) {
      ready = *stopped_;
      ready.status = "False";
    } else {
      for (const Verdict* verdict : {&intercept, &attached, &reply_path, &mirroring})
        if (verdict->status != "True") {
          ready = no(verdict->reason, verdict->message);
          break;
        }
    }

    Json& status = plan_.status = Json::object();
    status["observedGeneration"] = mirror_.generation;
    status["conditions"] = Json::array();
    for (const auto& [type, verdict] :
         std::initializer_list<std::pair<const char*, const Verdict*>>{
             {"Ready", &ready},
             {"Consented", &consented},
             {"Attached", &attached},
             {"InterceptAvailable", &intercept},
             {"ReplyPathVerified", &reply_path},
             {"Mirroring", &mirroring}})
      // A capture has no pods to be attached to.
      if (verdict != &attached || !mirror_.capture)
        status["conditions"].push_back(condition(type, *verdict));
    if (!mirror_.capture)
      status["attached"] =
          std::to_string(stopped_ ? running_ : attached_) + "/" + std::to_string(matched_);
    if (!replay_.is_null()) status["replay"] = replay_;
    count(status);
    if (!started_ && !stopped_ && mirroring.status == "True") {
      started_ = seen_.now;
      if (mirror_.duration) look_again_at(*started_ + *mirror_.duration);
    }
    if (started_) {
      status["startedAt"] = kube::to_text(*started_);
      if (!mirror_.duration_text.empty()) status["duration"] = mirror_.duration_text;
    }
    if (stopping_since_) status["stoppingSince"] = kube::to_text(*stopping_since_);
  }

  Json condition(const std::string& type, const Verdict& verdict) const {
    std::string since = kube::to_text(seen_.now);
    for (const Json& before : seen_.status.value("conditions", Json::array()))
      if (before.value("type", "") == type && before.value("status", "") == verdict.status)
        since = before.value("lastTransitionTime", since);
    return {{"type", type},
            {"status", verdict.status},
            {"reason", verdict.reason},
            {"message", verdict.message},
            {"observedGeneration", mirror_.generation},
            {"lastTransitionTime", since}};
  }

  // Each intercept counts from its own start; what those have counted that are gone stays in the
  // sums.
  void count(Json& status) const {
    struct Count {
      int64_t exchanges = 0;
      int64_t shed = 0;
    };
    std::map<std::string, Count> counted;
    for (const Json& entry : seen_.status.value("counted", Json::array()))
      counted[entry.value("intercept", "")] = {entry.value("exchanges", int64_t{0}),
                                               entry.value("shed", int64_t{0})};
    int64_t sessions = 0;
    std::set<std::string> alive;
    for (const auto& [pod, reading] : seen_.readings) {
      alive.insert(reading.instance);
      if (!reading.report) continue;
      const Count says{static_cast<int64_t>(reading.report->exchanges),
                       static_cast<int64_t>(reading.report->shed)};
      Count& before = counted[reading.instance];
      if (says.exchanges < before.exchanges || says.shed < before.shed) {
        // Started anew in its container (--stay).
        counted[""].exchanges += before.exchanges;
        counted[""].shed += before.shed;
      }
      counted[reading.instance] = says;
      for (const auto& [name, now] : reading.report->sidecars)
        sessions += static_cast<int64_t>(now);
    }
    Count gone, sum;
    Json list = Json::array();
    for (const auto& [instance, of_it] : counted) {
      sum.exchanges += of_it.exchanges;
      sum.shed += of_it.shed;
      if (!alive.contains(instance)) {
        gone.exchanges += of_it.exchanges;
        gone.shed += of_it.shed;
      } else {
        list.push_back(
            {{"intercept", instance}, {"exchanges", of_it.exchanges}, {"shed", of_it.shed}});
      }
    }
    // Without a name: servers of 1.20 take an empty one in a list for null, and refuse all of the
    // status.
    if (gone.exchanges > 0 || gone.shed > 0)
      list.push_back({{"exchanges", gone.exchanges}, {"shed", gone.shed}});
    status["sessions"] = sessions;
    status["exchanges"] = sum.exchanges;
    status["shed"] = sum.shed;
    if (!list.empty()) status["counted"] = std::move(list);
  }

  void look_again_at(WallTime at) {
    if (!plan_.look_again || at < *plan_.look_again) plan_.look_again = at;
  }

  const Observation& seen_;
  const Mirror& mirror_;
  const Settings& settings_;
  const Abilities& abilities_;
  const CertificateLifetimes& lifetimes_;
  const bool injected_;
  const std::string name_;

  std::optional<WallTime> started_;
  std::optional<Verdict> stopped_;  // why it does not run
  bool stopping_ = false;           // sidecars are told to end, and some have not yet
  std::optional<WallTime> stopping_since_;

  Json replay_;     // as it will stand in the status; null where there is none
  SharedJson job_;  // that replays this, and is not about to end; null where there is none
  SharedJson replay_pod_;

  std::vector<Target> targets_;
  std::optional<Verdict> no_targets_;
  Json shadow_selector_;

  size_t matched_ = 0;
  size_t attached_ = 0;
  size_t running_ = 0;
  size_t running_ephemeral_ = 0;
  size_t strays_ = 0;
  std::vector<Attachment> possible_attachments_;

  size_t shadow_pods_ = 0;   // that are to have an intercept beside them
  size_t ready_beside_ = 0;  // and have one that is ready
  std::vector<std::string> listed_;
  std::vector<Attachment> intercept_attachments_;
  kube::SecretData intercept_leaf_;

  Plan plan_;
};

}  // namespace

Plan plan_for(const Observation& seen, const Settings& settings, const Abilities& abilities,
              const CertificateLifetimes& lifetimes) {
  return Planner(seen, settings, abilities, lifetimes).plan();
}

bool is_pod_security(const std::string& refusal) {
  // Its words, as the API server and the ReplicaSet pass them on.
  return refusal.find("violates PodSecurity") != std::string::npos;
}

std::string pod_security_cure(const std::string& namespace_, const std::string& capabilities) {
  return "Pod Security of namespace " + namespace_ + " forbids " + capabilities +
         ": label it pod-security.kubernetes.io/enforce=privileged, or exempt it";
}

bool is_mirrored_by_injection(const Mirror& mirror, const Abilities& abilities) {
  return mirror.attach == Attach::sidecar ||
         (mirror.attach == Attach::automatic && !abilities.ephemeral_containers);
}

bool injects(const Mirror& mirror, const Json& status, const Abilities& abilities) {
  if (mirror.deleted || mirror.paused || !is_mirrored_by_injection(mirror, abilities)) return false;
  for (const Json& condition : status.value("conditions", Json::array())) {
    const std::string type = condition.value("type", "");
    if (type == "Consented" && condition.value("status", "") != "True") return false;
    if (type == "Ready" && condition.value("reason", "") == "DurationOver") return false;
  }
  return status.contains("conditions");  // not before the operator has judged it
}

std::string refusal_key(const Attachment& attachment) {
  return "pod/" + to_text(attachment.pod);
}

InterceptSettings intercept_settings(const Mirror& mirror, std::vector<OwnTarget> targets,
                                     const Settings& settings) {
  return {.name = intercept_container_for(mirror.key),
          .image = settings.intercept_image,
          .image_pull_policy = settings.image_pull_policy,
          .targets = std::move(targets),
          .client_address = mirror.client_address == ClientAddress::pool
                                ? "pool=" + mirror.client_address_pool
                                : "preserve",
          .member_of = intercept_address(mirror).host,
          .tls_peer = sidecar_identity(mirror.key),
          .secret = name_for(mirror.key),
          .resources = mirror.resources};
}

std::vector<OwnTarget> targets_of_new_pod(const Mirror& mirror, const Json* service,
                                          const Json& labels, const Json& spec) {
  std::vector<OwnTarget> targets;
  if (const auto* selector = std::get_if<Json>(&mirror.shadow)) {
    if (selects(*selector, labels))
      for (const net::ProductionPort port : mirror.ports)
        targets.emplace_back(net::Port{port.number}, net::Port{mirror.shadow_port_of(port).number});
    return targets;
  }
  const Json of_service = service ? service->value("spec", Json::object()) : Json::object();
  const Json selector = of_service.value("selector", Json::object());
  if (selector.empty() || !selects({{"matchLabels", selector}}, labels)) return targets;
  for (const net::ProductionPort production : mirror.ports)
    for (const Json& port : of_service.value("ports", Json::array())) {
      const uint16_t number = port.value("port", uint16_t{0});
      if (number != mirror.shadow_port_of(production).number) continue;
      const Json at = port.value("targetPort", Json(number));
      if (at.is_number())
        targets.emplace_back(net::Port{production.number}, net::Port{at.get<uint16_t>()});
      if (!at.is_string()) continue;
      for (const Json& container : spec.value("containers", Json::array()))
        for (const Json& declared : container.value("ports", Json::array()))
          if (declared.value("name", "") == at)
            targets.emplace_back(net::Port{production.number},
                                 net::Port{declared.value("containerPort", uint16_t{0})});
    }
  return targets;
}

SidecarSettings sidecar_settings(const Mirror& mirror, const Settings& settings) {
  SidecarSettings sidecar;
  sidecar.name = name_for(mirror.key);
  sidecar.image = settings.sidecar_image;
  sidecar.image_pull_policy = settings.image_pull_policy;
  sidecar.ports = mirror.ports;
  sidecar.interface = mirror.interface;
  sidecar.intercept = intercept_address(mirror);
  sidecar.tls_peer = intercept_identity(mirror.key);
  sidecar.secret = sidecar_secret_for(mirror.key);
  sidecar.memory_limit = mirror.memory_bytes;
  sidecar.logins = mirror.logins;
  sidecar.logins_secret = mirror.logins_secret;
  sidecar.idle_timeout = mirror.idle_timeout;
  sidecar.response_timeout = mirror.response_timeout;
  return sidecar;
}

std::vector<Change> changes_between(const Json& before, const Json& after) {
  const auto condition = [](const Json& status, const std::string& type) {
    for (const Json& entry : status.value("conditions", Json::array()))
      if (entry.value("type", "") == type) return entry;
    return Json(Json::object());
  };
  std::vector<Change> changes;
  std::set<std::string> said;
  for (const char* type :
       {"Consented", "InterceptAvailable", "Attached", "ReplyPathVerified", "Mirroring", "Ready"}) {
    const Json was = condition(before, type), is = condition(after, type);
    const std::string status = is.value("status", ""), reason = is.value("reason", "");
    if (status == was.value("status", "") && reason == was.value("reason", "")) continue;
    // Ready repeats the reason of another; and where it does not run the others have none.
    if (status == "Unknown" || reason == "Stopping" || reason == "Stopped") continue;
    if (!said.insert(reason).second) continue;
    const bool well = status == "True" || reason == "Replayed";
    changes.push_back({well ? kube::EventType::normal : kube::EventType::warning, reason,
                       is.value("message", "")});
  }
  return changes;
}

}  // namespace trafficmirror::controller
