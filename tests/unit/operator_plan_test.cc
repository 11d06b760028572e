// The lives of mirrors: what plans do to a cluster, one after the other, until there is nothing
// left to do.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "operator/certificates.h"
#include "operator/plan.h"
#include "tests/unit/operator_cluster.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

using Texts = std::vector<std::string>;

const kube::Key key{"shop", "checkout-v2"};
const std::set<std::string> all_objects{
    "secrets shop/NAME-sidecar",   "secrets shop-shadow/NAME",  "serviceaccounts shop-shadow/NAME",
    "configmaps shop-shadow/NAME", "services shop-shadow/NAME", "networkpolicies shop-shadow/NAME",
    "deployments shop-shadow/NAME"};

// All of a plan, so that two can be compared.
Json described(const Plan& plan) {
  Json all = {{"status", plan.status},
              {"configuration", plan.configuration},
              {"finalizer", {plan.add_finalizer, plan.remove_finalizer}}};
  for (const WantedObject& wanted : plan.objects) all["objects"].push_back(wanted.object);
  for (const Observation::Owned& owned : plan.surplus) all["surplus"].push_back(*owned.object);
  for (const Attachment& attachment : plan.attachments)
    all["attachments"].push_back({to_text(attachment.pod), attachment.container});
  for (const kube::Key& pod : plan.to_notify) all["to_notify"].push_back(to_text(pod));
  if (plan.look_again) all["look_again"] = kube::to_text(*plan.look_again);
  return all;
}

// Nothing is written when nothing happens, and what is planned is the same each time.
void expect_rest(Cluster& cluster) {
  cluster.take_writes();
  const int status_writes = cluster.status_writes;
  const Plan first = cluster.plan(), second = cluster.plan();
  EXPECT_EQ(described(first), described(second));
  EXPECT_FALSE(cluster.act(first));
  EXPECT_FALSE(cluster.run_kubelets());
  EXPECT_FALSE(cluster.act(second));
  EXPECT_EQ(cluster.writes, Texts());
  EXPECT_EQ(cluster.status_writes, status_writes);
}

// A cluster in which everything has come about.
Cluster mirroring() {
  Cluster cluster;
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  cluster.take_writes();
  return cluster;
}

// The sidecars ended before anything was taken away that they need.
void expect_stopped_first(const Texts& writes) {
  ASSERT_FALSE(writes.empty());
  EXPECT_EQ(writes[0], "apply configmaps shop-shadow/NAME");
  const auto notified = std::find(writes.begin(), writes.end(), "notify shop-shadow");
  const auto removed = std::find_if(writes.begin(), writes.end(), [](const std::string& write) {
    return write.starts_with("remove") || write.starts_with("attach");
  });
  EXPECT_LT(notified, removed);
  EXPECT_NE(removed, writes.end());
}

// ---- from beginning to end

TEST(Life, BeginsWithTheFinalizerBeforeThereIsAnythingToCleanUp) {
  Cluster cluster;
  const Plan plan = cluster.plan();
  EXPECT_TRUE(plan.add_finalizer);
  EXPECT_TRUE(plan.objects.empty());
  EXPECT_TRUE(plan.attachments.empty());
  EXPECT_EQ(plan.status, cluster.status());
}

TEST(Life, MakesEverythingAndAttachesToPodsAndIsReady) {
  Cluster cluster;
  cluster.settle();
  EXPECT_EQ(cluster.object_names(), all_objects);
  for (const char* pod : {"checkout-a", "checkout-b", "checkout-c"})
    EXPECT_EQ(cluster.sidecars(pod), Texts{"NAME running"}) << pod;
  EXPECT_EQ(cluster.sidecars("cart-a"), Texts());
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  EXPECT_EQ(cluster.status()["attached"], "3/3");
  EXPECT_EQ(cluster.status()["sessions"], 12);
  EXPECT_EQ(cluster.status()["observedGeneration"], 1);
  EXPECT_EQ(cluster.status()["startedAt"], kube::to_text(cluster.now));
  EXPECT_EQ(cluster.configuration(),
            "target:\n  - \"8080=10.0.0.5:8000\"\npercent: 100\nturns: wait\nmax-sessions: 20000\n"
            "memory-limit: 64Mi\nstop-sidecars: false\n");
  expect_rest(cluster);
}

TEST(Life, WaitsForAnInterceptBeforeItAttaches) {
  Cluster cluster;
  cluster.intercepts_are_started = false;
  cluster.settle();
  EXPECT_EQ(cluster.object_names(), all_objects);
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts());
  expect_rest(cluster);
  cluster.intercepts_are_started = true;
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
}

TEST(Life, AttachesWithTheSettingsOfTheSpec) {
  Cluster cluster;
  cluster.edit("/source/ports", {9090, 8080});
  cluster.edit("/source/interface", "lo");
  cluster.edit("/limits/memory", "128Mi");
  cluster.settings.image_pull_policy = "Never";
  cluster.settle();
  const Json container = cluster.pods["checkout-a"]["spec"]["ephemeralContainers"][0];
  EXPECT_EQ(container["name"], cluster.name());
  EXPECT_EQ(container["image"], "example.org/sidecar:1");
  EXPECT_EQ(container["imagePullPolicy"], "Never");
  EXPECT_EQ(container["args"],
            Json({"--port", "8080", "--port", "9090", "--interface", "lo", "--intercept",
                  cluster.name() + ".shop-shadow.svc:7443", "--tls-peer",
                  "spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/intercept",
                  "--memory-limit", "128Mi", "--outlive-production", "--give-up-after", "600s"}));
  EXPECT_EQ(container["env"][1]["valueFrom"]["secretKeyRef"]["name"], cluster.name() + "-sidecar");
  EXPECT_EQ(container["securityContext"]["capabilities"],
            Json::parse(R"({"drop": ["ALL"], "add": ["NET_RAW"]})"));
  // The API takes none of these in an ephemeral container.
  for (const char* field : {"ports", "resources", "livenessProbe", "lifecycle"})
    EXPECT_FALSE(container.contains(field)) << field;
}

TEST(Life, GivesBothEndsCertificatesThatTheOtherAsksFor) {
  Cluster cluster = mirroring();
  const kube::SecretData intercept =
      kube::data_of(*cluster.object(resources::secrets, {"shop-shadow", cluster.name()}));
  const kube::SecretData sidecar =
      kube::data_of(*cluster.object(resources::secrets, {"shop", cluster.name() + "-sidecar"}));
  EXPECT_EQ(read_certificate(intercept.at("tls.crt"))->names,
            Names{.uris = {intercept_identity(key)}});
  EXPECT_EQ(read_certificate(sidecar.at("tls.crt"))->names, Names{.uris = {sidecar_identity(key)}});
  // For delivery over the stream.
  EXPECT_EQ(intercept.at("sidecar.crt"), sidecar.at("tls.crt"));
  EXPECT_EQ(intercept.at("sidecar.key"), sidecar.at("tls.key"));
  EXPECT_EQ(intercept.at("ca.crt"), cluster.ca.at("ca.crt"));
  EXPECT_FALSE(sidecar.contains("sidecar.key"));
}

TEST(Life, EndsWithNothingLeftAndTheFinalizerLast) {
  Cluster cluster = mirroring();
  cluster.remove_mirror();
  cluster.settle();
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  const Texts writes = cluster.take_writes();
  expect_stopped_first(writes);
  EXPECT_EQ(writes.back(), "finalizer removed");
}

TEST(Life, EndsWhereItHadNotBegun) {
  Cluster cluster;
  cluster.annotate("shop-shadow", "others");
  cluster.settle();
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  cluster.remove_mirror();
  cluster.settle();
  EXPECT_TRUE(cluster.mirror.is_null());
}

TEST(Life, EndsThoughTheSpecCannotBeRead) {
  Cluster cluster = mirroring();
  cluster.edit("/source/ports", Json::array());
  cluster.remove_mirror();
  cluster.settle();
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_EQ(cluster.running_sidecars(), 0U);
}

TEST(Life, ForgoesTheFinalizerOfAMirrorThatIsDeletedAlready) {
  Cluster cluster;
  cluster.mirror["metadata"]["finalizers"] = {"example.org/theirs"};
  cluster.remove_mirror();
  const Plan plan = cluster.plan();
  EXPECT_FALSE(plan.add_finalizer);
  EXPECT_FALSE(plan.remove_finalizer);
  EXPECT_TRUE(plan.objects.empty());
}

// ---- the spec is edited

TEST(Edit, OfLimitsAndTargetsReachesRunningSidecarsByTheConfigMapAlone) {
  Cluster cluster = mirroring();
  const Texts only_the_configuration{"apply configmaps shop-shadow/NAME", "notify shop-shadow"};

  cluster.edit("/replicate/percent", 12.5);
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), only_the_configuration);
  cluster.edit("/replicate/turns", "Eager");
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), only_the_configuration);
  cluster.edit("/replicate/filter", "src net 10.1.0.0/16");
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), only_the_configuration);
  cluster.edit("/limits/maxSessions", 7);
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), only_the_configuration);
  cluster.edit("/limits/memory", "32Mi");
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), only_the_configuration);
  EXPECT_EQ(cluster.configuration(),
            "target:\n  - \"8080=10.0.0.5:8000\"\npercent: 12.5\nfilter: \"src net 10.1.0.0/16\"\n"
            "turns: eager\nmax-sessions: 7\nmemory-limit: 32Mi\nstop-sidecars: false\n");

  cluster.add_service("shop-shadow", "10.0.0.6");
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), only_the_configuration);
  EXPECT_NE(cluster.configuration().find("8080=10.0.0.6:8000"), std::string::npos);

  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
  EXPECT_TRUE(cluster.is_ready());
  EXPECT_EQ(cluster.status()["observedGeneration"], 6);
  expect_rest(cluster);
}

TEST(Edit, OfTheReplicasComesWithADisruptionBudgetAndWithout) {
  Cluster cluster = mirroring();
  cluster.edit("/intercept/replicas", 2);
  cluster.settle();
  EXPECT_TRUE(cluster.object_names().contains("poddisruptionbudgets shop-shadow/NAME"));
  EXPECT_EQ(cluster.intercepts().size(), 2U);
  EXPECT_EQ(cluster.condition("InterceptAvailable")["message"], "2 of 2 intercepts are ready");
  EXPECT_EQ(cluster.status()["sessions"], 24);
  cluster.edit("/intercept/replicas", 1);
  cluster.settle();
  EXPECT_EQ(cluster.object_names(), all_objects);
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
}

TEST(Edit, OfPortsEndsTheSidecarsAndAttachesOthers) {
  Cluster cluster = mirroring();
  cluster.edit("/source/ports", {9090});
  cluster.pass(minutes(1));
  for (const char* pod : {"checkout-a", "checkout-b", "checkout-c"})
    EXPECT_EQ(cluster.sidecars(pod), (Texts{"NAME terminated", "NAME-2 running"})) << pod;
  EXPECT_EQ(cluster.pods["checkout-a"]["spec"]["ephemeralContainers"][1]["args"][1], "9090");
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  EXPECT_FALSE(cluster.status().contains("stoppingSince"));
  EXPECT_NE(cluster.configuration().find("9090=10.0.0.5:9000"), std::string::npos);
  EXPECT_NE(cluster.configuration().find("stop-sidecars: false"), std::string::npos);
  const Texts writes = cluster.take_writes();
  expect_stopped_first(writes);
  // Nothing but the configuration and the targets' ports, and nothing away.
  for (const std::string& write : writes)
    EXPECT_TRUE(write.starts_with("apply configmaps") || write.starts_with("attach") ||
                write.starts_with("notify") || write.starts_with("apply networkpolicies"))
        << write;
  expect_rest(cluster);

  cluster.edit("/source/ports", {8080});
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"),
            (Texts{"NAME terminated", "NAME-2 terminated", "NAME-3 running"}));
}

// An ephemeral container is in its pod for good, so none is attached that would be told to end by
// an intercept that has not heard yet that it is over with that.
TEST(Edit, OfPortsAttachesOnceThoughInterceptsHearOfItLate) {
  Cluster cluster = mirroring();
  cluster.configuration_delay = seconds(5);
  cluster.edit("/source/ports", {9090});
  cluster.pass(minutes(1));
  for (const char* pod : {"checkout-a", "checkout-b", "checkout-c"})
    EXPECT_EQ(cluster.sidecars(pod), (Texts{"NAME terminated", "NAME-2 running"})) << pod;
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

TEST(Edit, OfTheShadowsNamespaceTakesTheOldOnesObjectsAwayWhenTheSidecarsHaveEnded) {
  Cluster cluster = mirroring();
  cluster.add_namespace("other-shadow", {{names::accept_from, "shop"}});
  cluster.add_service("other-shadow", "10.0.0.9");
  cluster.edit("/shadow/namespace", "other-shadow");
  cluster.pass(minutes(1));
  EXPECT_EQ(
      cluster.object_names(),
      (std::set<std::string>{"secrets shop/NAME-sidecar", "secrets other-shadow/NAME",
                             "serviceaccounts other-shadow/NAME", "configmaps other-shadow/NAME",
                             "services other-shadow/NAME", "networkpolicies other-shadow/NAME",
                             "deployments other-shadow/NAME"}));
  EXPECT_EQ(cluster.sidecars("checkout-a"), (Texts{"NAME terminated", "NAME-2 running"}));
  EXPECT_EQ(cluster.intercepts(), Texts{"other-shadow/" + cluster.name() + "-other-shadow-0"});
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  const Texts writes = cluster.take_writes();
  const auto told = std::find(writes.begin(), writes.end(), "apply configmaps shop-shadow/NAME");
  const auto notified = std::find(writes.begin(), writes.end(), "notify shop-shadow");
  const auto removed =
      std::find(writes.begin(), writes.end(), "remove deployments shop-shadow/NAME");
  EXPECT_LT(told, notified);
  EXPECT_LT(notified, removed);
  EXPECT_NE(removed, writes.end());
  expect_rest(cluster);
}

TEST(Edit, OfTheShadowsNamespaceIsNotJudgedByTheOldOnesIntercepts) {
  Cluster cluster = mirroring();
  cluster.add_namespace("other-shadow", {{names::accept_from, "shop"}});
  cluster.add_service("other-shadow", "10.0.0.9");
  cluster.edit("/shadow/namespace", "other-shadow");
  cluster.stubborn = {"checkout-b"};
  cluster.act(cluster.plan());
  EXPECT_EQ(cluster.reason("InterceptAvailable"), "Deploying");
  cluster.intercept_pod_becomes = [](Json& pod) { pod["status"]["conditions"] = Json::array(); };
  cluster.pass(seconds(29));
  EXPECT_EQ(cluster.intercepts().size(), 2U);
  EXPECT_EQ(cluster.reason("InterceptAvailable"), "Deploying");
  // What each reads is of its own namespace.
  EXPECT_NE(cluster.configuration("shop-shadow").find("10.0.0.5"), std::string::npos);
  EXPECT_NE(cluster.configuration("other-shadow").find("10.0.0.9"), std::string::npos);
  for (const kube::Key& pod : cluster.plan().to_notify) EXPECT_EQ(pod.namespace_, "shop-shadow");
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.reason("InterceptAvailable"), "Deploying");
}

TEST(Edit, OfTheSelectorLetsPodsGoAndTakesOthers) {
  Cluster cluster = mirroring();
  cluster.edit("/source/selector", {{"matchLabels", {{"app", "cart"}}}});
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.sidecars("cart-a"), Texts{"NAME running"});
  EXPECT_EQ(cluster.status()["attached"], "1/1");
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  expect_rest(cluster);
}

TEST(Edit, ToWhatCannotBeReadStopsAndSaysSo) {
  Cluster cluster = mirroring();
  cluster.edit("/source/selector/matchExpressions",
               Json::array({{{"key", "app"}, {"operator", "In"}}}));
  cluster.settle();
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.condition("Ready")["message"],
            "spec.source.selector: the label app has operator In and no values");
  expect_rest(cluster);
}

// ---- it is stopped, and goes on

TEST(Pause, StopsTheSidecarsFirstAndThenRemovesEverything) {
  Cluster cluster = mirroring();
  cluster.edit("/paused", true);

  Plan plan = cluster.plan();
  EXPECT_TRUE(plan.surplus.empty());
  ASSERT_EQ(plan.objects.size(), 1U);
  EXPECT_EQ(plan.objects[0].resource, resources::config_maps);
  EXPECT_EQ(Cluster::condition_of_status(plan.status, "Attached")["reason"], "Stopping");
  cluster.act(plan);
  EXPECT_EQ(cluster.configuration(),
            "target:\n  - \"8080=10.0.0.5:8000\"\npercent: 100\nturns: wait\nmax-sessions: 20000\n"
            "memory-limit: 64Mi\nstop-sidecars: true\n");
  EXPECT_EQ(cluster.running_sidecars(), 3U);

  EXPECT_TRUE(cluster.run_kubelets());
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  cluster.settle();
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.reason("Ready"), "Paused");
  EXPECT_EQ(cluster.reason("Attached"), "Stopped");
  EXPECT_EQ(cluster.status()["attached"], "0/3");
  EXPECT_FALSE(cluster.mirror["metadata"]["finalizers"].empty());
  expect_rest(cluster);
}

TEST(Pause, IsOverWhenTheSpecSaysSo) {
  Cluster cluster = mirroring();
  cluster.count(100, 5);
  cluster.settle();
  cluster.edit("/paused", true);
  cluster.settle();
  cluster.pass(minutes(1));
  cluster.edit("/paused", false);
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  EXPECT_EQ(cluster.object_names(), all_objects);
  EXPECT_EQ(cluster.sidecars("checkout-a"), (Texts{"NAME terminated", "NAME-2 running"}));
  EXPECT_EQ(cluster.status()["startedAt"], kube::to_text(cluster.now));
  EXPECT_FALSE(cluster.status().contains("stoppingSince"));
  // What has been counted stays so.
  EXPECT_EQ(cluster.status()["exchanges"], 100);
  EXPECT_EQ(cluster.status()["shed"], 5);
  expect_rest(cluster);
}

TEST(Pause, ThatIsTakenBackAtOnceEndsNoSidecarThatHasNotHeardOfIt) {
  Cluster cluster = mirroring();
  cluster.configuration_delay = seconds(5);
  cluster.edit("/paused", true);
  cluster.settle();
  cluster.edit("/paused", false);
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
  EXPECT_TRUE(cluster.is_ready());
}

TEST(Duration, EndsTheMirroringAndBeginsAnewWhenItIsChanged) {
  Cluster cluster;
  cluster.edit("/duration", "2h");
  cluster.settle();
  const WallTime start = cluster.now;
  EXPECT_EQ(cluster.plan().look_again, start + hours(2));
  cluster.pass(hours(2) - seconds(1));
  EXPECT_TRUE(cluster.is_ready());
  cluster.pass(seconds(1));
  EXPECT_EQ(cluster.reason("Ready"), "DurationOver");
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.status()["startedAt"], kube::to_text(start));
  expect_rest(cluster);
  cluster.pass(hours(1));
  EXPECT_EQ(cluster.reason("Ready"), "DurationOver");

  cluster.edit("/duration", "1h30m");
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  EXPECT_EQ(cluster.status()["startedAt"], kube::to_text(cluster.now));
  cluster.pass(minutes(90));
  EXPECT_EQ(cluster.reason("Ready"), "DurationOver");

  cluster.remove_from_spec("", "duration");
  cluster.pass(hours(100));
  EXPECT_TRUE(cluster.is_ready());
}

TEST(Duration, BeginsAnewAfterAPause) {
  Cluster cluster;
  cluster.edit("/duration", "1h");
  cluster.settle();
  cluster.pass(minutes(50));
  cluster.edit("/paused", true);
  cluster.pass(minutes(5));
  EXPECT_FALSE(cluster.status().contains("startedAt"));
  cluster.edit("/paused", false);
  cluster.pass(minutes(50));
  EXPECT_TRUE(cluster.is_ready());
  cluster.pass(minutes(10));
  EXPECT_EQ(cluster.reason("Ready"), "DurationOver");
}

TEST(Duration, CountsFromWhenMirroringBegan) {
  Cluster cluster;
  cluster.edit("/duration", "1h");
  cluster.intercepts_are_started = false;
  cluster.pass(hours(3));
  EXPECT_FALSE(cluster.status().contains("startedAt"));
  cluster.intercepts_are_started = true;
  cluster.pass(minutes(59));
  EXPECT_TRUE(cluster.is_ready());
}

TEST(Consent, ThatIsWithdrawnStopsAndThatIsGivenAgainGoesOn) {
  Cluster cluster = mirroring();
  cluster.annotate("shop-shadow", "others");
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "NotGranted");
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  expect_stopped_first(cluster.take_writes());
  expect_rest(cluster);
  cluster.annotate("shop-shadow", "others, shop");
  cluster.pass(minutes(1));
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

TEST(Consent, IsOfThisNamespaceAndNoneThatHasItsNameInItsOwn) {
  for (const char* list : {"", "shopping", "my-shop", "others,shop-eu", "shop shop"}) {
    Cluster cluster;
    cluster.annotate("shop-shadow", list);
    cluster.settle();
    EXPECT_EQ(cluster.reason("Consented"), "NotGranted") << list;
    EXPECT_EQ(cluster.object_names(), std::set<std::string>()) << list;
  }
  for (const char* list : {"shop", "others,shop", "shop,others", " others , shop "}) {
    Cluster cluster;
    cluster.annotate("shop-shadow", list);
    cluster.settle();
    EXPECT_EQ(cluster.reason("Consented"), "Granted") << list;
  }
}

TEST(Namespace, OfTheShadowThatIsDeletedLeavesNothingBehind) {
  Cluster cluster = mirroring();
  cluster.namespaces["shop-shadow"]["metadata"]["deletionTimestamp"] = kube::to_text(cluster.now);
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "ShadowNamespaceTerminating");
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  cluster.namespaces.erase("shop-shadow");
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "ShadowNamespaceNotFound");
  expect_rest(cluster);
}

// ---- sidecars that do not do as they should

TEST(Stubborn, SidecarsAreLeftToThemselvesAfterHalfAMinute) {
  Cluster cluster = mirroring();
  cluster.stubborn = {"checkout-b"};
  cluster.remove_mirror();
  cluster.settle();
  EXPECT_EQ(cluster.object_names(), all_objects);
  EXPECT_EQ(cluster.plan().look_again, cluster.now + seconds(30));
  EXPECT_EQ(cluster.reason("Attached"), "Stopping");
  EXPECT_EQ(cluster.status()["attached"], "1/3");
  expect_rest(cluster);
  cluster.pass(seconds(29));
  EXPECT_EQ(cluster.object_names(), all_objects);
  cluster.pass(seconds(1));
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
}

TEST(Stubborn, SidecarsOfOldPortsHoldUpOthersForHalfAMinute) {
  Cluster cluster = mirroring();
  cluster.stubborn = {"checkout-b"};
  cluster.edit("/source/ports", {9090});
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.reason("Ready"), "Stopping");
  expect_rest(cluster);
  cluster.pass(seconds(30));
  EXPECT_EQ(cluster.sidecars("checkout-a"), (Texts{"NAME terminated", "NAME-2 running"}));
  EXPECT_EQ(cluster.sidecars("checkout-b"), Texts{"NAME running"});
  EXPECT_EQ(cluster.status()["attached"], "2/3");
  EXPECT_EQ(cluster.reason("Ready"), "OldSidecarRuns");
  expect_rest(cluster);

  // It ends at last.
  cluster.set_sidecar_state("checkout-b", cluster.terminated(0));
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-b"), (Texts{"NAME terminated", "NAME-2 running"}));
  EXPECT_TRUE(cluster.is_ready());
}

TEST(Stubborn, SidecarsDoNotKeepTheNextEditFromStoppingTheOthers) {
  Cluster cluster = mirroring();
  cluster.stubborn = {"checkout-b"};
  cluster.edit("/source/ports", {9090});
  cluster.pass(minutes(10));
  cluster.edit("/source/ports", {8080, 9090});
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"),
            (Texts{"NAME terminated", "NAME-2 terminated", "NAME-3 running"}));
  EXPECT_EQ(cluster.sidecars("checkout-b"), Texts{"NAME running"});
}

TEST(Crash, IsFollowedByAnotherSidecarAfterAPauseThatGrows) {
  Cluster cluster = mirroring();
  cluster.sidecar_state["checkout-a"] = cluster.terminated(139);
  cluster.set_sidecar_state("checkout-a", cluster.terminated(139));
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.reason("Attached"), "SidecarEnded");
  EXPECT_EQ(cluster.sidecars("checkout-b"), Texts{"NAME running"});
  expect_rest(cluster);

  size_t attached = 1;
  for (const int pause : {10, 20, 40, 80, 160, 320, 600, 600}) {
    cluster.pass(seconds(pause - 1));
    EXPECT_EQ(cluster.sidecars("checkout-a").size(), attached) << pause;
    cluster.pass(seconds(1));
    EXPECT_EQ(cluster.sidecars("checkout-a").size(), ++attached) << pause;
  }
  cluster.sidecar_state.clear();
  cluster.pass(seconds(600));
  EXPECT_EQ(cluster.sidecars("checkout-a").back(), "NAME-10 running");
  EXPECT_TRUE(cluster.is_ready());
}

// A node that was lost says of its containers that they ended, and not when.
TEST(Crash, OfWhichNobodyKnowsWhenIsFollowedByAnotherSidecar) {
  Cluster cluster = mirroring();
  cluster.set_sidecar_state("checkout-a", Json::parse(R"({"terminated": {
      "exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": null,
      "finishedAt": null}})"));
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"), (Texts{"NAME terminated", "NAME-2 running"}));
}

TEST(GivingUp, IsFollowedByAnotherSidecarWhenThereIsAnInterceptAgain) {
  Cluster cluster = mirroring();
  cluster.intercept_pod_becomes = [](Json& pod) { pod["status"]["conditions"] = Json::array(); };
  cluster.lose_object(resources::deployments, {"shop-shadow", cluster.name()});
  cluster.run_kubelets();
  cluster.settle();
  EXPECT_TRUE(cluster.object_names().contains("deployments shop-shadow/NAME"));
  cluster.pass(minutes(10));
  cluster.set_sidecar_state("checkout-a", cluster.terminated(0));
  cluster.pass(minutes(10));
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.reason("Attached"), "WaitingForIntercept");

  cluster.intercept_pod_becomes = [](Json&) {};
  cluster.edit("/intercept/replicas", 2);
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-a"), (Texts{"NAME terminated", "NAME-2 running"}));
}

// ---- the world changes

TEST(Pods, ComeAndGo) {
  Cluster cluster = mirroring();
  cluster.pods.erase("checkout-a");
  cluster.add_pod("checkout-d");
  cluster.pods["checkout-d"]["status"]["phase"] = "Pending";
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-d"), Texts());
  EXPECT_EQ(cluster.status()["attached"], "2/3");
  EXPECT_EQ(cluster.reason("Ready"), "PodNotRunning");
  cluster.pods["checkout-d"]["status"]["phase"] = "Running";
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-d"), Texts{"NAME running"});
  EXPECT_TRUE(cluster.is_ready());
  for (const char* pod : {"checkout-b", "checkout-c", "checkout-d"}) cluster.pods.erase(pod);
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "NoPods");
  EXPECT_EQ(cluster.object_names(), all_objects);
  expect_rest(cluster);
}

TEST(Pods, ThatAreTakenOutOfTheSelectionAreMirroredNoMore) {
  Cluster cluster = mirroring();
  cluster.pods["checkout-a"]["metadata"]["labels"]["app"] = "debugged";
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.status()["attached"], "2/2");
  EXPECT_TRUE(cluster.is_ready());
}

TEST(Pods, OfWhichOneIsStreamingAndUnselectedDoNotMakeItMirroring) {
  Cluster cluster = mirroring();
  cluster.reading_becomes = [](Reading& reading) { reading.report->sidecars = {{"cart-a", 1}}; };
  cluster.settle();
  EXPECT_EQ(cluster.reason("Mirroring"), "NoStream");
}

TEST(Drift, IsCorrected) {
  Cluster cluster = mirroring();
  cluster.change_object(resources::deployments, {"shop-shadow", cluster.name()},
                        [](Json& object) { object["spec"]["replicas"] = 7; });
  cluster.lose_object(resources::services, {"shop-shadow", cluster.name()});
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(),
            (Texts{"apply services shop-shadow/NAME", "apply deployments shop-shadow/NAME"}));
  EXPECT_EQ(cluster.object_names(), all_objects);
}

Mirror older_mirror(const std::vector<net::ProductionPort>& ports) {
  Mirror older;
  older.key = {"shop", "checkout-v1"};
  older.selector = {{"matchLabels", {{"app", "checkout"}}}};
  older.ports = ports;
  return older;
}

TEST(TwoMirrors, OfOnePodAndPortGiveWayToTheOlder) {
  Cluster cluster = mirroring();
  cluster.earlier_mirrors = {older_mirror({{8080}})};
  cluster.settle();
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  EXPECT_EQ(cluster.reason("Ready"), "PortTaken");
  EXPECT_EQ(cluster.object_names(), all_objects);
  expect_rest(cluster);
  // It is gone, or stopped.
  cluster.earlier_mirrors.clear();
  cluster.pass(minutes(1));
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  EXPECT_EQ(cluster.running_sidecars(), 3U);
}

TEST(TwoMirrors, OfOnePodAndTwoPortsLiveTogether) {
  Cluster cluster;
  cluster.earlier_mirrors = {older_mirror({{9090}, {8080, net::Protocol::udp}})};
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

TEST(TwoMirrors, OfOnePortAndOtherPodsLiveTogether) {
  Cluster cluster;
  Mirror older = older_mirror({{8080}});
  older.selector = {{"matchLabels", {{"app", "cart"}}}};
  cluster.earlier_mirrors = {older};
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

// ---- the shadow

TEST(Targets, AreTheEndpointsThatBelongToTheServicesPorts) {
  Cluster cluster;
  cluster.edit("/source/ports", {8080, 9090});
  cluster.endpoints[{"shop-shadow", "checkout-v2"}]["subsets"] = Json::parse(R"([
      {"addresses": [{"ip": "10.0.0.6"}, {"ip": "10.0.0.5"}],
       "notReadyAddresses": [{"ip": "10.0.0.7"}],
       "ports": [{"name": "http", "port": 8000}, {"name": "admin", "port": 9000}]},
      {"addresses": [{"ip": "fd00::8"}, {"ip": "10.0.0.6"}],
       "ports": [{"name": "http", "port": 8000}]}])");
  cluster.settle();
  EXPECT_EQ(cluster.configuration().substr(0, cluster.configuration().find("percent")),
            "target:\n"
            "  - \"8080=10.0.0.5:8000\"\n"
            "  - \"8080=10.0.0.6:8000\"\n"
            "  - \"8080=[fd00::8]:8000\"\n"
            "  - \"9090=10.0.0.5:9000\"\n"
            "  - \"9090=10.0.0.6:9000\"\n");
}

TEST(Targets, AreTheEndpointsOfTheServicesPortThatTheSpecNames) {
  Cluster cluster;
  cluster.edit("/shadow/service/port", 9090);
  cluster.settle();
  EXPECT_EQ(cluster.configuration().substr(0, cluster.configuration().find("percent")),
            "target:\n  - \"8080=10.0.0.5:9000\"\n");
}

// A name server, whose Service has one number for both.
TEST(Targets, AreThoseOfTheServicesPortWithTheSameProtocol) {
  Cluster cluster;
  cluster.edit("/source/ports", {53, "53/udp"});
  for (auto& [name, pod] : cluster.pods)
    pod["spec"]["containers"][0]["ports"] =
        Json::parse(R"([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}])");
  const kube::Key service{"shop-shadow", "checkout-v2"};
  cluster.services[service]["spec"]["ports"] = Json::parse(R"([
      {"name": "dns", "port": 53, "protocol": "UDP"},
      {"name": "dns-tcp", "port": 53, "protocol": "TCP"}])");
  cluster.endpoints[service]["subsets"][0]["ports"] = Json::parse(R"([
      {"name": "dns", "port": 5353, "protocol": "UDP"},
      {"name": "dns-tcp", "port": 5354, "protocol": "TCP"}])");
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  EXPECT_EQ(cluster.configuration().substr(0, cluster.configuration().find("percent")),
            "target:\n  - \"53=10.0.0.5:5354\"\n  - \"53/udp=10.0.0.5:5353\"\n");

  cluster.services[service]["spec"]["ports"].erase(0);
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "ServicePortNotFound");
  EXPECT_NE(
      cluster.condition("Ready")["message"].get<std::string>().find("has no port 53/udp, only 53:"),
      std::string::npos);
}

TEST(Targets, AreReadyPodsOfTheSelector) {
  Cluster cluster;
  cluster.mirror["spec"]["shadow"] = Json::parse(
      R"({"namespace": "shop-shadow", "selector": {"matchLabels": {"v": "2"}}, "port": 8000})");
  for (const auto& [name, address, ready] :
       {std::tuple("a", "10.0.0.5", "True"), {"b", "10.0.0.6", "False"}, {"c", "10.0.0.7", "True"}})
    cluster.shadow_pods[name] = {
        {"metadata", {{"name", name}, {"namespace", "shop-shadow"}, {"labels", {{"v", "2"}}}}},
        {"spec", Json::object()},
        {"status",
         {{"phase", "Running"},
          {"podIP", address},
          {"conditions", Json::array({{{"type", "Ready"}, {"status", ready}}})}}}};
  cluster.settle();
  EXPECT_EQ(cluster.configuration().substr(0, cluster.configuration().find("percent")),
            "target:\n  - \"8080=10.0.0.5:8000\"\n  - \"8080=10.0.0.7:8000\"\n");
  EXPECT_TRUE(cluster.is_ready());
  const Json* policy = cluster.object(resources::network_policies, {"shop-shadow", cluster.name()});
  EXPECT_EQ(policy->at("spec").at("egress"), Json::parse(R"([
      {"to": [{"podSelector": {"matchLabels": {"v": "2"}}}],
       "ports": [{"protocol": "TCP", "port": 8000}]}])"));
}

TEST(Targets, ThatAreMissingForOneOfThePortsAreNamed) {
  Cluster cluster;
  cluster.edit("/source/ports", {8080, 9090});
  cluster.endpoints[{"shop-shadow", "checkout-v2"}]["subsets"][0]["ports"].erase(1);
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "NoEndpoints");
  EXPECT_NE(cluster.condition("Ready")["message"].get<std::string>().find("port 9090"),
            std::string::npos);
  // The other one is mirrored all the same.
  EXPECT_NE(cluster.configuration().find("8080=10.0.0.5:8000"), std::string::npos);
}

TEST(Targets, MayAllBeGoneAndComeBack) {
  Cluster cluster = mirroring();
  const Json subsets = cluster.endpoints.begin()->second["subsets"];
  cluster.endpoints.begin()->second.erase("subsets");
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "NoEndpoints");
  EXPECT_EQ(cluster.configuration().substr(0, 11), "target: []\n");
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
  expect_rest(cluster);
  cluster.endpoints.begin()->second["subsets"] = subsets;
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready());
}

// ---- injected sidecars

// On a server without ephemeral containers, with everything labelled as it has to be.
Cluster injecting() {
  Cluster cluster;
  cluster.abilities = {};
  cluster.namespaces["shop"]["metadata"]["labels"][names::inject] = names::inject_enabled;
  cluster.pods.clear();
  return cluster;
}

const Json labelled{{"app", "checkout"}, {names::inject, names::inject_enabled}};

TEST(Injection, AttachesToPodsThatAreCreatedAfterTheMirror) {
  Cluster cluster = injecting();
  cluster.add_pod("checkout-a", labelled);
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts());
  EXPECT_EQ(cluster.reason("Attached"), "RestartNeeded");
  expect_rest(cluster);

  cluster.pods.clear();
  cluster.add_pod("checkout-b", labelled);
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-b"), Texts{"NAME running"});
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  expect_rest(cluster);
}

TEST(Injection, NeedsARestartWhenPortsAreEdited) {
  Cluster cluster = injecting();
  cluster.settle();
  cluster.add_pod("checkout-a", labelled);
  cluster.settle();
  cluster.edit("/source/ports", {9090});
  cluster.settle();
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
  EXPECT_EQ(cluster.reason("Attached"), "RestartNeeded");
  EXPECT_EQ(cluster.object_names(), all_objects);
  expect_rest(cluster);
}

TEST(Injection, LeavesItsSidecarsInTheirPodsWhenTheMirrorEnds) {
  Cluster cluster = injecting();
  cluster.settle();
  cluster.add_pod("checkout-a", labelled);
  cluster.settle();
  cluster.remove_mirror();
  cluster.settle();
  EXPECT_NE(cluster.configuration().find("stop-sidecars: true"), std::string::npos);
  cluster.pass(seconds(30));
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
}

TEST(Injection, TakesOverFromEphemeralSidecars) {
  Cluster cluster = mirroring();
  cluster.namespaces["shop"]["metadata"]["labels"][names::inject] = names::inject_enabled;
  cluster.edit("/source/attach", "Sidecar");
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME terminated"});
  EXPECT_EQ(cluster.reason("Attached"), "PodsNotLabelled");
  expect_rest(cluster);
}

TEST(Injection, IsWhereTheServerOrTheSpecAsksForItAndTheMirrorRuns) {
  Cluster cluster = mirroring();
  const auto injects_now = [&](const Abilities& abilities) {
    return injects(parse_mirror(cluster.mirror).mirror, cluster.status(), abilities);
  };
  const Abilities old;
  EXPECT_FALSE(injects_now(cluster.abilities));
  EXPECT_TRUE(injects_now(old));
  cluster.edit("/source/attach", "Ephemeral");
  EXPECT_FALSE(injects_now(old));
  cluster.edit("/source/attach", "Sidecar");
  EXPECT_TRUE(injects_now(cluster.abilities));

  EXPECT_FALSE(injects(parse_mirror(cluster.mirror).mirror, Json::object(), old))
      << "the operator has not judged it yet";
  cluster.annotate("shop-shadow", "");
  cluster.settle();
  EXPECT_FALSE(injects_now(old));
  cluster.annotate("shop-shadow", "shop");
  cluster.edit("/duration", "1m");
  cluster.namespaces["shop"]["metadata"]["labels"][names::inject] = names::inject_enabled;
  cluster.settle();
  EXPECT_TRUE(injects_now(old));
  cluster.add_pod("checkout-d", labelled);
  cluster.pass(minutes(3));
  EXPECT_EQ(cluster.reason("Ready"), "DurationOver");
  EXPECT_FALSE(injects_now(old));
  cluster.remove_from_spec("", "duration");
  cluster.settle();
  EXPECT_TRUE(injects_now(old));
  cluster.edit("/paused", true);
  EXPECT_FALSE(injects_now(old));
  cluster.edit("/paused", false);
  cluster.remove_mirror();
  EXPECT_FALSE(injects_now(old));
}

// ---- certificates

TEST(Certificates, AreRenewedWhenAThirdOfTheirLifeIsLeft) {
  Cluster cluster = mirroring();
  const kube::Key secret{"shop", cluster.name() + "-sidecar"};
  const Json before = cluster.object(resources::secrets, secret)->at("data");
  const auto look_again = cluster.plan().look_again;
  ASSERT_TRUE(look_again);
  EXPECT_GT(*look_again, cluster.now + hours(24 * 19));
  EXPECT_LT(*look_again, cluster.now + hours(24 * 21));
  cluster.now = *look_again - seconds(1);
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(), Texts());
  cluster.now = *look_again;
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(),
            (Texts{"apply secrets shop/NAME-sidecar", "apply secrets shop-shadow/NAME"}));
  EXPECT_NE(cluster.object(resources::secrets, secret)->at("data"), before);
  EXPECT_GT(cluster.plan().look_again, cluster.now + hours(24 * 19));
  EXPECT_TRUE(cluster.is_ready());
  expect_rest(cluster);
}

TEST(Certificates, AreReplacedWhenSomebodyBreaksThem) {
  Cluster cluster = mirroring();
  cluster.change_object(resources::secrets, {"shop", cluster.name() + "-sidecar"},
                        [](Json& secret) { secret["data"]["tls.key"] = "bm9uZQ=="; });
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(),
            (Texts{"apply secrets shop/NAME-sidecar", "apply secrets shop-shadow/NAME"}));
}

// ---- the status

TEST(Status, KeepsWhenAConditionCameAbout) {
  Cluster cluster = mirroring();
  const Json since = cluster.condition("Ready")["lastTransitionTime"];
  cluster.now += minutes(5);
  cluster.edit("/replicate/percent", 50);
  cluster.settle();
  EXPECT_EQ(cluster.condition("Ready")["lastTransitionTime"], since);
  EXPECT_EQ(cluster.condition("Ready")["observedGeneration"], 2);
  cluster.edit("/paused", true);
  cluster.settle();
  EXPECT_EQ(cluster.condition("Ready")["lastTransitionTime"], kube::to_text(cluster.now));
  EXPECT_EQ(cluster.condition("Consented")["lastTransitionTime"], since);
}

TEST(Status, SumsWhatInterceptsCountedAndThoseThatAreGone) {
  Cluster cluster = mirroring();
  cluster.count(10, 1);
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 10);
  EXPECT_EQ(cluster.status()["shed"], 1);
  cluster.restart_intercepts();
  cluster.count(5, 0);
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 15);
  EXPECT_EQ(cluster.status()["shed"], 1);
  cluster.edit("/intercept/replicas", 2);
  cluster.settle();
  cluster.count(100, 0);
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 215);
  cluster.edit("/intercept/replicas", 1);
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 215);
  // One that does not answer for now has counted what it said last.
  cluster.reading_becomes = [](Reading& reading) { reading.report.reset(); };
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 215);
  cluster.reading_becomes = [](Reading&) {};
  cluster.count(1, 0);
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 216);
  // A list that does not grow with each that is gone.
  EXPECT_EQ(cluster.status()["counted"].size(), 2U);
  // Servers of 1.20 take an empty text in a list for null.
  for (const Json& entry : cluster.status()["counted"])
    EXPECT_NE(entry.value("intercept", "-"), "");
  expect_rest(cluster);
}

TEST(Changes, AreConditionsThatHaveAnotherStatusOrReason) {
  Cluster cluster;
  const auto changes = [&](const Json& before) {
    Texts told;
    for (const Change& change : changes_between(before, cluster.status()))
      told.push_back((change.type == kube::EventType::normal ? "Normal " : "Warning ") +
                     change.reason);
    return told;
  };
  cluster.annotate("shop-shadow", "");
  cluster.settle();
  EXPECT_EQ(changes(Json::object()), Texts{"Warning NotGranted"});
  Json before = cluster.status();
  EXPECT_EQ(changes(before), Texts());
  cluster.annotate("shop-shadow", "shop");
  cluster.settle();
  EXPECT_EQ(changes(before), (Texts{"Normal Granted", "Normal Available", "Normal AllAttached",
                                    "Normal Verified", "Normal Streaming", "Normal Mirroring"}));
  before = cluster.status();
  cluster.edit("/paused", true);
  cluster.settle();
  EXPECT_EQ(changes(before), Texts{"Warning Paused"});
}

// ---- the operator is killed

Json world_of(const Cluster& cluster) {
  Json sidecars = Json::object();
  for (const auto& [pod, object] : cluster.pods) sidecars[pod] = cluster.sidecars(pod);
  return {{"objects", cluster.object_names()},
          {"sidecars", sidecars},
          {"configuration", cluster.configuration()},
          {"conditions", cluster.mirror.is_null() ? Json() : cluster.status()["conditions"]}};
}

// Step by step through a life: whenever it is killed on the way, and whatever it remembered is
// gone, the step ends as it does without.
TEST(Killed, AtAnyWriteTheOperatorGoesOnToTheSameWorld) {
  using Step = std::pair<const char*, std::function<void(Cluster&)>>;
  const std::vector<Step> life{
      {"create", [](Cluster&) {}},
      {"change", [](Cluster& cluster) { cluster.edit("/replicate/percent", 50); }},
      {"ports", [](Cluster& cluster) { cluster.edit("/source/ports", {9090}); }},
      {"namespace", [](Cluster& cluster) { cluster.edit("/shadow/namespace", "other-shadow"); }},
      {"replicas", [](Cluster& cluster) { cluster.edit("/intercept/replicas", 2); }},
      {"pause", [](Cluster& cluster) { cluster.edit("/paused", true); }},
      {"go on", [](Cluster& cluster) { cluster.edit("/paused", false); }},
      {"delete", [](Cluster& cluster) { cluster.remove_mirror(); }}};
  Cluster cluster;
  cluster.add_namespace("other-shadow", {{names::accept_from, "shop"}});
  cluster.add_service("other-shadow");
  int kills = 0;
  for (const auto& [name, begin] : life) {
    begin(cluster);
    const Cluster before = cluster;
    cluster.pass(minutes(1));
    const Json wanted = world_of(cluster);
    for (int write = 0;; ++write) {
      Cluster other = before;
      other.writes_until_killed = write;
      try {
        other.pass(minutes(1));
        break;  // it came to the end before
      } catch (const Killed&) {
        ++kills;
        other.writes_until_killed = -1;
        other.forget();
        other.pass(before.now + minutes(1) - other.now);
      }
      EXPECT_EQ(world_of(other), wanted) << name << ", killed at write " << write;
    }
  }
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_GT(kills, 100);
}

}  // namespace
}  // namespace trafficmirror::controller
