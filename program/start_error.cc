#include "program/start_error.h"

#include <array>
#include <cstdint>
#include <iostream>
#include <string>

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace trafficmirror::program {
int refuse_to_start(const std::string& name, std::string message) {
  for (char& c : message)
    if (c == '\n') c = ' ';
  std::cerr << name + ": " + message + "\n" << std::flush;
  return 2;
}

int run_program(const char* name, const std::function<int()>& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return refuse_to_start(name, error.what());
  } catch (...) {
    return refuse_to_start(name, "an error without a description; this is a bug");
  }
}

void require_capability(int capability, const char* name, const char* what_to_do) {
  // By system call, as libcap would be a dependency for these lines alone.
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  if (syscall(SYS_capget, &header, sets.data()) != 0)
    throw StartError("the capabilities of this process cannot be read (capget)");
  const auto bit = static_cast<uint32_t>(capability);
  if ((sets[CAP_TO_INDEX(bit)].effective & CAP_TO_MASK(bit)) == 0)
    throw StartError(std::string(name) + " is missing: " + what_to_do);
}

}  // namespace trafficmirror::program
