#include "operator/kube/object.h"

namespace trafficmirror::kube {

std::string text_at(const Json& object, const char* pointer) {
  const Json::json_pointer path(pointer);
  if (!object.contains(path)) return "";
  const Json& value = object.at(path);
  return value.is_string() ? value.get<std::string>() : "";
}

Key key_of(const Json& object) {
  return {text_at(object, "/metadata/namespace"), text_at(object, "/metadata/name")};
}

std::string to_text(const Key& key) {
  return key.namespace_.empty() ? key.name : key.namespace_ + "/" + key.name;
}

}  // namespace trafficmirror::kube
