// Network namespaces for tests that need real packets: a test is a small network of its own, and
// nothing of it is left when the process ends. Needs root, CAP_SYS_ADMIN and `ip` of iproute2.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

namespace trafficmirror::testing_network {

// A namespace of its own with lo up. The thread that makes it is back where it was when the
// constructor is through.
class NetworkNamespace {
 public:
  NetworkNamespace() {
    const int before = open_current();
    if (unshare(CLONE_NEWNET) != 0) {
      close(before);
      throw std::runtime_error("no network namespace: needs root");
    }
    descriptor_ = open_current();
    run("ip link set lo up");
    setns(before, CLONE_NEWNET);
    close(before);
  }
  ~NetworkNamespace() { close(descriptor_); }
  NetworkNamespace(const NetworkNamespace&) = delete;
  NetworkNamespace& operator=(const NetworkNamespace&) = delete;

  // For `ip link set … netns`.
  std::string path() const {
    return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(descriptor_);
  }

  // While it lives, this thread is in the namespace.
  class Visit {
   public:
    explicit Visit(const NetworkNamespace& where) : before_(open_current()) {
      setns(where.descriptor_, CLONE_NEWNET);
    }
    ~Visit() {
      setns(before_, CLONE_NEWNET);
      close(before_);
    }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

   private:
    int before_;
  };

  // A shell command in the namespace of this thread.
  static void run(const std::string& command) {
    // NOLINTNEXTLINE(bugprone-command-processor): the commands are the tests' own
    if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
  }

 private:
  static int open_current() { return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC); }

  int descriptor_ = -1;
};

}  // namespace trafficmirror::testing_network

// For the first line of a test. Skipped, not passed, is what ctest then says.
#define SKIP_UNLESS_ROOT() \
  if (geteuid() != 0) GTEST_SKIP() << "needs root, for a network namespace of its own"
