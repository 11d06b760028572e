// operator/ makes the world match each TrafficMirror object: mirror (the object), selector and
// names, objects (what is made for one), plan (what has to be done, and what is said of it, out of
// what is seen), reconciler (sees and does it), certificates, webhook, and kube/ (the Kubernetes
// API). All but the reconciler, the webhook's server and main are pure.
//
// This header: a TrafficMirror as the operator understands it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "net/address.h"
#include "operator/kube/object.h"
#include "program/limits.h"

namespace trafficmirror::controller {

enum class Attach { automatic, ephemeral, sidecar };
enum class ClientAddress { masquerade, preserve, pool };

// spec.source.capture, in place of pods: a file of a PersistentVolumeClaim in the mirror's
// namespace, and how it is replayed, in the words of the sidecar's flags.
struct Capture {
  std::string claim;
  std::string path;  // within the volume
  std::string speed = "1x";
  uint32_t loop = 1;
  std::string from{};  // empty: from its start, to its end
  std::string until{};
};

// spec.shadow.service, or the selector in its place.
struct ShadowService {
  std::string name;
};

// A port whose logins to the shadow the sidecars hold themselves.
struct Login {
  net::Port port;
  std::string protocol;  // as the sidecar's --protocol has it
};

struct Mirror {
  kube::Key key;
  std::string uid;
  int64_t generation = 0;
  std::string created;  // RFC 3339, so that texts compare like times
  bool deleted = false;
  bool has_finalizer = false;

  std::optional<Capture> capture{};
  kube::Json selector;  // a LabelSelector; null, which selects nothing, where there is a capture
  std::vector<net::ProductionPort> ports;
  std::string interface {};
  Attach attach = Attach::automatic;

  std::string shadow_namespace;
  std::variant<ShadowService, kube::Json> shadow;  // JSON: a LabelSelector
  std::optional<net::Port> shadow_port;            // none: the production port's number

  std::vector<Login> logins{};
  std::string logins_secret{};  // in the mirror's namespace, with names::credentials; may be empty
  ClientAddress client_address = ClientAddress::masquerade;
  std::string client_address_pool{};  // its networks, as the intercept's flag takes them

  double percent = 100;
  uint32_t copies = 1;
  std::optional<uint32_t> max_rate{};  // requests a second
  program::Turns turns = program::Turns::wait;
  std::string filter{};   // none: all
  std::string max_lag{};  // none: any
  program::OverLag over_lag = program::OverLag::shed;
  std::string memory = "64Mi";
  uint64_t memory_bytes = 64 << 20;
  uint64_t max_sessions = 20000;
  // As they are written; empty: the sidecar's own.
  std::string idle_timeout{};
  std::string response_timeout{};

  int replicas = 1;
  kube::Json resources;
  kube::Json node_selector;
  kube::Json tolerations;

  bool paused = false;
  std::string duration_text;
  std::optional<std::chrono::seconds> duration;

  // The sessions' packets come from intercepts beside the shadow's pods, in their network
  // namespaces, and not from the Deployment's.
  bool is_intercepted_beside() const { return client_address != ClientAddress::masquerade; }
  bool has_tcp() const {
    return std::any_of(ports.begin(), ports.end(), [](net::ProductionPort port) {
      return port.protocol == net::Protocol::tcp;
    });
  }
  // Of the same protocol.
  net::ProductionPort shadow_port_of(net::ProductionPort production) const {
    return {shadow_port.value_or(net::Port{production.number}).number, production.protocol};
  }
};

// The mirror, and what is wrong with its spec in one line that names the field; that is nothing
// where the schema was kept and what the schema can't say holds too. The identity (key, uid,
// deletion) is there in any case.
struct ParsedMirror {
  Mirror mirror;
  std::string problem;
};
ParsedMirror parse_mirror(const kube::Json& object);

}  // namespace trafficmirror::controller
