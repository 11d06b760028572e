#include <csignal>

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "program/signals.h"
#include "program/start_error.h"

namespace trafficmirror::program {
namespace {

TEST(RunProgram, TurnsAnExceptionIntoOneLineAndExitCode2) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_program("trafficmirror-intercept",
                        []() -> int { throw StartError("--listen 0.0.0.0:7443\nis taken"); }),
            2);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "trafficmirror-intercept: --listen 0.0.0.0:7443 is taken\n");
}

TEST(RunProgram, HandsTheExitCodeOn) {
  EXPECT_EQ(run_program("trafficmirror-intercept", [] { return 7; }), 7);
}

TEST(RequireCapability, NamesTheMissingOne) {
  if (geteuid() != 0) GTEST_SKIP() << "only root has capabilities to give up";
  EXPECT_EXIT(
      {
        // Not root any more: the effective set is empty.
        if (setuid(65534) != 0) _exit(1);
        _exit(run_program("trafficmirror-sidecar", [] {
          require_capability(CAP_NET_RAW, "CAP_NET_RAW", "run as root");
          return 0;
        }));
      },
      testing::ExitedWithCode(2), "^trafficmirror-sidecar: CAP_NET_RAW is missing: run as root\n$");
}

TEST(RequireCapability, IsContentWhereItIsThere) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_NO_THROW(require_capability(CAP_NET_RAW, "CAP_NET_RAW", ""));
}

TEST(StopSignal, MakesItsDescriptorReadable) {
  for (const int number : {SIGTERM, SIGINT}) {
    StopSignal stop;
    pollfd poll_entry{.fd = stop.descriptor(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(poll(&poll_entry, 1, 0), 0);
    EXPECT_FALSE(stop.take());
    kill(getpid(), number);
    EXPECT_EQ(poll(&poll_entry, 1, 1000), 1);
    EXPECT_TRUE(stop.take());
    EXPECT_FALSE(stop.take());
  }
}

TEST(ReloadSignal, IsNoReasonToEnd) {
  StopSignal stop;
  ReloadSignal reload;
  kill(getpid(), SIGHUP);
  pollfd poll_entry{.fd = reload.descriptor(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&poll_entry, 1, 1000), 1);
  EXPECT_FALSE(stop.take());
  EXPECT_TRUE(reload.take());
  EXPECT_FALSE(reload.take());
}

}  // namespace
}  // namespace trafficmirror::program
