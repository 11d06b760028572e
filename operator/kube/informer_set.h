// Several Informers seen as one: the same resource in each of some namespaces, for a program that
// may not look into all of them.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "operator/kube/informer.h"

namespace trafficmirror::kube {

class InformerSet {
 public:
  // One for each of the options, which must have no object in common. As for Informer, `client` has
  // to outlive this, and all functions may be called from any thread.
  InformerSet(Client& client, std::vector<Informer::Options> options);

  bool has_synced() const;
  // Waits until has_synced(), `timeout` for each of them; returns whether it is in time.
  bool wait_until_synced(std::chrono::milliseconds timeout) const;
  std::shared_ptr<const Json> get(const Key& key) const;
  // Of one namespace, or of all where it is empty; ordered by namespace and name if the options
  // were.
  std::vector<std::shared_ptr<const Json>> list(const std::string& namespace_ = "") const;

 private:
  std::vector<std::unique_ptr<Informer>> informers_;
};

}  // namespace trafficmirror::kube
