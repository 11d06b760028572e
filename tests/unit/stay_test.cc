#include "program/stay.h"

#include <array>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <vector>

#include <CLI/App.hpp>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program/flags.h"
#include "program/signals.h"
#include "program/start_error.h"

namespace trafficmirror::program {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr ProcessEnd in_order{W_EXITCODE(0, 0)};
constexpr ProcessEnd bad_usage{W_EXITCODE(2, 0)};
constexpr ProcessEnd killed{W_EXITCODE(0, SIGKILL)};

TEST(Backoff, DoublesUpToTheLongest) {
  Backoff backoff({.first = seconds(1), .longest = seconds(60)});
  for (const int pause : {1, 2, 4, 8, 16, 32, 60, 60})
    EXPECT_EQ(backoff.after(pause % 4 == 0 ? bad_usage : killed, seconds(0)), seconds(pause));
}

TEST(Backoff, BeginsAnewBehindWorkThatLasted) {
  Backoff backoff({.first = seconds(1), .longest = seconds(60)});
  EXPECT_EQ(backoff.after(killed, seconds(0)), seconds(1));
  EXPECT_EQ(backoff.after(killed, seconds(59)), seconds(2));
  EXPECT_EQ(backoff.after(killed, seconds(60)), seconds(1));
  EXPECT_EQ(backoff.after(killed, seconds(0)), seconds(2));
}

TEST(Backoff, WaitsLongestForWhatWasToldToEnd) {
  Backoff backoff({.first = seconds(1), .longest = seconds(60)});
  EXPECT_EQ(backoff.after(killed, seconds(0)), seconds(1));
  EXPECT_EQ(backoff.after(in_order, seconds(0)), seconds(60));
  EXPECT_EQ(backoff.after(killed, seconds(0)), seconds(1)) << "it was sound in between";
}

TEST(ProcessEnd, SaysWhy) {
  EXPECT_EQ(in_order.to_text(), "has ended in order");
  EXPECT_EQ(bad_usage.to_text(), "has ended with exit code 2");
  EXPECT_EQ(killed.to_text(), "was killed by signal 9 (Killed)");
  EXPECT_EQ(bad_usage.exit_code(), 2);
  EXPECT_EQ(killed.exit_code(), 137);
}

bool wanted(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "program");
  return stay_wanted(static_cast<int>(arguments.size()), arguments.data());
}

TEST(StayFlag, CountsWhateverElseIsWrong) {
  EXPECT_FALSE(wanted({}));
  EXPECT_FALSE(wanted({"--stays", "--port", "80"}));
  EXPECT_TRUE(wanted({"--stay"}));
  EXPECT_TRUE(wanted({"--wrong", "--port", "", "--stay", "="}));
}

TEST(StayFlag, IsKnownToTheParser) {
  CLI::App app("", "trafficmirror-sidecar");
  add_stay_flag(app);
  const std::array<const char*, 2> good = {"program", "--stay"};
  EXPECT_EQ(parse_flags(app, 2, good.data()), std::nullopt);
}

TEST(LogOptions, AreTakenOutOfWhateverArgumentsThereAre) {
  const std::array<const char*, 8> arguments = {
      "program", "--wrong", "--log-format", "json", "--port", "x", "--log-level=error", "--help"};
  const CommonOptions options = log_options(8, arguments.data());
  EXPECT_EQ(options.log_format, "json");
  EXPECT_EQ(options.log_level, "error");
  const std::array<const char*, 3> wrong = {"program", "--log-level", "loud"};
  EXPECT_EQ(log_options(3, wrong.data()).log_level, "info");
}

// A process that stays, and the processes of its work, which say on a pipe that they are there.
class Stay : public testing::Test {
 protected:
  Stay() {
    // Orphans become this process's, so that their end can be seen.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (::pipe(pipe_.data()) != 0) throw StartError("no pipe");
  }
  ~Stay() override {
    ::close(pipe_[0]);
    ::close(pipe_[1]);
  }

  void start(const std::function<int()>& work, Backoff::Pauses pauses) {
    parent_ = ::fork();
    if (parent_ != 0) return;
    ::alarm(60);  // whatever goes wrong here
    std::_Exit(stay(
        [&]() -> int {
          ::alarm(60);
          const pid_t self = ::getpid();
          if (::write(pipe_[1], &self, sizeof self) != sizeof self) std::_Exit(1);
          return work();
        },
        pauses));
  }

  // Of the next process of the work; 0 where none comes.
  pid_t next_worker(milliseconds patience = seconds(10)) const {
    pollfd readable{pipe_[0], POLLIN, 0};
    pid_t worker = 0;
    if (::poll(&readable, 1, static_cast<int>(patience.count())) != 1) return 0;
    EXPECT_EQ(::read(pipe_[0], &worker, sizeof worker), static_cast<ssize_t>(sizeof worker));
    return worker;
  }

  void tell(int signal) const { ::kill(parent_, signal); }
  bool stays() const { return ::waitpid(parent_, nullptr, WNOHANG) == 0; }
  // Waits for it.
  static int exit_code(pid_t of) {
    ProcessEnd end{};
    EXPECT_EQ(::waitpid(of, &end.status, 0), of);
    return end.exit_code();
  }
  int exit_code() const { return exit_code(parent_); }

  // Work that goes on until it is told to end.
  static int work_until_told(int exit_code) {
    const StopSignal stop;
    pollfd told{stop.descriptor(), POLLIN, 0};
    ::poll(&told, 1, -1);
    return exit_code;
  }

  std::array<int, 2> pipe_{};
  pid_t parent_ = -1;
};

constexpr Backoff::Pauses quick{.first = milliseconds(10), .longest = milliseconds(20)};
constexpr Backoff::Pauses first_only{.first = milliseconds(10), .longest = minutes(10)};
constexpr Backoff::Pauses never{.first = minutes(10), .longest = minutes(10)};

TEST_F(Stay, StartsAnewWhatIsKilledAndEndsWithItsCode) {
  start([] { return work_until_told(7); }, quick);
  for (const int signal : {SIGKILL, SIGSEGV, SIGABRT}) {
    const pid_t worker = next_worker();
    ASSERT_GT(worker, 0);
    EXPECT_NE(worker, parent_);
    EXPECT_TRUE(stays());
    ::kill(worker, signal);
  }
  const pid_t last = next_worker();
  ASSERT_GT(last, 0);
  EXPECT_TRUE(stays());
  tell(SIGTERM);
  EXPECT_EQ(exit_code(), 7);
  EXPECT_EQ(::kill(last, 0), -1) << "it did not wait for the work's end";
}

TEST_F(Stay, PassesSigintOnToo) {
  start([] { return work_until_told(0); }, quick);
  ASSERT_GT(next_worker(), 0);
  tell(SIGINT);
  EXPECT_EQ(exit_code(), 0);
}

TEST_F(Stay, PassesSighupOnAndStays) {
  start(
      [&] {
        const ReloadSignal reload;
        pollfd told{reload.descriptor(), POLLIN, 0};
        ::poll(&told, 1, -1);
        const pid_t self = ::getpid();
        if (::write(pipe_[1], &self, sizeof self) != sizeof self) return 1;
        return work_until_told(9);
      },
      quick);
  const pid_t worker = next_worker();
  tell(SIGHUP);
  EXPECT_EQ(next_worker(), worker) << "it was not told";
  EXPECT_TRUE(stays());
  tell(SIGTERM);
  EXPECT_EQ(exit_code(), 9);
}

TEST_F(Stay, StartsAnewAtOnceWhenTheFileIsToBeReadAgain) {
  start([] { return 2; }, never);
  ASSERT_GT(next_worker(), 0);
  EXPECT_EQ(next_worker(milliseconds(100)), 0) << "it did not wait";
  tell(SIGHUP);
  EXPECT_GT(next_worker(), 0);
  EXPECT_TRUE(stays());
  tell(SIGTERM);
  exit_code();
}

TEST_F(Stay, EndsNoSoonerThanTheWork) {
  std::array<int, 2> gate{};
  ASSERT_EQ(::pipe(gate.data()), 0);
  start(
      [&] {
        work_until_told(0);
        const pid_t self = ::getpid();  // it was told, and has yet to reset what is open
        if (::write(pipe_[1], &self, sizeof self) != sizeof self) return 1;
        char byte = 0;
        return ::read(gate[0], &byte, 1) == 1 ? 3 : 1;
      },
      quick);
  ASSERT_GT(next_worker(), 0);
  tell(SIGTERM);
  ASSERT_GT(next_worker(), 0);
  EXPECT_TRUE(stays());
  ASSERT_EQ(::write(gate[1], "x", 1), 1);
  EXPECT_EQ(exit_code(), 3);
  EXPECT_EQ(next_worker(milliseconds(0)), 0) << "it was started anew";
  for (const int descriptor : gate) ::close(descriptor);
}

TEST_F(Stay, StaysOverBadUsageAndAnEndInOrder) {
  for (const int code : {2, 0}) {
    start([code] { return code; }, quick);
    for (int i = 0; i < 4; ++i) ASSERT_GT(next_worker(), 0);
    EXPECT_TRUE(stays());
    tell(SIGTERM);
    exit_code();
    while (next_worker(milliseconds(0)) > 0) continue;
  }
}

TEST_F(Stay, WaitsBeforeItStartsAnewAndEndsWhileItWaits) {
  start([] { return 2; }, never);
  ASSERT_GT(next_worker(), 0);
  EXPECT_EQ(next_worker(milliseconds(100)), 0) << "it did not wait";
  EXPECT_TRUE(stays());
  tell(SIGTERM);
  EXPECT_EQ(exit_code(), 0);
}

TEST_F(Stay, WaitsLongestForWhatEndedInOrder) {
  start([] { return 0; }, first_only);
  ASSERT_GT(next_worker(), 0);
  EXPECT_EQ(next_worker(milliseconds(100)), 0);
  tell(SIGTERM);
  EXPECT_EQ(exit_code(), 0);
}

TEST_F(Stay, TakesTheWorkAlongWhenItIsKilled) {
  start([] { return work_until_told(0); }, quick);
  const pid_t worker = next_worker();
  ASSERT_GT(worker, 0);
  tell(SIGKILL);
  EXPECT_EQ(exit_code(), 137);
  EXPECT_EQ(exit_code(worker), 137);
}

TEST_F(Stay, PassesOnWhatComesBeforeTheWorkListens) {
  start(
      [] {
        sigset_t pending;
        do {
          ::usleep(100);
          sigpending(&pending);
        } while (sigismember(&pending, SIGTERM) == 0);
        return work_until_told(5);
      },
      quick);
  ASSERT_GT(next_worker(), 0);
  tell(SIGTERM);
  EXPECT_EQ(exit_code(), 5);
}

}  // namespace
}  // namespace trafficmirror::program
