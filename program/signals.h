// What a program is told by signals, as file descriptors for its poll loop.
#pragma once

#include <initializer_list>

namespace trafficmirror::program {

// To be made first thing in main(), before there are threads, since they inherit the mask: the
// signals are blocked from then on and only make descriptor() readable. The destructor closes the
// descriptor and leaves the signals as they are. Throws StartError.
class SignalDescriptor {
 public:
  SignalDescriptor(const SignalDescriptor&) = delete;
  SignalDescriptor& operator=(const SignalDescriptor&) = delete;

  // Readable (POLLIN) once one of the signals has come.
  int descriptor() const { return descriptor_; }
  // Whether one has come since the last call; does not wait.
  bool take();

 protected:
  explicit SignalDescriptor(std::initializer_list<int> numbers);
  ~SignalDescriptor();

 private:
  int descriptor_;
};

// SIGTERM and SIGINT: the program is to end. SIGPIPE is ignored from then on, so that a write to a
// closed connection is an error like any other.
class StopSignal : public SignalDescriptor {
 public:
  StopSignal();
};

// SIGHUP: the program is to read its file of --config again.
class ReloadSignal : public SignalDescriptor {
 public:
  ReloadSignal();
};

}  // namespace trafficmirror::program
