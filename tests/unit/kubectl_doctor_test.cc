// What the doctor finds, out of clusters with one thing wrong each.
#include <algorithm>
#include <functional>
#include <regex>
#include <sstream>

#include <gtest/gtest.h>

#include "kubectl/doctor.h"
#include "kubectl/network_policy.h"
#include "operator/names.h"

namespace trafficmirror::kubectl {
namespace {

using kube::Error;
using kube::ErrorKind;
using kube::Json;

namespace names = controller::names;

Json pod(const std::string& namespace_, const std::string& name, const Json& labels,
         const std::string& address) {
  Json made = Json::parse(R"({"apiVersion": "v1", "kind": "Pod",
      "metadata": {},
      "spec": {"nodeName": "node-1",
               "containers": [{"name": "app", "image": "example.org/app:1",
                               "ports": [{"name": "http", "containerPort": 8080}]}]},
      "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})");
  made["metadata"] = {{"namespace", namespace_}, {"name", name}, {"labels", labels}};
  made["status"]["podIP"] = address;
  return made;
}

Json space(const std::string& name, const Json& labels = Json::object(),
           const Json& annotations = Json::object()) {
  Json all = labels;
  all["kubernetes.io/metadata.name"] = name;
  return {{"metadata", {{"name", name}, {"labels", all}, {"annotations", annotations}}}};
}

Json policy(const std::string& namespace_, const std::string& name, const std::string& spec) {
  return {{"metadata", {{"namespace", namespace_}, {"name", name}}}, {"spec", Json::parse(spec)}};
}

const Error no_right{.kind = ErrorKind::forbidden,
                     .status = 403,
                     .message =
                         "pods is forbidden: User \"ann\" cannot create resource \"pods\" "
                         "in API group \"\" in the namespace \"shop\""};
const Error pod_security{.kind = ErrorKind::forbidden,
                         .status = 403,
                         .message =
                             "pods \"x\" is forbidden: violates PodSecurity "
                             "\"baseline:latest\": non-default capabilities"};

// A cluster of today with a mirror that has yet to be applied, and nothing wrong.
Examination healthy() {
  Examination seen;
  seen.now = std::chrono::system_clock::from_time_t(1'900'000'000);
  seen.server = {1, 31};
  seen.abilities = {.ephemeral_containers = true, .native_sidecars = true, .policy_v1 = true};
  seen.leadership = {Leadership::State::leads, "one leads, in namespace trafficmirror"};
  seen.mirror = Json::parse(R"({
      "apiVersion": "trafficmirror.dev/v1alpha1", "kind": "TrafficMirror",
      "metadata": {"name": "checkout-v2", "namespace": "shop"},
      "spec": {"source": {"selector": {"matchLabels": {"app": "checkout"}}, "ports": [8080]},
               "shadow": {"namespace": "shop-shadow", "service": {"name": "checkout-v2"}}}})");
  seen.production_namespace = std::vector<Json>{space("shop")};
  seen.shadow_namespace =
      std::vector<Json>{space("shop-shadow", Json::object(), {{names::accept_from, "shop"}})};
  const Json app = {{"app", "checkout"}}, cart = {{"app", "cart"}};
  seen.pods = std::vector<Json>{pod("shop", "checkout-a", app, "10.0.1.1"),
                                pod("shop", "checkout-b", app, "10.0.1.2"),
                                pod("shop", "cart-a", cart, "10.0.1.3")};
  const Json v2 = {{"app", "checkout"}, {"version", "v2"}};
  seen.shadow_pods = std::vector<Json>{pod("shop-shadow", "checkout-v2-a", v2, "10.0.2.1")};
  seen.shadow_service = std::vector<Json>{Json::parse(
      R"({"metadata": {"namespace": "shop-shadow", "name": "checkout-v2"},
          "spec": {"selector": {"version": "v2"}, "ports": [{"port": 8080}]}})")};
  seen.endpoints = std::vector<Json>{Json::parse(
      R"({"metadata": {"namespace": "shop-shadow", "name": "checkout-v2"},
          "subsets": [{"addresses": [{"ip": "10.0.2.1"}], "ports": [{"port": 8080}]}]})")};
  return seen;
}

// Sidecars come in by the webhook, and everything is as that needs it.
void inject(Examination& seen) {
  const Json label = {{names::inject, names::inject_enabled}};
  seen.mirror["spec"]["source"]["attach"] = "Sidecar";
  seen.production_namespace = std::vector<Json>{space("shop", label)};
  for (Json& pod : *seen.pods) pod["metadata"]["labels"].update(label);
  seen.webhooks = std::vector<Json>{Json::parse(
      R"({"metadata": {"name": "trafficmirror-webhook"},
          "webhooks": [{"name": "inject.trafficmirror.dev",
                        "clientConfig": {"caBundle": "YQ=="}}]})")};
}

// The sidecars log in, with passwords of a Secret.
void log_in(Examination& seen) {
  seen.mirror["spec"]["shadow"]["logins"] =
      Json::parse(R"({"ports": [{"port": 8080, "protocol": "MySQL"}], "secretName": "logins"})");
}

std::string doctor(const std::function<void(Examination&)>& change) {
  Examination seen = healthy();
  change(seen);
  if (seen.wanted.is_null()) seen.wanted = seen.mirror;
  const auto findings = findings_of(seen);
  const std::string text = text_of(findings);
  EXPECT_EQ(is_well(findings), text.find("FAIL") == std::string::npos);
  return text;
}

// Only those of its lines that are not ok.
std::string complaints(const std::function<void(Examination&)>& change) {
  std::istringstream text(doctor(change));
  std::string found;
  for (std::string line; std::getline(text, line);)
    if (!line.starts_with("ok ")) found += line + "\n";
  return found;
}

// A cause, and what stands in the line of the check that finds it. Nothing else complains.
struct Case {
  std::string mark;
  std::string check;
  std::vector<std::string> words;
  std::function<void(Examination&)> cause;
};

TEST(Doctor, FindsNothingWhereAllIsWell) {
  EXPECT_EQ(doctor([](Examination&) {}),
            "ok  server         Kubernetes 1.31: sidecars are attached to running pods, without a "
            "restart\n"
            "ok  operator       one leads, in namespace trafficmirror\n"
            "ok  spec           the API server takes it\n"
            "ok  consent        namespace shop-shadow accepts traffic of shop\n"
            "ok  pods           2 pods of namespace shop match spec.source.selector, with port "
            "8080\n"
            "ok  admission      namespace shop takes a pod with the sidecar, as a dry run says\n"
            "ok  shadow         1 ready endpoint: 10.0.2.1:8080\n"
            "ok  admission      namespace shop-shadow takes the intercept's pod, as a dry run "
            "says\n"
            "ok  NetworkPolicy  none is in the way to the intercept, nor in that to the shadow\n"
            "ok  reply path     replies go to the intercept's own address; before it takes a "
            "stream, it proves by a handshake of its own that they come back\n");
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"FAIL",
       "server",
       {"Kubernetes 1.19: 1.20 or later is needed"},
       [](Examination& seen) {
         seen.server = {1, 19};
       }},
      {"FAIL",
       "server",
       {"Kubernetes 1.24 can't attach to running pods", "spec.source.attach to Auto or Sidecar"},
       [](Examination& seen) {
         seen.server = {1, 24};
         seen.abilities.ephemeral_containers = false;
         seen.mirror["spec"]["source"]["attach"] = "Ephemeral";
       }},
      {"FAIL",
       "operator",
       {"no operator leads: gone"},
       [](Examination& seen) {
         seen.leadership = {Leadership::State::nobody, "no operator leads: gone"};
       }},
      {"?",
       "operator",
       {"not checked: leases is forbidden"},
       [](Examination& seen) {
         seen.leadership = {Leadership::State::unknown, "leases is forbidden"};
       }},
      {"FAIL",
       "spec",
       {"spec.source.prots: field not declared in schema"},
       [](Examination& seen) {
         seen.refused = Error{.kind = ErrorKind::server,
                              .message = ".spec.source.prots: field not declared in schema"};
       }},
      {"FAIL",
       "spec",
       {"spec.replicate.per-cent is no field",
        "kubectl explain trafficmirror.spec.replicate names"},
       [](Examination& seen) {
         seen.wanted = seen.mirror;
         seen.wanted["spec"]["replicate"]["per-cent"] = 10;
         seen.mirror["spec"]["replicate"]["percent"] = 100;
       }},
      {"FAIL",
       "spec",
       {"spec.limits.memory is 9Ti"},
       [](Examination& seen) { seen.mirror["spec"]["limits"]["memory"] = "9Ti"; }},
      {"?",
       "spec",
       {"not checked: pods is forbidden"},
       [](Examination& seen) { seen.refused = no_right; }},
      {"FAIL",
       "consent",
       {"kubectl annotate namespace shop-shadow trafficmirror.dev/accept-from=shop"},
       [](Examination& seen) { seen.shadow_namespace = std::vector<Json>{space("shop-shadow")}; }},
      {"?",
       "consent",
       {"not checked: namespaces is forbidden"},
       [](Examination& seen) {
         seen.shadow_namespace =
             Error{.kind = ErrorKind::forbidden, .message = "namespaces is forbidden"};
       }},

      {"FAIL",
       "pods",
       {"no pod of namespace shop matches spec.source.selector"},
       [](Examination& seen) { seen.pods = none(); }},
      {"FAIL",
       "pods",
       {"2 pods of 2 (checkout-a, checkout-b): no container declares port 9090"},
       [](Examination& seen) {
         seen.mirror["spec"]["source"]["ports"] = {9090};
         seen.mirror["spec"]["shadow"]["service"]["port"] = 8080;
       }},
      {"WARN",
       "pods",
       {"2 pods", "declares no ports", "listens on port 8080"},
       [](Examination& seen) {
         for (Json& pod : *seen.pods) pod["spec"]["containers"][0].erase("ports");
       }},
      {"FAIL",
       "pods",
       {"1 pod of 2 (checkout-b)", "spec.hostNetwork"},
       [](Examination& seen) { (*seen.pods)[1]["spec"]["hostNetwork"] = true; }},
      {"WARN",
       "pods",
       {"1 pod of 2 (checkout-b): it does not run yet"},
       [](Examination& seen) { (*seen.pods)[1]["status"]["phase"] = "Pending"; }},
      {"FAIL",
       "pods",
       {"TrafficMirror checkout-v1, which is older"},
       [](Examination& seen) {
         Json other = seen.mirror;
         other["metadata"]["name"] = "checkout-v1";
         other["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z";
         seen.mirrors = std::vector<Json>{other};
       }},
      {"?",
       "pods",
       {"not checked: pods is forbidden"},
       [](Examination& seen) { seen.pods = no_right; }},

      {"FAIL",
       "pods",
       {"kubectl label namespace shop trafficmirror.dev/inject=enabled"},
       [](Examination& seen) {
         inject(seen);
         seen.production_namespace = std::vector<Json>{space("shop")};
       }},
      {"FAIL",
       "pods",
       {"trafficmirror.dev/inject=enabled into the workload's pod template"},
       [](Examination& seen) {
         inject(seen);
         for (Json& pod : *seen.pods) pod["metadata"]["labels"].erase(names::inject);
       }},
      {"WARN", "pods", {"created before the mirror", "kubectl rollout restart"}, inject},

      {"FAIL",
       "admission",
       {"Pod Security of namespace shop forbids NET_RAW: label it"},
       [](Examination& seen) { seen.sidecar_refused = pod_security; }},
      {"FAIL",
       "admission",
       {"Pod Security of namespace shop-shadow forbids NET_ADMIN and NET_RAW"},
       [](Examination& seen) { seen.intercept_refused = pod_security; }},
      {"WARN",
       "admission",
       {"refuses the intercept's pod", "exceeded quota"},
       [](Examination& seen) {
         seen.intercept_refused = Error{.kind = ErrorKind::forbidden,
                                        .message = "pods \"x\" is forbidden: exceeded quota"};
       }},
      // By the label alone.
      {"FAIL",
       "admission",
       {"Pod Security of namespace shop-shadow forbids"},
       [](Examination& seen) {
         seen.intercept_refused = no_right;
         (*seen.shadow_namespace)[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] =
             "restricted";
       }},
      {"WARN",
       "admission",
       {"Pod Security of namespace shop-shadow forbids"},
       [](Examination& seen) {
         seen.server = {1, 22};
         seen.intercept_refused = no_right;
         (*seen.shadow_namespace)[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] =
             "restricted";
       }},
      {"WARN",
       "admission",
       {"namespace shop-shadow forbids", "takes the intercept's pod from you"},
       [](Examination& seen) {
         (*seen.shadow_namespace)[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] =
             "baseline";
       }},

      {"FAIL",
       "logins",
       {"there is no Secret shop/logins: kubectl create secret generic logins -n shop "
        "--from-file=credentials.yaml"},
       [](Examination& seen) { log_in(seen); }},
      {"FAIL",
       "logins",
       {"Secret shop/logins has no key credentials.yaml"},
       [](Examination& seen) {
         log_in(seen);
         seen.logins_secret = std::vector<Json>{{{"data", {{"credentials", "eA=="}}}}};
       }},
      {"FAIL",
       "shadow",
       {"there is no Service shop-shadow/checkout-v2: create it"},
       [](Examination& seen) { seen.shadow_service = none(); }},
      {"FAIL",
       "shadow",
       {"has no port 8080, only 80"},
       [](Examination& seen) { (*seen.shadow_service)[0]["spec"]["ports"][0]["port"] = 80; }},
      {"FAIL",
       "shadow",
       {"no ready endpoints for port 8080"},
       [](Examination& seen) { (*seen.endpoints)[0].erase("subsets"); }},
      {"FAIL",
       "shadow",
       {"spec.shadow.selector matches is ready"},
       [](Examination& seen) {
         seen.mirror["spec"]["shadow"] = Json::parse(
             R"({"namespace": "shop-shadow", "selector": {"matchLabels": {"version": "v3"}}})");
       }},

      {"FAIL",
       "NetworkPolicy",
       {"NetworkPolicy closed of namespace shop-shadow on 1 pod (checkout-v2-a) does not admit the "
        "intercept",
        "app.kubernetes.io/component=intercept of namespace shop-shadow, TCP port 8080"},
       [](Examination& seen) {
         seen.shadow_policies = std::vector<Json>{
             policy("shop-shadow", "closed", R"({"podSelector": {}, "policyTypes": ["Ingress"]})")};
       }},
      {"FAIL",
       "NetworkPolicy",
       {"NetworkPolicy tcp-only of", "does not admit the intercept",
        "of namespace shop-shadow, TCP port 8080, UDP port 8080"},
       [](Examination& seen) {
         seen.mirror["spec"]["source"]["ports"] = {8080, "8080/udp"};
         const Json udp = Json::parse(R"({"name": "u", "port": 8080, "protocol": "UDP"})");
         for (Json& pod : *seen.pods)
           pod["spec"]["containers"][0]["ports"].push_back(
               {{"containerPort", 8080}, {"protocol", "UDP"}});
         (*seen.shadow_service)[0]["spec"]["ports"].push_back(udp);
         (*seen.endpoints)[0]["subsets"][0]["ports"].push_back(udp);
         seen.shadow_policies = std::vector<Json>{
             policy("shop-shadow", "tcp-only",
                    R"({"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]})")};
       }},
      {"FAIL",
       "NetworkPolicy",
       {"NetworkPolicy out of namespace shop on 2 pods (checkout-a, checkout-b) does not admit "
        "streams to the intercept",
        "TCP port 7443"},
       [](Examination& seen) {
         seen.production_policies =
             std::vector<Json>{policy("shop", "out",
                                      R"({"podSelector": {"matchLabels": {"app": "checkout"}},
                        "policyTypes": ["Egress"],
                        "egress": [{"to": [{"podSelector": {}}]}]})")};
       }},
      {"WARN",
       "NetworkPolicy",
       {"by addresses at most"},
       [](Examination& seen) {
         seen.shadow_policies =
             std::vector<Json>{policy("shop-shadow", "closed",
                                      R"({"podSelector": {}, "policyTypes": ["Ingress"],
                        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]})")};
       }},
      {"WARN",
       "reply path",
       {"1 pod of the shadow (checkout-v2-a)", "spec.hostNetwork"},
       [](Examination& seen) { (*seen.shadow_pods)[0]["spec"]["hostNetwork"] = true; }},
  };
  return all;
}

TEST(Doctor, FindsEachCauseAndTellsTheCure) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.check + " " + one.words.front());
    const std::string found = complaints(one.cause);
    EXPECT_EQ(std::count(found.begin(), found.end(), '\n'), 1) << found;
    EXPECT_TRUE(std::regex_match(found, std::regex(std::string(one.mark == "?" ? "\\?" : one.mark) +
                                                   " +" + one.check + "  .*\n")))
        << found;
    for (const std::string& word : one.words)
      EXPECT_NE(found.find(word), std::string::npos) << word << "\nis not in\n" << found;
  }
}

// The cure of one thing is not to be found by curing another first.
TEST(Doctor, OneCauseDoesNotHideAnother) {
  const std::string found = complaints([](Examination& seen) {
    seen.mirror["spec"]["paused"] = true;
    seen.shadow_namespace = std::vector<Json>{space("shop-shadow")};
    seen.shadow_service = none();
    seen.pods = none();
    seen.intercept_refused = pod_security;
  });
  for (const char* check : {"consent", "pods", "shadow", "admission"})
    EXPECT_NE(found.find(std::string("FAIL  ") + check), std::string::npos) << found;
}

TEST(Doctor, LooksAtTheWebhookWhereThatIsTheWay) {
  EXPECT_NE(doctor(inject).find("ok    injection      MutatingWebhookConfiguration "
                                "trafficmirror-webhook injects into labelled pods of labelled"),
            std::string::npos)
      << doctor(inject);
  EXPECT_NE(complaints([](Examination& seen) {
              inject(seen);
              seen.webhooks = none();
            }).find("by the chart's webhook.enabled"),
            std::string::npos);
  EXPECT_NE(complaints([](Examination& seen) {
              inject(seen);
              (*seen.webhooks)[0]["webhooks"][0]["clientConfig"].erase("caBundle");
            }).find("has no caBundle"),
            std::string::npos);
  // The operator goes by the label, even where the server does not.
  EXPECT_NE(complaints([](Examination& seen) {
              inject(seen);
              seen.server = {1, 20};
              (*seen.production_namespace)[0]["metadata"]["labels"]
                                          ["pod-security.kubernetes.io/enforce"] = "baseline";
            }).find("FAIL  admission      Pod Security of namespace shop forbids NET_RAW"),
            std::string::npos);
}

TEST(Doctor, LooksAtTheShadowsPodsWhereInterceptsAreBesideThem) {
  const auto preserve = [](Examination& seen) {
    seen.mirror["spec"]["clientAddress"] = "Preserve";
  };
  const std::string well = doctor(preserve);
  EXPECT_EQ(well.find("FAIL"), std::string::npos) << well;
  EXPECT_NE(well.find("an intercept is put beside 1 pod, without a restart"), std::string::npos)
      << well;
  EXPECT_NE(well.find("replies turn around in the shadow's pods"), std::string::npos);

  const std::string unlabelled = complaints([&](Examination& seen) {
    preserve(seen);
    inject(seen);
  });
  EXPECT_NE(unlabelled.find("kubectl label namespace shop-shadow"), std::string::npos);
  EXPECT_EQ(std::count(unlabelled.begin(), unlabelled.end(), '\n'), 2) << unlabelled;

  const std::string isolated = complaints([&](Examination& seen) {
    preserve(seen);
    seen.shadow_policies = std::vector<Json>{Json::parse(R"({
        "metadata": {"namespace": "shop-shadow", "name": "closed"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})")};
  });
  EXPECT_NE(
      isolated.find("does not admit streams to the intercepts beside them: allow ingress from "
                    "the pods of spec.source of namespace shop, TCP port 7443"),
      std::string::npos)
      << isolated;
}

TEST(Doctor, TellsWhereTheMirrorIsNotDefined) {
  const std::string found = complaints([](Examination& seen) {
    seen.defined = false;
    seen.refused = Error{.kind = ErrorKind::not_found, .status = 404, .message = "not found"};
  });
  EXPECT_NE(found.find("FAIL  operator       the API server does not know TrafficMirror"),
            std::string::npos)
      << found;
  EXPECT_NE(found.find("?     spec           not checked: the API server does not know its schema"),
            std::string::npos)
      << found;
}

// As the operator says that it is.
Json applied(const Json& mirror, const std::string& ready, const std::string& reply_path) {
  Json applied = mirror;
  applied["metadata"]["generation"] = 1;
  applied["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z";
  const auto add = [&](const char* type, const std::string& status) {
    applied["status"]["conditions"].push_back(
        {{"type", type},
         {"status", status},
         {"observedGeneration", 1},
         {"reason", "SomeReason"},
         {"message", std::string("what it says of ") + type}});
  };
  add("Ready", ready);
  add("Attached", "True");
  add("ReplyPathVerified", reply_path);
  return applied;
}

TEST(Doctor, OfAnAppliedOneAlsoSaysWhatTheOperatorDoes) {
  const auto told = [](const std::string& ready, const std::string& reply_path) {
    return doctor([&](Examination& seen) {
      seen.applied = applied(seen.mirror, ready, reply_path);
      seen.mirrors = std::vector<Json>{seen.applied};
    });
  };
  const std::string well = told("True", "True");
  for (const char* line : {"ok  pods           what it says of Attached\n",
                           "ok  reply path     what it says of ReplyPathVerified\n",
                           "ok  status         what it says of Ready\n"})
    EXPECT_NE(well.find(line), std::string::npos) << well;
  const std::string bad = told("False", "False");
  for (const char* line : {"FAIL  reply path     what it says of ReplyPathVerified\n",
                           "FAIL  status         SomeReason: what it says of Ready\n"})
    EXPECT_NE(bad.find(line), std::string::npos) << bad;
}

// The status is about what is applied, and not about what a file would make of it.
TEST(Doctor, OfAChangedOneSaysNothingThatIsAboutTheOneBefore) {
  const std::string told = doctor([](Examination& seen) {
    seen.applied = applied(seen.mirror, "False", "False");
    seen.mirror["spec"]["limits"]["memory"] = "1Gi";
  });
  EXPECT_EQ(told.find("what it says of"), std::string::npos) << told;
}

void replay(Examination& seen) {
  seen.mirror["spec"]["source"] =
      Json::parse(R"({"capture": {"claimName": "captures", "path": "web.pcap"}, "ports": [8080]})");
  seen.claim = std::vector<Json>{Json::parse(R"({"status": {"phase": "Bound"}})")};
}

TEST(Doctor, OfACaptureLooksAtItsClaimInPlaceOfPods) {
  EXPECT_EQ(complaints(replay), "");
  const std::string told = doctor(replay);
  EXPECT_NE(told.find("ok  claim          PersistentVolumeClaim shop/captures is there, Bound"),
            std::string::npos)
      << told;
  EXPECT_NE(told.find("ok  admission      namespace shop takes the replay's pod, as a dry run"),
            std::string::npos)
      << told;
  EXPECT_EQ(told.find("sidecar"), std::string::npos) << told;
  EXPECT_EQ(complaints([](Examination& seen) {
              replay(seen);
              seen.claim = none();
            }),
            "FAIL  claim          there is no PersistentVolumeClaim shop/captures: create it, or "
            "correct spec.source.capture.claimName\n");
  const std::string blocked = complaints([](Examination& seen) {
    replay(seen);
    seen.production_policies = std::vector<Json>{
        policy("shop", "closed", R"({"podSelector": {}, "policyTypes": ["Egress"]})")};
  });
  EXPECT_NE(blocked.find("FAIL  NetworkPolicy"), std::string::npos) << blocked;
}

TEST(DoctorTrials, OfACaptureAreTheInterceptsPodAndTheReplays) {
  Examination seen = healthy();
  replay(seen);
  const Trials trials = trials_for(seen);
  EXPECT_TRUE(trials.intercept_pod);
  EXPECT_FALSE(trials.ephemeral);
  ASSERT_TRUE(trials.pod_with_sidecar);
  EXPECT_EQ((*trials.pod_with_sidecar)["metadata"]["namespace"], "shop");
  EXPECT_EQ((*trials.pod_with_sidecar)["spec"]["volumes"][1]["persistentVolumeClaim"]["claimName"],
            "captures");
}

// What is asked of the server is what will be asked of it.
TEST(DoctorTrials, AreTheInterceptsPodAndASidecar) {
  Examination seen = healthy();
  Trials trials = trials_for(seen);
  ASSERT_TRUE(trials.intercept_pod);
  const Json& container = (*trials.intercept_pod)["spec"]["containers"][0];
  EXPECT_EQ(container["securityContext"]["capabilities"]["add"],
            Json::parse(R"(["NET_ADMIN", "NET_RAW"])"));
  EXPECT_EQ((*trials.intercept_pod)["metadata"]["namespace"], "shop-shadow");
  EXPECT_FALSE((*trials.intercept_pod)["spec"].contains("serviceAccountName"));
  EXPECT_FALSE(trials.pod_with_sidecar);
  ASSERT_TRUE(trials.ephemeral);
  EXPECT_EQ(trials.ephemeral->pod, (kube::Key{"shop", "checkout-a"}));
  EXPECT_EQ(trials.ephemeral->container["securityContext"]["capabilities"]["add"],
            Json::parse(R"(["NET_RAW"])"));

  inject(seen);
  trials = trials_for(seen);
  EXPECT_FALSE(trials.ephemeral);
  ASSERT_TRUE(trials.pod_with_sidecar);
  const Json& spec = (*trials.pod_with_sidecar)["spec"];
  EXPECT_EQ(spec["containers"].size(), 1U);
  EXPECT_EQ(spec["initContainers"].size(), 1U);
  EXPECT_FALSE(spec.contains("nodeName"));
  EXPECT_EQ((*trials.pod_with_sidecar)["metadata"]["labels"]["app"], "checkout");

  seen.abilities.native_sidecars = false;
  EXPECT_EQ((*trials_for(seen).pod_with_sidecar)["spec"]["containers"].size(), 2U);
  seen.shadow_namespace = none();
  seen.pods = none();
  trials = trials_for(seen);
  EXPECT_FALSE(trials.intercept_pod || trials.pod_with_sidecar || trials.ephemeral);
}

class Policies : public testing::Test {
 protected:
  Admission::Kind ingress(const std::vector<std::string>& specs,
                          net::Protocol protocol = net::Protocol::tcp) const {
    std::vector<Json> policies;
    for (const std::string& spec : specs) policies.push_back(policy("shop-shadow", "p", spec));
    return admission_of(policies, Direction::ingress,
                        pod("shop-shadow", "a", {{"app", "checkout"}}, "10.0.0.1"), from,
                        {.number = 8080, .protocol = protocol, .names = {"http"}})
        .kind;
  }
  OtherPod from{.labels = {{"component", "intercept"}},
                .namespace_ = "other",
                .namespace_labels = {{"name", "other"}}};
  const Admission::Kind admitted = Admission::Kind::admitted;
  const Admission::Kind refused = Admission::Kind::refused;
  const Admission::Kind by_address = Admission::Kind::by_address;
};

TEST(Doctor, TellsOfASecretThatItIsThereAndNothingOfIt) {
  const std::string told = doctor([](Examination& seen) {
    log_in(seen);
    seen.logins_secret = std::vector<Json>{{{"data", {{"credentials.yaml", "c2VjcmV0"}}}}};
  });
  EXPECT_NE(told.find("Secret shop/logins has credentials.yaml\n"), std::string::npos) << told;
  EXPECT_EQ(told.find("c2VjcmV0"), std::string::npos);
}

TEST_F(Policies, AdmitAllWhereNoneSelectsThePod) {
  EXPECT_EQ(ingress({}), admitted);
  EXPECT_EQ(ingress({R"({"podSelector": {"matchLabels": {"app": "cart"}}})"}), admitted);
  EXPECT_EQ(ingress({R"({"podSelector": {}, "policyTypes": ["Egress"]})"}), admitted);
  EXPECT_EQ(ingress({R"({"podSelector": {}})"}), refused);
}

TEST_F(Policies, AdmitWhatAnyOfThemAdmits) {
  EXPECT_EQ(ingress({R"({"podSelector": {}})", R"({"podSelector": {}, "ingress": [{}]})"}),
            admitted);
}

TEST_F(Policies, GoByPodsAndNamespaces) {
  const auto peer = [&](const std::string& text) {
    return ingress({R"({"podSelector": {}, "ingress": [{"from": [)" + text + "]}]}"});
  };
  EXPECT_EQ(peer(R"({"podSelector": {}})"), refused);  // of the policy's own namespace
  EXPECT_EQ(peer(R"({"namespaceSelector": {}})"), admitted);
  EXPECT_EQ(peer(R"({"namespaceSelector": {"matchLabels": {"name": "other"}},
                     "podSelector": {"matchLabels": {"component": "intercept"}}})"),
            admitted);
  EXPECT_EQ(peer(R"({"namespaceSelector": {"matchLabels": {"name": "else"}}})"), refused);
  EXPECT_EQ(peer(R"({"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}})"),
            refused);
  EXPECT_EQ(peer(R"({"ipBlock": {"cidr": "0.0.0.0/0"}})"), admitted);
  EXPECT_EQ(peer(R"({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}})"), by_address);
  EXPECT_EQ(peer(R"({"ipBlock": {"cidr": "10.0.0.0/8"}})"), by_address);
  from.namespace_ = "shop-shadow";
  EXPECT_EQ(peer(R"({"podSelector": {}})"), admitted);
}

TEST_F(Policies, GoByPorts) {
  const auto ports = [&](const std::string& text, net::Protocol protocol = net::Protocol::tcp) {
    return ingress({R"({"podSelector": {}, "ingress": [{"ports": [)" + text + "]}]}"}, protocol);
  };
  EXPECT_EQ(ports(R"({"port": 8080})"), admitted);
  EXPECT_EQ(ports(R"({"port": 80})"), refused);
  EXPECT_EQ(ports(R"({"port": 8080, "protocol": "UDP"})"), refused);
  EXPECT_EQ(ports(R"({"port": 8000, "endPort": 8100})"), admitted);
  EXPECT_EQ(ports(R"({"port": "http"})"), admitted);
  EXPECT_EQ(ports(R"({"port": "https"})"), refused);
  EXPECT_EQ(ports(R"({"protocol": "TCP"})"), admitted);
  EXPECT_EQ(ports(R"({"port": 8080, "protocol": "UDP"})", net::Protocol::udp), admitted);
  EXPECT_EQ(ports(R"({"port": 8080})", net::Protocol::udp), refused);
}

}  // namespace
}  // namespace trafficmirror::kubectl
