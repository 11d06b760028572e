// SIGTERM and SIGINT as a file descriptor, for the program's poll loop.
#pragma once

namespace trafficmirror::program {

// To be made first thing in main(), before there are threads, since they inherit the mask: SIGTERM
// and SIGINT are blocked from then on and only make descriptor() readable. SIGPIPE is ignored, so
// that a write to a closed connection is an error like any other. The destructor closes the
// descriptor and leaves the signals as they are. Throws StartError.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Readable (POLLIN) once the program was asked to stop.
  int descriptor() const { return descriptor_; }
  // Whether it was asked since the last call; does not wait.
  bool take();

 private:
  int descriptor_;
};

}  // namespace trafficmirror::program
