#include "operator/kube/informer_set.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace trafficmirror::kube {

InformerSet::InformerSet(Client& client, std::vector<Informer::Options> options) {
  for (Informer::Options& its : options)
    informers_.push_back(std::make_unique<Informer>(client, std::move(its)));
}

bool InformerSet::has_synced() const {
  return std::all_of(informers_.begin(), informers_.end(),
                     [](const auto& informer) { return informer->has_synced(); });
}

bool InformerSet::wait_until_synced(std::chrono::milliseconds timeout) const {
  return std::all_of(informers_.begin(), informers_.end(),
                     [&](const auto& informer) { return informer->wait_until_synced(timeout); });
}

std::shared_ptr<const Json> InformerSet::get(const Key& key) const {
  for (const auto& informer : informers_)
    if (auto object = informer->get(key)) return object;
  return nullptr;
}

std::vector<std::shared_ptr<const Json>> InformerSet::list(const std::string& namespace_) const {
  std::vector<std::shared_ptr<const Json>> all;
  for (const auto& informer : informers_) {
    auto some = informer->list(namespace_);
    std::move(some.begin(), some.end(), std::back_inserter(all));
  }
  return all;
}

}  // namespace trafficmirror::kube
