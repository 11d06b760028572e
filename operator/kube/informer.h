// A copy of the server's objects that follows them.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "operator/kube/client.h"

namespace trafficmirror::kube {

// Lists the objects of a resource, watches them from there on, and begins again where that breaks:
// the copy may be late, and is never wrong for longer than the server can't be reached.
class Informer {
 public:
  struct Options {
    Resource resource{};
    std::string namespace_{};  // "" for all of them
    Selection selection{};
    // An object takes five to six times as much memory as its text: 5,000 pods of 8 KB 250 MB, and
    // 55 MB where only names, labels and a few fields of the status are left.
    // Takes out of an object what nobody needs, before it is kept; see strip(). metadata's name,
    // namespace and resourceVersion have to stay.
    std::function<void(Json& object)> transform{};
    // Called for each object that was added, changed or deleted, when get() says so already. On the
    // informer's thread: it has to be quick, such as WorkQueue::add.
    std::function<void(const Key& key)> changed{};

    int page_size = 500;
    // The server is asked to end a watch after one to two times this; one that says nothing for
    // `grace` longer is given up.
    std::chrono::milliseconds watch_timeout = std::chrono::minutes(5);
    std::chrono::milliseconds grace = std::chrono::seconds(15);
    std::chrono::milliseconds list_timeout = std::chrono::seconds(60);  // for each page
    // Between tries that fail.
    std::chrono::milliseconds first_retry = std::chrono::milliseconds(500);
    std::chrono::milliseconds longest_retry = std::chrono::seconds(30);
  };

  // Runs on a thread of its own until the destructor, which waits for no answer. `client` has to
  // outlive this.
  Informer(Client& client, Options options);
  ~Informer();
  Informer(const Informer&) = delete;
  Informer& operator=(const Informer&) = delete;

  // All below may be called from any thread.

  // Whether the copy has been whole once: before, what is not in it may still exist.
  bool has_synced() const;
  // Waits until has_synced(); returns whether it is in time.
  bool wait_until_synced(std::chrono::milliseconds timeout) const;

  // What is kept never changes; an object that does is replaced. Null where there is none.
  std::shared_ptr<const Json> get(const Key& key) const;
  // Of one namespace, or of all where it is empty; ordered by namespace and name.
  std::vector<std::shared_ptr<const Json>> list(const std::string& namespace_ = "") const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

// Takes out what is large and of no use here: metadata.managedFields and the annotation in which
// kubectl keeps what was applied last.
void strip(Json& object);

}  // namespace trafficmirror::kube
