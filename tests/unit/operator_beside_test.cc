// Mirrors whose shadow sees clients' addresses: intercepts beside its pods.
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "operator/intercept_container.h"
#include "operator/plan.h"
#include "tests/unit/operator_cluster.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

using Texts = std::vector<std::string>;

const std::string deployments_address = "10.0.2.9";

Cluster preserving(bool attaches = true) {
  Cluster cluster;
  cluster.abilities.ephemeral_containers = attaches;
  cluster.preserve_clients();
  cluster.add_shadow_pod("shadow-b", "10.0.0.7");
  return cluster;
}

Cluster mirroring() {
  Cluster cluster = preserving();
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  cluster.take_writes();
  return cluster;
}

TEST(Beside, AttachesAnInterceptToEachPodOfTheShadow) {
  Cluster cluster = mirroring();
  for (const char* pod : {"shadow-a", "shadow-b"})
    EXPECT_EQ(cluster.intercepts_beside(pod), Texts{"NAME running"}) << pod;
  EXPECT_EQ(cluster.listed(), (Texts{"10.0.0.6", "10.0.0.7", deployments_address}));
  EXPECT_EQ(cluster.condition("InterceptAvailable")["message"],
            "2 of 2 shadow pods have an intercept that is ready");
  EXPECT_EQ(cluster.status()["attached"], "3/3");
  const Json container = cluster.shadow_pods["shadow-a"]["spec"]["ephemeralContainers"][0];
  EXPECT_EQ(container["args"],
            Json({"--interface", "eth0", "--target", "8080=[$(POD_IP)]:8000", "--client-address",
                  "preserve", "--member-of", cluster.name() + ".shop-shadow.svc", "--http",
                  "0.0.0.0:19465", "--tls-peer",
                  "spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/sidecar"}));
  EXPECT_EQ(container["securityContext"]["capabilities"],
            Json::parse(R"({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]})"));
  for (const char* field : {"ports", "resources", "livenessProbe", "volumeMounts"})
    EXPECT_FALSE(container.contains(field)) << field;
}

// It tells the sidecars what to do, and has no sessions of its own.
TEST(Beside, HasTheDeploymentForWhatSidecarsAreTold) {
  Cluster cluster = mirroring();
  EXPECT_EQ(cluster.configuration().substr(0, 11), "target: []\n");
  const kube::Key key{"shop-shadow", cluster.name()};
  EXPECT_FALSE(cluster.object(resources::services, key)->at("spec").contains("selector"));
  const Json& policy = *cluster.object(resources::network_policies, key);
  EXPECT_EQ(policy["spec"]["podSelector"]["matchLabels"][names::component_label], "intercept")
      << "the shadow's own pods are nobody's to isolate";
  EXPECT_EQ(policy["spec"]["egress"], Json::array());
  cluster.edit("/replicate/percent", 10);
  cluster.settle();
  EXPECT_EQ(cluster.take_writes(),
            (Texts{"apply configmaps shop-shadow/NAME", "notify shop-shadow"}));
}

// That to the Deployment's carries no sessions.
TEST(Beside, MirrorsWhenSidecarsHaveStreamsToTheIntercepts) {
  Cluster cluster = preserving();
  cluster.streams_to_beside = false;
  cluster.settle();
  EXPECT_EQ(cluster.running_sidecars(), 3U);
  EXPECT_EQ(cluster.reason("Ready"), "NoStream");
  cluster.streams_to_beside = true;
  cluster.settle();
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

TEST(Beside, FollowsTheShadowsPods) {
  Cluster cluster = mirroring();
  cluster.add_shadow_pod("shadow-c", "10.0.0.8");
  cluster.shadow_pods.erase("shadow-a");
  Json& addresses = cluster.endpoints[{"shop-shadow", "checkout-v2"}]["subsets"][0]["addresses"];
  addresses.erase(0);
  cluster.settle();
  EXPECT_EQ(cluster.intercepts_beside("shadow-c"), Texts{"NAME running"});
  EXPECT_EQ(cluster.listed(), (Texts{"10.0.0.7", "10.0.0.8", deployments_address}));
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

TEST(Beside, StaysWithAPodThatIsNotReadyForAWhile) {
  Cluster cluster = mirroring();
  Json& addresses = cluster.endpoints[{"shop-shadow", "checkout-v2"}]["subsets"][0]["addresses"];
  const Json before = addresses;
  addresses.erase(0);
  cluster.settle();
  addresses = before;
  cluster.settle();
  EXPECT_EQ(cluster.intercepts_beside("shadow-a"), Texts{"NAME running"});
  for (const std::string& write : cluster.take_writes())
    EXPECT_FALSE(write.starts_with("attach") || write.starts_with("apply endpoints")) << write;
}

TEST(Beside, EndsWithTheMirrorByBeingListedNoLonger) {
  Cluster cluster = mirroring();
  cluster.remove_mirror();
  cluster.settle();
  EXPECT_TRUE(cluster.mirror.is_null());
  EXPECT_EQ(cluster.object_names(), std::set<std::string>());
  EXPECT_EQ(cluster.running_sidecars(), 0U);
  for (const char* pod : {"shadow-a", "shadow-b"})
    EXPECT_EQ(cluster.intercepts_beside(pod), Texts{"NAME terminated"}) << pod;
  // The sidecars first, which have their streams to them.
  const Texts writes = cluster.take_writes();
  EXPECT_EQ(writes[0], "apply configmaps shop-shadow/NAME");
}

TEST(Beside, IsReplacedWhenTheModeIsAnother) {
  Cluster cluster = mirroring();
  cluster.edit("/clientAddressPool", Json::array({"198.18.0.0/15", "fd00:1::/64"}));
  cluster.edit("/clientAddress", "Pool");
  cluster.pass(minutes(1));
  for (const char* pod : {"shadow-a", "shadow-b"})
    EXPECT_EQ(cluster.intercepts_beside(pod), (Texts{"NAME terminated", "NAME-2 running"})) << pod;
  EXPECT_NE(cluster.shadow_pods["shadow-a"]["spec"]["ephemeralContainers"][1]["args"].dump().find(
                "pool=198.18.0.0/15,fd00:1::/64"),
            std::string::npos);
  EXPECT_EQ(cluster.sidecars("checkout-a"), Texts{"NAME running"});
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);

  cluster.edit("/clientAddress", "Masquerade");
  cluster.remove_from_spec("", "clientAddressPool");
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.intercepts_beside("shadow-a"), (Texts{"NAME terminated", "NAME-2 terminated"}));
  EXPECT_FALSE(cluster.object_names().contains("endpoints shop-shadow/NAME"));
  EXPECT_NE(cluster.configuration().find("8080=10.0.0.6:8000"), std::string::npos);
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

// Its identity is in the environment, which does not change while it runs.
TEST(Beside, IsReplacedBeforeItsCertificateExpires) {
  Cluster cluster = mirroring();
  cluster.pass(hours(24 * 21));
  EXPECT_EQ(cluster.intercepts_beside("shadow-a"), (Texts{"NAME terminated", "NAME-2 running"}));
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
}

TEST(Beside, AnInterceptThatFailsIsFollowedByAnother) {
  Cluster cluster = preserving();
  cluster.sidecar_state["shadow-a"] = cluster.terminated(2);
  cluster.settle();
  EXPECT_EQ(cluster.listed(), (Texts{"10.0.0.7", deployments_address}));
  EXPECT_TRUE(cluster.is_ready()) << "one is enough, as of replicas";
  const std::string message = cluster.condition("InterceptAvailable")["message"];
  EXPECT_NE(message.find("1 of 2 shadow pods"), std::string::npos) << message;
  EXPECT_NE(message.find("pod shadow-a: the intercept ended with exit code 2"), std::string::npos)
      << message;
  cluster.sidecar_state.clear();
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.intercepts_beside("shadow-a"), (Texts{"NAME terminated", "NAME-2 running"}));
}

TEST(Beside, SaysWhatStandsInItsWay) {
  const auto reason = [](const std::function<void(Cluster&)>& change, bool attaches = true) {
    Cluster cluster = preserving(attaches);
    change(cluster);
    cluster.settle();
    EXPECT_EQ(cluster.reason("InterceptAvailable"), cluster.reason("Ready"));
    EXPECT_EQ(cluster.running_sidecars(), 0U) << "they would have nobody to send to";
    return cluster.reason("Ready");
  };
  EXPECT_EQ(reason([](Cluster& cluster) {
              for (const char* pod : {"shadow-a", "shadow-b"})
                cluster.refused[std::string("pod/") + pod] =
                    "pods \"shadow\" is forbidden: violates PodSecurity \"baseline:latest\"";
            }),
            "PodSecurityForbids");
  EXPECT_EQ(reason([](Cluster& cluster) {
              for (auto& [name, pod] : cluster.shadow_pods) pod["spec"]["hostNetwork"] = true;
            }),
            "HostNetwork");
  EXPECT_EQ(reason([](Cluster& cluster) { cluster.shadow_pods.clear(); }), "NoShadowPods");
  EXPECT_EQ(reason([](Cluster& cluster) { cluster.edit("/source/attach", "Sidecar"); }),
            "RestartNeeded");
  EXPECT_EQ(reason([](Cluster&) {}, false), "RestartNeeded");
  EXPECT_EQ(reason(
                [](Cluster& cluster) {
                  cluster.namespaces["shop-shadow"]["metadata"]["labels"].erase(names::inject);
                },
                false),
            "NamespaceNotLabelled");
}

TEST(Beside, ListsNoMoreThanSidecarsHaveStreamsTo) {
  Cluster cluster = mirroring();
  for (int i = 0; i < 20; ++i)
    cluster.add_shadow_pod("shadow-" + std::to_string(i), "10.0.3." + std::to_string(i));
  cluster.settle();
  EXPECT_EQ(cluster.listed().size(), 16U);
  EXPECT_NE(cluster.condition("InterceptAvailable")["message"].get<std::string>().find(
                "15 of 22 shadow pods"),
            std::string::npos);
}

TEST(Beside, IsInjectedWhereRunningPodsCanNotBeAttachedTo) {
  Cluster cluster = preserving(false);
  cluster.settle();
  EXPECT_EQ(cluster.reason("Ready"), "RestartNeeded");
  for (const char* pod : {"shadow-a", "shadow-b"}) cluster.shadow_pods.erase(pod);
  cluster.endpoints[{"shop-shadow", "checkout-v2"}]["subsets"][0]["addresses"] = Json::array();
  cluster.add_shadow_pod("shadow-c", "10.0.0.8");
  for (const char* pod : {"checkout-a", "checkout-b", "checkout-c"}) {
    cluster.pods.erase(pod);
    cluster.add_pod(pod, {{"app", "checkout"}, {names::inject, "enabled"}});
  }
  cluster.settle();
  EXPECT_EQ(cluster.intercepts_beside("shadow-c"), Texts{"NAME running"});
  EXPECT_EQ(cluster.listed(), (Texts{"10.0.0.8", deployments_address}));
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  // With files for its identity it is nobody's to replace.
  cluster.pass(hours(24 * 21));
  EXPECT_TRUE(cluster.is_ready()) << cluster.status().dump(2);
  cluster.edit("/paused", true);
  cluster.pass(minutes(1));
  EXPECT_EQ(cluster.intercepts_beside("shadow-c"), Texts{"NAME running"}) << "at rest";
  EXPECT_EQ(cluster.listed(), Texts());
}

// ---- what an intercept counts

TEST(Beside, CountsOnWhereAnInterceptBeganAnewInItsContainer) {
  Cluster cluster = mirroring();
  uint64_t exchanges = 40;
  cluster.reading_becomes = [&](Reading& reading) {
    if (reading.instance.find("shadow-a") != std::string::npos)
      reading.report->exchanges = exchanges;
  };
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 40);
  exchanges = 3;
  cluster.settle();
  EXPECT_EQ(cluster.status()["exchanges"], 43);
}

// ---- pods that are being created

TEST(Beside, FindsTheTargetsOfAPodByItsService) {
  Mirror mirror;
  mirror.shadow = ShadowService{"checkout-v2"};
  mirror.ports = {{8080}, {9090}, {7070}};
  const Json service = Json::parse(R"({"spec": {"selector": {"app": "v2"}, "ports": [
      {"port": 8080}, {"port": 9090, "targetPort": 9000},
      {"port": 7070, "targetPort": "admin"}]}})");
  const Json spec = Json::parse(
      R"({"containers": [{"name": "app", "ports": [{"name": "admin", "containerPort": 7000}]}]})");
  EXPECT_EQ(targets_of_new_pod(mirror, &service, {{"app", "v2"}}, spec),
            (std::vector<OwnTarget>{{{8080}, {8080}}, {{9090}, {9000}}, {{7070}, {7000}}}));
  EXPECT_EQ(targets_of_new_pod(mirror, &service, {{"app", "other"}}, spec),
            std::vector<OwnTarget>());
  EXPECT_EQ(targets_of_new_pod(mirror, nullptr, {{"app", "v2"}}, spec), std::vector<OwnTarget>());

  mirror.shadow = Json{{"matchLabels", {{"app", "v2"}}}};
  mirror.ports = {{8080}};
  mirror.shadow_port = net::Port{8000};
  EXPECT_EQ(targets_of_new_pod(mirror, nullptr, {{"app", "v2"}}, spec),
            (std::vector<OwnTarget>{{{8080}, {8000}}}));
}

// ---- the container

InterceptSettings settings() {
  return {.name = "trafficmirror-intercept-0a1b2c3d",
          .image = "example.org/intercept:1",
          .image_pull_policy = "Never",
          .targets = {{{8080}, {8000}}},
          .client_address = "preserve",
          .member_of = "name.shop-shadow.svc",
          .tls_peer = "spiffe://sidecar",
          .secret = "name",
          .identity_revision = "1"};
}

TEST(InterceptContainer, IsAnotherRevisionWithAnotherIdentity) {
  InterceptSettings other = settings();
  other.identity_revision = "2";
  EXPECT_NE(revision_of(ephemeral_container(settings())), revision_of(ephemeral_container(other)));
  const auto injected = [](const InterceptSettings& of) {
    return revision_of(injected_container(of, InjectedAs::container, Requests::little));
  };
  EXPECT_EQ(injected(settings()), injected(other));
}

TEST(InterceptContainer, IsInjectedToStayWithItsIdentityInFiles) {
  const Json container =
      injected_container(settings(), InjectedAs::native_sidecar, Requests::limits);
  EXPECT_EQ(container["restartPolicy"], "Always");
  EXPECT_EQ(container["args"].back(), "--stay");
  EXPECT_EQ(container["volumeMounts"][0]["name"], identity_volume(settings())["name"]);
  EXPECT_EQ(identity_volume(settings())["secret"]["secretName"], "name");
  EXPECT_EQ(container["resources"]["requests"], container["resources"]["limits"]);
  InterceptSettings given = settings();
  given.resources = Json::parse(R"({"limits": {"memory": "1Gi"}})");
  EXPECT_EQ(injected_container(given, InjectedAs::container, Requests::little)["resources"],
            given.resources);
  // A pod is ready whatever becomes of it.
  for (const char* field : {"readinessProbe", "livenessProbe", "startupProbe"})
    EXPECT_FALSE(container.contains(field)) << field;
}

}  // namespace
}  // namespace trafficmirror::controller
