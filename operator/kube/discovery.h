// What the API server can do, asked once at the start.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "operator/kube/client.h"

namespace trafficmirror::kube {

struct Version {
  int major = 0;
  int minor = 0;
  auto operator<=>(const Version&) const = default;
};

class Discovery {
 public:
  // Asks for the server's version, and for the resources of each of `group_versions` ("v1",
  // "policy/v1"); those that the server does not have are no error.
  static Result<Discovery> ask(Client& client, const std::vector<std::string>& group_versions,
                               const CallOptions& call = {});

  Version version() const { return version_; }
  // Only of the group versions that were asked for.
  bool has(const Resource& resource, const std::string& subresource = "") const;

  // Containers can be added to a running pod, by a patch of the pod's subresource
  // "ephemeralcontainers". Servers before 1.22 have one of that name which takes another kind.
  // Needs "v1".
  bool ephemeral_containers() const;
  // Init containers with restartPolicy Always, on by default since 1.29.
  bool native_sidecars() const { return version_ >= Version{1, 29}; }

 private:
  Version version_;
  // By "policy/v1/poddisruptionbudgets" or "v1/pods/status": the kind it takes.
  std::map<std::string, std::string> kinds_;
};

}  // namespace trafficmirror::kube
