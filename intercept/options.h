// The intercept's flags that have a form of their own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "intercept/lease.h"

namespace trafficmirror::intercept {

// These take the text of a flag over and return what is wrong with it where they can't.

// "PORT=HOST:PORT"; PORT may be of UDP, "53/udp", and then both are. A host that is a name is
// looked up; the first address is taken.
std::optional<std::string> accept_target(const std::string& text, std::vector<Target>& targets);
// "FIRST-LAST", at least two ports, none below 1024.
std::optional<std::string> accept_source_ports(const std::string& text, PortRange& ports);
// The one way there is so far to give the sessions their client addresses.
std::optional<std::string> accept_client_address(const std::string& text);

}  // namespace trafficmirror::intercept
