// A link that takes its time: packets routed into a TUN interface come back out of it later.
//
// Each packet takes --milliseconds. So many of 1,000 (--held) take --held-milliseconds more, and so
// are overtaken by what comes behind them. Packets of one time stay in order.

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <queue>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr size_t most_waiting = 65536;  // packets; more are dropped, as by any queue

struct Options {
  std::string interface = "delay";
  double milliseconds = 0;
  double held = 0;
  double held_milliseconds = 0;
};

struct Waiting {
  Clock::time_point due;
  uint64_t number;
  std::vector<char> packet;

  bool operator>(const Waiting& other) const {
    return due != other.due ? due > other.due : number > other.number;
  }
};

int open_tun(const std::string& interface) {
  const int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  interface.copy(request.ifr_name, IFNAMSIZ - 1);
  if (tun < 0 || ioctl(tun, TUNSETIFF, &request) != 0)
    throw std::runtime_error("/dev/net/tun: " + std::string(std::strerror(errno)));
  return tun;
}

class Link {
 public:
  explicit Link(const Options& options) : options_(options), tun_(open_tun(options.interface)) {}
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link() { close(tun_); }

  void run() {
    while (true) {
      wait();
      take();
      give();
    }
  }

 private:
  void wait() const {
    timespec timeout{};
    if (!waiting_.empty()) {
      const auto left = std::max(waiting_.top().due - Clock::now(), Clock::duration::zero());
      timeout.tv_sec = left / std::chrono::seconds(1);
      timeout.tv_nsec = (left % std::chrono::seconds(1)).count();
    }
    pollfd readable{tun_, POLLIN, 0};
    ppoll(&readable, 1, waiting_.empty() ? nullptr : &timeout, nullptr);
  }

  void take() {
    static std::array<char, 65536> buffer;
    for (int most = 256; most > 0; --most) {
      const ssize_t length = read(tun_, buffer.data(), buffer.size());
      if (length <= 0) return;
      if (waiting_.size() >= most_waiting) continue;
      double milliseconds = options_.milliseconds;
      if (per_mille_(random_) < options_.held) milliseconds += options_.held_milliseconds;
      const auto time = std::chrono::duration_cast<Clock::duration>(Milliseconds(milliseconds));
      waiting_.push({Clock::now() + time, number_++, {buffer.data(), buffer.data() + length}});
    }
  }

  void give() {
    const auto now = Clock::now();
    while (!waiting_.empty() && waiting_.top().due <= now) {
      const std::vector<char>& packet = waiting_.top().packet;
      [[maybe_unused]] const ssize_t written = write(tun_, packet.data(), packet.size());
      waiting_.pop();
    }
  }

  const Options options_;
  const int tun_;
  std::priority_queue<Waiting, std::vector<Waiting>, std::greater<>> waiting_;
  uint64_t number_ = 0;
  std::minstd_rand random_;  // the same choices in every run
  std::uniform_real_distribution<double> per_mille_{0, 1000};
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Packets routed into a TUN interface come back out of it later.");
  app.add_option("--interface", options.interface, "name of the interface that is made");
  app.add_option("--milliseconds", options.milliseconds, "what each packet takes");
  app.add_option("--held", options.held, "so many of 1,000 packets take longer");
  app.add_option("--held-milliseconds", options.held_milliseconds, "by so much");
  CLI11_PARSE(app, argc, argv);
  prctl(PR_SET_TIMERSLACK, 5000UL);
  try {
    Link(options).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "trafficmirror-delay: %s\n", error.what());
    return 1;
  }
}
