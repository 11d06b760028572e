// How the doctor asks a server of today: with dry runs only, and taking its refusals for what they
// are.
#include <algorithm>

#include <gtest/gtest.h>

#include "kubectl/examine.h"
#include "operator/names.h"
#include "tests/kube_server/kube_server.h"

namespace trafficmirror::kubectl {
namespace {

using kube::Json;
using kube::KubeServer;

namespace resources = controller::resources;

class KubectlExamine : public testing::Test {
 protected:
  KubectlExamine() {
    server.serve("/version", {{"major", "1"}, {"minor", "31"}});
    server.serve("/api/v1", Json::parse(R"({"resources": [
        {"name": "pods", "kind": "Pod"}, {"name": "pods/ephemeralcontainers", "kind": "Pod"}]})"));
    server.serve("/apis/trafficmirror.dev/v1alpha1",
                 Json::parse(R"({"resources": [{"name": "trafficmirrors"}]})"));
    server.put(resources::namespaces, {{"metadata", {{"name", "shop"}}}});
    server.put(
        resources::namespaces,
        {{"metadata",
          {{"name", "shop-shadow"}, {"annotations", {{controller::names::accept_from, "shop"}}}}}});
    server.put(resources::pods, Json::parse(R"({
        "metadata": {"namespace": "shop", "name": "checkout-a", "labels": {"app": "checkout"}},
        "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {"phase": "Running"}})"));
  }

  Examination examined() {
    const auto discovery = kube::Discovery::ask(client, controller::groups_to_discover());
    EXPECT_TRUE(discovery);
    return examine(client, *discovery, mirror, {Leadership::State::leads, "one leads"});
  }

  KubeServer server;
  kube::Client client{server.config(), "test"};
  Json mirror = Json::parse(R"({
      "apiVersion": "trafficmirror.dev/v1alpha1", "kind": "TrafficMirror",
      "metadata": {"name": "checkout-v2", "namespace": "shop"},
      "spec": {"source": {"selector": {"matchLabels": {"app": "checkout"}}, "ports": [8080]},
               "shadow": {"namespace": "shop-shadow", "service": {"name": "checkout-v2"}}}})");
};

TEST_F(KubectlExamine, LooksForTheSecretThatIsNamed) {
  mirror["spec"]["shadow"]["logins"] =
      Json::parse(R"({"ports": [{"port": 8080, "protocol": "MySQL"}], "secretName": "logins"})");
  EXPECT_TRUE(examined().logins_secret->empty());
  server.put(resources::secrets, {{"metadata", {{"namespace", "shop"}, {"name", "logins"}}}});
  EXPECT_EQ(examined().logins_secret->size(), 1U);
}

TEST_F(KubectlExamine, WritesNothingButAsADryRun) {
  const Examination seen = examined();
  EXPECT_EQ(seen.server, (kube::Version{1, 31}));
  EXPECT_TRUE(seen.abilities.ephemeral_containers);
  EXPECT_FALSE(seen.refused || seen.intercept_refused);
  EXPECT_TRUE(seen.shadow_service && seen.shadow_service->empty());
  std::vector<std::string> writes;
  for (const KubeServer::Request& request : server.requests()) {
    if (request.method == "GET") continue;
    writes.push_back(request.method + " " + request.path);
    EXPECT_NE(request.query.find("dryRun=All"), std::string::npos) << writes.back();
  }
  EXPECT_EQ(writes,
            (std::vector<std::string>{
                "PATCH /apis/trafficmirror.dev/v1alpha1/namespaces/shop/trafficmirrors/checkout-v2",
                "POST /api/v1/namespaces/shop-shadow/pods",
                "PATCH /api/v1/namespaces/shop/pods/checkout-a/ephemeralcontainers"}));
}

TEST_F(KubectlExamine, FindsWhatPodSecurityRefuses) {
  server.inject({.matches =
                     [](const KubeServer::Request& request) {
                       return request.method != "GET" &&
                              request.path.find("/pods") != std::string::npos;
                     },
                 .times = 2,
                 .status = 403,
                 .body = R"({"kind": "Status", "reason": "Forbidden", "code": 403,
                             "message": "pods \"x\" is forbidden: violates PodSecurity \"baseline:latest\""})"});
  std::vector<std::string> failures;
  for (const Finding& finding : findings_of(examined()))
    if (finding.check == "admission" && finding.level == Finding::Level::failure)
      failures.push_back(finding.text.substr(0, finding.text.find(':')));
  EXPECT_EQ(failures, (std::vector<std::string>{
                          "Pod Security of namespace shop forbids NET_RAW",
                          "Pod Security of namespace shop-shadow forbids NET_ADMIN and NET_RAW"}));
}

}  // namespace
}  // namespace trafficmirror::kubectl
