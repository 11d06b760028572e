// Puts the captured client bytes of a flow in order: what production sent again, or in another
// order, or twice over, comes out once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "net/sequence.h"

namespace trafficmirror::session {

class Reassembly {
 public:
  Reassembly() = default;
  explicit Reassembly(net::SequenceNumber first) : next_(first) {}

  // The first byte that has not been delivered.
  net::SequenceNumber next() const { return next_; }
  // True where bytes wait for others before them.
  bool has_gap() const { return !pieces_.empty(); }

  // Takes in a segment and calls `deliver(bytes, acknowledgment)` for each run of bytes that is in
  // order now, with the acknowledgment number of the segment that brought it. Where two copies of a
  // byte differ the one first in order wins, as it has in the production server.
  template <typename Deliver>
  void insert(net::SequenceNumber sequence, std::span<const uint8_t> bytes,
              net::SequenceNumber acknowledgment, Deliver&& deliver) {
    if (sequence > next_) {
      hold(sequence, bytes, acknowledgment);
      return;
    }
    take(sequence, bytes, acknowledgment, deliver);
    size_t taken = 0;
    for (; taken < pieces_.size() && pieces_[taken].sequence <= next_; ++taken)
      take(pieces_[taken].sequence, pieces_[taken].bytes, pieces_[taken].acknowledgment, deliver);
    if (taken > 0) drop(taken);
  }

  // Memory held, in bytes.
  size_t allocated() const { return allocated_; }

 private:
  struct Piece {
    net::SequenceNumber sequence;
    net::SequenceNumber acknowledgment;
    std::vector<uint8_t> bytes;
  };

  template <typename Deliver>
  void take(net::SequenceNumber sequence, std::span<const uint8_t> bytes,
            net::SequenceNumber acknowledgment, Deliver&& deliver) {
    const auto known = static_cast<size_t>(next_ - sequence);
    if (known >= bytes.size()) return;
    bytes = bytes.subspan(known);
    next_ = next_ + static_cast<uint32_t>(bytes.size());
    deliver(bytes, acknowledgment);
  }

  void hold(net::SequenceNumber sequence, std::span<const uint8_t> bytes,
            net::SequenceNumber acknowledgment) {
    if (bytes.empty()) return;
    const auto at = std::find_if(pieces_.begin(), pieces_.end(),
                                 [&](const Piece& piece) { return piece.sequence >= sequence; });
    if (at != pieces_.end() && at->sequence == sequence && at->bytes.size() >= bytes.size()) return;
    pieces_.insert(at, Piece{sequence, acknowledgment, {bytes.begin(), bytes.end()}});
    allocated_ += sizeof(Piece) + bytes.size();
  }

  void drop(size_t count) {
    for (size_t i = 0; i < count; ++i) allocated_ -= sizeof(Piece) + pieces_[i].bytes.size();
    pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<std::ptrdiff_t>(count));
    if (pieces_.empty()) pieces_ = std::vector<Piece>();
  }

  net::SequenceNumber next_;
  std::vector<Piece> pieces_;  // by sequence
  size_t allocated_ = 0;
};

}  // namespace trafficmirror::session
