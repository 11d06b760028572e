// The leased source addresses and ports: which session uses which, and which are free. Ports rest
// as long as possible between two uses, and each remembers the sequence number its next connection
// must begin with, so that a shadow that still remembers the last one takes the SYN for a new
// connection (RFC 6191).
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "net/address.h"
#include "net/sequence.h"
#include "sidecar/session/lease.h"

namespace trafficmirror::session {

struct SessionEntry;  // the engine's

class SourcePorts {
 public:
  // A leased address and port; valid until clear().
  enum class Number : uint32_t {};

  explicit SourcePorts(uint64_t seed) : random_(seed) {}

  // As many as are ever known at once: what an intercept may lease is bounded, whatever it says.
  static constexpr size_t max_ports = 1 << 18;

  // Adds the ports that are not known yet, each once. A lease only ever grows: of an intercept that
  // takes ports back they stay, and it refuses their packets.
  void lease(const std::vector<Lease::Source>& sources);
  void clear();

  std::optional<Number> take(net::Family family);
  bool has_free(net::Family family) const {
    return (family == net::Family::ipv4 ? ipv4_ : ipv6_).size > 0;
  }
  void set_user(Number number, SessionEntry& user) { slot(number).user = &user; }
  void give_back(Number number, net::SequenceNumber next_initial_sequence);

  net::Endpoint endpoint(Number number) const;
  net::SequenceNumber initial_sequence(Number number) const {
    return slots_[static_cast<uint32_t>(number)].initial_sequence;
  }
  std::optional<Number> find(const net::Endpoint& endpoint) const;
  // The session that uses an address and port; null where none does.
  SessionEntry* user(const net::Endpoint& endpoint) const;

  bool contains(const net::Endpoint& endpoint) const { return find(endpoint).has_value(); }
  // Half of them, or fewer, are left: time to ask for more. A batch of captured packets may bring
  // hundreds of SYNs.
  bool low() const { return !slots_.empty() && (ipv4_.size + ipv6_.size) * 2 <= slots_.size(); }

 private:
  static constexpr uint32_t none = UINT32_MAX;
  struct Slot {
    SessionEntry* user = nullptr;
    net::SequenceNumber initial_sequence;
    uint32_t next_free = none;
  };
  struct Range {  // consecutive ports have consecutive slots
    net::IpAddress address;
    net::Port first;
    net::Port last;
    uint32_t first_slot;
  };
  struct Queue {  // of free slots, linked through next_free
    uint32_t head = none;
    uint32_t tail = none;
    size_t size = 0;
  };

  Slot& slot(Number number) { return slots_[static_cast<uint32_t>(number)]; }
  Queue& queue(net::Family family) { return family == net::Family::ipv4 ? ipv4_ : ipv6_; }
  void push_free(Number number, net::Family family);

  std::vector<Range> ranges_;
  std::vector<Slot> slots_;
  Queue ipv4_;
  Queue ipv6_;
  std::mt19937_64 random_;
};

}  // namespace trafficmirror::session
