#include "sidecar/capture/interfaces.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include <net/if.h>
#include <net/route.h>

#include "sidecar/capture/capture.h"

namespace trafficmirror::capture {
namespace {

std::string interface_names() {
  std::string names;
  struct if_nameindex* const all = if_nameindex();
  for (const struct if_nameindex* entry = all; entry != nullptr && entry->if_index != 0; ++entry)
    names += std::string(names.empty() ? "" : ", ") + entry->if_name;
  if_freenameindex(all);
  return names.empty() ? "none" : names;
}

struct DefaultRoute {
  std::string interface;
  uint32_t metric = std::numeric_limits<uint32_t>::max();
};

void choose(std::optional<DefaultRoute>& best, const std::string& interface, uint32_t metric) {
  if (!best || metric < best->metric) best = {interface, metric};
}

std::optional<DefaultRoute> ipv4_default_route() {
  std::optional<DefaultRoute> best;
  std::ifstream table("/proc/net/route");
  std::string line;
  std::getline(table, line);  // the column names
  while (std::getline(table, line)) {
    std::istringstream columns(line);
    std::string interface, destination, gateway, mask;
    uint32_t flags = 0, references = 0, uses = 0, metric = 0;
    columns >> interface >> destination >> gateway >> std::hex >> flags >> std::dec >> references >>
        uses >> metric >> mask;
    if (columns && destination == "00000000" && mask == "00000000" && (flags & RTF_UP) != 0 &&
        (flags & RTF_REJECT) == 0)
      choose(best, interface, metric);
  }
  return best;
}

std::optional<DefaultRoute> ipv6_default_route() {
  std::optional<DefaultRoute> best;
  std::ifstream table("/proc/net/ipv6_route");
  std::string line;
  while (std::getline(table, line)) {
    std::istringstream columns(line);
    std::string destination, source, next_hop, interface;
    uint32_t prefix = 0, source_prefix = 0, metric = 0, references = 0, uses = 0, flags = 0;
    columns >> std::hex >> destination >> prefix >> source >> source_prefix >> next_hop >> metric >>
        references >> uses >> flags >> interface;
    // The kernel keeps a default route that refuses on lo.
    if (columns && prefix == 0 && destination.find_first_not_of('0') == std::string::npos &&
        (flags & RTF_UP) != 0 && (flags & RTF_REJECT) == 0 && interface != "lo")
      choose(best, interface, metric);
  }
  return best;
}

}  // namespace

int interface_index(const std::string& name) {
  if (name == "any") return 0;
  const unsigned index = if_nametoindex(name.c_str());
  if (index == 0)
    throw program::StartError("--interface " + name + " does not exist: choose any, or one of " +
                              interface_names());
  return static_cast<int>(index);
}

program::StartError open_error(const std::string& interface, const std::string& step, int error) {
  if (error == EPERM || error == EACCES)
    return program::StartError(
        "CAP_NET_RAW is missing: run as root, or add NET_RAW to the container's capabilities");
  std::string message =
      "capturing on --interface " + interface + " failed: " + step + ": " + std::strerror(error);
  if (error == ENOMEM) message += "; free some memory";
  return program::StartError(message);
}

std::string default_route_interface() {
  if (const auto route = ipv4_default_route()) return route->interface;
  if (const auto route = ipv6_default_route()) return route->interface;
  throw program::StartError(
      "there is no default route to choose an interface by: give --interface "
      "any, or one of " +
      interface_names());
}

}  // namespace trafficmirror::capture
