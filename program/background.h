// Work that may take seconds, such as asking the resolver, on a thread of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include <sys/eventfd.h>
#include <unistd.h>

#include "program/start_error.h"

namespace trafficmirror::program {

// All is called by one thread. A Result can be made of a string: why there is none, in plain words.
template <typename Result>
class Background {
 public:
  // `work` has to be safe on any thread, also after this has gone, since nobody can end one that
  // waits for an answer. It must not throw.
  void start(std::function<Result()> work) {
    running_ = true;
    try {
      std::thread([work = std::move(work), shared = shared_] { shared->put(work()); }).detach();
    } catch (const std::system_error& error) {
      shared_->put(Result(std::string("no thread can be started: ") + error.what()));
    }
  }

  // From start() until its result is taken.
  bool running() const { return running_; }
  // Readable (POLLIN) when take() has something.
  int descriptor() const { return shared_->event_descriptor; }
  std::optional<Result> take() {
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->result) return std::nullopt;
    uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(shared_->event_descriptor, &count, sizeof count);
    running_ = false;
    return std::exchange(shared_->result, std::nullopt);
  }

 private:
  struct Shared {
    const int event_descriptor = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    std::mutex mutex;
    std::optional<Result> result;

    Shared() {
      if (event_descriptor < 0) throw StartError("eventfd failed: too many open files?");
    }
    ~Shared() { ::close(event_descriptor); }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;

    void put(Result what) {
      const std::lock_guard lock(mutex);
      result = std::move(what);
      const uint64_t one = 1;
      [[maybe_unused]] const auto written = ::write(event_descriptor, &one, sizeof one);
    }
  };

  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  bool running_ = false;
};

}  // namespace trafficmirror::program
