#include "kubectl/network_policy.h"

#include <algorithm>

#include "operator/pods.h"
#include "operator/selector.h"

namespace trafficmirror::kubectl {
namespace {

using controller::labels_of;
using controller::selects;
using kube::Json;
using Kind = Admission::Kind;

bool is_about(const Json& spec, Direction direction) {
  const bool ingress = direction == Direction::ingress;
  // The server fills it in: Ingress always, and Egress where there are such rules.
  if (spec.contains("policyTypes")) {
    const Json& types = spec["policyTypes"];
    return std::find(types.begin(), types.end(), ingress ? "Ingress" : "Egress") != types.end();
  }
  return ingress || spec.contains("egress");
}

bool has_port(const Json& rule, const ConnectedPort& port) {
  if (!rule.contains("ports") || rule["ports"].empty()) return true;
  return std::any_of(rule["ports"].begin(), rule["ports"].end(), [&](const Json& entry) {
    if (!controller::is_of_protocol(entry, port.protocol)) return false;
    if (!entry.contains("port")) return true;
    const Json& wanted = entry["port"];
    if (wanted.is_string())
      return std::find(port.names.begin(), port.names.end(), wanted.get<std::string>()) !=
             port.names.end();
    const int first = wanted.get<int>();
    return port.number >= first && port.number <= entry.value("endPort", first);
  });
}

Kind admits_peer(const Json& peer, const std::string& namespace_, const OtherPod& other) {
  if (peer.contains("ipBlock")) {
    const Json& block = peer["ipBlock"];
    const std::string cidr = block.value("cidr", "");
    const bool everything = cidr == "0.0.0.0/0" || cidr == "::/0";
    return everything && !block.contains("except") ? Kind::admitted : Kind::by_address;
  }
  const bool place = peer.contains("namespaceSelector")
                         ? selects(peer["namespaceSelector"], other.namespace_labels)
                         : namespace_ == other.namespace_;
  const bool pod = !peer.contains("podSelector") || selects(peer["podSelector"], other.labels);
  return place && pod ? Kind::admitted : Kind::refused;
}

Kind admits(const Json& rule, const char* peers, const std::string& namespace_,
            const OtherPod& other, const ConnectedPort& port) {
  if (!has_port(rule, port)) return Kind::refused;
  if (!rule.contains(peers) || rule[peers].empty()) return Kind::admitted;
  Kind best = Kind::refused;
  for (const Json& peer : rule[peers]) best = std::min(best, admits_peer(peer, namespace_, other));
  return best;
}

}  // namespace

Admission admission_of(const std::vector<Json>& policies, Direction direction, const Json& pod,
                       const OtherPod& other, const ConnectedPort& port) {
  const char* rules = direction == Direction::ingress ? "ingress" : "egress";
  const char* peers = direction == Direction::ingress ? "from" : "to";
  Admission admission{.kind = Kind::refused};
  for (const Json& policy : policies) {
    const Json spec = policy.value("spec", Json::object());
    if (!is_about(spec, direction) ||
        !selects(spec.value("podSelector", Json::object()), labels_of(pod)))
      continue;
    const kube::Key key = kube::key_of(policy);
    admission.policies.push_back(key.name);
    for (const Json& rule : spec.value(rules, Json::array()))
      admission.kind = std::min(admission.kind, admits(rule, peers, key.namespace_, other, port));
  }
  // Without any that selects it, all is admitted.
  if (admission.policies.empty()) admission.kind = Kind::admitted;
  if (admission.kind == Kind::admitted) admission.policies.clear();
  return admission;
}

}  // namespace trafficmirror::kubectl
