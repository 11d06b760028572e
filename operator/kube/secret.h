// What a Secret holds.
#pragma once

#include <map>
#include <string>

#include "operator/kube/object.h"

namespace trafficmirror::kube {

// By key, such as "tls.crt"; not in base64.
using SecretData = std::map<std::string, std::string>;

// Of a Secret as it comes from the server; empty for null. What is no base64 is left out.
SecretData data_of(const Json& secret);
// What its field "data" says.
Json data_field(const SecretData& data);

}  // namespace trafficmirror::kube
