#include "operator/kube/informer.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include <spdlog/spdlog.h>

#include "operator/kube/backoff.h"

namespace trafficmirror::kube {

class Informer::Implementation {
 public:
  Implementation(Client& client, Options options) : client_(client), options_(std::move(options)) {}

  bool has_synced() const {
    const std::lock_guard lock(mutex_);
    return synced_;
  }

  bool wait_until_synced(std::chrono::milliseconds timeout) const {
    std::unique_lock lock(mutex_);
    return wake_.wait_for(lock, timeout, [&] { return synced_; });
  }

  std::shared_ptr<const Json> get(const Key& key) const {
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(key);
    return found == objects_.end() ? nullptr : found->second;
  }

  std::vector<std::shared_ptr<const Json>> list(const std::string& namespace_) const {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<const Json>> result;
    for (auto at = objects_.lower_bound({namespace_, ""});
         at != objects_.end() && (namespace_.empty() || at->first.namespace_ == namespace_); ++at)
      result.push_back(at->second);
    return result;
  }

 private:
  using Objects = std::map<Key, std::shared_ptr<const Json>>;

  void run(const std::stop_token& stop) {
    Backoff backoff(options_.first_retry, options_.longest_retry);
    while (!stop.stop_requested()) {
      std::optional<Error> error;
      bool progress = false;
      if (version_.empty()) {
        // Not yet a reason to try again at once: the watch behind it may be gone every time.
        error = read_all(stop);
      } else {
        error = follow(stop, progress);
        // Such a version will not come back; what was missed is in a new list.
        if (error && error->kind == ErrorKind::gone) version_.clear();
      }
      if (stop.stop_requested()) return;
      if (progress) backoff.reset();
      if (!error) continue;
      const bool expected = error->kind == ErrorKind::gone && progress;
      if (!expected) {
        auto wait = backoff.take();
        if (error->retry_after)
          wait = std::max(wait, std::chrono::milliseconds(*error->retry_after));
        spdlog::warn("following {}: {}; again in {} ms", options_.resource.plural, error->message,
                     wait.count());
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, stop, wait, [] { return false; });
      }
    }
  }

  // Lists everything, and makes the copy equal to it.
  std::optional<Error> read_all(const std::stop_token& stop) {
    Objects fresh;
    std::string version;
    std::string token;
    do {
      auto page = client_.list(
          options_.resource, options_.namespace_,
          {.selection = options_.selection, .limit = options_.page_size, .continue_token = token},
          {.timeout = options_.list_timeout, .stop = stop});
      if (!page) return page.error();
      version = text_at(*page, "/metadata/resourceVersion");
      token = text_at(*page, "/metadata/continue");
      for (Json& item : (*page)["items"]) {
        const Key key = key_of(item);
        // What is kept already is not kept twice. Only this thread writes, so it may read.
        const auto before = objects_.find(key);
        fresh[key] = before != objects_.end() && version_of(*before->second) == version_of(item)
                         ? before->second
                         : keep(std::move(item));
      }
    } while (!token.empty());

    std::vector<Key> changed;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [key, object] : fresh) {
        const auto before = objects_.find(key);
        if (before == objects_.end() || before->second != object) changed.push_back(key);
      }
      for (const auto& [key, object] : objects_)
        if (!fresh.contains(key)) changed.push_back(key);
      objects_ = std::move(fresh);
      synced_ = true;
    }
    version_ = version;
    wake_.notify_all();
    for (const Key& key : changed) tell(key);
    return std::nullopt;
  }

  // Watches from version_ on. `progress` says whether anything came of it.
  std::optional<Error> follow(const std::stop_token& stop, bool& progress) {
    std::uniform_int_distribution<std::chrono::milliseconds::rep> length(
        options_.watch_timeout.count(), 2 * options_.watch_timeout.count());
    const std::chrono::milliseconds timeout(length(random_));
    const auto begin = std::chrono::steady_clock::now();
    auto error = client_.watch(
        options_.resource, options_.namespace_,
        {.selection = options_.selection,
         .resource_version = version_,
         .timeout = std::max(std::chrono::duration_cast<std::chrono::seconds>(timeout),
                             std::chrono::seconds(1)),
         .silence = timeout + options_.grace,
         .stop = stop},
        [&](WatchEvent event) {
          if (stop.stop_requested()) return;
          progress = true;
          take(std::move(event));
        });
    if (error) return error;
    // A server that ends every watch at once has to be left alone, too.
    if (!progress && std::chrono::steady_clock::now() - begin < options_.first_retry)
      return Error{.kind = ErrorKind::other, .message = "the server ended the watch at once"};
    progress = true;
    return std::nullopt;
  }

  void take(WatchEvent event) {
    version_ = version_of(event.object);
    if (event.type == WatchEvent::Type::bookmark) return;
    const Key key = key_of(event.object);
    auto object = event.type == WatchEvent::Type::deleted ? nullptr : keep(std::move(event.object));
    {
      const std::lock_guard lock(mutex_);
      if (object)
        objects_[key] = std::move(object);
      else
        objects_.erase(key);
    }
    tell(key);
  }

  std::shared_ptr<const Json> keep(Json object) const {
    if (options_.transform) options_.transform(object);
    return std::make_shared<const Json>(std::move(object));
  }

  void tell(const Key& key) const {
    if (options_.changed) options_.changed(key);
  }

  static std::string version_of(const Json& object) {
    return text_at(object, "/metadata/resourceVersion");
  }

  Client& client_;
  const Options options_;
  // Of the informer's thread alone.
  std::string version_;  // up to which the copy is; empty: it has to be listed
  std::minstd_rand random_{std::random_device{}()};

  mutable std::mutex mutex_;
  mutable std::condition_variable_any wake_;
  Objects objects_;
  bool synced_ = false;
  // Last, so that it ends before what it uses does.
  std::jthread thread_{[this](const std::stop_token& stop) { run(stop); }};
};

Informer::Informer(Client& client, Options options)
    : implementation_(std::make_unique<Implementation>(client, std::move(options))) {}

Informer::~Informer() = default;

bool Informer::has_synced() const {
  return implementation_->has_synced();
}

bool Informer::wait_until_synced(std::chrono::milliseconds timeout) const {
  return implementation_->wait_until_synced(timeout);
}

std::shared_ptr<const Json> Informer::get(const Key& key) const {
  return implementation_->get(key);
}

std::vector<std::shared_ptr<const Json>> Informer::list(const std::string& namespace_) const {
  return implementation_->list(namespace_);
}

void strip(Json& object) {
  const auto metadata = object.find("metadata");
  if (metadata == object.end() || !metadata->is_object()) return;
  metadata->erase("managedFields");
  const auto annotations = metadata->find("annotations");
  if (annotations != metadata->end() && annotations->is_object())
    annotations->erase("kubectl.kubernetes.io/last-applied-configuration");
}

}  // namespace trafficmirror::kube
