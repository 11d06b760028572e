#include "sidecar/session/source_ports.h"

namespace trafficmirror::session {

void SourcePorts::lease(const std::vector<Lease::Source>& sources) {
  for (const Lease::Source& source : sources) {
    const size_t before = total_;
    for (uint32_t port = source.first.number; port <= source.last.number && total_ < max_ports;
         ++port) {
      const net::Endpoint endpoint{source.address, net::Port{static_cast<uint16_t>(port)}};
      if (contains(endpoint)) continue;
      give_back({endpoint, net::SequenceNumber(static_cast<uint32_t>(random_()))});
      ++total_;
    }
    if (total_ > before) sources_.push_back(source);
  }
}

void SourcePorts::clear() {
  sources_.clear();
  ipv4_.clear();
  ipv6_.clear();
  total_ = 0;
}

std::optional<SourcePort> SourcePorts::take(net::Family family) {
  std::deque<SourcePort>& ports = pool(family);
  if (ports.empty()) return std::nullopt;
  const SourcePort port = ports.front();
  ports.pop_front();
  return port;
}

bool SourcePorts::contains(const net::Endpoint& endpoint) const {
  for (const Lease::Source& source : sources_)
    if (source.address == endpoint.address && source.first <= endpoint.port &&
        endpoint.port <= source.last)
      return true;
  return false;
}

bool SourcePorts::low() const {
  return total_ > 0 && (ipv4_.size() + ipv6_.size()) * 4 <= total_;
}

}  // namespace trafficmirror::session
