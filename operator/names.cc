#include "operator/names.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>

#include <xxhash.h>

namespace trafficmirror::controller {

std::string hash_of(const std::string& text) {
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
  return digits.data();
}

std::string name_for(const kube::Key& mirror) {
  constexpr size_t longest = 36;  // leaves room for a number behind it in 63
  std::string name = mirror.name.substr(0, longest);
  std::replace(name.begin(), name.end(), '.', '-');
  return "trafficmirror-" + name + "-" + hash_of(to_text(mirror)).substr(0, 8);
}

std::string intercept_container_for(const kube::Key& mirror) {
  return "trafficmirror-intercept-" + hash_of(to_text(mirror)).substr(0, 8);
}

std::string sidecar_secret_for(const kube::Key& mirror) {
  return name_for(mirror) + "-sidecar";
}

kube::Key mirror_of(const kube::Json& object) {
  const auto annotations = "/metadata/annotations"_json_pointer;
  if (!object.contains(annotations)) return {};
  const std::string text = object[annotations].value(names::mirror, "");
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return {};
  return {text.substr(0, slash), text.substr(slash + 1)};
}

}  // namespace trafficmirror::controller
