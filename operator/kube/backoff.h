// How long to wait before another try.
#pragma once

#include <algorithm>
#include <chrono>
#include <random>

namespace trafficmirror::kube {

// Each wait is twice as long as the one before, up to `longest`; a random part of it is left out,
// so that many that failed at once do not come back at once.
class Backoff {
 public:
  Backoff(std::chrono::milliseconds first, std::chrono::milliseconds longest)
      : first_(first), longest_(longest), next_(first) {}

  // Between half of the wait and all of it.
  std::chrono::milliseconds take() {
    const auto wait = next_;
    next_ = std::min(2 * next_, longest_);
    std::uniform_int_distribution<std::chrono::milliseconds::rep> part(wait.count() / 2,
                                                                       wait.count());
    return std::chrono::milliseconds(part(random_));
  }
  void reset() { next_ = first_; }

 private:
  std::chrono::milliseconds first_;
  std::chrono::milliseconds longest_;
  std::chrono::milliseconds next_;
  std::minstd_rand random_{std::random_device{}()};
};

}  // namespace trafficmirror::kube
