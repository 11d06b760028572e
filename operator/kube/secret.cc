#include "operator/kube/secret.h"

#include <utility>

#include "operator/kube/base64.h"

namespace trafficmirror::kube {

SecretData data_of(const Json& secret) {
  SecretData data;
  const auto found = secret.find("data");
  if (found == secret.end() || !found->is_object()) return data;
  for (const auto& [key, value] : found->items()) {
    if (!value.is_string()) continue;
    if (auto bytes = decode_base64(value.get<std::string>())) data.emplace(key, std::move(*bytes));
  }
  return data;
}

Json data_field(const SecretData& data) {
  Json field = Json::object();
  for (const auto& [key, bytes] : data) field[key] = encode_base64(bytes);
  return field;
}

}  // namespace trafficmirror::kube
