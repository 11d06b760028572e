// Two hosts on one machine: the calling thread's, and another one, joined by a veth pair. Needs
// root.
#pragma once

#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace trafficmirror::tests {

// Whether the calling thread, and threads it starts from here on, are in a fresh network namespace
// now.
inline bool enter_new_network_namespace() {
  return ::geteuid() == 0 && ::unshare(CLONE_NEWNET) == 0;
}

inline void shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
}

// A thread in a network namespace of its own, which goes with it.
class OtherHost {
 public:
  OtherHost() : thread_([this] { serve(); }) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return thread_id_ != 0; });
    if (!entered_) {
      stop_ = true;
      lock.unlock();
      changed_.notify_all();
      thread_.join();
      throw std::runtime_error("no network namespace can be made");
    }
  }
  ~OtherHost() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  OtherHost(const OtherHost&) = delete;
  OtherHost& operator=(const OtherHost&) = delete;

  // What `ip link … netns` takes.
  pid_t thread_id() const { return thread_id_; }

  // Runs `work` there and waits for it. Sockets and processes made in it stay there.
  void run(std::function<void()> work) {
    std::unique_lock lock(mutex_);
    work_ = std::move(work);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !work_; });
  }

 private:
  void serve() {
    const bool entered = enter_new_network_namespace();
    std::unique_lock lock(mutex_);
    entered_ = entered;
    thread_id_ = static_cast<pid_t>(::syscall(SYS_gettid));
    changed_.notify_all();
    while (true) {
      changed_.wait(lock, [this] { return stop_ || work_; });
      if (stop_) return;
      work_();
      work_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> work_;
  pid_t thread_id_ = 0;
  bool entered_ = false;
  bool stop_ = false;
  std::thread thread_;
};

// This host's "here" (10.99.0.1, fd99::1) joined to the other's "there" (10.99.0.2, fd99::2).
inline void join_hosts(OtherHost& other) {
  shell("ip link set lo up && ip link add here type veth peer name there netns " +
        std::to_string(other.thread_id()) +
        " && ip address add 10.99.0.1/24 dev here && ip address add fd99::1/64 dev here nodad"
        " && ip link set here up");
  other.run([] {
    shell(
        "ip link set lo up && ip address add 10.99.0.2/24 dev there"
        " && ip address add fd99::2/64 dev there nodad && ip link set there up");
  });
}

}  // namespace trafficmirror::tests
