// Which connections NetworkPolicies admit, as networking.k8s.io/v1 defines it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "net/address.h"
#include "operator/kube/object.h"

namespace trafficmirror::kubectl {

enum class Direction { ingress, egress };

// The pod at the other end.
struct OtherPod {
  kube::Json labels;
  std::string namespace_;
  kube::Json namespace_labels;
};

// The port that is connected to, on whichever side that is.
struct ConnectedPort {
  uint16_t number = 0;
  net::Protocol protocol = net::Protocol::tcp;
  std::vector<std::string> names{};  // that the pod's containers give it
};

struct Admission {
  enum class Kind {
    admitted,
    // There are only rules by addresses, and those of the other pod are not known.
    by_address,
    refused,
  };
  Kind kind = Kind::admitted;
  std::vector<std::string> policies{};  // those that select the pod, where it is not admitted
};

// `policies` are those of the pod's namespace.
Admission admission_of(const std::vector<kube::Json>& policies, Direction direction,
                       const kube::Json& pod, const OtherPod& other, const ConnectedPort& port);

}  // namespace trafficmirror::kubectl
