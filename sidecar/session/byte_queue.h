// Client bytes on their way to the shadow: from the moment they are captured until the shadow has
// acknowledged them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sidecar/session/offset.h"

namespace trafficmirror::session {

class ByteQueue {
 public:
  ClientOffset begin() const { return begin_; }
  ClientOffset end() const { return end_; }

  void append(std::span<const uint8_t> bytes);
  // Forgets what lies before `offset`, which is at most end().
  void release(ClientOffset offset);
  // Copies `length` bytes from `offset` on, all of them between begin() and end().
  void copy(ClientOffset offset, uint32_t length, uint8_t* to) const;
  // Counts offsets anew so that begin() is 0.
  void rebase();

  // Memory held, in bytes.
  size_t allocated() const { return held_ ? held_->allocated : 0; }

 private:
  struct Block {
    ClientOffset begin;
    uint32_t size;
    uint32_t capacity;
    std::unique_ptr<uint8_t[]> bytes;
  };
  static constexpr uint32_t min_block = 512;

  struct Held {
    // Blocks before `first` are released; they leave the vector when they are half of it, so that
    // releasing is O(1).
    std::vector<Block> blocks;
    size_t first = 0;
    size_t allocated = sizeof(Held);
  };

  std::unique_ptr<Held> held_;  // null where there is nothing: an idle session holds no more
  ClientOffset begin_;
  ClientOffset end_;
};

}  // namespace trafficmirror::session
