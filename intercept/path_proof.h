// The proof that a target's replies come back: a handshake of the intercept's own. No I/O: packets
// to send are appended to a string, packets that came are handed in.
//
// There is none for UDP, as nobody has to answer a datagram: such a target counts as proven while
// there is a route to it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "intercept/path.h"
#include "net/address.h"
#include "net/packet.h"

namespace trafficmirror::intercept {

// Sends SYNs until the target answers one: SYN,ACK or RST, either shows that the way there and back
// holds. Once proven, it stays so until again() and two SYNs that nothing answered. Where they come
// from an address that is not this host's, and are not answered, others come from one that is: if
// these are, the target is there, and it is the way of the first that does not hold.
class PathProof {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds interval{500};

  // `source_port` has to be kept out of leases. `initial_sequence` should be one that an earlier
  // run did not use.
  PathProof(net::Endpoint target, uint16_t source_port, uint32_t initial_sequence,
            net::Protocol protocol = net::Protocol::tcp);

  const net::Endpoint& target() const { return target_; }
  // The way there as it was last looked up, or why there is none.
  void set_path(const std::variant<Path, std::string>& path);
  const std::optional<Path>& path() const { return path_; }

  // Something happened that may have broken the path: prove it once more.
  void again();
  // To be called every now and then; appends a SYN when one is due.
  void tick(Clock::time_point now, std::string& out);
  // A packet for the source port. Appends the answer to it, so that nothing stays half open at the
  // target. False where it isn't from this target.
  bool take(const net::Packet& packet, std::string& out);

  bool proven() const { return proven_; }
  // It answered, but that nothing listens there.
  bool refused() const { return refused_; }
  // In plain words; has a meaning only while it is not proven.
  std::string why_not() const;

 private:
  void append_syn(const net::IpAddress& from, std::string& out) const;

  net::Endpoint target_;
  net::Protocol protocol_;
  uint16_t source_port_;
  net::SequenceNumber sequence_;
  std::optional<Path> path_;
  std::string no_path_;
  bool proven_ = false;
  bool real_address_answered_ = false;  // while it is not proven
  bool refused_ = false;
  bool proving_;
  int unanswered_ = 0;
  std::optional<Clock::time_point> last_;
};

}  // namespace trafficmirror::intercept
