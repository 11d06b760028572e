// How things are written for people.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "operator/kube/object.h"

namespace trafficmirror::kubectl {

// The cure where there is no operator.
constexpr const char* how_to_install =
    "helm install trafficmirror deploy/helm/trafficmirror -n trafficmirror --create-namespace";

// "1,234,567"
std::string with_commas(int64_t number);

// As kubectl writes an age, roughly: "45s", "12m", "3h", "40d".
std::string age_of(std::chrono::seconds length);

// "1 pod", "3 pods"
std::string counted(size_t count, const std::string& what);

// "a, b, c and 4 more"
std::string list_of(const std::vector<std::string>& names);

// A LabelSelector as in kubectl's -l: "app=checkout,tier in (a,b)"; "any" for an empty one.
std::string selector_text(const kube::Json& selector);

// Rows with their columns below each other, two blanks between them; the last one is not filled up.
std::string table_of(const std::vector<std::vector<std::string>>& rows,
                     const std::string& indentation = "");

}  // namespace trafficmirror::kubectl
