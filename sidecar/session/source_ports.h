// The leased source addresses and ports, handed to sessions and taken back. Ports rest as long as
// possible between two uses, and each remembers the sequence number its next connection must begin
// with, so that a shadow that still remembers the last one takes the SYN for a new connection (RFC
// 6191).
#pragma once

#include <deque>
#include <optional>
#include <random>

#include "net/address.h"
#include "net/sequence.h"
#include "sidecar/session/lease.h"

namespace trafficmirror::session {

struct SourcePort {
  net::Endpoint endpoint;
  net::SequenceNumber initial_sequence;
};

class SourcePorts {
 public:
  explicit SourcePorts(uint64_t seed) : random_(seed) {}

  // As many as are ever known at once: what an intercept may lease is bounded, whatever it says.
  static constexpr size_t max_ports = 1 << 18;

  // Adds the ports that are not known yet, each once. A lease only ever grows: of an intercept that
  // takes ports back they stay, and it refuses their packets.
  void lease(const std::vector<Lease::Source>& sources);
  void clear();

  std::optional<SourcePort> take(net::Family family);
  void give_back(const SourcePort& port) { pool(port.endpoint.address.family()).push_back(port); }

  bool contains(const net::Endpoint& endpoint) const;
  // A quarter of them, or fewer, is left: time to ask for more.
  bool low() const;

 private:
  std::deque<SourcePort>& pool(net::Family family) {
    return family == net::Family::ipv4 ? ipv4_ : ipv6_;
  }

  std::vector<Lease::Source> sources_;  // all since clear()
  size_t total_ = 0;
  std::deque<SourcePort> ipv4_;
  std::deque<SourcePort> ipv6_;
  std::mt19937_64 random_;
};

}  // namespace trafficmirror::session
