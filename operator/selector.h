// Label selectors, as Kubernetes' metav1.LabelSelector has them.
#pragma once

#include <optional>
#include <string>

#include "operator/kube/object.h"

namespace trafficmirror::controller {

// What keeps it from being one, such as an operator In without values. The schema has seen to
// types.
std::optional<std::string> problem_of_selector(const kube::Json& selector);

// Whether a map of labels meets it; an empty selector is met by all. `labels` may be null.
bool selects(const kube::Json& selector, const kube::Json& labels);

// The object's metadata.labels, or null.
const kube::Json& labels_of(const kube::Json& object);

}  // namespace trafficmirror::controller
