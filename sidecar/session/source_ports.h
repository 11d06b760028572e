// The leased source addresses and ports: which session uses which, and which are free. Ports rest
// as long as possible between two uses, and each remembers the sequence number its next connection
// must begin with, so that a shadow that still remembers the last one takes the SYN for a new
// connection (RFC 6191).
//
// Or, where the lease says so, the clients' own addresses and ports. Then a client has one session
// at a time with a target, and the last ones that were used are remembered for their sequence
// numbers.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <unordered_map>
#include <vector>

#include "net/address.h"
#include "net/sequence.h"
#include "sidecar/session/lease.h"

namespace trafficmirror::session {

struct SessionEntry;  // the engine's

class SourcePorts {
 public:
  // A leased address and port; valid until clear(). A client's own: until take() after give_back().
  enum class Number : uint32_t {};

  explicit SourcePorts(uint64_t seed) : random_(seed) {}

  // As many as are ever known at once: what an intercept may lease is bounded, whatever it says.
  static constexpr size_t max_ports = 1 << 18;

  // Adds the ports that are not known yet, each once; first use takes those of all addresses in
  // turn. A lease only ever grows: of an intercept that
  // takes ports back they stay, and it refuses their packets.
  void lease(const std::vector<Lease::Source>& sources);
  // From here on until clear() sources are the clients' own.
  void lease_clients() { of_clients_ = true; }
  void clear();

  // Of a client's session with a target.
  struct Ends {
    net::Endpoint client;
    net::Endpoint target;

    bool operator==(const Ends&) const = default;
  };
  std::optional<Number> take(const Ends& ends);
  bool has_free(const Ends& ends) const;
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
  // Of a leased one.
  std::optional<Number> find(const net::Endpoint& endpoint) const;
  // The session that uses an address and port towards a target; null where none does. Of leased
  // ones, which have one user each, it may be another target's.
  SessionEntry* user(const net::Endpoint& endpoint, const net::Endpoint& target) const;

  // Whether it is a leased one.
  bool contains(const net::Endpoint& endpoint) const { return find(endpoint).has_value(); }
  // Half of them, or fewer, are left: time to ask for more. A batch of captured packets may bring
  // hundreds of SYNs.
  bool low() const {
    return !of_clients_ && !slots_.empty() && (ipv4_.size + ipv6_.size) * 2 <= slots_.size();
  }

 private:
  static constexpr uint32_t none = UINT32_MAX;
  struct Slot {
    SessionEntry* user = nullptr;
    net::SequenceNumber initial_sequence;
    uint32_t next_free = none;  // of a client's own: itself while it is in unused_
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

  void add(const net::Endpoint& endpoint);
  void add_slot();
  std::optional<uint32_t> take_unused();
  Slot& slot(Number number) { return slots_[static_cast<uint32_t>(number)]; }
  Queue& queue(net::Family family) { return family == net::Family::ipv4 ? ipv4_ : ipv6_; }
  void push_free(Number number, net::Family family);

  // Of clients' own: so many that nobody uses are remembered.
  static constexpr size_t most_remembered = 1 << 14;
  std::vector<Range> ranges_;
  std::map<net::Endpoint, size_t> ranges_by_first_;
  std::vector<Slot> slots_;
  Queue ipv4_;
  Queue ipv6_;
  bool of_clients_ = false;
  struct HashOfEnds {
    size_t operator()(const Ends& ends) const;
  };
  std::unordered_map<Ends, uint32_t, HashOfEnds> numbers_;  // clients' own, as are the next two
  std::vector<Ends> ends_;                                  // by number
  std::deque<uint32_t> unused_;  // oldest first; may have been taken again since
  std::mt19937_64 random_;
};

}  // namespace trafficmirror::session
