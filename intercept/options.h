// The intercept's flags that have a form of their own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "intercept/client_addresses.h"
#include "intercept/lease.h"

namespace trafficmirror::intercept {

// These take the text of a flag over and return what is wrong with it where they can't.

// "PORT=HOST:PORT"; PORT may be of UDP, "53/udp", and then both are. A host that is a name is
// looked up; the first address is taken.
std::optional<std::string> accept_target(const std::string& text, std::vector<Target>& targets);
// "FIRST-LAST", at least two ports, none below 1024.
std::optional<std::string> accept_source_ports(const std::string& text, PortRange& ports);
// "masquerade", "preserve", or "pool=CIDR", with one CIDR of each family at most.
std::optional<std::string> accept_client_address(const std::string& text, ClientAddresses& clients);
// "loop" or "route".
std::optional<std::string> accept_reply_path(const std::string& text, ClientAddresses& clients);

}  // namespace trafficmirror::intercept
