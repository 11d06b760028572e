#include "program/stay.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include <CLI/App.hpp>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace trafficmirror::program {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* flag = "--stay";

// The signals that this process waits for; without threads, one at a time.
class Signals {
 public:
  Signals() {
    sigemptyset(&awaited_);
    for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&awaited_, number);
    // Where it is ignored, as it may be by inheritance, children leave nothing to wait for.
    std::signal(SIGCHLD, SIG_DFL);
    ::pthread_sigmask(SIG_BLOCK, &awaited_, nullptr);
  }

  // Its number; nothing where none came until `deadline`.
  std::optional<int> wait(Clock::time_point deadline) const {
    using std::chrono::nanoseconds;
    using std::chrono::seconds;
    const nanoseconds left = std::max(deadline - Clock::now(), nanoseconds(0));
    const timespec timeout{.tv_sec = left / seconds(1), .tv_nsec = (left % seconds(1)).count()};
    const int number = ::sigtimedwait(&awaited_, nullptr, &timeout);
    return number > 0 ? std::optional(number) : std::nullopt;
  }

 private:
  sigset_t awaited_;
};

// Negative where there is none.
pid_t start(const std::function<int()>& work) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) std::_Exit(EXIT_FAILURE);  // it was gone before that was said
  sigset_t of_parent;
  sigemptyset(&of_parent);
  sigaddset(&of_parent, SIGCHLD);
  ::pthread_sigmask(SIG_UNBLOCK, &of_parent, nullptr);
  std::exit(work());
}

std::string to_text(Backoff::Duration duration) {
  const auto milliseconds = duration.count();
  return milliseconds % 1000 == 0 ? std::to_string(milliseconds / 1000) + " s"
                                  : std::to_string(milliseconds) + " ms";
}

}  // namespace

void add_stay_flag(CLI::App& app) {
  const std::string help =
      "do not end before SIGTERM: start anew whenever it ends by itself, crashes or can't start";
  app.add_flag(flag, help)->configurable(false)->disable_flag_override();
}

bool stay_wanted(int argc, const char* const* argv) {
  return std::any_of(argv + 1, argv + argc, [](std::string_view text) { return text == flag; });
}

bool ProcessEnd::in_order() const {
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int ProcessEnd::exit_code() const {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string ProcessEnd::to_text() const {
  if (in_order()) return "has ended in order";
  if (WIFEXITED(status)) return "has ended with exit code " + std::to_string(WEXITSTATUS(status));
  const int number = WTERMSIG(status);
  return "was killed by signal " + std::to_string(number) + " (" + ::strsignal(number) + ")";
}

Backoff::Duration Backoff::after(const ProcessEnd& end, Duration lasted) {
  if (end.in_order()) {
    next_ = pauses_.first;
    return pauses_.longest;
  }
  if (lasted >= pauses_.longest) next_ = pauses_.first;
  return std::exchange(next_, std::min(2 * next_, pauses_.longest));
}

int stay(const std::function<int()>& work, Backoff::Pauses pauses) {
  const Signals signals;
  Backoff backoff(pauses);
  for (bool told_to_end = false;;) {
    const Clock::time_point began = Clock::now();
    const pid_t child = start(work);
    ProcessEnd end{};
    std::string what_happened;
    if (child > 0) {
      while (::waitpid(child, &end.status, WNOHANG) == 0) {
        const auto number = signals.wait(Clock::now() + std::chrono::hours(1));
        if (!number || *number == SIGCHLD) continue;
        told_to_end = told_to_end || *number != SIGHUP;
        ::kill(child, *number);
      }
      if (told_to_end) return end.exit_code();
      what_happened = "the process that mirrors " + end.to_text();
    } else {
      end.status = W_EXITCODE(EXIT_FAILURE, 0);
      what_happened = std::string("there can't be a process that mirrors: ") + std::strerror(errno);
    }
    const auto pause =
        backoff.after(end, std::chrono::duration_cast<Backoff::Duration>(Clock::now() - began));
    spdlog::log(end.in_order() ? spdlog::level::info : spdlog::level::err,
                "{}; it is started anew in {} (--stay)", what_happened, to_text(pause));
    const Clock::time_point next = Clock::now() + pause;
    while (Clock::now() < next) {
      const auto number = signals.wait(next);
      if (number == SIGHUP) break;
      if (number && *number != SIGCHLD) return 0;
    }
  }
}

}  // namespace trafficmirror::program
