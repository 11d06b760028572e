// How a program that can't start says so: one line on stderr, exit code 2.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

namespace trafficmirror::program {

// Thrown while a program starts, by whatever part finds out that it can't. Its text is one line
// that names what is wrong and says what to do. A program that runs and opens something again, such
// as a capture, catches it, logs it and tries again.
class StartError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Writes the line "NAME: MESSAGE" on stderr and returns the exit code for it, 2.
int refuse_to_start(const std::string& name, std::string message);

// Runs the body of main() and returns its exit code. An exception that leaves it, of any kind,
// becomes the line "NAME: what it says" on stderr and exit code 2.
int run_program(const char* name, const std::function<int()>& body);

// Throws StartError ("CAP_NET_RAW is missing: " and `what_to_do`) unless the calling thread's
// effective set holds `capability`, a number of linux/capability.h whose name is `name`.
void require_capability(int capability, const char* name, const char* what_to_do);

}  // namespace trafficmirror::program
