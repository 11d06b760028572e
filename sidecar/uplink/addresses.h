// Which addresses the intercept's name has: one for each of its replicas. They come and go.
#pragma once

#include <string>
#include <variant>
#include <vector>

namespace trafficmirror::uplink {

// Addresses as text, each once and in order; or why none is known, in plain words.
using Found = std::variant<std::vector<std::string>, std::string>;

// Asks the resolver (getaddrinfo), which may take seconds. Where a name has addresses of both
// families, those of IPv4: both are the same replicas', and one stream to each is enough.
Found look_up(const std::string& host);

// Whether the host is an address itself, for which nothing has to be looked up.
bool is_address(const std::string& host);

// At most so many of the addresses. Those of `current` go first, so that none is given up for
// another; of the others each sidecar takes different ones.
std::vector<std::string> choose(std::vector<std::string> found,
                                const std::vector<std::string>& current, size_t most,
                                const std::string& sidecar);

}  // namespace trafficmirror::uplink
