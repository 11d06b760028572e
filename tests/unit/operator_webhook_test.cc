// What the webhook makes of pods: the patch is applied, and the whole pod compared.
#include <gtest/gtest.h>

#include "operator/kube/base64.h"
#include "operator/pods.h"
#include "operator/webhook.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* sidecar_name = "trafficmirror-checkout-v2-0a1b2c3d";

SidecarSettings settings(const std::string& name = sidecar_name) {
  return {.name = name,
          .image = "example.org/sidecar:1",
          .ports = {{8080}},
          .intercept = {name + ".shop-shadow.svc", {7443}},
          .tls_peer = "spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/intercept",
          .secret = name + "-sidecar"};
}

InjectionsFor always(const std::vector<Injection>& injections) {
  return [injections](const NewPod&) { return injections; };
}

Json pod_with(const char* spec) {
  return {{"metadata", {{"generateName", "checkout-"}, {"labels", {{"app", "checkout"}}}}},
          {"spec", Json::parse(spec)}};
}

Json request_for(const Json& pod) {
  return {{"apiVersion", "admission.k8s.io/v1"},
          {"kind", "AdmissionReview"},
          {"request",
           {{"uid", "7"},
            {"kind", {{"group", ""}, {"version", "v1"}, {"kind", "Pod"}}},
            {"namespace", "shop"},
            {"operation", "CREATE"},
            {"object", pod}}}};
}

Json response_of(const Review& review) {
  const Json answer = Json::parse(review.answer.value());
  EXPECT_EQ(answer["apiVersion"], "admission.k8s.io/v1");
  EXPECT_EQ(answer["kind"], "AdmissionReview");
  EXPECT_EQ(answer["response"]["allowed"], true);
  return answer["response"];
}

Json patched(const Json& pod, const Review& review) {
  const Json response = response_of(review);
  if (!response.contains("patch")) return pod;
  EXPECT_EQ(response["patchType"], "JSONPatch");
  return pod.patch(Json::parse(kube::decode_base64(response["patch"]).value()));
}

Json injected(const Json& pod, const std::vector<Injection>& injections) {
  return patched(pod, review(request_for(pod).dump(), always(injections)));
}

const Json untouched = {{"uid", "7"}, {"allowed", true}};

TEST(Webhook, AddsAContainerBehindTheApps) {
  const Json pod = pod_with(R"({"containers": [{"name": "app"}], "volumes": [{"name": "data"}]})");
  const Review result =
      review(request_for(pod).dump(), always({{settings(), InjectedAs::container}}));
  EXPECT_EQ(result.pod, "shop/checkout-");
  EXPECT_EQ(result.injected, std::vector<std::string>{sidecar_name});
  EXPECT_EQ(result.problem, "");
  EXPECT_EQ(response_of(result)["uid"], "7");
  Json wanted = pod;
  wanted["spec"]["containers"].push_back(
      injected_container(settings(), InjectedAs::container, Requests::little));
  wanted["spec"]["volumes"].push_back(identity_volume(settings()));
  EXPECT_EQ(patched(pod, result), wanted);
}

TEST(Webhook, AddsANativeSidecarBeforeTheInitContainers) {
  const Json pod = pod_with(
      R"({"containers": [{"name": "app"}], "initContainers": [{"name": "one"}, {"name": "two"}]})");
  Json wanted = pod;
  Json& init = wanted["spec"]["initContainers"];
  init.insert(init.begin(),
              injected_container(settings(), InjectedAs::native_sidecar, Requests::little));
  wanted["spec"]["volumes"] = Json::array({identity_volume(settings())});
  EXPECT_EQ(injected(pod, {{settings(), InjectedAs::native_sidecar}}), wanted);
}

TEST(Webhook, AddsAnInterceptToAPodOfTheShadow) {
  const InterceptSettings intercept{.name = "trafficmirror-intercept-0a1b2c3d",
                                    .image = "example.org/intercept:1",
                                    .targets = {{{8080}, {8000}}},
                                    .client_address = "preserve",
                                    .member_of = "name.shop-shadow.svc",
                                    .tls_peer = "spiffe://sidecar",
                                    .secret = "name"};
  const Json pod = pod_with(R"({"containers": [{"name": "app"}]})");
  Json wanted = pod;
  wanted["spec"]["containers"].push_back(
      injected_container(intercept, InjectedAs::container, Requests::little));
  wanted["spec"]["volumes"] = Json::array({identity_volume(intercept)});
  const std::vector<Injection> injections{{intercept, InjectedAs::container}};
  EXPECT_EQ(injected(pod, injections), wanted);
  EXPECT_EQ(injected(wanted, injections), wanted) << "it has it";
}

TEST(Webhook, MakesListsThatAreMissing) {
  for (const char* spec :
       {R"({"containers": [{"name": "app"}]})",
        R"({"containers": [{"name": "app"}], "initContainers": null, "volumes": null})",
        R"({"containers": [{"name": "app"}], "initContainers": [], "volumes": []})"}) {
    const Json pod = pod_with(spec);
    Json wanted = pod;
    wanted["spec"]["initContainers"] = Json::array(
        {injected_container(settings("a"), InjectedAs::native_sidecar, Requests::little),
         injected_container(settings("b"), InjectedAs::native_sidecar, Requests::little)});
    wanted["spec"]["volumes"] =
        Json::array({identity_volume(settings("a")), identity_volume(settings("b"))});
    EXPECT_EQ(injected(pod, {{settings("a"), InjectedAs::native_sidecar},
                             {settings("b"), InjectedAs::native_sidecar}}),
              wanted)
        << spec;
  }
}

TEST(Webhook, AddsNothingWhenAskedAgain) {
  for (const InjectedAs form : {InjectedAs::container, InjectedAs::native_sidecar}) {
    const std::vector<Injection> injections{{settings(), form}};
    const Json once = injected(pod_with(R"({"containers": [{"name": "app"}]})"), injections);
    const Review again = review(request_for(once).dump(), always(injections));
    EXPECT_EQ(response_of(again), untouched);
    EXPECT_TRUE(again.injected.empty());
    EXPECT_EQ(again.problem, "");
  }
}

TEST(Webhook, AddsNoSecondVolumeOfTheName) {
  Json pod = pod_with(R"({"containers": [{"name": "app"}]})");
  pod["spec"]["volumes"] = Json::array({identity_volume(settings())});
  EXPECT_EQ(injected(pod, {{settings(), InjectedAs::container}})["spec"]["volumes"],
            pod["spec"]["volumes"]);
}

TEST(Webhook, TouchesNoPodThatHasNoSidecar) {
  const Json pod = pod_with(R"({"containers": [{"name": "app"}]})");
  EXPECT_EQ(response_of(review(request_for(pod).dump(), always({}))), untouched);
}

TEST(Webhook, TouchesNoPodOnTheNetworkOfItsNode) {
  const Json pod = pod_with(R"({"containers": [{"name": "app"}], "hostNetwork": true})");
  EXPECT_EQ(injected(pod, {{settings(), InjectedAs::container}}), pod);
}

TEST(Webhook, AsksForTheSidecarsByNamespaceNameAndLabels) {
  Json pod = pod_with(R"({"containers": []})");
  pod["metadata"]["labels"]["odd"] = 7;
  int asked = 0;
  review(request_for(pod).dump(), [&](const NewPod& about) {
    ++asked;
    EXPECT_EQ(about.namespace_, "shop");
    EXPECT_EQ(about.name, "checkout-");
    EXPECT_EQ(about.labels, Json({{"app", "checkout"}}));
    return std::vector<Injection>{};
  });
  EXPECT_EQ(asked, 1);
}

TEST(Webhook, KeepsClassGuaranteed) {
  const std::string same = R"({"name": "app", "resources": {
      "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}})";
  const std::string by_default =
      R"({"name": "app", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}})";
  const std::string less = R"({"name": "app", "resources": {
      "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}})";
  const std::string no_memory = R"({"name": "app", "resources": {"limits": {"cpu": "1"}}})";
  const std::string zero =
      R"({"name": "app", "resources": {"limits": {"cpu": "0", "memory": "1Gi"}}})";
  const std::string none = R"({"name": "app"})";
  struct Row {
    std::string containers, init_containers;
    Requests wanted;
  };
  for (const Row& row :
       {Row{same, "", Requests::limits}, Row{by_default, "", Requests::limits},
        Row{same + "," + by_default, same, Requests::limits}, Row{less, "", Requests::little},
        Row{no_memory, "", Requests::little}, Row{zero, "", Requests::little},
        Row{none, "", Requests::little}, Row{same + "," + none, "", Requests::little},
        Row{same, none, Requests::little}}) {
    const std::string spec = R"({"containers": [)" + row.containers + R"(], "initContainers": [)" +
                             row.init_containers + "]}";
    EXPECT_EQ(injected(pod_with(spec.c_str()),
                       {{settings(), InjectedAs::container}})["spec"]["containers"]
                  .back(),
              injected_container(settings(), InjectedAs::container, row.wanted))
        << spec;
  }
}

TEST(Webhook, IsSeenByTheOperatorWithItsRevision) {
  for (const auto& [form, kind] : {std::pair(InjectedAs::container, Container::Kind::container),
                                   {InjectedAs::native_sidecar, Container::Kind::init}}) {
    Json pod = injected(pod_with(R"({"containers": [{"name": "app"}]})"), {{settings(), form}});
    project_pod(pod);
    const auto found = containers_of(pod, sidecar_name);
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(found[0].kind, kind);
    EXPECT_EQ(found[0].revision,
              revision_of(injected_container(settings(), form, Requests::little)));
  }
}

TEST(Webhook, AllowsWhatIsNoNewPodAndSaysSo) {
  const Json good = request_for(pod_with(R"({"containers": [{"name": "app"}]})"));
  const std::pair<const char*, Json> changes[] = {
      {"/apiVersion", "admission.k8s.io/v1beta1"},
      {"/kind", 7},
      {"/request/operation", "UPDATE"},
      {"/request/operation", nullptr},
      {"/request/kind/kind", "Deployment"},
      {"/request/kind/group", "apps"},
      {"/request/kind/version", "v2"},
      {"/request/kind", "Pod"},
      {"/request/subResource", "ephemeralcontainers"},
      {"/request/object", nullptr},
      {"/request/object", "pod"},
      {"/request/object/spec", Json::array()},
      {"/request/object/spec/containers", nullptr},
      {"/request/object/spec/containers", Json::object()},
      {"/request/object/spec/initContainers", "none"},
      {"/request/object/spec/volumes", Json::object()}};
  for (const auto& [where, value] : changes) {
    Json request = good;
    request[Json::json_pointer(where)] = value;
    const Review result = review(request.dump(), always({{settings(), InjectedAs::container}}));
    EXPECT_EQ(response_of(result), untouched) << where << " " << value;
    EXPECT_NE(result.problem, "") << where << " " << value;
    EXPECT_TRUE(result.injected.empty()) << where << " " << value;
  }
}

TEST(Webhook, LooksAtPodsWithOddContents) {
  const std::pair<const char*, Json> changes[] = {
      {"/request/object/metadata", nullptr},
      {"/request/object/metadata/labels", "app"},
      {"/request/object/metadata/name", 7},
      {"/request/namespace", Json::array()},
      {"/request/dryRun", true},
      {"/request/object/spec/containers", Json::array({7, nullptr, "app", Json::array()})},
      {"/request/object/spec/containers/0/resources", "much"},
      {"/request/object/spec/containers/0/resources", {{"limits", {{"cpu", 1}, {"memory", 2}}}}},
      {"/request/object/spec/volumes", Json::array({{{"name", 7}}, nullptr})}};
  for (const auto& [where, value] : changes) {
    Json request = request_for(pod_with(R"({"containers": [{"name": "app"}]})"));
    request[Json::json_pointer(where)] = value;
    const Review result = review(request.dump(), always({{settings(), InjectedAs::container}}));
    EXPECT_EQ(result.problem, "") << where << " " << value;
    const Json pod = patched(request["request"]["object"], result);
    EXPECT_EQ(pod["spec"]["containers"].back(),
              injected_container(settings(), InjectedAs::container, Requests::little))
        << where << " " << value;
  }
}

TEST(Webhook, HasNoAnswerWithoutAUid) {
  for (const char* request : {"", "{", "null", "[]", "7", "\xff", R"({"request": []})",
                              R"({"request": {"uid": 7}})", R"({"request": {"uid": ""}})",
                              R"({"request": {"uid": "7"}} more)", R"({"uid": "1e999"})"}) {
    const Review result = review(request, always({}));
    EXPECT_FALSE(result.answer) << request;
    EXPECT_NE(result.problem, "") << request;
  }
}

TEST(Webhook, StandsAnyDepth) {
  constexpr size_t depth = 2'000'000;
  const std::string deep = std::string(depth, '[') + std::string(depth, ']');
  EXPECT_FALSE(review(deep, always({})).answer);
  std::string request = request_for(pod_with(R"({"containers": [{"name": "app"}]})")).dump();
  const std::string app = R"({"name":"app"})";
  request.replace(request.find(app), app.size(), R"({"name":"app","deep":)" + deep + "}");
  const Review result = review(request, always({{settings(), InjectedAs::container}}));
  EXPECT_EQ(result.injected, std::vector<std::string>{sidecar_name});
}

TEST(Webhook, AllowsAPodWhoseSidecarsCantBeMadeOut) {
  const Json pod = pod_with(R"({"containers": [{"name": "app"}]})");
  const Review result = review(
      request_for(pod).dump(),
      [](const NewPod&) -> std::vector<Injection> { throw std::runtime_error("no memory"); });
  EXPECT_EQ(response_of(result), untouched);
  EXPECT_NE(result.problem.find("no memory"), std::string::npos);
}

}  // namespace
}  // namespace trafficmirror::controller
