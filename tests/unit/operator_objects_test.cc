// What is made for a mirror: safe by itself, and fit for one another.
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "operator/names.h"
#include "operator/objects.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

Mirror mirror_of_shop() {
  Mirror mirror;
  mirror.key = {"shop", "checkout-v2"};
  mirror.selector = {{"matchLabels", {{"app", "checkout"}}}};
  mirror.ports = {{8080}};
  mirror.shadow_namespace = "shop-shadow";
  return mirror;
}

Target target(const char* endpoint, net::ProductionPort production = {8080}) {
  return {production, *net::Endpoint::parse(endpoint)};
}

InterceptInput input_of_shop() {
  InterceptInput input;
  input.targets = {target("10.0.0.5:8000"), target("10.0.0.6:8001")};
  input.production_namespace_labels = {{"kubernetes.io/metadata.name", "shop"}};
  input.intercept_leaf = {{"tls.crt", "ic"}, {"tls.key", "ik"}, {"ca.crt", "ca"}};
  input.sidecar_leaf = {{"tls.crt", "sc"}, {"tls.key", "sk"}, {"ca.crt", "ca"}};
  return input;
}

const Settings settings{.operator_namespace = "trafficmirror",
                        .sidecar_image = "example.org/sidecar:1",
                        .intercept_image = "example.org/intercept:1"};

std::map<std::string, Json> objects_by_kind(const Mirror& mirror, const InterceptInput& input,
                                            const Abilities& abilities = {.policy_v1 = true}) {
  std::map<std::string, Json> objects;
  for (const WantedObject& wanted : objects_for(mirror, input, settings, abilities)) {
    const std::string kind = wanted.object["kind"];
    const bool second = kind == "Secret" && wanted.object["metadata"]["namespace"] == "shop";
    objects[second ? "sidecars' Secret" : kind] = wanted.object;
  }
  return objects;
}

TEST(Objects, AreAllThatAreNamedAndCarryTheMirrorsName) {
  const auto objects = objects_by_kind(mirror_of_shop(), input_of_shop());
  std::vector<std::string> kinds;
  for (const auto& [kind, object] : objects) {
    kinds.push_back(kind);
    EXPECT_EQ(mirror_of(object), (kube::Key{"shop", "checkout-v2"})) << kind;
    EXPECT_EQ(object["metadata"]["labels"][names::managed_by_label], names::managed_by) << kind;
    EXPECT_EQ(object["metadata"]["namespace"], kind == "sidecars' Secret" ? "shop" : "shop-shadow");
  }
  EXPECT_EQ(kinds, (std::vector<std::string>{"ConfigMap", "Deployment", "NetworkPolicy", "Secret",
                                             "Service", "ServiceAccount", "sidecars' Secret"}));
}

TEST(Objects, LeaveTheInterceptNoMoreRightsThanItNeeds) {
  const auto objects = objects_by_kind(mirror_of_shop(), input_of_shop());
  const Json& pod = objects.at("Deployment")["spec"]["template"]["spec"];
  EXPECT_EQ(pod["automountServiceAccountToken"], false);
  EXPECT_EQ(objects.at("ServiceAccount")["automountServiceAccountToken"], false);
  EXPECT_EQ(pod["serviceAccountName"], objects.at("ServiceAccount")["metadata"]["name"]);
  for (const char* host : {"hostNetwork", "hostPID", "hostIPC"}) EXPECT_FALSE(pod.contains(host));
  ASSERT_EQ(pod["containers"].size(), 1u);
  const Json& security = pod["containers"][0]["securityContext"];
  EXPECT_EQ(security["capabilities"],
            Json::parse(R"({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]})"));
  EXPECT_EQ(security["allowPrivilegeEscalation"], false);
  EXPECT_EQ(security["readOnlyRootFilesystem"], true);
  EXPECT_FALSE(security.contains("privileged"));
  for (const Json& mount : pod["containers"][0]["volumeMounts"]) EXPECT_EQ(mount["readOnly"], true);
}

TEST(Objects, FindOneAnother) {
  const auto objects = objects_by_kind(mirror_of_shop(), input_of_shop());
  const Json& deployment = objects.at("Deployment")["spec"];
  const Json& labels = deployment["template"]["metadata"]["labels"];
  for (const Json* selector :
       {&deployment["selector"]["matchLabels"], &objects.at("Service")["spec"]["selector"],
        &objects.at("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]}) {
    EXPECT_FALSE(selector->empty());
    for (const auto& [key, value] : selector->items()) EXPECT_EQ(labels[key], value);
  }
  EXPECT_EQ(objects.at("Service")["spec"]["clusterIP"], "None");
  const net::HostPort address = intercept_address(mirror_of_shop());
  EXPECT_EQ(address.host,
            objects.at("Service")["metadata"]["name"].get<std::string>() + ".shop-shadow.svc");
  EXPECT_EQ(address.port.number, objects.at("Service")["spec"]["ports"][0]["port"]);
  const Json& volumes = deployment["template"]["spec"]["volumes"];
  EXPECT_EQ(volumes[0]["configMap"]["name"], objects.at("ConfigMap")["metadata"]["name"]);
  EXPECT_EQ(volumes[1]["secret"]["secretName"], objects.at("Secret")["metadata"]["name"]);
}

// The intercept gets the sidecars' identity too, to hand it on; the sidecars never its.
TEST(Objects, KeepTheInterceptsKeyOutOfProductionsNamespace) {
  const auto objects = objects_by_kind(mirror_of_shop(), input_of_shop());
  const auto data = [&](const char* kind) { return kube::data_of(objects.at(kind)); };
  EXPECT_EQ(data("Secret"), (kube::SecretData{{"tls.crt", "ic"},
                                              {"tls.key", "ik"},
                                              {"ca.crt", "ca"},
                                              {"sidecar.crt", "sc"},
                                              {"sidecar.key", "sk"}}));
  EXPECT_EQ(data("sidecars' Secret"),
            (kube::SecretData{{"tls.crt", "sc"}, {"tls.key", "sk"}, {"ca.crt", "ca"}}));
}

TEST(NetworkPolicy, LetsInSidecarsAndTheOperatorAndOutToTheShadowAlone) {
  const auto objects = objects_by_kind(mirror_of_shop(), input_of_shop());
  const Json& policy = objects.at("NetworkPolicy")["spec"];
  EXPECT_EQ(policy["policyTypes"], (Json{"Ingress", "Egress"}));
  EXPECT_EQ(policy["ingress"], Json::parse(R"([
      {"from": [{"podSelector": {"matchLabels": {"app": "checkout"}},
                 "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}],
       "ports": [{"protocol": "TCP", "port": 7443}]},
      {"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name":
                                                   "trafficmirror-operator"}},
                 "namespaceSelector": {}}],
       "ports": [{"protocol": "TCP", "port": 9464}]}])"));
  EXPECT_EQ(policy["egress"], Json::parse(R"([
      {"ports": [{"protocol": "TCP", "port": 8000}, {"protocol": "TCP", "port": 8001}],
       "to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}, {"ipBlock": {"cidr": "10.0.0.6/32"}}]}])"));
}

TEST(NetworkPolicy, LetsOutByTheTargetsProtocols) {
  InterceptInput input = input_of_shop();
  input.targets = {target("10.0.0.5:53", {53}), target("10.0.0.5:53", {53, net::Protocol::udp})};
  EXPECT_EQ(objects_by_kind(mirror_of_shop(), input).at("NetworkPolicy")["spec"]["egress"],
            Json::parse(R"([
      {"ports": [{"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}],
       "to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}]}])"));
}

// Some networks (Cilium) do not apply address blocks to pods.
TEST(NetworkPolicy, NamesTheShadowsPodsWhereTheyAreKnown) {
  InterceptInput input = input_of_shop();
  input.shadow_selector = {{"matchLabels", {{"version", "v2"}}}};
  const auto objects = objects_by_kind(mirror_of_shop(), input);
  EXPECT_EQ(objects.at("NetworkPolicy")["spec"]["egress"][0]["to"],
            Json::parse(R"([{"podSelector": {"matchLabels": {"version": "v2"}}}])"));
}

TEST(NetworkPolicy, LetsNothingOutWhereThereIsNoTarget) {
  InterceptInput input = input_of_shop();
  input.targets.clear();
  EXPECT_EQ(objects_by_kind(mirror_of_shop(), input).at("NetworkPolicy")["spec"]["egress"],
            Json::array());
}

TEST(DisruptionBudget, IsThereWhereOneOfSeveralCanGo) {
  Mirror mirror = mirror_of_shop();
  EXPECT_FALSE(objects_by_kind(mirror, input_of_shop()).contains("PodDisruptionBudget"));
  mirror.replicas = 2;
  EXPECT_EQ(objects_by_kind(mirror, input_of_shop()).at("PodDisruptionBudget")["apiVersion"],
            "policy/v1");
  EXPECT_EQ(objects_by_kind(mirror, input_of_shop(), {.policy_v1 = false})
                .at("PodDisruptionBudget")["apiVersion"],
            "policy/v1beta1");
}

TEST(Deployment, TakesWhatTheSpecSaysOfPlaceAndSize) {
  Mirror mirror = mirror_of_shop();
  mirror.replicas = 4;
  mirror.resources = {{"limits", {{"memory", "1Gi"}}}};
  mirror.node_selector = {{"disk", "fast"}};
  mirror.tolerations = Json::array({{{"key", "dedicated"}, {"operator", "Exists"}}});
  const Json spec = objects_by_kind(mirror, input_of_shop()).at("Deployment")["spec"];
  const Json& pod = spec["template"]["spec"];
  EXPECT_EQ(spec["replicas"], 4);
  EXPECT_EQ(pod["containers"][0]["resources"], mirror.resources);
  EXPECT_EQ(pod["nodeSelector"], mirror.node_selector);
  EXPECT_EQ(pod["tolerations"], mirror.tolerations);
}

// Whatever changes while it runs is in the ConfigMap; another template would end all sessions.
TEST(Deployment, IsTheSameWithOtherLimitsAndTargets) {
  Mirror mirror = mirror_of_shop();
  InterceptInput input = input_of_shop();
  const Json before = objects_by_kind(mirror, input).at("Deployment");
  const Json configuration = objects_by_kind(mirror, input).at("ConfigMap");
  mirror.percent = 0.1;
  mirror.memory = "1Gi";
  mirror.max_sessions = 1;
  mirror.copies = 3;
  mirror.max_rate = 50;
  mirror.filter = "host 10.0.0.1 and\n(port 80)";
  mirror.turns = program::Turns::off;
  mirror.max_lag = "500ms";
  mirror.over_lag = program::OverLag::catch_up;
  input.stop_sidecars = true;
  input.targets.clear();
  EXPECT_EQ(objects_by_kind(mirror, input).at("Deployment"), before);
  EXPECT_EQ(objects_by_kind(mirror, input).at("ConfigMap")["data"]["intercept.yaml"],
            "target: []\npercent: 0.1\nfilter: \"host 10.0.0.1 and\\n(port 80)\"\ncopies: "
            "3\nmax-rate: 50\nturns: off\nmax-lag: 500ms\n"
            "over-lag: catch-up\nmax-sessions: 1\nmemory-limit: 1Gi\nstop-sidecars: true\n");
  EXPECT_NE(objects_by_kind(mirror, input).at("ConfigMap"), configuration);
}

}  // namespace
}  // namespace trafficmirror::controller
