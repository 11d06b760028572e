// Every reason that a condition can have, brought about, with words that name the cause and the
// cure.
#include <fstream>
#include <functional>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/operator_cluster.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;
using std::chrono::minutes;
using std::chrono::seconds;

struct Case {
  std::string condition;
  std::string status;
  std::string reason;
  std::vector<std::string> words;  // all of which are in the message
  // Does what brings it about. The operator looks once more afterwards.
  std::function<void(Cluster&)> bring_about;
};

void settle(Cluster& cluster) {
  cluster.settle();
}

// The sidecar of the first pod has this state as soon as it is attached.
auto with_sidecar(Json state) {
  return [state = std::move(state)](Cluster& cluster) {
    cluster.sidecar_state["checkout-a"] = state;
    cluster.settle();
  };
}

auto with_intercept_pod(std::function<void(Json& pod)> change) {
  return [change = std::move(change)](Cluster& cluster) {
    cluster.intercept_pod_becomes = [&](Json& pod) {
      pod["status"]["conditions"][1]["status"] = "False";
      change(pod);
    };
    cluster.settle();
    cluster.intercept_pod_becomes = [](Json&) {};
  };
}

auto with_intercept_state(Json state) {
  return with_intercept_pod([state = std::move(state)](Json& pod) {
    pod["status"]["containerStatuses"][0]["state"] = state;
  });
}

void inject(Cluster& cluster, const Json& pod_labels) {
  cluster.abilities.ephemeral_containers = false;
  cluster.pods.clear();
  cluster.add_pod("checkout-a", pod_labels);
}

void shadow_is_pods(Cluster& cluster) {
  cluster.mirror["spec"]["shadow"] = Json::parse(
      R"({"namespace": "shop-shadow", "selector": {"matchLabels": {"version": "v2"}}})");
}

const Json app{{"app", "checkout"}};
const Json app_and_label{{"app", "checkout"}, {names::inject, names::inject_enabled}};
const std::string pod_security =
    "pods \"x\" is forbidden: violates PodSecurity \"baseline:latest\"";

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      // ---- Consented
      {"Consented", "True", "Granted", {"shop-shadow accepts traffic of shop"}, settle},
      {"Consented",
       "True",
       "SameNamespace",
       {"same namespace"},
       [](Cluster& cluster) { cluster.edit("/shadow/namespace", "shop"); }},
      {"Consented",
       "Unknown",
       "InvalidSpec",
       {"spec.source.ports is empty"},
       [](Cluster& cluster) { cluster.edit("/source/ports", Json::array()); }},
      {"Consented",
       "False",
       "ShadowNamespaceNotFound",
       {"no namespace shop-shadow", "create it, or correct spec.shadow.namespace"},
       [](Cluster& cluster) { cluster.namespaces.erase("shop-shadow"); }},
      {"Consented",
       "False",
       "ShadowNamespaceTerminating",
       {"namespace shop-shadow is being deleted", "correct spec.shadow.namespace"},
       [](Cluster& cluster) {
         cluster.namespaces["shop-shadow"]["metadata"]["deletionTimestamp"] =
             kube::to_text(cluster.now);
       }},
      {"Consented",
       "False",
       "NotGranted",
       {"kubectl annotate namespace shop-shadow trafficmirror.dev/accept-from=shop"},
       [](Cluster& cluster) {
         cluster.namespaces["shop-shadow"]["metadata"].erase("annotations");
       }},
      {"Consented",
       "False",
       "NotGranted",
       {"kubectl annotate namespace shop-shadow trafficmirror.dev/accept-from=a,b,shop "
        "--overwrite"},
       [](Cluster& cluster) { cluster.annotate("shop-shadow", "a,b"); }},

      // ---- Attached
      {"Attached", "True", "AllAttached", {"3 of 3 pods have a sidecar"}, settle},
      {"Attached",
       "False",
       "NoPods",
       {"no pod of namespace shop", "spec.source.selector", "labels"},
       [](Cluster& cluster) {
         cluster.pods.clear();
         cluster.settle();
       }},
      {"Attached",
       "False",
       "PortTaken",
       {"pod checkout-a", "TrafficMirror checkout-v1", "take another port or another selector"},
       [](Cluster& cluster) {
         Mirror older;
         older.key = {"shop", "checkout-v1"};
         older.selector = {{"matchLabels", app}};
         older.ports = {{8080}};
         cluster.earlier_mirrors = {older};
         cluster.settle();
       }},
      {"Attached",
       "False",
       "PortNotFound",
       {"no container declares port 7", "correct spec.source.ports"},
       [](Cluster& cluster) {
         cluster.edit("/source/ports", {7, 8080});
         cluster.settle();
       }},
      {"Attached",
       "False",
       "HostNetwork",
       {"pod checkout-b", "spec.hostNetwork", "the traffic of others"},
       [](Cluster& cluster) {
         cluster.pods["checkout-b"]["spec"]["hostNetwork"] = true;
         cluster.settle();
       }},
      {"Attached",
       "False",
       "WaitingForIntercept",
       {"0 of 3 pods have a sidecar", "when an intercept is ready"},
       [](Cluster& cluster) {
         cluster.intercepts_are_started = false;
         cluster.settle();
       }},
      {"Attached",
       "False",
       "Attaching",
       {"is being attached"},
       [](Cluster& cluster) {
         cluster.act(cluster.plan());
         cluster.act(cluster.plan());
         cluster.run_kubelets();
       }},
      {"Attached",
       "False",
       "Attaching",
       {"is not started yet"},
       [](Cluster& cluster) {
         cluster.sidecars_are_started = false;
         cluster.settle();
       }},
      {"Attached",
       "False",
       "Attaching",
       {"pod checkout-a", "is being started"},
       with_sidecar(Json::parse(R"({"waiting": {"reason": "ContainerCreating"}})"))},
      {"Attached",
       "False",
       "ImagePullFailed",
       {"2 of 3", "pod checkout-a", "ImagePullBackOff", "no such image", "--sidecar-image"},
       with_sidecar(Json::parse(
           R"({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})"))},
      {"Attached",
       "False",
       "SidecarNotStarting",
       {"CreateContainerConfigError", "secret \"x\" not found"},
       with_sidecar(Json::parse(R"({"waiting": {"reason": "CreateContainerConfigError",
                                                "message": "secret \"x\" not found"}})"))},
      {"Attached",
       "False",
       "SidecarNotStarting",
       {"RunContainerError", "no such file"},
       with_sidecar(Json::parse(
           R"({"waiting": {"reason": "RunContainerError", "message": "no such file"}})"))},
      {"Attached",
       "False",
       "SidecarNotStarting",
       {"CrashLoopBackOff"},
       with_sidecar(Json::parse(R"({"waiting": {"reason": "CrashLoopBackOff"}})"))},
      {"Attached",
       "False",
       "SidecarEnded",
       {"pod checkout-a", "exit code 137 (OOMKilled): too big",
        "kubectl logs -n shop checkout-a -c"},
       with_sidecar(Json::parse(R"({"terminated": {
           "exitCode": 137, "reason": "OOMKilled", "message": "too big"}})"))},
      {"Attached",
       "False",
       "OldSidecarRuns",
       {"pod checkout-a", "has not ended", "restart the workload"},
       [](Cluster& cluster) {
         cluster.stubborn = {"checkout-a"};
         cluster.settle();
         cluster.edit("/source/ports", {9090});
         cluster.pass(minutes(1));
       }},
      {"Attached",
       "False",
       "Stopping",
       {"0 of 3", "others are attached when"},
       [](Cluster& cluster) {
         cluster.stubborn = {"checkout-a"};
         cluster.settle();
         cluster.edit("/source/ports", {9090});
         cluster.settle();
       }},
      {"Attached",
       "False",
       "PodNotRunning",
       {"pod checkout-b", "does not run yet", "is attached when it does"},
       [](Cluster& cluster) {
         cluster.pods["checkout-b"]["status"]["phase"] = "Pending";
         cluster.settle();
       }},
      {"Attached",
       "False",
       "AttachRefused",
       {"pod checkout-c", "the API server refuses", "no such right"},
       [](Cluster& cluster) {
         cluster.refused["pod/checkout-c"] = "no such right";
         cluster.settle();
       }},
      {"Attached",
       "False",
       "PodSecurityForbids",
       {"namespace shop forbids NET_RAW", "pod-security.kubernetes.io/enforce=privileged"},
       [](Cluster& cluster) {
         cluster.refused["pod/checkout-a"] = pod_security;
         cluster.settle();
       }},
      {"Attached",
       "False",
       "EphemeralContainersUnavailable",
       {"1.25", "set spec.source.attach to Auto or Sidecar"},
       [](Cluster& cluster) {
         cluster.abilities.ephemeral_containers = false;
         cluster.edit("/source/attach", "Ephemeral");
         cluster.settle();
       }},
      {"Attached",
       "False",
       "NamespaceNotLabelled",
       {"kubectl label namespace shop trafficmirror.dev/inject=enabled", "restart the workload"},
       [](Cluster& cluster) {
         inject(cluster, app);
         cluster.settle();
       }},
      {"Attached",
       "False",
       "PodsNotLabelled",
       {"trafficmirror.dev/inject=enabled", "pod template"},
       [](Cluster& cluster) {
         cluster.add_namespace("shop", {}, {{names::inject, names::inject_enabled}});
         inject(cluster, app);
         cluster.settle();
       }},
      {"Attached",
       "False",
       "PodSecurityForbids",
       {"namespace shop forbids NET_RAW"},
       [](Cluster& cluster) {
         cluster.add_namespace("shop", {},
                               {{names::inject, names::inject_enabled},
                                {"pod-security.kubernetes.io/enforce", "baseline"}});
         inject(cluster, app_and_label);
         cluster.settle();
       }},
      {"Attached",
       "False",
       "RestartNeeded",
       {"created before the mirror", "kubectl rollout restart"},
       [](Cluster& cluster) {
         cluster.add_namespace("shop", {}, {{names::inject, names::inject_enabled}});
         inject(cluster, app_and_label);
         cluster.settle();
       }},
      {"Attached",
       "False",
       "RestartNeeded",
       {"injected with other settings", "restart the workload"},
       [](Cluster& cluster) {
         cluster.add_namespace("shop", {}, {{names::inject, names::inject_enabled}});
         cluster.abilities.ephemeral_containers = false;
         cluster.settle();
         inject(cluster, app_and_label);
         cluster.settle();
         cluster.edit("/source/ports", {9090});
         cluster.settle();
       }},

      // ---- InterceptAvailable
      {"InterceptAvailable", "True", "Available", {"1 of 1 intercepts are ready"}, settle},
      {"InterceptAvailable",
       "False",
       "ServiceNotFound",
       {"no Service shop-shadow/checkout-v2", "create it, or correct spec.shadow.service.name"},
       [](Cluster& cluster) {
         cluster.services.clear();
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "ServicePortNotFound",
       {"Service shop-shadow/checkout-v2 has no port 7, only 8080, 9090", "correct"},
       [](Cluster& cluster) {
         cluster.edit("/shadow/service/port", 7);
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "NoEndpoints",
       {"Service shop-shadow/checkout-v2", "port 8080", "do its pods run"},
       [](Cluster& cluster) {
         cluster.endpoints.clear();
         cluster.settle();
       }},
      // Streams without anything to send to mirror nothing.
      {"Mirroring",
       "False",
       "NoEndpoints",
       {"Service shop-shadow/checkout-v2", "port 8080"},
       [](Cluster& cluster) {
         cluster.endpoints.clear();
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "NoEndpoints",
       {"namespace shop-shadow", "spec.shadow.selector", "do they run"},
       [](Cluster& cluster) {
         shadow_is_pods(cluster);
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "ApplyRefused",
       {"the API server refuses", "exceeded quota"},
       [](Cluster& cluster) {
         cluster.refused["objects"] = "exceeded quota";
         cluster.settle();
       }},
      {"InterceptAvailable", "False", "Deploying", {"is being deployed"}, [](Cluster&) {}},
      {"InterceptAvailable",
       "False",
       "Deploying",
       {"no intercept is ready yet"},
       [](Cluster& cluster) {
         cluster.intercepts_are_started = false;
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "PodSecurityForbids",
       {"namespace shop-shadow forbids NET_ADMIN and NET_RAW",
        "pod-security.kubernetes.io/enforce=privileged"},
       [](Cluster& cluster) {
         cluster.intercepts_are_started = false;
         cluster.deployment_conditions = Json::array(
             {{{"type", "ReplicaFailure"}, {"status", "True"}, {"message", pod_security}}});
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "PodsRefused",
       {"namespace shop-shadow refuses", "exceeded quota"},
       [](Cluster& cluster) {
         cluster.intercepts_are_started = false;
         cluster.deployment_conditions = Json::array(
             {{{"type", "ReplicaFailure"}, {"status", "True"}, {"message", "exceeded quota"}}});
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "Unschedulable",
       {"finds no node", "spec.intercept", "0/3 nodes are available"},
       with_intercept_pod([](Json& pod) {
         pod["status"]["conditions"][0] = {{"type", "PodScheduled"},
                                           {"status", "False"},
                                           {"reason", "Unschedulable"},
                                           {"message", "0/3 nodes are available"}};
       })},
      {"InterceptAvailable",
       "False",
       "ImagePullFailed",
       {"ErrImagePull", "no such image", "--intercept-image"},
       with_intercept_state(
           Json::parse(R"({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})"))},
      {"InterceptAvailable",
       "False",
       "InterceptCrashes",
       {"kubectl logs -n shop-shadow trafficmirror-checkout-v2-"},
       with_intercept_state(Json::parse(R"({"waiting": {"reason": "CrashLoopBackOff"}})"))},
      {"InterceptAvailable",
       "False",
       "InterceptCrashes",
       {"ends again and again"},
       with_intercept_state(Json::parse(R"({"terminated": {"exitCode": 1}})"))},
      {"InterceptAvailable",
       "False",
       "InterceptNotReady",
       {"pod trafficmirror-checkout-v2-", "nftables is missing"},
       [](Cluster& cluster) {
         cluster.reading_becomes = [](Reading& reading) {
           reading.report->ready = false;
           reading.report->message = "nftables is missing";
         };
         with_intercept_pod([](Json&) {})(cluster);
       }},

      // ---- ReplyPathVerified
      {"ReplyPathVerified", "True", "Verified", {"replies come back"}, settle},
      {"ReplyPathVerified",
       "True",
       "Verified",
       {"there is a route", "answers to datagrams", "can't be proven beforehand"},
       [](Cluster& cluster) {
         cluster.edit("/source/ports", {"8080/udp"});
         cluster.services.begin()->second["spec"]["ports"][0]["protocol"] = "UDP";
         cluster.endpoints.begin()->second["subsets"][0]["ports"][0]["protocol"] = "UDP";
         cluster.settle();
       }},
      {"ReplyPathVerified",
       "False",
       "NotVerified",
       {"target 8080=10.0.0.5:8000", "the shadow refuses connections"},
       [](Cluster& cluster) {
         cluster.reading_becomes = [](Reading& reading) {
           for (Report::ReplyPath& path : reading.report->reply_path) {
             path.verified = false;
             path.message = "the shadow refuses connections";
           }
         };
         cluster.settle();
       }},
      {"ReplyPathVerified",
       "Unknown",
       "NoReport",
       {"no intercept has said so yet"},
       [](Cluster& cluster) {
         cluster.intercepts_are_started = false;
         cluster.settle();
       }},
      {"ReplyPathVerified",
       "Unknown",
       "NoReport",
       {"pod trafficmirror-checkout-v2-", "its status can't be read"},
       [](Cluster& cluster) {
         cluster.reading_becomes = [](Reading& reading) {
           reading.report.reset();
           reading.problem = "its status can't be read: Connection";
         };
         cluster.settle();
       }},

      // ---- Mirroring
      {"Mirroring", "True", "Streaming", {"3 of 3 pods stream"}, settle},
      {"Mirroring",
       "False",
       "NoStream",
       {"no sidecar has a stream", "their logs"},
       [](Cluster& cluster) {
         cluster.reading_becomes = [](Reading& reading) { reading.report->sidecars.clear(); };
         cluster.settle();
       }},
      {"Mirroring",
       "Unknown",
       "NoReport",
       {"no intercept has said so yet"},
       [](Cluster& cluster) {
         cluster.intercepts_are_started = false;
         cluster.settle();
       }},

      // ---- Ready: the first of the others' reasons, and its own
      {"Ready", "True", "Mirroring", {"3 of 3 pods stream"}, settle},
      {"Ready",
       "False",
       "ServiceNotFound",
       {"no Service"},
       [](Cluster& cluster) {
         cluster.services.clear();
         cluster.pods.clear();
         cluster.settle();
       }},
      {"Ready",
       "False",
       "NoPods",
       {"no pod"},
       [](Cluster& cluster) {
         cluster.pods.clear();
         cluster.settle();
       }},
      {"Ready",
       "False",
       "NoReport",
       {"not read"},
       [](Cluster& cluster) {
         cluster.reading_becomes = [](Reading& reading) {
           reading.report.reset();
           reading.problem = "not read";
         };
         cluster.settle();
       }},
      {"Ready",
       "False",
       "NoStream",
       {"no sidecar"},
       [](Cluster& cluster) {
         cluster.reading_becomes = [](Reading& reading) { reading.report->sidecars.clear(); };
         cluster.settle();
       }},
      {"Ready",
       "False",
       "InvalidSpec",
       {"spec.limits.memory is 9Gigs"},
       [](Cluster& cluster) { cluster.edit("/limits/memory", "9Gigs"); }},
      {"Ready",
       "False",
       "InvalidSpec",
       {"spec.replicate.filter is no pcap filter: can't parse filter expression"},
       [](Cluster& cluster) { cluster.edit("/replicate/filter", "src and dst"); }},
      {"Ready",
       "False",
       "NotGranted",
       {"kubectl annotate"},
       [](Cluster& cluster) { cluster.annotate("shop-shadow", "others"); }},
      {"Ready",
       "False",
       "Paused",
       {"spec.paused is true", "set it to false"},
       [](Cluster& cluster) { cluster.edit("/paused", true); }},
      {"Ready",
       "False",
       "DurationOver",
       {"spec.duration, 10m", "change that, or pause"},
       [](Cluster& cluster) {
         cluster.edit("/duration", "10m");
         cluster.pass(minutes(11));
       }},
      {"Ready",
       "False",
       "Deleting",
       {"the sidecars are stopped"},
       [](Cluster& cluster) {
         cluster.stubborn = {"checkout-a"};
         cluster.settle();
         cluster.remove_mirror();
         cluster.settle();
       }},
  };
  return all;
}

// Where it does not run, all that are about running say so.
std::vector<Case> cases_of_stopping() {
  std::vector<Case> all;
  for (const auto& [condition, status] : {std::pair("Attached", "False"),
                                          {"InterceptAvailable", "False"},
                                          {"ReplyPathVerified", "Unknown"},
                                          {"Mirroring", "False"}}) {
    const auto pause = [](bool stubborn) {
      return [stubborn](Cluster& cluster) {
        if (stubborn) cluster.stubborn = {"checkout-a"};
        cluster.settle();
        cluster.edit("/paused", true);
        cluster.settle();
      };
    };
    all.push_back({condition, status, "Stopping", {"spec.paused is true"}, pause(true)});
    all.push_back({condition, status, "Stopped", {"spec.paused is true"}, pause(false)});
  }
  return all;
}

// Of a mirror whose source is a capture. Its Job's pod is in this state, and ends so.
std::vector<Case> cases_of_replays() {
  const auto replayed = [](
                            Json state, std::function<void(Cluster&)> then = [](Cluster&) {}) {
    return [state = std::move(state), then = std::move(then)](Cluster& cluster) {
      cluster.replay_a_capture();
      cluster.replay_state = state;
      cluster.settle();
      then(cluster);
    };
  };
  const Json runs = Json::parse(R"({"running": {}})"), waits = Json::parse(R"({"waiting": {}})");
  const auto ends = [](int exit_code) {
    return [exit_code](Cluster& cluster) { cluster.end_replay(exit_code, "it says why\n"); };
  };
  return {
      {"Ready", "True", "Replaying", {"web.pcap", "captures"}, replayed(runs)},
      {"Mirroring", "False", "ReplayStarting", {"kubectl describe pod -n shop"}, replayed(waits)},
      {"Mirroring",
       "False",
       "ClaimNotFound",
       {"there is no PersistentVolumeClaim shop/captures", "spec.source.capture.claimName"},
       replayed(waits,
                [](Cluster& cluster) {
                  cluster.replay_pods.begin()->second["status"]["conditions"] =
                      Json::array({{{"type", "PodScheduled"},
                                    {"status", "False"},
                                    {"message", "persistentvolumeclaim \"captures\" not found"}}});
                })},
      {"Ready",
       "False",
       "Replayed",
       {"status.replay.report", "spec.paused"},
       replayed(runs, ends(0))},
      {"Ready", "False", "ReplayFailed", {"it says why", "spec.paused"}, replayed(runs, ends(2))},
      {"Ready",
       "False",
       "ReplayStopped",
       {"not replayed to its end", "spec.paused"},
       replayed(runs, [](Cluster& cluster) {
         cluster.lose_object(resources::jobs, {"shop", cluster.name()});
       })}};
}

// Where intercepts are beside the shadow's pods.
std::vector<Case> cases_beside() {
  const auto with_intercept = [](const char* state) {
    return [state = Json::parse(state)](Cluster& cluster) {
      cluster.preserve_clients();
      cluster.sidecar_state["shadow-a"] = state;
      cluster.settle();
    };
  };
  return {
      {"InterceptAvailable",
       "False",
       "NoShadowPods",
       {"no pods of namespace shop-shadow", "set spec.clientAddress to Masquerade"},
       [](Cluster& cluster) {
         cluster.preserve_clients();
         cluster.shadow_pods.clear();
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "InterceptNotStarting",
       {"pod shadow-a", "the intercept does not start", "CrashLoopBackOff"},
       with_intercept(R"({"waiting": {"reason": "CrashLoopBackOff"}})")},
      {"InterceptAvailable",
       "False",
       "InterceptEnded",
       {"pod shadow-a", "exit code 2", "kubectl logs -n shop-shadow shadow-a -c"},
       with_intercept(R"({"terminated": {"exitCode": 2, "finishedAt": "2030-03-17T17:46:40Z"}})")},
      {"InterceptAvailable",
       "False",
       "InterceptNotReady",
       {"pod shadow-a", "it is not listed yet"},
       [](Cluster& cluster) {
         cluster.preserve_clients();
         cluster.reading_becomes = [](Reading& reading) {
           if (reading.instance.find("shadow-a") == std::string::npos) return;
           reading.report->ready = false;
           reading.report->message = "it is not listed yet";
         };
         cluster.settle();
       }},
      {"InterceptAvailable",
       "False",
       "OldInterceptRuns",
       {"pod shadow-a", "an intercept with other settings has not ended"},
       [](Cluster& cluster) {
         cluster.preserve_clients();
         cluster.settle();
         cluster.edit("/clientAddress", "Pool");
         cluster.edit("/clientAddressPool", Json::array({"198.18.0.0/15"}));
       }},
  };
}

std::vector<Case> all_cases() {
  std::vector<Case> all = cases();
  for (Case& one : cases_beside()) all.push_back(std::move(one));
  for (Case& one : cases_of_stopping()) all.push_back(std::move(one));
  for (Case& one : cases_of_replays()) all.push_back(std::move(one));
  return all;
}

TEST(Conditions, HaveEachReasonForItsCauseAndTellTheCure) {
  for (const Case& one : all_cases()) {
    SCOPED_TRACE(one.condition + " " + one.reason + " (" + one.words.front() + ")");
    Cluster cluster;
    // The finalizer, which comes before everything.
    cluster.act(cluster.plan());
    one.bring_about(cluster);
    const Json condition = Cluster::condition_of_status(cluster.plan().status, one.condition);
    EXPECT_EQ(condition["status"], one.status);
    EXPECT_EQ(condition["reason"], one.reason);
    EXPECT_EQ(condition["observedGeneration"], cluster.mirror["metadata"]["generation"]);
    for (const std::string& word : one.words)
      EXPECT_NE(condition["message"].get<std::string>().find(word), std::string::npos)
          << word << "\nis not in\n"
          << condition["message"];
  }
}

TEST(Conditions, AreAllThereWhateverHappens) {
  for (const Case& one : all_cases()) {
    SCOPED_TRACE(one.condition + " " + one.reason);
    Cluster cluster;
    cluster.act(cluster.plan());
    one.bring_about(cluster);
    std::vector<std::string> types;
    const Json status = cluster.plan().status;
    for (const Json& condition : status["conditions"]) {
      types.push_back(condition["type"]);
      EXPECT_NE(condition["message"], "");
      EXPECT_TRUE(
          std::regex_match(condition["reason"].get<std::string>(), std::regex("[A-Z][A-Za-z]*")));
    }
    std::vector<std::string> wanted{
        "Ready", "Consented", "Attached", "InterceptAvailable", "ReplyPathVerified", "Mirroring"};
    if (cluster.mirror["spec"]["source"].contains("capture"))  // there are no pods to attach to
      wanted.erase(wanted.begin() + 2);
    EXPECT_EQ(types, wanted);
  }
}

// Words in the source that look like reasons and are none: the types of conditions, what Kubernetes
// says, and kinds.
const std::set<std::string> no_reasons{"True",
                                       "False",
                                       "Unknown",
                                       "Ready",
                                       "Consented",
                                       "Attached",
                                       "ConfigMap",
                                       "InterceptAvailable",
                                       "ReplyPathVerified",
                                       "ReplicaFailure",
                                       "PodScheduled",
                                       "CrashLoopBackOff",
                                       "Error"};

TEST(Conditions, HaveNoReasonThatIsNotBroughtAboutHere) {
  std::ifstream file(PLAN_SOURCE);
  const std::string source((std::istreambuf_iterator<char>(file)), {});
  ASSERT_FALSE(source.empty()) << PLAN_SOURCE;
  std::set<std::string> in_source, here;
  const std::regex literal("\"([A-Z][A-Za-z]+)\"");
  for (auto at = std::sregex_iterator(source.begin(), source.end(), literal);
       at != std::sregex_iterator(); ++at)
    if (const std::string word = (*at)[1]; !no_reasons.contains(word)) in_source.insert(word);
  for (const Case& one : all_cases()) here.insert(one.reason);
  // Each is a word of its own: Ready's reason is the type of another condition.
  EXPECT_EQ(in_source, here);
}

}  // namespace
}  // namespace trafficmirror::controller
