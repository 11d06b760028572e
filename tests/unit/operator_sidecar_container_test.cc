#include <gtest/gtest.h>

#include "operator/kube/base64.h"
#include "operator/kube/secret.h"
#include "operator/pods.h"
#include "operator/sidecar_container.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

SidecarSettings settings() {
  return {.name = "trafficmirror-checkout-v2-0a1b2c3d",
          .image = "example.org/trafficmirror:1",
          .image_pull_policy = "IfNotPresent",
          .ports = {{8080}, {8443}},
          .interface = "eth0",
          .intercept = {"trafficmirror-checkout-v2-0a1b2c3d.shop-shadow.svc", {7443}},
          .tls_peer = "spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/intercept",
          .secret = "trafficmirror-checkout-v2-0a1b2c3d"};
}

const Json args =
    Json::array({"--port", "8080", "--port", "8443", "--interface", "eth0", "--intercept",
                 "trafficmirror-checkout-v2-0a1b2c3d.shop-shadow.svc:7443", "--tls-peer",
                 "spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/intercept",
                 "--memory-limit", "64Mi", "--outlive-production"});

Json args_and(std::initializer_list<const char*> more) {
  Json all = args;
  for (const char* argument : more) all.push_back(argument);
  return all;
}

const Json security_context = Json::parse(R"({
    "capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]},
    "allowPrivilegeEscalation": false,
    "privileged": false,
    "readOnlyRootFilesystem": true,
    "runAsUser": 0,
    "runAsNonRoot": false,
    "seccompProfile": {"type": "RuntimeDefault"}})");

const Json pod_name = Json::parse(
    R"({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})");

TEST(SidecarContainer, IsEphemeralWithItsIdentityInTheEnvironment) {
  const auto from_secret = [](const char* variable, const char* key) -> Json {
    return {{"name", variable},
            {"valueFrom",
             {{"secretKeyRef", {{"name", "trafficmirror-checkout-v2-0a1b2c3d"}, {"key", key}}}}}};
  };
  const Json wanted = {
      {"name", "trafficmirror-checkout-v2-0a1b2c3d"},
      {"image", "example.org/trafficmirror:1"},
      {"imagePullPolicy", "IfNotPresent"},
      {"args", args_and({"--give-up-after", "600s"})},
      {"env", Json::array({pod_name, from_secret("TRAFFICMIRROR_TLS_CERTIFICATE", "tls.crt"),
                           from_secret("TRAFFICMIRROR_TLS_KEY", "tls.key"),
                           from_secret("TRAFFICMIRROR_TLS_CA", "ca.crt")})},
      {"securityContext", security_context}};
  EXPECT_EQ(ephemeral_container(settings()), wanted);
}

TEST(SidecarContainer, IsInjectedWithItsIdentityInFiles) {
  Json wanted = {{"name", "trafficmirror-checkout-v2-0a1b2c3d"},
                 {"image", "example.org/trafficmirror:1"},
                 {"imagePullPolicy", "IfNotPresent"},
                 {"args", args_and({"--tls-certificate", "/etc/trafficmirror/tls/tls.crt",
                                    "--tls-key", "/etc/trafficmirror/tls/tls.key", "--tls-ca",
                                    "/etc/trafficmirror/tls/ca.crt", "--stay"})},
                 {"env", Json::array({pod_name})},
                 {"volumeMounts", Json::parse(R"([{"name": "trafficmirror-checkout-v2-0a1b2c3d",
                                        "mountPath": "/etc/trafficmirror/tls",
                                        "readOnly": true}])")},
                 {"resources", Json::parse(R"({"requests": {"cpu": "10m", "memory": "64Mi"},
                                    "limits": {"cpu": "500m", "memory": "128Mi"}})")},
                 {"securityContext", security_context}};
  EXPECT_EQ(injected_container(settings(), InjectedAs::container, Requests::little), wanted);
  wanted["restartPolicy"] = "Always";
  EXPECT_EQ(injected_container(settings(), InjectedAs::native_sidecar, Requests::little), wanted);

  EXPECT_EQ(identity_volume(settings()), Json::parse(R"({
      "name": "trafficmirror-checkout-v2-0a1b2c3d",
      "secret": {"secretName": "trafficmirror-checkout-v2-0a1b2c3d", "optional": true,
                 "defaultMode": 256}})"));
}

TEST(SidecarContainer, RequestsAllOfItsLimitsInAPodOfClassGuaranteed) {
  const Json resources =
      injected_container(settings(), InjectedAs::container, Requests::limits).at("resources");
  EXPECT_EQ(resources.at("requests"), resources.at("limits"));
}

TEST(SidecarContainer, NamesPortsOfUdpAsTheProgramDoes) {
  SidecarSettings some = settings();
  some.ports = {{53}, {53, net::Protocol::udp}};
  const Json its = ephemeral_container(some)["args"];
  EXPECT_EQ(Json(its.begin(), its.begin() + 4), Json({"--port", "53", "--port", "53/udp"}));
}

TEST(SidecarContainer, HasPasswordsOutOfTheirOwnSecretAndNowhereElse) {
  SidecarSettings some = settings();
  some.ports = {{5432}, {3306}};
  some.logins = {{{5432}, "postgresql"}, {{3306}, "mysql"}};
  some.logins_secret = "logins.of-shop";
  const Json ephemeral = ephemeral_container(some);
  EXPECT_EQ(ephemeral["env"].back(), Json::parse(R"({
      "name": "TRAFFICMIRROR_CREDENTIALS",
      "valueFrom": {"secretKeyRef": {"name": "logins.of-shop", "key": "credentials.yaml"}}})"));
  const Json injected = injected_container(some, InjectedAs::container, Requests::little);
  EXPECT_EQ(injected["env"], Json::array({pod_name}));
  for (const Json* container : {&ephemeral, &injected}) {
    const std::string its = container->at("args").dump();
    EXPECT_NE(its.find(R"("--protocol","5432=postgresql","--protocol","3306=mysql")"),
              std::string::npos);
  }
  const char* const file = "/etc/trafficmirror/tls/logins.of-shop/credentials.yaml";
  EXPECT_NE(injected["args"].dump().find(std::string(R"("--credentials",")") + file),
            std::string::npos);
  EXPECT_EQ(ephemeral["args"].dump().find("--credentials"), std::string::npos);
  EXPECT_EQ(injected["volumeMounts"].size(), 1U);
  EXPECT_EQ(identity_volume(some), Json::parse(R"({
      "name": "trafficmirror-checkout-v2-0a1b2c3d",
      "projected": {"defaultMode": 256, "sources": [
          {"secret": {"name": "trafficmirror-checkout-v2-0a1b2c3d", "optional": true}},
          {"secret": {"name": "logins.of-shop", "optional": true, "items": [
              {"key": "credentials.yaml", "path": "logins.of-shop/credentials.yaml"}]}}]}})"));
}

// Of another Secret, the passwords are others.
TEST(SidecarContainer, IsAnotherOneWithAnotherSecretOrTimeout) {
  SidecarSettings some = settings(), other = settings();
  some.logins_secret = "logins";
  other.logins_secret = "others";
  const auto injected = [](const SidecarSettings& its) {
    return revision_of(injected_container(its, InjectedAs::container, Requests::little));
  };
  const auto ephemeral = [](const SidecarSettings& its) {
    return revision_of(ephemeral_container(its));
  };
  EXPECT_NE(injected(some), injected(other));
  EXPECT_NE(ephemeral(some), ephemeral(other));
  EXPECT_NE(ephemeral(some), ephemeral(settings()));
  other = some;
  other.memory_limit *= 2;
  EXPECT_EQ(injected(some), injected(other));
  other.idle_timeout = "2h";
  other.response_timeout = "5s";
  EXPECT_NE(injected(some), injected(other));
  EXPECT_NE(ephemeral_container(other)["args"].dump().find(
                R"("--idle-timeout","2h","--response-timeout","5s")"),
            std::string::npos);
}

TEST(SidecarContainer, LeavesOutWhatIsNotGiven) {
  SidecarSettings some = settings();
  some.image_pull_policy = "";
  some.interface = "";
  const Json ephemeral = ephemeral_container(some);
  EXPECT_FALSE(ephemeral.contains("imagePullPolicy"));
  EXPECT_EQ(ephemeral.dump().find("--interface"), std::string::npos);
}

TEST(SidecarContainer, GetsRoomForTheProgramBesidesTheSessionsMemory) {
  const auto limit = [](uint64_t memory) {
    SidecarSettings some = settings();
    some.memory_limit = memory;
    return kube::text_at(injected_container(some, InjectedAs::container, Requests::little),
                         "/resources/limits/memory");
  };
  EXPECT_EQ(limit(uint64_t{1} << 20), "65Mi");
  EXPECT_EQ(limit(uint64_t{960} << 20), "1Gi");
  EXPECT_EQ(limit((uint64_t{1} << 20) + 1024), "66561Ki");
  EXPECT_EQ(limit(1'500'000), "68608864");
}

TEST(Secret, GivesBackWhatItWasGiven) {
  const kube::SecretData data = {{"empty", ""},
                                 {"one", "a"},
                                 {"two", "ab"},
                                 {"three", "abc"},
                                 {"bytes", std::string(2, '\0')}};
  EXPECT_EQ(kube::data_of({{"data", kube::data_field(data)}}), data);
  EXPECT_EQ(kube::data_field({{"ca.crt", "ab"}}), Json::parse(R"({"ca.crt": "YWI="})"));
}

TEST(Secret, LeavesOutWhatIsNoBase64) {
  EXPECT_EQ(kube::data_of(Json()), kube::SecretData());
  EXPECT_EQ(kube::data_of(Json::parse(R"({"data": null})")), kube::SecretData());
  EXPECT_EQ(
      kube::data_of(Json::parse(R"({"data": {"a": "YWI", "b": 1, "c": "Y!I=", "d": "YWI="}})")),
      (kube::SecretData{{"d", "ab"}}));
}

}  // namespace
}  // namespace trafficmirror::controller
