// What stands between the sidecars' streams and the network: it checks and passes packets up and
// headers down, keeps the leases and the proofs of the paths. No I/O of its own: packets leave
// through a function, headers through each stream's Downlink, and the time is handed in.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "intercept/client_addresses.h"
#include "intercept/client_leases.h"
#include "intercept/counters.h"
#include "intercept/lease.h"
#include "intercept/path.h"
#include "intercept/path_proof.h"
#include "intercept/sidecar_counts.h"
#include "program/limits.h"
#include "program/log.h"
#include "program/tls.h"

namespace trafficmirror::intercept {

// The way down a stream. All of these return at once and may be called by any thread, also after
// the stream has ended.
class Downlink {
 public:
  virtual ~Downlink() = default;
  // Takes over `batch`, the headers of `count` packets, and leaves it empty.
  virtual void headers(std::string& batch, size_t count) = 0;
  // The same, of `count` whole packets. They go before headers that are handed over later.
  virtual void replies(std::string& batch, size_t count) = 0;
  // What Relay::lease() says has changed.
  virtual void lease_changed() = 0;
  // What Relay::configuration() or Relay::identity() says has changed.
  virtual void configuration_changed() = 0;
  virtual void drain() = 0;
  // Ends the stream, which can't be served any longer.
  virtual void end(const std::string& reason) = 0;
};

// Why a stream is not accepted, in plain words.
struct Denial {
  enum class Kind : uint8_t {
    wrong,        // what it asks for is wrong; asking again does not help
    unavailable,  // it can be served later
  };
  Kind kind;
  std::string reason;
};

struct LeaseContents {
  struct LeasedTarget {
    Target target;
    uint32_t path_mtu = 0;

    bool operator==(const LeasedTarget&) const = default;
  };
  std::vector<SourceRange> sources;
  bool client_sources = false;        // in place of `sources`
  std::vector<LeasedTarget> targets;  // only those whose path is proven
};

// What all sidecars are told.
struct SidecarConfiguration {
  program::Limits limits;
  bool stop = false;  // to end, all of the program

  bool operator==(const SidecarConfiguration&) const = default;
};

class Relay {
 public:
  // Whether the targets may change later. Then a production port without one is served, and its
  // sidecar waits for one to come.
  enum class Targets : uint8_t { fixed, changing };

  using Clock = PathProof::Clock;
  using Send = std::function<void(std::string_view packets)>;
  // From which ports of the shadow's packets are needed whole from here on.
  using CopyWhole = std::function<void(const std::vector<uint16_t>& ports)>;

  // The first of `source_ports` is kept for proofs; there must be at least two. `seed` makes the
  // proofs' sequence numbers. `send` is called by any thread, `counters` outlives this.
  Relay(PortRange source_ports, std::vector<Target> targets, uint32_t seed, Send send,
        Counters& counters, Targets kind = Targets::fixed, const ClientAddresses& clients = {});

  // --- for streams; any thread, but one call at a time for each stream

  // `sidecar` is its name. Of `reply_ports` it gets the first replies whole.
  std::variant<StreamId, Denial> open(const std::string& sidecar,
                                      std::span<const net::ProductionPort> production_ports,
                                      std::shared_ptr<Downlink> downlink,
                                      Sender sender = Sender::intercept,
                                      std::span<const uint16_t> reply_ports = {});
  // A PacketBatch: injects what the lease allows and counts the rest.
  void packets(StreamId stream, std::string_view batch);
  // More ports, if there are any; Downlink::lease_changed follows.
  void more_source_ports(StreamId stream);
  LeaseContents lease(StreamId stream) const;
  SidecarConfiguration configuration() const;
  // Whether sidecars are told that; or else another intercept of theirs tells them.
  bool tells_configuration() const { return tells_configuration_; }
  // What a sidecar is to show and trust that wants to be told; null: there is nothing to tell.
  std::shared_ptr<const program::TlsMaterial> identity() const;
  // What the stream's sidecar says it has counted since it said so last.
  void counted(StreamId stream, const SidecarCounts& since);
  // Resets what the stream has open and takes its ports back.
  void close(StreamId stream);

  // --- for the tap

  // `copy_whole` is called by any thread, and must not call back. To be set before there are
  // streams.
  void set_copy_whole(CopyWhole copy_whole) { copy_whole_ = std::move(copy_whole); }
  // On its thread: what it has seen, each packet whole or cut behind its headers.
  void headers(std::span<const std::span<const uint8_t>> packets);

  // --- for the thread that keeps house

  // Other targets from here on. Those that are new have their paths proven; the others' proofs, and
  // every stream, live on.
  void set_targets(std::vector<Target> targets);
  void configure(const SidecarConfiguration& configuration);
  // To be called before there are streams.
  void leave_configuration_to_others() { tells_configuration_ = false; }
  // Each stream is told that its configuration has changed.
  void set_identity(std::shared_ptr<const program::TlsMaterial> identity);
  // The endpoints of all targets, each once for each protocol.
  std::vector<net::Endpoint> endpoints() const;
  // What was looked up for each of endpoints(), in their order. Returns whether an own address has
  // changed, which ends every stream.
  bool set_paths(const std::vector<std::variant<Path, std::string>>& paths);
  std::vector<net::IpAddress> own_addresses() const;
  // All that this host has: no client's own address is one of them.
  void set_local_addresses(std::vector<net::IpAddress> addresses);
  // While there is one, no stream is accepted and nothing is proven.
  void set_obstacle(std::optional<std::string> obstacle);
  // Sends SYNs of the proofs that are due.
  void prove(Clock::time_point now);
  void prove_again();
  // Resets every session, tells every stream, and accepts nothing more.
  void drain();
  // Whether there is no stream any more, at the latest after `timeout`.
  bool wait_for_streams_to_end(std::chrono::milliseconds timeout);

  // --- for probes and metrics; any thread

  // Nothing when every production port that has targets has a proven one, and while the sidecars
  // are told to end, for which none is needed.
  std::optional<std::string> not_ready() const;
  struct Statistics {
    size_t streams = 0;
    uint32_t free_ports = 0;
    uint32_t leased_ports = 0;
    std::vector<std::pair<std::string, bool>> proven;  // by endpoint, that of UDP with /udp
  };
  Statistics statistics() const;
  struct Status {
    std::optional<std::string> not_ready;
    // Each target, and why the path to it is not proven.
    std::vector<std::pair<Target, std::optional<std::string>>> targets;
    std::map<std::string, SidecarCounts> sidecars;  // by name; those with a stream
    SidecarCounts totals;                           // of these and of all that had one
  };
  Status status() const;

 private:
  struct Stream {
    std::string sidecar;
    SidecarCounts counts;
    std::vector<net::ProductionPort> production_ports;
    std::shared_ptr<Downlink> downlink;  // none: no such stream
  };
  // Headers on their way to one stream; only the tap's thread touches these.
  struct Outgoing {
    std::string headers;
    size_t count = 0;
    std::string replies;
    size_t reply_count = 0;
    std::shared_ptr<Downlink> downlink;
  };
  struct Ending {
    std::shared_ptr<Downlink> downlink;
    std::string reason;
  };

  // For each production port with targets the proof of one: of one that is proven, if there is any.
  using Proofs = std::map<net::ProductionPort, const PathProof*>;
  Proofs proof_of_ports() const;
  std::optional<std::string> why_not_ready() const;
  std::vector<Ending> unserved_streams() const;
  void update_copy_whole();
  std::vector<std::shared_ptr<Downlink>> downlinks() const;

  const Targets kind_;
  const char* const to_widen_;  // for more source ports
  const uint16_t proof_port_;
  const Send send_;
  CopyWhole copy_whole_ = [](const std::vector<uint16_t>& /*ports*/) {};
  bool tells_configuration_ = true;
  Counters& counters_;

  // Taken once for a batch in either direction; nothing that waits is called under it.
  mutable std::mutex mutex_;
  std::condition_variable stream_ended_;
  std::vector<Target> targets_;
  std::unique_ptr<Leases> book_;
  ClientLeases* client_leases_ = nullptr;  // book_, where it is of these
  using Destination = std::pair<net::Endpoint, net::Protocol>;
  std::map<Destination, PathProof> proofs_;  // of each that targets_ have
  uint32_t next_sequence_;                   // of the next proof
  SidecarConfiguration configuration_;
  std::shared_ptr<const program::TlsMaterial> identity_;
  std::vector<Stream> streams_;  // by StreamId
  SidecarCounts totals_;         // of all streams, but for the sessions
  std::optional<std::string> obstacle_;
  bool draining_ = false;
  std::vector<uint16_t> whole_from_;  // as copy_whole_ was told last
  program::LogLimit refused_log_;
  program::LogLimit no_ports_log_;

  std::vector<Outgoing> outgoing_;  // by StreamId
  std::vector<StreamId> touched_;
};

}  // namespace trafficmirror::intercept
