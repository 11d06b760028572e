// Reads what intercepts say of themselves, every few seconds, on threads of its own.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "operator/kube/work_queue.h"
#include "operator/report.h"

namespace trafficmirror::controller {

class ReportReader {
 public:
  struct Options {
    std::chrono::milliseconds interval = std::chrono::seconds(5);
    std::chrono::milliseconds timeout = std::chrono::seconds(2);  // for each reading
    int threads = 4;
    // On one of the threads, when a reading is another than the one before.
    std::function<void(const kube::Key& pod)> changed{};
  };

  explicit ReportReader(Options options);
  // Waits for the readings at hand.
  ~ReportReader();
  ReportReader(const ReportReader&) = delete;
  ReportReader& operator=(const ReportReader&) = delete;

  // From any thread. `address` is the pod's; without one it is not read, and what was read of it is
  // forgotten.
  void follow(const kube::Key& pod, const std::string& address, uint16_t port,
              const std::string& instance);
  void forget(const kube::Key& pod) { follow(pod, "", 0, ""); }
  std::optional<Reading> get(const kube::Key& pod) const;

 private:
  struct Followed {
    std::string address;
    uint16_t port = 0;
    Reading reading;
  };
  void run();
  Reading read(const Followed& followed) const;

  const Options options_;
  mutable std::mutex mutex_;
  std::map<kube::Key, Followed> followed_;
  kube::WorkQueue queue_;
  std::vector<std::jthread> threads_;  // last: they use all of the above
};

}  // namespace trafficmirror::controller
