#include "program/stop_signal.h"

#include <csignal>

#include <sys/signalfd.h>
#include <unistd.h>

#include "program/start_error.h"

namespace trafficmirror::program {

StopSignal::StopSignal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0)
    throw StartError("SIGTERM and SIGINT cannot be blocked");
  std::signal(SIGPIPE, SIG_IGN);
  descriptor_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  if (descriptor_ < 0) throw StartError("no file descriptor for signals: raise the limit on files");
}

StopSignal::~StopSignal() {
  close(descriptor_);
}

bool StopSignal::take() {
  signalfd_siginfo info;
  bool asked = false;
  while (read(descriptor_, &info, sizeof info) == sizeof info) asked = true;
  return asked;
}

}  // namespace trafficmirror::program
