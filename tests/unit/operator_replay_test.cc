// Mirrors whose source is a capture: the Job that replays it, once, and what is said of it.
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "operator/check.h"
#include "operator/replay.h"
#include "tests/unit/operator_cluster.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;
using std::chrono::minutes;
using std::chrono::seconds;

using Texts = std::vector<std::string>;

const std::string job = "jobs shop/NAME";
const Texts begun{"apply jobs shop/NAME"};
constexpr const char* report = "/capture/web.pcap: 54.1 s of the capture in 4.8 s\n  packets  9\n";

class Replay : public testing::Test {
 protected:
  Replay() { cluster.replay_a_capture(); }

  // As far as it has begun.
  void begin() {
    cluster.settle();
    ASSERT_EQ(phase(), "Running") << cluster.status().dump(2);
    cluster.take_writes();
  }
  void succeed() {
    begin();
    cluster.end_replay(0, report);
    cluster.pass(seconds(30));
    ASSERT_EQ(phase(), "Succeeded");
    cluster.take_writes();
  }
  std::string phase() const { return cluster.status().value("/replay/phase"_json_pointer, ""); }
  std::string ready() const { return cluster.reason("Ready"); }
  std::string said() const { return cluster.condition("Ready").value("message", ""); }
  const Json* the_job() const { return cluster.object(resources::jobs, {"shop", cluster.name()}); }
  // Whether a Job was made since it was asked last.
  bool began_again() {
    const Texts writes = cluster.take_writes();
    return std::find(writes.begin(), writes.end(), begun[0]) != writes.end();
  }

  Cluster cluster;
};

// ---- the Job

TEST_F(Replay, JobHasNoRightsAndNoSecondTry) {
  begin();
  const Json& spec = the_job()->at("spec");
  EXPECT_EQ(spec["backoffLimit"], 0);
  const Json& pod = spec["template"]["spec"];
  EXPECT_EQ(pod["restartPolicy"], "Never");
  EXPECT_EQ(pod["automountServiceAccountToken"], false);
  ASSERT_EQ(pod["containers"].size(), 1U);
  const Json& container = pod["containers"][0];
  EXPECT_EQ(container["image"], "example.org/sidecar:1");
  EXPECT_EQ(container["securityContext"], Json::parse(R"({
      "capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false, "privileged": false,
      "readOnlyRootFilesystem": true, "runAsUser": 65532, "runAsGroup": 65532,
      "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})"));
  EXPECT_EQ(container["resources"]["limits"], Json::parse(R"({"cpu": "2", "memory": "128Mi"})"));
  for (const Json& mount : container["volumeMounts"]) EXPECT_EQ(mount["readOnly"], true);
}

TEST_F(Replay, JobReplaysTheFileOfTheClaim) {
  cluster.edit("/source/capture",
               Json::parse(R"({"claimName": "captures", "path": "a/web.pcap", "speed": "max",
                               "loop": 3, "from": "1s", "until": "90s"})"));
  begin();
  EXPECT_EQ(the_job()->at("metadata").at("namespace"), "shop");
  const Json& pod = the_job()->at("spec").at("template").at("spec");
  const Json& container = pod["containers"][0];
  EXPECT_EQ(container["args"],
            Json({"--port",
                  "8080",
                  "--intercept",
                  cluster.name() + ".shop-shadow.svc:7443",
                  "--tls-peer",
                  "spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/intercept",
                  "--memory-limit",
                  "64Mi",
                  "--tls-certificate",
                  "/etc/trafficmirror/tls/tls.crt",
                  "--tls-key",
                  "/etc/trafficmirror/tls/tls.key",
                  "--tls-ca",
                  "/etc/trafficmirror/tls/ca.crt",
                  "--pcap",
                  "/capture/a/web.pcap",
                  "--speed",
                  "max",
                  "--loop",
                  "3",
                  "--from",
                  "1s",
                  "--until",
                  "90s",
                  "--report",
                  "/dev/termination-log"}));
  EXPECT_EQ(container["terminationMessagePath"], "/dev/termination-log");
  EXPECT_EQ(container["terminationMessagePolicy"], "FallbackToLogsOnError");
  // Files of the Secret belong to root.
  EXPECT_EQ(pod["volumes"][0]["secret"], Json({{"secretName", cluster.name() + "-sidecar"},
                                               {"optional", false},
                                               {"defaultMode", 0444}}));
  EXPECT_EQ(pod["volumes"][1]["persistentVolumeClaim"],
            Json({{"claimName", "captures"}, {"readOnly", true}}));
  for (size_t i = 0; i < 2; ++i)
    EXPECT_EQ(container["volumeMounts"][i]["name"], pod["volumes"][i]["name"]);
}

TEST_F(Replay, JobHasThePasswordsOfLogins) {
  cluster.edit("/shadow/logins", Json::parse(R"({"secretName": "logins",
      "ports": [{"port": 8080, "protocol": "PostgreSQL"}]})"));
  begin();
  const Json& pod = the_job()->at("spec").at("template").at("spec");
  const Json& logins = pod["volumes"][0]["projected"]["sources"][1]["secret"];
  EXPECT_EQ(logins["name"], "logins");
  EXPECT_EQ(logins["optional"], false) << "it can wait, as production can't";
  const Json& args = pod["containers"][0]["args"];
  EXPECT_NE(std::find(args.begin(), args.end(), "8080=postgresql"), args.end());
  EXPECT_NE(std::find(args.begin(), args.end(), "/etc/trafficmirror/tls/logins/credentials.yaml"),
            args.end());
}

TEST_F(Replay, InterceptLetsItsPodInAndNoOther) {
  begin();
  const Json& policy =
      *cluster.object(resources::network_policies, {"shop-shadow", cluster.name()});
  const Json& labels = the_job()->at("spec").at("template").at("metadata").at("labels");
  const Json& admitted = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"];
  EXPECT_EQ(admitted.size(), 2U);
  for (const auto& [label, value] : admitted.items()) EXPECT_EQ(labels[label], value);
}

// ---- from beginning to end

TEST_F(Replay, BeginsWhenTheReplyPathIsProvenAndNotBefore) {
  cluster.intercepts_are_started = false;
  cluster.settle();
  EXPECT_EQ(the_job(), nullptr);
  EXPECT_EQ(phase(), "Pending");
  EXPECT_EQ(cluster.reason("Mirroring"), "WaitingForIntercept");
  cluster.intercepts_are_started = true;
  cluster.reading_becomes = [](Reading& reading) {
    for (Report::ReplyPath& path : reading.report->reply_path) path.verified = false;
  };
  cluster.settle();
  EXPECT_EQ(the_job(), nullptr);
  EXPECT_EQ(ready(), "NotVerified");
  cluster.reading_becomes = [](Reading&) {};
  cluster.settle();
  EXPECT_EQ(phase(), "Running");
  EXPECT_EQ(ready(), "Replaying");
  EXPECT_TRUE(cluster.is_ready());
  EXPECT_EQ(said(), "web.pcap of PersistentVolumeClaim captures is replayed");
  EXPECT_EQ(cluster.running_sidecars(), 0U) << "no pod of production's is touched";
  EXPECT_TRUE(cluster.condition("Attached").empty());
  EXPECT_FALSE(cluster.status().contains("attached"));
}

TEST_F(Replay, SaysHowFarItIs) {
  begin();
  cluster.replay_progress = {.packets = 1200, .percent = 40};
  cluster.settle();
  EXPECT_EQ(cluster.status()["replay"]["packets"], 1200);
  EXPECT_EQ(cluster.status()["replay"]["percent"], 40);
  // Of what several intercepts were told, what is further.
  cluster.replay_progress = {.packets = 1100, .percent = 38};
  cluster.settle();
  EXPECT_EQ(cluster.status()["replay"]["percent"], 40);
}

TEST_F(Replay, EndsWithItsReportAndKeepsNothingButItsJob) {
  begin();
  cluster.count(100, 2);
  cluster.end_replay(0, report);
  cluster.settle();
  // What was counted last is read before the intercept goes.
  EXPECT_TRUE(cluster.object_names().contains("deployments shop-shadow/NAME"));
  cluster.count(30, 0);
  cluster.pass(seconds(30));
  EXPECT_EQ(cluster.object_names(), std::set<std::string>{job});
  EXPECT_EQ(phase(), "Succeeded");
  EXPECT_EQ(ready(), "Replayed");
  EXPECT_EQ(cluster.status()["replay"]["report"], report);
  EXPECT_FALSE(cluster.status()["replay"].contains("percent"));
  EXPECT_EQ(cluster.status()["exchanges"], 130);
  EXPECT_FALSE(problem_of(cluster.mirror)) << "it is as wanted";
}

TEST_F(Replay, IsNotDoneAgainThoughTheOperatorForgetsAndTheJobIsGone) {
  succeed();
  cluster.forget();
  cluster.settle();
  cluster.lose_object(resources::jobs, {"shop", cluster.name()});
  cluster.pass(minutes(10));
  EXPECT_EQ(cluster.take_writes(), Texts());
  EXPECT_EQ(phase(), "Succeeded");
  EXPECT_EQ(cluster.status()["replay"]["report"], report);
}

TEST_F(Replay, IsBegunOnceWheneverTheOperatorIsKilled) {
  for (int writes = 0;; ++writes) {
    SCOPED_TRACE(writes);
    Cluster killed;
    killed.replay_a_capture();
    killed.writes_until_killed = writes;
    bool was_killed = false;
    try {
      killed.settle();
    } catch (const Killed&) {
      was_killed = true;
    }
    killed.writes_until_killed = -1;
    // It may be over before there is an operator again.
    killed.run_kubelets();
    if (!killed.replay_pods.empty()) killed.end_replay(0, report);
    killed.forget();
    killed.settle();
    if (killed.status()["replay"]["phase"] == "Running") killed.end_replay(0, report);
    killed.pass(minutes(1));
    const Texts all = killed.take_writes();
    EXPECT_EQ(std::count(all.begin(), all.end(), begun[0]), 1);
    EXPECT_EQ(killed.status()["replay"]["phase"], "Succeeded");
    if (!was_killed) break;
  }
}

TEST_F(Replay, IsStoppedWhereItsPodIsReplaced) {
  begin();
  Json another = cluster.replay_pods.begin()->second;
  another["metadata"]["name"] = "another";
  cluster.replay_pods = {{"another", another}};
  cluster.pass(minutes(1));
  EXPECT_EQ(phase(), "Stopped");
  EXPECT_EQ(ready(), "ReplayStopped");
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
}

TEST_F(Replay, BeginsInAnotherPodWhereTheFirstHasNotBegun) {
  cluster.replay_state = Json::parse(R"({"waiting": {}})");
  cluster.settle();
  EXPECT_EQ(phase(), "Pending");
  Json another = cluster.replay_pods.begin()->second;
  another["metadata"]["name"] = "another";
  another["status"]["containerStatuses"][0]["state"] = Json::parse(R"({"running": {}})");
  another["status"]["phase"] = "Running";
  cluster.replay_pods.begin()->second = another;
  cluster.settle();
  EXPECT_EQ(phase(), "Running");
  EXPECT_EQ(cluster.status()["replay"]["pod"], "another");
}

TEST_F(Replay, IsStoppedWhereItsJobIsTakenAway) {
  begin();
  cluster.lose_object(resources::jobs, {"shop", cluster.name()});
  cluster.pass(minutes(1));
  EXPECT_FALSE(began_again());
  EXPECT_EQ(phase(), "Stopped");
  EXPECT_EQ(ready(), "ReplayStopped");
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
}

// ---- the spec is edited

TEST_F(Replay, OfAnotherCaptureBeginsWhenTheOneBeforeIsGone) {
  succeed();
  cluster.edit("/source/capture/path", "other.pcap");
  cluster.settle();
  const Texts writes = cluster.take_writes();
  const auto removed = std::find(writes.begin(), writes.end(), "remove " + job);
  EXPECT_LT(removed, std::find(writes.begin(), writes.end(), begun[0]));
  EXPECT_EQ(phase(), "Running");
  EXPECT_FALSE(cluster.status()["replay"].contains("report"));

  cluster.edit("/source/ports", {8080, 9090});
  cluster.remove_from_spec("/shadow/service", "port");
  cluster.settle();
  EXPECT_TRUE(began_again()) << "while one runs";
  EXPECT_EQ(phase(), "Running");
}

TEST_F(Replay, TakesOverLimitsAndGoesOn) {
  begin();
  cluster.edit("/replicate/percent", 10);
  cluster.edit("/limits/memory", "128Mi");
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(),
            (Texts{"apply configmaps shop-shadow/NAME", "notify shop-shadow"}));
  EXPECT_EQ(phase(), "Running");
}

TEST_F(Replay, IsBegunAnewByPausingAndGoingOn) {
  begin();
  cluster.edit("/paused", true);
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(phase(), "Stopped");
  EXPECT_EQ(ready(), "Paused");
  EXPECT_FALSE(began_again());
  cluster.edit("/paused", false);
  cluster.settle();
  EXPECT_TRUE(began_again());
  cluster.end_replay(0, report);
  cluster.pass(minutes(1));
  cluster.edit("/paused", true);
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.status()["replay"]["report"], report) << "it can be read on";
  cluster.edit("/paused", false);
  cluster.settle();
  EXPECT_TRUE(began_again());
}

TEST_F(Replay, EndsWithTheDurationOrTheConsentAndIsNotBegunAnew) {
  const std::vector<std::function<void()>> ends{[&] {
                                                  cluster.edit("/duration", "5m");
                                                  cluster.pass(minutes(6));
                                                  EXPECT_EQ(ready(), "DurationOver");
                                                  cluster.remove_from_spec("", "duration");
                                                },
                                                [&] {
                                                  cluster.annotate("shop-shadow", "others");
                                                  cluster.pass(minutes(1));
                                                  EXPECT_EQ(ready(), "NotGranted");
                                                  cluster.annotate("shop-shadow", "shop");
                                                }};
  for (const auto& end : ends) {
    cluster = Cluster();
    cluster.replay_a_capture();
    begin();
    end();
    EXPECT_EQ(cluster.object_names(), std::set<std::string>());
    EXPECT_EQ(phase(), "Stopped");
    cluster.pass(minutes(1));
    EXPECT_FALSE(began_again());
    EXPECT_EQ(ready(), "ReplayStopped");
  }
}

TEST_F(Replay, GivesWayToPods) {
  begin();
  cluster.edit("/source", Json::parse(R"({"selector": {"matchLabels": {"app": "checkout"}},
                                          "ports": [8080], "interface": "eth0"})"));
  cluster.settle();
  EXPECT_EQ(the_job(), nullptr);
  EXPECT_FALSE(cluster.status().contains("replay"));
  EXPECT_EQ(cluster.status()["attached"], "3/3");
  EXPECT_TRUE(cluster.is_ready());
  cluster.replay_a_capture();
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  EXPECT_EQ(ready(), "Replaying");
}

TEST_F(Replay, IsRemovedWithItsMirror) {
  begin();
  cluster.remove_mirror();
  cluster.pass(minutes(1));
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
}

// ---- what goes wrong

TEST_F(Replay, SaysWhyItDoesNotBegin) {
  struct Case {
    const char* state;
    const char* unscheduled;
    const char* reason;
    Texts words;
  };
  const std::vector<Case> all{
      {R"({"waiting": {"reason": "ContainerCreating"}})", "", "ReplayStarting", {"describe pod"}},
      {R"({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})",
       "",
       "ImagePullFailed",
       {"no such image", "--sidecar-image"}},
      {R"({"waiting": {"reason": "CreateContainerConfigError", "message": "no such user"}})",
       "",
       "ReplayStarting",
       {"no such user"}},
      {R"({"waiting": {}})",
       "persistentvolumeclaim \"captures\" not found",
       "ClaimNotFound",
       {"there is no PersistentVolumeClaim shop/captures", "spec.source.capture.claimName"}},
      {R"({"waiting": {}})", "2 nodes had taints", "Unschedulable", {"2 nodes had taints"}}};
  for (const Case& each : all) {
    SCOPED_TRACE(each.state);
    cluster = Cluster();
    cluster.replay_a_capture();
    cluster.replay_state = Json::parse(each.state);
    cluster.settle();
    ASSERT_EQ(cluster.replay_pods.size(), 1U);
    if (*each.unscheduled)
      cluster.replay_pods.begin()->second["status"]["conditions"] = Json::array(
          {{{"type", "PodScheduled"}, {"status", "False"}, {"message", each.unscheduled}}});
    cluster.act(cluster.plan());
    EXPECT_EQ(phase(), "Pending");
    EXPECT_EQ(ready(), each.reason);
    for (const std::string& word : each.words)
      EXPECT_NE(said().find(word), std::string::npos) << said();
  }
}

TEST_F(Replay, SaysWhyItFailed) {
  struct Case {
    int exit_code;
    const char* reason;
    const char* message;
    const char* words;
    bool reports;
  };
  const std::vector<Case> all{
      {2, "Error",
       "[info] something\ntrafficmirror-sidecar: --pcap /capture/web.pcap: No such file or "
       "directory\n",
       "web.pcap of PersistentVolumeClaim captures: it ended with exit code 2: "
       "trafficmirror-sidecar: --pcap /capture/web.pcap: No such file or directory; to replay it "
       "anew, ",
       false},
      {137, "OOMKilled", "", "it ended with exit code 137 (OOMKilled); to replay", false},
      {1, "Error", report, "it was stopped before its end, or not one byte of it reached", true}};
  for (const Case& each : all) {
    SCOPED_TRACE(each.words);
    cluster = Cluster();
    cluster.replay_a_capture();
    begin();
    cluster.end_replay(each.exit_code, each.message, each.reason);
    cluster.pass(minutes(1));
    EXPECT_EQ(phase(), "Failed");
    EXPECT_EQ(ready(), "ReplayFailed");
    EXPECT_NE(said().find(each.words), std::string::npos) << said();
    EXPECT_EQ(cluster.status()["replay"].contains("report"), each.reports);
    EXPECT_TRUE(problem_of(cluster.mirror));
    EXPECT_EQ(cluster.object_names(), std::set<std::string>{job}) << "its log may be read";
    // Also when neither Job nor pod can be seen any more.
    cluster.lose_object(resources::jobs, {"shop", cluster.name()});
    cluster.pass(minutes(1));
    EXPECT_NE(said().find(each.words), std::string::npos) << said();
    EXPECT_FALSE(began_again());
  }
}

TEST_F(Replay, WaitsForTheLastWordsOfItsPod) {
  begin();
  const Json runs = cluster.replay_pods.begin()->second["status"];
  cluster.end_replay(2, "it says why");
  const Json ended = std::exchange(cluster.replay_pods.begin()->second["status"], runs);
  cluster.settle();
  EXPECT_EQ(phase(), "Running");
  cluster.replay_pods.begin()->second["status"] = ended;
  cluster.settle();
  EXPECT_EQ(phase(), "Failed");
  EXPECT_NE(said().find("it says why"), std::string::npos);
}

TEST_F(Replay, FailsThoughItsPodIsGone) {
  begin();
  cluster.end_replay(2, "it says why");
  cluster.replay_pods.begin()->second["metadata"]["labels"].erase("controller-uid");
  cluster.settle();
  EXPECT_EQ(phase(), "Failed");
  EXPECT_NE(said().find("Job has reached the specified backoff limit"), std::string::npos);
}

TEST_F(Replay, SaysThatItHasNoStream) {
  cluster.reading_becomes = [](Reading& reading) { reading.report->sidecars.clear(); };
  cluster.settle();
  EXPECT_EQ(ready(), "NoStream");
  EXPECT_NE(said().find("kubectl logs -n shop pod-of-"), std::string::npos) << said();
}

TEST_F(Replay, IsTriedAgainWhereTheServerRefusesItsJob) {
  cluster.intercepts_are_started = false;
  cluster.settle();
  cluster.intercepts_are_started = true;
  cluster.refused["objects"] = "jobs.batch is forbidden: exceeded quota";
  cluster.run_kubelets();
  cluster.act(cluster.plan());
  cluster.act(cluster.plan());
  EXPECT_EQ(ready(), "ApplyRefused");
  EXPECT_NE(said().find("exceeded quota"), std::string::npos);
  cluster.refused.clear();
  cluster.settle();
  EXPECT_EQ(phase(), "Running");
}

}  // namespace
}  // namespace trafficmirror::controller
