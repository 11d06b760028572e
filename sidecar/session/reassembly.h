// Puts the captured client bytes of a flow in order: what production sent again, or in another
// order, or twice over, comes out once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
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
  bool has_gap() const { return held_ != nullptr; }

  // What is known of the moment at which the client sent bytes.
  struct Sent {
    net::SequenceNumber acknowledgment;
    bool more_under_way;  // the server had sent more than that acknowledges
  };

  // Takes in a segment and calls `deliver(bytes, sent)` for each run of bytes that is in order now,
  // with what came with the segment that brought it. Where two copies of a byte differ the one
  // first in order wins, as it has in the production server.
  template <typename Deliver>
  void insert(net::SequenceNumber sequence, std::span<const uint8_t> bytes, const Sent& sent,
              Deliver&& deliver) {
    if (sequence > next_) {
      hold(sequence, bytes, sent);
      return;
    }
    take(sequence, bytes, sent, deliver);
    if (!held_) return;
    const auto& pieces = held_->pieces;
    size_t taken = 0;
    for (; taken < pieces.size() && pieces[taken].sequence <= next_; ++taken)
      take(pieces[taken].sequence, pieces[taken].bytes, pieces[taken].sent, deliver);
    drop(taken);
  }

  // Memory held, in bytes.
  size_t allocated() const { return held_ ? held_->allocated : 0; }

 private:
  struct Piece {
    net::SequenceNumber sequence;
    Sent sent;
    std::vector<uint8_t> bytes;
  };

  struct Held {
    std::vector<Piece> pieces;  // by sequence
    size_t allocated = sizeof(Held);
  };

  template <typename Deliver>
  void take(net::SequenceNumber sequence, std::span<const uint8_t> bytes, const Sent& sent,
            Deliver&& deliver) {
    const auto known = static_cast<size_t>(next_ - sequence);
    if (known >= bytes.size()) return;
    bytes = bytes.subspan(known);
    next_ = next_ + static_cast<uint32_t>(bytes.size());
    deliver(bytes, sent);
  }

  void hold(net::SequenceNumber sequence, std::span<const uint8_t> bytes, const Sent& sent) {
    if (bytes.empty()) return;
    if (!held_) held_ = std::make_unique<Held>();
    auto& pieces = held_->pieces;
    const auto at = std::find_if(pieces.begin(), pieces.end(),
                                 [&](const Piece& piece) { return piece.sequence >= sequence; });
    if (at != pieces.end() && at->sequence == sequence && at->bytes.size() >= bytes.size()) return;
    pieces.insert(at, Piece{sequence, sent, {bytes.begin(), bytes.end()}});
    held_->allocated += sizeof(Piece) + bytes.size();
  }

  void drop(size_t count) {
    auto& pieces = held_->pieces;
    for (size_t i = 0; i < count; ++i) held_->allocated -= sizeof(Piece) + pieces[i].bytes.size();
    pieces.erase(pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(count));
    if (pieces.empty()) held_.reset();
  }

  net::SequenceNumber next_;
  std::unique_ptr<Held> held_;  // null where nothing waits
};

}  // namespace trafficmirror::session
