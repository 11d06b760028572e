// --stay: the program ends no sooner than it is told to by a signal, whatever becomes of its work.
//
// For a container in a production pod, which is ready only while all of its containers run: a
// mirror that ends, or can't even start, must not take production's pod out of service.
#pragma once

#include <chrono>
#include <functional>
#include <string>

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
}  // namespace CLI

namespace trafficmirror::program {

// So that --help has it and the work itself takes it for known. It is for the command line alone,
// as it has to hold with a file that can't be read, too.
void add_stay_flag(CLI::App& app);

// Whether it is among the arguments. They may be wrong otherwise, so they are not parsed.
bool stay_wanted(int argc, const char* const* argv);

// How a process ended, as waitpid() says it.
struct ProcessEnd {
  int status;

  bool in_order() const;  // exit code 0
  int exit_code() const;  // 128 and the signal's number where a signal killed it, as shells do
  std::string to_text() const;
};

// How long to wait before the work is started anew: after a failure `first`, after each further one
// twice as long, up to `longest`. Work that lasted for `longest` was sound, so that the next
// failure is a first one again. Work that ended in order was told to, and is tried again after
// `longest`: who told it may have changed his mind.
class Backoff {
 public:
  using Duration = std::chrono::milliseconds;
  struct Pauses {
    Duration first = std::chrono::seconds(1);
    Duration longest = std::chrono::minutes(1);
  };

  explicit Backoff(Pauses pauses) : pauses_(pauses), next_(pauses.first) {}
  Duration after(const ProcessEnd& end, Duration lasted);

 private:
  const Pauses pauses_;
  Duration next_;
};

// Does `work` in a child process, and again in a new one each time that it ends. SIGTERM, SIGINT
// and SIGHUP are passed on to it; when it has ended after one of the first two, its exit code is
// returned: 0 where none was running. While none is, SIGHUP has it started at once, as the file
// that it can't start with may be another now. The child is killed when this process ends in any
// other way. To be called before there are threads; these signals and SIGCHLD are blocked from then
// on, in the child but for SIGCHLD too, where StopSignal and ReloadSignal take up what came before
// them.
int stay(const std::function<int()>& work, Backoff::Pauses pauses = {});

}  // namespace trafficmirror::program
