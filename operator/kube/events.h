// Events: what kubectl describe shows at the end of an object.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "operator/kube/client.h"

namespace trafficmirror::kube {

enum class EventType { normal, warning };

// Posts Events on a thread of its own, so that nobody waits for them. They are for people and may
// get lost: what the server refuses, what comes too often, what is left at the end.
class EventRecorder {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    std::string component{};  // who reports, such as "trafficmirror-operator"
    std::string instance{};   // which one of them, such as the pod's name
    // What is said again within this time counts up the Event of before.
    std::chrono::seconds aggregate_for = std::chrono::minutes(10);
    // For each object: so many at once, and one more after each interval.
    int burst = 25;
    std::chrono::seconds interval = std::chrono::minutes(5);
    size_t longest_queue = 1000;
    std::function<Clock::time_point()> now = Clock::now;
  };

  // `client` has to outlive this.
  EventRecorder(Client& client, Options options);
  ~EventRecorder();
  EventRecorder(const EventRecorder&) = delete;
  EventRecorder& operator=(const EventRecorder&) = delete;

  // From any thread. `about` is the object, with its kind, apiVersion and metadata; `reason` is one
  // CamelCase word.
  void record(const Json& about, EventType type, const std::string& reason,
              const std::string& message);

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::kube
