// Who may use which source, and what is open on each. No I/O and no locks: the relay holds one of
// these behind its own.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "intercept/connection.h"
#include "intercept/counters.h"
#include "net/address.h"
#include "net/packet.h"

namespace trafficmirror::intercept {

struct PortRange {
  uint16_t first = 0;
  uint16_t last = 0;  // inclusive

  bool contains(uint16_t port) const { return first <= port && port <= last; }
  uint32_t size() const { return last - first + 1U; }
  bool operator==(const PortRange&) const = default;
};

// A production port and a shadow endpoint, of the same protocol, that its sessions go to.
struct Target {
  uint16_t production_port = 0;
  net::Endpoint endpoint;
  net::Protocol protocol = net::Protocol::tcp;

  net::ProductionPort production() const { return {production_port, protocol}; }
  // "80=10.0.0.5:8080" or "53/udp=10.0.0.5:53".
  std::string to_string() const { return production().to_string() + "=" + endpoint.to_string(); }
  bool operator==(const Target&) const = default;
};

// As many as a sidecar takes in a lease.
inline constexpr size_t max_targets = 1024;

// Who sends the packets of a stream's sessions to the shadow.
enum class Sender : uint8_t {
  intercept,  // what comes up the stream
  sidecar,    // so nothing is known of them but what the shadow answers
};

// So much of what a session is answered first is sent down whole, where its sidecar asks for it.
inline constexpr uint32_t first_reply_bytes = 8192;

// Number of a stream, used again after it is closed.
using StreamId = uint16_t;

struct SourceRange {
  net::IpAddress address;
  PortRange ports;

  bool operator==(const SourceRange&) const = default;
};

class Leases {
 public:
  Leases() = default;
  virtual ~Leases() = default;
  Leases(Leases&&) = default;
  Leases& operator=(Leases&&) = default;

  // Others from here on. What a stream had open with a target that is gone, it may still end.
  virtual void set_targets(const std::vector<Target>& targets) = 0;

  // What the intercept's own packets of a family come from.
  virtual void set_own_address(net::Family family, net::IpAddress address) = 0;
  virtual std::optional<net::IpAddress> own_address(net::Family family) const = 0;

  // A new stream that may send to the targets of `production_ports`. It gets fewer ports where
  // there are no more; nothing where there are none at all. Of `reply_ports`, which are TCP's, the
  // first replies are to be sent down whole.
  virtual std::optional<StreamId> open(std::span<const net::ProductionPort> production_ports,
                                       Sender sender = Sender::intercept,
                                       std::span<const uint16_t> reply_ports = {}) = 0;
  // Doubles the stream's ports, as far as there are any. Returns how many it added.
  virtual uint32_t extend(StreamId stream) = 0;
  // None: what the stream may use is its clients' own.
  virtual std::optional<std::vector<SourceRange>> sources(StreamId stream) const = 0;
  // Gives the stream's ports back. Appends the RSTs that end its open sessions; returns how many
  // sessions that were.
  virtual uint32_t close(StreamId stream, std::string& resets) = 0;
  // The same for the sessions alone; the ports stay leased.
  virtual uint32_t reset_sessions(StreamId stream, std::string& resets) = 0;

  // Checks a packet of the stream's, and notes it in its connection when there is nothing against
  // it. The caller has made sure that it is whole.
  virtual std::optional<Refusal> send(StreamId stream, const net::Packet& packet) = 0;

  enum class Arrival : uint8_t {
    foreign,      // not for a leasable port of ours, or a datagram of no target
    closed_port,  // for a port on which nobody has this connection
    session,
  };
  struct Arrived {
    Arrival what = Arrival::foreign;
    StreamId stream = 0;  // of a session
    bool whole = false;   // it is to be sent down so
  };
  // A packet from the shadow; noted in its connection.
  virtual Arrived arrive(const net::Packet& packet) = 0;
  // The targets' ports from which packets are to be sent down whole.
  virtual std::vector<uint16_t> whole_from() const = 0;

  virtual uint32_t free_ports() const = 0;
  virtual uint32_t leased_ports() const = 0;
};

// Source ports of the intercept's own addresses, or of each address of a pool. They are leased in
// blocks. A block given back goes to the end of the queue, so that a port rests as long as there
// are others before another sidecar uses it.
//
// On one port and family there is one connection at a time: a SYN to another target takes the place
// of the connection before. UDP has none: a datagram may pass between a leased port and each of its
// stream's targets.
class LeaseBook : public Leases {
 public:
  static constexpr uint32_t block_size = 256;
  static constexpr size_t blocks_at_first = 4;
  static constexpr size_t most_addresses_at_first = 8;

  using Addresses = std::vector<net::IpAddress>;
  // `pool`: by family, each sorted, at most 256; it stays. Without one there is an own address of
  // each family, and until it is set every packet of that family is refused.
  LeaseBook(PortRange ports, const std::vector<Target>& targets,
            const std::array<Addresses, 2>& pool = {});

  void set_targets(const std::vector<Target>& targets) override;
  void set_own_address(net::Family family, net::IpAddress address) override;
  std::optional<net::IpAddress> own_address(net::Family family) const override;
  std::optional<StreamId> open(std::span<const net::ProductionPort> production_ports,
                               Sender sender = Sender::intercept,
                               std::span<const uint16_t> reply_ports = {}) override;
  uint32_t extend(StreamId stream) override;
  std::optional<std::vector<SourceRange>> sources(StreamId stream) const override;
  uint32_t close(StreamId stream, std::string& resets) override;
  uint32_t reset_sessions(StreamId stream, std::string& resets) override;
  std::optional<Refusal> send(StreamId stream, const net::Packet& packet) override;
  Arrived arrive(const net::Packet& packet) override;
  std::vector<uint16_t> whole_from() const override;
  uint32_t free_ports() const override;
  uint32_t leased_ports() const override;

 private:
  // Connections refer to a target by its place, which one that is gone keeps until they have ended.
  struct Place {
    Target target;
    bool gone = false;
  };
  struct Stream {
    std::vector<net::ProductionPort> production_ports;
    std::set<uint16_t> reply_ports;
    std::vector<uint16_t> blocks;
    Sender sender = Sender::intercept;
    bool active = false;
  };
  static constexpr uint16_t no_stream = 0xffff;

  static bool is_reply_port(const Stream& stream, const Target& target);
  // A leasable address and port.
  struct Slot {
    uint16_t block;
    uint16_t index;  // in the block
  };

  uint32_t take_blocks(StreamId stream, size_t count);
  std::optional<Slot> find_slot(const net::Endpoint& source) const;
  PortRange block_range(uint16_t block) const;
  std::optional<uint16_t> answers_unseen_syn(StreamId stream, const net::Packet& packet) const;
  std::optional<net::IpAddress> block_address(uint16_t block, net::Family family) const;
  std::optional<uint16_t> find_target(const Stream& stream, const net::Endpoint& endpoint,
                                      net::Protocol protocol) const;
  std::vector<uint16_t> free_places();
  // Of a block; none before it was leased first.
  std::vector<Connection>& connections(net::Family family, uint16_t block) {
    return connections_[static_cast<size_t>(family)][block];
  }

  PortRange ports_;
  std::vector<Place> targets_;
  std::array<Addresses, 2> addresses_;  // by family
  // Of the family with more. Successive blocks are of one after the other, so that the sessions of
  // a stream are spread over many.
  uint16_t address_count_ = 1;
  std::deque<uint16_t> free_blocks_;
  std::vector<StreamId> owner_of_block_;
  std::array<std::vector<std::vector<Connection>>, 2> connections_;  // by family, then by block
  std::vector<Stream> streams_;
};

}  // namespace trafficmirror::intercept
