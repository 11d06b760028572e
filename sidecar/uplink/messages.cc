#include "sidecar/uplink/messages.h"

#include <algorithm>

#include "trafficmirror/v1/mirror.pb.h"

namespace trafficmirror::uplink {
namespace {

// An intercept leases one address of each family, in at most 256 blocks of ports.
constexpr int max_sources = 1024;
constexpr int max_targets = 1024;

net::Port to_port(uint32_t number) {
  return net::Port{static_cast<uint16_t>(number)};
}

std::optional<net::IpAddress> to_address(const std::string& bytes) {
  return net::IpAddress::from_bytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

}  // namespace

std::optional<session::Lease> to_lease(const v1::Lease& message) {
  if (message.sources_size() > max_sources || message.targets_size() > max_targets)
    return std::nullopt;
  session::Lease lease;
  for (const v1::SourceRange& range : message.sources()) {
    const auto address = to_address(range.address());
    if (!address || range.first_port() == 0 || range.first_port() > range.last_port() ||
        range.last_port() > 65535)
      return std::nullopt;
    lease.sources.push_back({*address, to_port(range.first_port()), to_port(range.last_port())});
  }
  for (const v1::Target& target : message.targets()) {
    const auto address = to_address(target.address());
    if (!address || target.port() == 0 || target.port() > 65535 || target.production_port() > 65535)
      return std::nullopt;
    // RFC 791: a path carries at least 68 bytes; 576 is what every host has to take.
    const uint32_t mtu = std::clamp<uint32_t>(target.path_mtu(), 576, 65535);
    lease.targets.push_back({to_port(target.production_port()),
                             {*address, to_port(target.port())},
                             static_cast<uint16_t>(mtu)});
  }
  return lease;
}

}  // namespace trafficmirror::uplink
