#include "operator/selector.h"

#include <algorithm>

namespace trafficmirror::controller {
namespace {

using kube::Json;
const Json nothing;

bool has_values(const Json& requirement) {
  return requirement.contains("values") && !requirement["values"].empty();
}

bool meets(const Json& requirement, const Json& labels) {
  const std::string key = requirement.value("key", "");
  const std::string op = requirement.value("operator", "");
  const bool present = labels.is_object() && labels.contains(key);
  if (op == "Exists") return present;
  if (op == "DoesNotExist") return !present;
  const Json& values = requirement.contains("values") ? requirement["values"] : nothing;
  const bool among =
      present && std::find(values.begin(), values.end(), labels[key]) != values.end();
  return op == "In" ? among : !among;
}

}  // namespace

std::optional<std::string> problem_of_selector(const Json& selector) {
  if (!selector.contains("matchExpressions")) return std::nullopt;
  for (const Json& requirement : selector["matchExpressions"]) {
    const std::string op = requirement.value("operator", "");
    const bool wants_values = op == "In" || op == "NotIn";
    if (!wants_values && op != "Exists" && op != "DoesNotExist")
      return "the label " + requirement.value("key", "") + " has operator " + op +
             ", which is none of In, NotIn, Exists and DoesNotExist";
    if (wants_values && !has_values(requirement))
      return "the label " + requirement.value("key", "") + " has operator " + op + " and no values";
    if (!wants_values && has_values(requirement))
      return "the label " + requirement.value("key", "") + " has operator " + op +
             ", which takes no values";
  }
  return std::nullopt;
}

bool selects(const Json& selector, const Json& labels) {
  if (selector.is_null()) return false;
  if (selector.contains("matchLabels")) {
    for (const auto& [key, value] : selector["matchLabels"].items())
      if (!labels.is_object() || !labels.contains(key) || labels[key] != value) return false;
  }
  if (!selector.contains("matchExpressions")) return true;
  const Json& requirements = selector["matchExpressions"];
  return std::all_of(requirements.begin(), requirements.end(),
                     [&](const Json& requirement) { return meets(requirement, labels); });
}

const Json& labels_of(const Json& object) {
  const auto at = "/metadata/labels"_json_pointer;
  return object.contains(at) ? object[at] : nothing;
}

}  // namespace trafficmirror::controller
