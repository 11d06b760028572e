// How objects are named.
#pragma once

#include <compare>
#include <string>

#include <nlohmann/json.hpp>

namespace trafficmirror::kube {

using Json = nlohmann::json;

// A kind of object as it stands in URLs.
struct Resource {
  std::string group;  // "" for the core group
  std::string version;
  std::string plural;
  bool namespaced = true;

  // "v1", "apps/v1": also what apiVersion says.
  std::string group_version() const { return group.empty() ? version : group + "/" + version; }
  bool operator==(const Resource&) const = default;
};

// Which object of a resource.
struct Key {
  std::string namespace_;  // "" for objects without one
  std::string name;

  auto operator<=>(const Key&) const = default;
};

// The text at `pointer` ("/metadata/name") in `object`; "" where there is none.
std::string text_at(const Json& object, const char* pointer);

Key key_of(const Json& object);

// "shop/checkout", or "checkout" for objects without a namespace.
std::string to_text(const Key& key);

}  // namespace trafficmirror::kube
