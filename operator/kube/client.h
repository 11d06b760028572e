// Requests to the Kubernetes API.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "operator/kube/config.h"
#include "operator/kube/object.h"
#include "operator/kube/result.h"

namespace trafficmirror::kube {

struct CallOptions {
  // For all of it: to connect, to ask, and to read the answer to its end.
  std::chrono::milliseconds timeout = std::chrono::seconds(30);
  // Ends the call at once, from another thread.
  std::stop_token stop{};
  // Of a write: the server only says what would come of it, admission included.
  bool dry_run = false;
};

// As in kubectl's -l and --field-selector: "app=checkout,tier!=test".
struct Selection {
  std::string labels{};
  std::string fields{};
};

struct ListOptions {
  Selection selection{};
  int limit = 0;                 // objects in this page; 0: all of them
  std::string continue_token{};  // metadata.continue of the page before
};

struct WatchOptions {
  Selection selection{};
  std::string resource_version{};
  // After which the server is asked to end it.
  std::chrono::seconds timeout = std::chrono::minutes(5);
  // A server that says nothing for longer is given up. Longer than `timeout`, since there may be
  // nothing to say.
  std::chrono::milliseconds silence = std::chrono::minutes(5) + std::chrono::seconds(15);
  std::stop_token stop{};
};

struct WatchEvent {
  enum class Type { added, modified, deleted, bookmark };
  Type type = Type::added;
  Json object;  // of a bookmark, only metadata.resourceVersion means something
};

struct ApplyOptions {
  bool force = false;         // take fields over from other managers
  std::string subresource{};  // such as "status"
};

enum class PatchType {
  merge,      // RFC 7386: lists are replaced; works for every kind
  strategic,  // lists are merged by their keys; for built-in kinds only
};

struct DeleteOptions {
  std::string propagation = "Background";  // or "Foreground", "Orphan"
  // Where not empty, the object is deleted only if it still has them, and it is a conflict
  // otherwise.
  std::string uid{};
  std::string resource_version{};
};

// For use by any number of threads at once: each request takes a connection of its own, and keeps
// it open for the next. SIGPIPE has to be ignored, as program::StopSignal does.
class Client {
 public:
  // `field_manager` is the name that all writes go by. Throws program::StartError where the
  // certificates or the key of `config` can't be used; does not connect.
  Client(Config config, std::string field_manager);
  // No call may be at hand.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const Config& config() const;
  const std::string& field_manager() const;

  Result<Json> get(const Resource& resource, const Key& key, const CallOptions& call = {});
  // A page: the objects are in "items", each with its kind and apiVersion. Of all namespaces where
  // `namespace_` is empty.
  Result<Json> list(const Resource& resource, const std::string& namespace_,
                    const ListOptions& options = {}, const CallOptions& call = {});

  // All of these return the object as it is then. `object` names itself by its metadata.
  Result<Json> create(const Resource& resource, const Json& object, const CallOptions& call = {});
  // Server-side apply: makes the object, or those of its fields that are in `object`, so.
  Result<Json> apply(const Resource& resource, const Json& object, const ApplyOptions& options = {},
                     const CallOptions& call = {});
  // Replaces the object, if its metadata.resourceVersion is still that in `object`.
  Result<Json> update(const Resource& resource, const Json& object,
                      const std::string& subresource = "", const CallOptions& call = {});
  Result<Json> patch(const Resource& resource, const Key& key, const Json& patch,
                     PatchType type = PatchType::merge, const std::string& subresource = "",
                     const CallOptions& call = {});
  Result<Json> patch_status(const Resource& resource, const Key& key, const Json& status,
                            const CallOptions& call = {});
  // Returns the object where its end takes time (finalizers, grace), or the server's Status.
  Result<Json> remove(const Resource& resource, const Key& key, const DeleteOptions& options = {},
                      const CallOptions& call = {});

  // Calls `handle` on this thread for each change behind options.resource_version, until the
  // server ends it, which is no error, or something else does.
  std::optional<Error> watch(const Resource& resource, const std::string& namespace_,
                             const WatchOptions& options,
                             const std::function<void(WatchEvent)>& handle);

  // GET of any path, such as "/version".
  Result<Json> get_path(const std::string& path, const CallOptions& call = {});

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::kube
