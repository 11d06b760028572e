// What both captures ask about interfaces.
#pragma once

#include <string>

#include "program/start_error.h"

namespace trafficmirror::capture {

// The number of the interface, 0 for "any". Throws StartError, which lists those there are.
int interface_index(const std::string& name);

// What a call that opens a capture on `interface` failed with, as an error number.
program::StartError open_error(const std::string& interface, const std::string& step, int error);

}  // namespace trafficmirror::capture
