#include "program/signals.h"

#include <csignal>

#include <sys/signalfd.h>
#include <unistd.h>

#include "program/start_error.h"

namespace trafficmirror::program {

SignalDescriptor::SignalDescriptor(std::initializer_list<int> numbers) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : numbers) sigaddset(&signals, number);
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0)
    throw StartError("signals cannot be blocked");
  descriptor_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  if (descriptor_ < 0) throw StartError("no file descriptor for signals: raise the limit on files");
}

SignalDescriptor::~SignalDescriptor() {
  close(descriptor_);
}

bool SignalDescriptor::take() {
  signalfd_siginfo info;
  bool came = false;
  while (read(descriptor_, &info, sizeof info) == sizeof info) came = true;
  return came;
}

StopSignal::StopSignal() : SignalDescriptor({SIGTERM, SIGINT}) {
  std::signal(SIGPIPE, SIG_IGN);
}

ReloadSignal::ReloadSignal() : SignalDescriptor({SIGHUP}) {}

}  // namespace trafficmirror::program
