#include "operator/kube/discovery.h"

#include <charconv>

namespace trafficmirror::kube {
namespace {

// Some servers say "20+".
int leading_number(const std::string& text) {
  int number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

}  // namespace

Result<Discovery> Discovery::ask(Client& client, const std::vector<std::string>& group_versions,
                                 const CallOptions& call) {
  const auto version = client.get_path("/version", call);
  if (!version) return version.error();
  Discovery discovery;
  discovery.version_ = {leading_number(text_at(*version, "/major")),
                        leading_number(text_at(*version, "/minor"))};
  for (const std::string& group_version : group_versions) {
    const bool core = group_version.find('/') == std::string::npos;
    const auto list = client.get_path((core ? "/api/" : "/apis/") + group_version, call);
    if (!list && list.error().kind == ErrorKind::not_found) continue;
    if (!list) return list.error();
    const auto resources = list->find("resources");
    if (resources == list->end() || !resources->is_array()) continue;
    for (const Json& resource : *resources)
      discovery.kinds_[group_version + "/" + text_at(resource, "/name")] =
          text_at(resource, "/kind");
  }
  return discovery;
}

bool Discovery::has(const Resource& resource, const std::string& subresource) const {
  const std::string name = resource.group_version() + "/" + resource.plural;
  return kinds_.contains(subresource.empty() ? name : name + "/" + subresource);
}

bool Discovery::ephemeral_containers() const {
  const auto found = kinds_.find("v1/pods/ephemeralcontainers");
  return found != kinds_.end() && found->second == "Pod";
}

}  // namespace trafficmirror::kube
