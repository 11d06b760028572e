#include "operator/attached_container.h"

#include <utility>

namespace trafficmirror::controller {

using kube::Json;

Json attached_container(Attached attached) {
  Json container = {
      {"name", attached.name},
      {"image", attached.image},
      {"args", std::move(attached.args)},
      {"env", std::move(attached.env)},
      {"securityContext",
       {{"capabilities", {{"drop", Json::array({"ALL"})}, {"add", attached.capabilities}}},
        {"allowPrivilegeEscalation", false},
        {"privileged", false},
        {"readOnlyRootFilesystem", true},
        // A capability that is added takes effect only for root, whatever the pod says of its
        // containers in general.
        {"runAsUser", 0},
        {"runAsNonRoot", false},
        {"seccompProfile", {{"type", "RuntimeDefault"}}}}}};
  if (!attached.image_pull_policy.empty())
    container["imagePullPolicy"] = attached.image_pull_policy;
  return container;
}

Json variable_from_pod(const char* name, const char* field) {
  return {{"name", name}, {"valueFrom", {{"fieldRef", {{"fieldPath", field}}}}}};
}

Json variable_from_secret(const char* name, const std::string& secret, const char* key) {
  return {{"name", name}, {"valueFrom", {{"secretKeyRef", {{"name", secret}, {"key", key}}}}}};
}

void take_identity_from_environment(Json& container, const std::string& secret) {
  Json& env = container["env"];
  env.push_back(variable_from_secret("TRAFFICMIRROR_TLS_CERTIFICATE", secret, "tls.crt"));
  env.push_back(variable_from_secret("TRAFFICMIRROR_TLS_KEY", secret, "tls.key"));
  env.push_back(variable_from_secret("TRAFFICMIRROR_TLS_CA", secret, "ca.crt"));
}

void take_identity_from_files(Json& container, const std::string& volume) {
  for (const auto& [flag, file] : {std::pair("--tls-certificate", "/tls.crt"),
                                   {"--tls-key", "/tls.key"},
                                   {"--tls-ca", "/ca.crt"}}) {
    container["args"].push_back(flag);
    container["args"].push_back(std::string(identity_directory) + file);
  }
  container["volumeMounts"] =
      Json::array({{{"name", volume}, {"mountPath", identity_directory}, {"readOnly", true}}});
}

Json identity_volume(const std::string& name, const std::string& secret) {
  constexpr int readable_by_owner = 0400;
  return {
      {"name", name},
      {"secret", {{"secretName", secret}, {"optional", true}, {"defaultMode", readable_by_owner}}}};
}

}  // namespace trafficmirror::controller
