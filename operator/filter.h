// spec.replicate.filter, before the intercept and the sidecars get it.
#pragma once

#include <optional>
#include <string>

namespace trafficmirror::controller {

// What is wrong with an expression of pcap-filter(7), to be read behind the field's name. A word
// that libpcap would look up is wrong, too: a look-up takes seconds, and it may find something else
// in each pod, and nothing tomorrow.
std::optional<std::string> problem_of_filter(const std::string& expression);

}  // namespace trafficmirror::controller
