// The mutating webhook's judgement: which containers a pod gets when it is created. Pure; the
// server around it is webhook_server.h. Whatever comes, the pod is allowed.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "operator/intercept_container.h"
#include "operator/kube/object.h"
#include "operator/sidecar_container.h"

namespace trafficmirror::controller {

// A pod that is about to be created.
struct NewPod {
  std::string namespace_;
  std::string name;          // for messages; ends in "-" where the server has yet to complete it
  const kube::Json& labels;  // an object of texts
  const kube::Json& spec;
};

struct Injection {
  std::variant<SidecarSettings, InterceptSettings> settings;
  InjectedAs form = InjectedAs::container;
};

// The containers for a pod; called on the server's threads, also at the same time. It has to leave
// out a pod whose namespace forbids NET_RAW (Pod Security), which would be refused with them.
using InjectionsFor = std::function<std::vector<Injection>(const NewPod& pod)>;

struct Review {
  // An AdmissionReview, always "allowed". Nothing where the request could not be read as far as its
  // uid, so that no answer is possible.
  std::optional<std::string> answer;
  std::string pod;                    // "shop/checkout-", as far as known
  std::vector<std::string> injected;  // names of the containers
  std::string problem;  // one line: why not all was done that should have been; empty for none
};

// `request` is an AdmissionReview of admission.k8s.io/v1. A pod that has a container of that name
// already does not get it again, so that it may be asked twice.
Review review(const std::string& request, const InjectionsFor& injections_for);

}  // namespace trafficmirror::controller
