#include "operator/objects.h"

#include <algorithm>
#include <set>

#include "operator/certificates.h"
#include "operator/names.h"
#include "operator/pods.h"
#include "operator/replay.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* configuration_folder = "/etc/trafficmirror/config";
constexpr const char* tls_folder = "/etc/trafficmirror/tls";

std::string bare_number(double number) {
  std::string text = Json(number).dump();
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

template <typename Choice, typename Names>
const char* name_of(Choice choice, const Names& names) {
  return names[static_cast<size_t>(choice)];
}

// What the Deployment finds its pods by, and the Service and the policies theirs.
Json pod_labels(const Mirror& mirror) {
  return {{names::instance_label, name_for(mirror.key)}, {names::component_label, "intercept"}};
}

Json metadata(const Mirror& mirror, const std::string& namespace_) {
  Json labels = pod_labels(mirror);
  labels[names::managed_by_label] = names::managed_by;
  return {{"name", name_for(mirror.key)},
          {"namespace", namespace_},
          {"labels", labels},
          {"annotations", {{names::mirror, to_text(mirror.key)}}}};
}

WantedObject wanted(const kube::Resource& resource, const char* kind, const Mirror& mirror,
                    Json fields) {
  fields["apiVersion"] = resource.group_version();
  fields["kind"] = kind;
  if (!fields.contains("metadata")) fields["metadata"] = metadata(mirror, mirror.shadow_namespace);
  return {resource, std::move(fields)};
}

WantedObject deployment(const Mirror& mirror, const Settings& settings) {
  const std::string name = name_for(mirror.key);
  const std::string tls = tls_folder;
  Json container = {
      {"name", "intercept"},
      {"image", settings.intercept_image},
      {"args",
       {"--config",
        std::string(configuration_folder) + "/intercept.yaml",
        "--listen",
        "0.0.0.0:" + std::to_string(stream_port),
        "--http",
        "0.0.0.0:" + std::to_string(http_port),
        "--interface",
        "eth0",
        "--tls-certificate",
        tls + "/tls.crt",
        "--tls-key",
        tls + "/tls.key",
        "--tls-ca",
        tls + "/ca.crt",
        "--tls-peer",
        sidecar_identity(mirror.key),
        "--sidecar-tls-certificate",
        tls + "/sidecar.crt",
        "--sidecar-tls-key",
        tls + "/sidecar.key"}},
      {"ports",
       {{{"name", "stream"}, {"containerPort", stream_port}, {"protocol", "TCP"}},
        {{"name", "http"}, {"containerPort", http_port}, {"protocol", "TCP"}}}},
      {"readinessProbe",
       {{"httpGet", {{"path", "/readyz"}, {"port", "http"}}}, {"periodSeconds", 2}}},
      {"livenessProbe",
       {{"httpGet", {{"path", "/healthz"}, {"port", "http"}}},
        {"initialDelaySeconds", 10},
        {"periodSeconds", 10}}},
      {"securityContext",
       {{"runAsUser", 0},  // capabilities are given to a program that is not root only by its file
        {"runAsNonRoot", false},
        {"allowPrivilegeEscalation", false},
        {"readOnlyRootFilesystem", true},
        {"capabilities", {{"drop", {"ALL"}}, {"add", {"NET_ADMIN", "NET_RAW"}}}},
        {"seccompProfile", {{"type", "RuntimeDefault"}}}}},
      {"volumeMounts",
       {{{"name", "config"}, {"mountPath", configuration_folder}, {"readOnly", true}},
        {{"name", "tls"}, {"mountPath", tls_folder}, {"readOnly", true}}}}};
  if (!settings.image_pull_policy.empty())
    container["imagePullPolicy"] = settings.image_pull_policy;
  if (mirror.resources.is_object() && !mirror.resources.empty())
    container["resources"] = mirror.resources;
  Json pod = {{"serviceAccountName", name},
              {"automountServiceAccountToken", false},
              // Long enough to reset what is open at the shadow.
              {"terminationGracePeriodSeconds", 15},
              {"containers", Json::array({container})},
              {"volumes",
               {{{"name", "config"}, {"configMap", {{"name", name}}}},
                {{"name", "tls"}, {"secret", {{"secretName", name}}}}}}};
  if (mirror.node_selector.is_object() && !mirror.node_selector.empty())
    pod["nodeSelector"] = mirror.node_selector;
  if (mirror.tolerations.is_array() && !mirror.tolerations.empty())
    pod["tolerations"] = mirror.tolerations;
  for (const std::string& secret : settings.image_pull_secrets)
    pod["imagePullSecrets"].push_back({{"name", secret}});
  Json labels = pod_labels(mirror);
  labels[names::managed_by_label] = names::managed_by;
  return wanted(
      resources::deployments, "Deployment", mirror,
      {{"spec",
        {{"replicas", mirror.replicas},
         {"selector", {{"matchLabels", pod_labels(mirror)}}},
         // One after the other, and never fewer than wanted: each takes its sessions with it.
         {"strategy",
          {{"type", "RollingUpdate"}, {"rollingUpdate", {{"maxUnavailable", 0}, {"maxSurge", 1}}}}},
         {"template",
          {{"metadata",
            {{"labels", labels}, {"annotations", {{names::mirror, to_text(mirror.key)}}}}},
           {"spec", pod}}}}}});
}

// The sidecars reach the stream, and the operator the probes; the intercept reaches the shadow.
WantedObject network_policy(const Mirror& mirror, const InterceptInput& input) {
  Json sidecars = {{"podSelector", mirror.capture ? Json{{"matchLabels", replay_labels(mirror)}}
                                                  : mirror.selector},
                   {"namespaceSelector", Json::object()}};  // any: its certificate tells it
  if (!input.production_namespace_labels.is_null())
    sidecars["namespaceSelector"]["matchLabels"] = input.production_namespace_labels;
  const Json operators = {
      {"podSelector", {{"matchLabels", {{"app.kubernetes.io/name", "trafficmirror-operator"}}}}},
      {"namespaceSelector", Json::object()}};
  const auto of = [](net::ProductionPort port) {
    return Json{{"protocol", protocol_name(port.protocol)}, {"port", port.number}};
  };

  Json egress = Json::array();
  std::set<net::ProductionPort> ports;
  for (const Target& target : input.targets)
    ports.insert({target.endpoint.port.number, target.production.protocol});
  Json rule = {{"ports", Json::array()}, {"to", Json::array()}};
  for (const net::ProductionPort port : ports) rule["ports"].push_back(of(port));
  if (!input.shadow_selector.is_null()) {
    rule["to"].push_back({{"podSelector", input.shadow_selector}});
  } else {
    std::set<net::IpAddress> addresses;
    for (const Target& target : input.targets) addresses.insert(target.endpoint.address);
    for (const net::IpAddress& address : addresses)
      rule["to"].push_back(
          {{"ipBlock",
            {{"cidr",
              address.to_string() + (address.family() == net::Family::ipv4 ? "/32" : "/128")}}}});
  }
  // Without targets there is nothing to reach; a rule without ports would be one for all of them.
  if (!ports.empty()) egress.push_back(rule);
  return wanted(
      resources::network_policies, "NetworkPolicy", mirror,
      {{"spec",
        {{"podSelector", {{"matchLabels", pod_labels(mirror)}}},
         {"policyTypes", {"Ingress", "Egress"}},
         {"ingress",
          {{{"from", Json::array({sidecars})}, {"ports", Json::array({of({stream_port})})}},
           {{"from", Json::array({operators})}, {"ports", Json::array({of({http_port})})}}}},
         {"egress", egress}}}});
}

// Of intercepts beside the shadow's pods, whose labels may be anything: they are found by what is
// written into its Endpoints.
WantedObject endpoints(const Mirror& mirror, std::vector<std::string> addresses) {
  // In the server's order (RepackSubsets).
  std::sort(addresses.begin(), addresses.end());
  Json subsets = Json::array();
  if (!addresses.empty()) {
    Json subset = {{"ports", {{{"name", "stream"}, {"port", stream_port}, {"protocol", "TCP"}}}}};
    for (const std::string& address : addresses) subset["addresses"].push_back({{"ip", address}});
    subsets.push_back(std::move(subset));
  }
  return wanted(resources::endpoints, "Endpoints", mirror, {{"subsets", std::move(subsets)}});
}

std::string value_of(const kube::SecretData& data, const char* key) {
  const auto found = data.find(key);
  return found == data.end() ? "" : found->second;
}

}  // namespace

std::string configuration_of(const Mirror& mirror, const std::vector<Target>& targets,
                             bool stop_sidecars) {
  std::string text;
  text += targets.empty() ? "target: []\n" : "target:\n";
  for (const Target& target : targets)
    text += "  - \"" + target.production.to_string() + "=" + target.endpoint.to_string() + "\"\n";
  text += "percent: " + bare_number(mirror.percent) + "\n";
  // What is a text in JSON is one in YAML.
  if (!mirror.filter.empty()) text += "filter: " + Json(mirror.filter).dump() + "\n";
  if (mirror.copies != 1) text += "copies: " + std::to_string(mirror.copies) + "\n";
  if (mirror.max_rate) text += "max-rate: " + std::to_string(*mirror.max_rate) + "\n";
  text += std::string("turns: ") + name_of(mirror.turns, program::turns_names) + "\n";
  if (!mirror.max_lag.empty())
    text += "max-lag: " + mirror.max_lag +
            "\nover-lag: " + name_of(mirror.over_lag, program::over_lag_names) + "\n";
  text += "max-sessions: " + std::to_string(mirror.max_sessions) + "\n";
  text += "memory-limit: " + mirror.memory + "\n";
  text += std::string("stop-sidecars: ") + (stop_sidecars ? "true" : "false") + "\n";
  return text;
}

net::HostPort intercept_address(const Mirror& mirror) {
  return {name_for(mirror.key) + "." + mirror.shadow_namespace + ".svc", {stream_port}};
}

std::vector<WantedObject> objects_for(const Mirror& mirror, const InterceptInput& input,
                                      const Settings& settings, const Abilities& abilities) {
  std::vector<WantedObject> objects;
  kube::SecretData intercept_secret = input.intercept_leaf;
  intercept_secret["sidecar.crt"] = value_of(input.sidecar_leaf, "tls.crt");
  intercept_secret["sidecar.key"] = value_of(input.sidecar_leaf, "tls.key");
  Json sidecar_secret = metadata(mirror, mirror.key.namespace_);
  sidecar_secret["name"] = sidecar_secret_for(mirror.key);
  objects.push_back(wanted(resources::secrets, "Secret", mirror,
                           {{"metadata", sidecar_secret},
                            {"type", "Opaque"},
                            {"data", kube::data_field(input.sidecar_leaf)}}));
  objects.push_back(wanted(resources::secrets, "Secret", mirror,
                           {{"type", "Opaque"}, {"data", kube::data_field(intercept_secret)}}));
  objects.push_back(wanted(resources::service_accounts, "ServiceAccount", mirror,
                           {{"automountServiceAccountToken", false}}));
  objects.push_back(wanted(
      resources::config_maps, "ConfigMap", mirror,
      {{"data",
        {{"intercept.yaml", configuration_of(mirror, input.targets, input.stop_sidecars)}}}}));
  Json service = {{"clusterIP", "None"},
                  {"ports",
                   {{{"name", "stream"},
                     {"port", stream_port},
                     {"targetPort", stream_port},
                     {"protocol", "TCP"}}}}};
  if (!mirror.is_intercepted_beside()) service["selector"] = pod_labels(mirror);
  objects.push_back(wanted(resources::services, "Service", mirror, {{"spec", std::move(service)}}));
  if (mirror.is_intercepted_beside()) objects.push_back(endpoints(mirror, input.addresses));
  objects.push_back(network_policy(mirror, input));
  if (mirror.replicas > 1) {
    objects.push_back(wanted(
        abilities.policy_v1 ? resources::disruption_budgets : resources::disruption_budgets_beta,
        "PodDisruptionBudget", mirror,
        {{"spec", {{"maxUnavailable", 1}, {"selector", {{"matchLabels", pod_labels(mirror)}}}}}}));
  }
  objects.push_back(deployment(mirror, settings));
  return objects;
}

}  // namespace trafficmirror::controller
