// The lease of --client-address preserve: a session's source is its client's own address and port,
// whatever they are.
#pragma once

#include <deque>
#include <set>
#include <unordered_map>
#include <vector>

#include "intercept/lease.h"

namespace trafficmirror::intercept {

// Between a source and a target there is one connection at a time, and it belongs to the stream
// that opened it, until it has ended or the stream has: no other's packets pass on it. A source
// that another host could not have, or that is one of this host's or of a target's, is nobody's.
// UDP has no connections and does not pass.
class ClientLeases : public Leases {
 public:
  // Connections that are known at a time; a SYN beyond them is refused.
  static constexpr size_t most_connections = 1 << 18;
  // Of these, so many that have ended.
  static constexpr size_t most_ended = 1 << 14;

  explicit ClientLeases(const std::vector<Target>& targets) : targets_(targets) {}

  // Addresses of this host's, which no session may come from.
  void set_local_addresses(std::vector<net::IpAddress> addresses);

  void set_targets(const std::vector<Target>& targets) override { targets_ = targets; }
  void set_own_address(net::Family family, net::IpAddress address) override;
  std::optional<net::IpAddress> own_address(net::Family family) const override;
  // Only where the intercept sends: whose a connection is, its SYN says.
  std::optional<StreamId> open(std::span<const net::ProductionPort> production_ports,
                               Sender sender = Sender::intercept,
                               std::span<const uint16_t> reply_ports = {}) override;
  uint32_t extend(StreamId /*stream*/) override { return 0; }
  std::optional<std::vector<SourceRange>> sources(StreamId /*stream*/) const override {
    return std::nullopt;
  }
  uint32_t close(StreamId stream, std::string& resets) override;
  uint32_t reset_sessions(StreamId stream, std::string& resets) override;
  std::optional<Refusal> send(StreamId stream, const net::Packet& packet) override;
  Arrived arrive(const net::Packet& packet) override;
  std::vector<uint16_t> whole_from() const override;
  uint32_t free_ports() const override;
  uint32_t leased_ports() const override;

 private:
  struct Entry {
    Connection connection;
    StreamId stream = 0;
    bool ended = false;  // is in ended_
  };
  struct Stream {
    std::vector<net::ProductionPort> production_ports;
    std::set<uint16_t> reply_ports;
    bool active = false;
  };

  bool may_be_source(const net::IpAddress& address) const;
  bool is_target(const Stream& stream, const net::Endpoint& endpoint) const;
  bool is_reply_port(const Stream& stream, const net::Endpoint& endpoint) const;
  void note_end(const net::FlowKey& ends, Entry& entry);

  std::vector<Target> targets_;
  std::array<std::optional<net::IpAddress>, 2> own_addresses_;
  std::vector<net::IpAddress> local_addresses_;
  std::vector<Stream> streams_;
  std::unordered_map<net::FlowKey, Entry> entries_;  // by source and target
  // Oldest first. They are kept a while, so that what the shadow sends again still finds its way.
  std::deque<net::FlowKey> ended_;
};

}  // namespace trafficmirror::intercept
