// One leader among several programs, by a Lease (coordination.k8s.io/v1).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "operator/kube/client.h"

namespace trafficmirror::kube {

inline const Resource leases{.group = "coordination.k8s.io", .version = "v1", .plural = "leases"};

// A leader that can't renew its lease stops leading before anybody else can begin, as long as the
// clocks run equally fast: others count the lease's time from when they saw it renewed last, on
// their own clock, and the leader from when it asked for that.
class LeaderElection {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    Key lease{};
    std::string identity{};  // another one in each program, such as the pod's name
    std::chrono::seconds lease_duration = std::chrono::seconds(15);
    // A leader that could not renew for so long is none any more. Less than lease_duration.
    std::chrono::milliseconds renew_deadline = std::chrono::seconds(10);
    std::chrono::milliseconds retry_period = std::chrono::seconds(2);
    // On the thread of run(), or the caller's of step() and release().
    std::function<void()> started{};
    std::function<void()> stopped{};
    std::function<Clock::time_point()> now = Clock::now;
  };

  // `client` has to outlive this.
  LeaderElection(Client& client, Options options);
  ~LeaderElection();
  LeaderElection(const LeaderElection&) = delete;
  LeaderElection& operator=(const LeaderElection&) = delete;

  // Steps until it is told to stop, and releases the lease then. A request at hand is cut short;
  // the release takes a second at most.
  void run(const std::stop_token& stop);

  // Tries once to acquire or renew. Returns when to step again.
  std::chrono::milliseconds step(const std::stop_token& stop = {});
  // Stops leading, and tells the others that they need not wait.
  void release();

  // From any thread. False as soon as the renew deadline is over, even if a step takes longer.
  bool leading() const;
  // Who holds the lease, as far as is known; "" for nobody.
  std::string leader() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::kube
