// YAML as kubectl reads it: the same as JSON, in another form.
#pragma once

#include <string>
#include <vector>

#include "operator/kube/object.h"

namespace YAML {  // NOLINT(readability-identifier-naming): yaml-cpp chose the name
class Node;
}  // namespace YAML

namespace trafficmirror::kube {

// Plain scalars become what they look like: null, booleans (also yes, no, on and off), numbers;
// quoted ones are texts. Both throw program::StartError.
Json json_of(const YAML::Node& node);

// All documents of `text` that are not empty. `where` is what a message begins with, such as the
// file's name.
std::vector<Json> parse_yaml(const std::string& text, const std::string& where);

}  // namespace trafficmirror::kube
