// What a person reads, out of objects as the operator leaves them in a cluster.
#include <gtest/gtest.h>

#include "kubectl/leadership.h"
#include "kubectl/status.h"
#include "kubectl/text.h"
#include "operator/kube/wall_time.h"
#include "tests/unit/operator_cluster.h"

namespace trafficmirror::kubectl {
namespace {

using controller::Cluster;
using kube::Json;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;
using Pods = kube::Result<std::vector<Json>>;

const Leadership leads{Leadership::State::leads, "one leads, in namespace trafficmirror"};

class KubectlStatus : public testing::Test {
 protected:
  KubectlStatus() { cluster.settle(); }

  // The pods of production's namespace.
  std::vector<Json> pods() const {
    std::vector<Json> all;
    for (const auto& [name, pod] : cluster.pods) all.push_back(pod);
    return all;
  }
  Told one(const Leadership& leadership = leads) const {
    return status_of_one(cluster.mirror, Pods(pods()), leadership, cluster.now);
  }
  Told all(std::vector<Json> mirrors, const Leadership& leadership = leads) const {
    return status_of_all(mirrors, "namespace shop", leadership, cluster.now);
  }
  Json named(const std::string& name) const {
    Json other = cluster.mirror;
    other["metadata"]["name"] = name;
    return other;
  }

  Cluster cluster;
};

TEST_F(KubectlStatus, OfOneThatMirrors) {
  cluster.edit("/duration", "2h");
  cluster.count(10234, 3);
  cluster.pass(minutes(5));
  const Told told = one();
  EXPECT_TRUE(told.well);
  EXPECT_EQ(told.text,
            "shop/checkout-v2 is Ready: 3 of 3 pods stream to the intercept\n"
            "\n"
            "  copies     all connections to port 8080 of pods app=checkout\n"
            "  to         Service shop-shadow/checkout-v2\n"
            "  since      2030-03-17T17:46:40Z, 5m ago; it ends after 2h\n"
            "  pods       3 of 3 have a sidecar\n"
            "  sessions   12 now\n"
            "  exchanges  10,234 answered by the shadow\n"
            "  shed       3, by reason in the sidecars' /metrics\n"
            "\n"
            "  Consented           True  namespace shop-shadow accepts traffic of shop\n"
            "  InterceptAvailable  True  1 of 1 intercepts are ready\n"
            "  Attached            True  3 of 3 pods have a sidecar\n"
            "  ReplyPathVerified   True  the shadow's replies come back to the intercept\n"
            "  Mirroring           True  3 of 3 pods stream to the intercept\n");
}

TEST_F(KubectlStatus, OfOneSaysWhichConnectionsAreCopied) {
  cluster.edit("/source/ports", {53, "53/udp"});
  cluster.edit("/replicate", {{"percent", 12.5}, {"filter", "src net 10.1.0.0/16\nor port 7"}});
  EXPECT_NE(one().text.find("  12.5% of the connections to port 53, 53/udp of pods app=checkout, "
                            "as far as they are src net 10.1.0.0/16 or port 7\n"),
            std::string::npos)
      << one().text;
}

TEST_F(KubectlStatus, OfOneThatReplaysSaysHowFarItIs) {
  cluster.replay_a_capture();
  cluster.replay_progress = {.packets = 12345, .percent = 40};
  cluster.pass(minutes(1));
  Told told = one();
  EXPECT_TRUE(told.well);
  EXPECT_EQ(told.text.find("shop/checkout-v2 is Ready: web.pcap of PersistentVolumeClaim captures "
                           "is replayed\n\n"
                           "  replays    all connections to port 8080 in web.pcap of "
                           "PersistentVolumeClaim captures\n"),
            0U)
      << told.text;
  EXPECT_NE(told.text.find("  replay     Running, 12,345 packets, 40 % of the capture\n"),
            std::string::npos)
      << told.text;
  EXPECT_EQ(told.text.find("  pods "), std::string::npos) << told.text;
  EXPECT_EQ(told.text.find("Attached"), std::string::npos) << told.text;

  cluster.end_replay(0, "web.pcap: 54.1 s of the capture in 4.8 s\n  packets  9 read\n");
  cluster.pass(minutes(1));
  told = one();
  EXPECT_TRUE(told.well);
  EXPECT_EQ(told.text.find("shop/checkout-v2 is stopped, as wanted: web.pcap of"), 0U) << told.text;
  EXPECT_NE(told.text.find("  replay     Succeeded\n"), std::string::npos) << told.text;
  EXPECT_NE(told.text.find("\n\n  web.pcap: 54.1 s of the capture in 4.8 s\n"
                           "    packets  9 read\n\n"),
            std::string::npos)
      << told.text;
}

TEST_F(KubectlStatus, OfOneTellsWhichPodsHaveNoSidecarAndWhy) {
  cluster.sidecar_state["checkout-d"] =
      Json::parse(R"({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})");
  cluster.sidecar_state["checkout-e"] =
      Json::parse(R"({"terminated": {"exitCode": 2, "reason": "Error"}})");
  for (const char* name : {"checkout-d", "checkout-e", "checkout-f"}) cluster.add_pod(name);
  cluster.refused["pod/checkout-f"] = "no such right";
  cluster.settle();
  const Told told = one();
  EXPECT_FALSE(told.well);
  EXPECT_NE(
      told.text.find("  pods       3 of 6 have a sidecar\n"
                     "             checkout-d: its sidecar waits: ImagePullBackOff: no such image\n"
                     "             checkout-e: its sidecar ended with exit code 2: Error\n"
                     "             checkout-f: no sidecar\n"),
      std::string::npos)
      << told.text;
  EXPECT_EQ(
      told.text.find(
          "shop/checkout-v2 is not Ready:\n"
          "  ImagePullFailed  3 of 6 pods have a sidecar; pod checkout-d: the sidecar's image "
          "can't be pulled (ImagePullBackOff): no such image; see"),
      0U)
      << told.text;
  // Behind the cause, its condition is named and not told once more.
  EXPECT_NE(told.text.find("  Attached            False  ImagePullFailed\n"), std::string::npos)
      << told.text;
}

TEST_F(KubectlStatus, OfOneWhosePodsMayNotBeListed) {
  const Told told = status_of_one(cluster.mirror, Pods(kube::Error{.message = "pods is forbidden"}),
                                  leads, cluster.now);
  EXPECT_TRUE(told.well);
  EXPECT_NE(told.text.find("  pods       3 of 3 have a sidecar\n"
                           "             which have none is not known: pods is forbidden\n"),
            std::string::npos)
      << told.text;
}

TEST_F(KubectlStatus, OfMany) {
  cluster.count(1234567, 0);
  cluster.pass(minutes(1));
  const Json ready = named("a-ready");
  cluster.edit("/paused", true);
  cluster.settle();
  const Json paused = named("b-paused");
  cluster.edit("/paused", false);
  cluster.annotate("shop-shadow", "others");
  cluster.settle();
  const Json refused = named("c-refused");
  Json new_one = named("d-new");
  new_one["status"] = Json::object();
  new_one["metadata"]["creationTimestamp"] = kube::to_text(cluster.now - seconds(5));

  const Told told = all({ready, paused, refused, new_one});
  EXPECT_FALSE(told.well);
  EXPECT_EQ(told.text,
            "NAMESPACE  NAME       READY    REASON      PODS  SESSIONS  EXCHANGES  SHED  AGE\n"
            "shop       a-ready    yes      Mirroring   3/3   12        1,234,567  0     75d\n"
            "shop       b-paused   stopped  Paused      0/3   0         1,234,567  0     75d\n"
            "shop       c-refused  no       NotGranted  0/3   0         1,234,567  0     75d\n"
            "shop       d-new      no       NotSeen     -     0         0          0     5s\n"
            "\n"
            "shop/c-refused is not Ready:\n"
            "  NotGranted  namespace shop-shadow does not accept traffic of shop: kubectl annotate "
            "namespace shop-shadow trafficmirror.dev/accept-from=others,shop --overwrite\n"
            "\n"
            "shop/d-new is not Ready:\n"
            "  NotSeen  the operator has not looked at it since it was changed\n");
  EXPECT_TRUE(all({ready, paused}).well);
}

TEST_F(KubectlStatus, TellsTheFirstCauseFirstAndNothingThatOnlyFollowsFromIt) {
  cluster.services.clear();
  cluster.pods.clear();
  cluster.settle();
  const std::string text = all({cluster.mirror}).text;
  EXPECT_NE(text.find("shop/checkout-v2 is not Ready:\n"
                      "  ServiceNotFound  there is no Service shop-shadow/checkout-v2: create it, "
                      "or correct spec.shadow.service.name\n"
                      "  NoPods           no pod of namespace shop matches spec.source.selector: "
                      "compare it with the pods' labels\n"),
            std::string::npos)
      << text;
}

TEST_F(KubectlStatus, OfOneThatIsStoppedAsWanted) {
  cluster.count(7, 1);
  cluster.pass(minutes(1));
  cluster.edit("/paused", true);
  cluster.settle();
  const Told told = one();
  EXPECT_TRUE(told.well);
  EXPECT_EQ(told.text.find("shop/checkout-v2 is stopped, as wanted: spec.paused is true: set it to "
                           "false to go on\n"),
            0U)
      << told.text;
  EXPECT_EQ(told.text.find("no sidecar"), std::string::npos) << told.text;
  EXPECT_EQ(counts_of(cluster.mirror), "7 exchanges, 1 shed");
}

// One that never began is stopped, too, but not as anybody wants.
TEST_F(KubectlStatus, AMirrorWithoutConsentIsNotStoppedAsWanted) {
  cluster.annotate("shop-shadow", "others");
  cluster.settle();
  EXPECT_EQ(cluster.reason("Mirroring"), "Stopped");
  EXPECT_FALSE(one().well);
}

TEST_F(KubectlStatus, SaysThatNobodyLeads) {
  const Leadership nobody{Leadership::State::nobody, "no operator leads: the Lease is gone"};
  EXPECT_FALSE(one(nobody).well);
  EXPECT_TRUE(one(nobody).text.ends_with(
      "\nWhat is said above may be old: no operator leads: the Lease is gone\n"));
  EXPECT_FALSE(all({}, nobody).well);
  const Leadership unknown{Leadership::State::unknown, "leases is forbidden"};
  EXPECT_TRUE(all({cluster.mirror}, unknown).well);
  EXPECT_TRUE(
      all({cluster.mirror}, unknown).text.ends_with("\nNot checked: leases is forbidden\n"));
}

TEST_F(KubectlStatus, OfNone) {
  EXPECT_EQ(all({}).text, "No TrafficMirrors in namespace shop.\n");
  EXPECT_TRUE(all({}).well);
}

Json lease(const std::string& holder, const std::string& renewed) {
  return {
      {"metadata", {{"namespace", "trafficmirror"}, {"name", "trafficmirror-operator"}}},
      {"spec", {{"holderIdentity", holder}, {"renewTime", renewed}, {"leaseDurationSeconds", 15}}}};
}

TEST(KubectlLeadership, IsThatOfALeaseThatIsRenewed) {
  const auto now = *kube::time_of("2030-01-01T00:10:00Z");
  const Json fresh = lease("one", "2030-01-01T00:09:58.123456Z");
  const Json old = lease("one", "2030-01-01T00:05:00.000000Z");
  EXPECT_EQ(judge_leadership({fresh}, now).state, Leadership::State::leads);
  EXPECT_EQ(judge_leadership({fresh}, now).text, "one leads, in namespace trafficmirror");
  EXPECT_EQ(judge_leadership({old, fresh}, now).state, Leadership::State::leads);
  EXPECT_EQ(judge_leadership({old}, now).state, Leadership::State::nobody);
  EXPECT_EQ(judge_leadership({old}, now).text,
            "no operator leads: the Lease trafficmirror/trafficmirror-operator is one's, renewed "
            "5m ago; kubectl get pods -n trafficmirror -l "
            "app.kubernetes.io/name=trafficmirror-operator says whether it runs");
  EXPECT_EQ(judge_leadership({lease("", "2030-01-01T00:09:59.000000Z")}, now).state,
            Leadership::State::nobody);
  EXPECT_EQ(judge_leadership({}, now).text,
            "no operator has ever led in this cluster: helm install trafficmirror "
            "deploy/helm/trafficmirror -n trafficmirror --create-namespace");
}

TEST(KubectlText, IsWrittenForPeople) {
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(with_commas(1000), "1,000");
  EXPECT_EQ(with_commas(1234567), "1,234,567");
  EXPECT_EQ(age_of(seconds(119)), "119s");
  EXPECT_EQ(age_of(seconds(120)), "2m");
  EXPECT_EQ(age_of(hours(47)), "47h");
  EXPECT_EQ(age_of(hours(48)), "2d");
  EXPECT_EQ(list_of({"a", "b", "c", "d", "e"}), "a, b, c and 2 more");
  EXPECT_EQ(selector_text(Json::parse(R"({"matchLabels": {"app": "a"}, "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["x", "y"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "new", "operator": "Exists"},
                {"key": "zone", "operator": "NotIn", "values": ["z"]}]})")),
            "app=a,tier in (x,y),!old,new,zone notin (z)");
  EXPECT_EQ(selector_text(Json::object()), "any");
}

}  // namespace
}  // namespace trafficmirror::kubectl
