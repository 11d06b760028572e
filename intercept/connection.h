// What the intercept remembers of a connection that a sidecar simulates, by the packets that pass:
// enough to reset it at the shadow when the sidecar is gone. Of a sidecar that sends to the shadow
// directly only the shadow's packets pass.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "net/packet.h"

namespace trafficmirror::intercept {

// One connection of one source port towards one target. Sixteen bytes, since there is one for every
// port of the range and family.
class Connection {
 public:
  // `packet` is about to be injected. A SYN begins a new connection; anything else belongs to the
  // one at hand.
  void sent(uint16_t target, const net::Packet& packet);
  // The target sent `packet`.
  void received(const net::Packet& packet);
  // The target has answered a SYN that did not pass: a new connection begins.
  void accepted(uint16_t target, const net::Packet& syn_ack);
  // Whether the payload of a packet that was received ends within the first `bytes` of the
  // target's.
  bool within_first(uint32_t bytes, const net::Packet& packet) const;

  // Whether a SYN went out, ever since the port was leased, and no RST after it. A packet of the
  // shadow's for a connection that is not, is one for a closed port.
  bool known() const { return syn_sent_ && !rst_sent_; }
  // Whether the shadow may still hold it: known, and neither side has reset it nor have both
  // finished. Of one whose packets don't pass, the shadow's FIN alone ends it: a shadow that waits
  // for the other one gives up by itself, and a FIN that it sends again is one for a closed port.
  bool open() const {
    return known() && !rst_received_ && !((fin_sent_ || sent_elsewhere_) && fin_received_);
  }
  uint16_t target() const { return target_; }

  // Sequence numbers that a RST has to carry to be accepted. RFC 5961 section 3.2 takes none but
  // exactly what the shadow expects next; what was sent last may not have arrived, and what it
  // acknowledged last may be behind by a delayed acknowledgement. So there can be two.
  class ResetSequences {
   public:
    void push_back(net::SequenceNumber sequence) { sequences_[size_++] = sequence; }
    const net::SequenceNumber* begin() const { return sequences_.data(); }
    const net::SequenceNumber* end() const { return sequences_.data() + size_; }

   private:
    std::array<net::SequenceNumber, 2> sequences_{};
    size_t size_ = 0;
  };
  ResetSequences reset_sequences() const;

 private:
  net::SequenceNumber sent_end_;      // behind the furthest byte sent
  net::SequenceNumber acknowledged_;  // the furthest the shadow acknowledged: its RCV.NXT
  net::SequenceNumber first_;         // of the shadow's bytes
  uint16_t target_ = 0;
  bool syn_sent_ : 1 = false;
  bool rst_sent_ : 1 = false;
  bool fin_sent_ : 1 = false;
  bool first_known_ : 1 = false;
  bool rst_received_ : 1 = false;
  bool fin_received_ : 1 = false;
  bool sent_elsewhere_ : 1 = false;  // its packets don't pass
};
static_assert(sizeof(Connection) <= 16);

// Appends a RST from `source` to `destination`.
void append_reset(std::string& out, const net::Endpoint& source, const net::Endpoint& destination,
                  net::SequenceNumber sequence);

// Appends what a host answers to a packet for a port where nothing is (RFC 9293 section 3.10.7.1).
// False where that is nothing: a RST is never answered.
bool append_closed_port_answer(std::string& out, const net::Packet& packet);

}  // namespace trafficmirror::intercept
