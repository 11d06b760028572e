#include "sidecar/session/byte_queue.h"

#include <algorithm>
#include <cstring>

namespace trafficmirror::session {

void ByteQueue::append(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return;
  if (!held_) held_ = std::make_unique<Held>();
  auto& blocks = held_->blocks;
  if (held_->first < blocks.size()) {
    Block& last = blocks.back();
    const auto fits =
        static_cast<uint32_t>(std::min<size_t>(last.capacity - last.size, bytes.size()));
    std::memcpy(last.bytes.get() + last.size, bytes.data(), fits);
    last.size += fits;
    end_ = end_ + fits;
    bytes = bytes.subspan(fits);
  }
  if (bytes.empty()) return;
  const auto size = static_cast<uint32_t>(bytes.size());
  const uint32_t capacity = std::max(size, min_block);
  blocks.push_back({end_, size, capacity, std::make_unique_for_overwrite<uint8_t[]>(capacity)});
  std::memcpy(blocks.back().bytes.get(), bytes.data(), size);
  end_ = end_ + size;
  held_->allocated += capacity + sizeof(Block);
}

void ByteQueue::release(ClientOffset offset) {
  begin_ = std::max(begin_, offset);
  if (begin_ >= end_) {
    held_.reset();
    return;
  }
  auto& blocks = held_->blocks;
  size_t& first = held_->first;
  while (blocks[first].begin + blocks[first].size <= begin_) {
    held_->allocated -= blocks[first].capacity + sizeof(Block);
    blocks[first++].bytes.reset();
  }
  if (first * 2 <= blocks.size()) return;
  blocks.erase(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(first));
  first = 0;
}

void ByteQueue::copy(ClientOffset offset, uint32_t length, uint8_t* to) const {
  const auto& blocks = held_->blocks;
  auto block =
      std::upper_bound(blocks.begin() + static_cast<std::ptrdiff_t>(held_->first), blocks.end(),
                       offset, [](ClientOffset value, const Block& b) { return value < b.begin; }) -
      1;
  while (length > 0) {
    const auto skip = static_cast<uint32_t>(offset - block->begin);
    const uint32_t part = std::min(length, block->size - skip);
    std::memcpy(to, block->bytes.get() + skip, part);
    to += part;
    length -= part;
    offset = offset + part;
    ++block;
  }
}

void ByteQueue::rebase() {
  for (size_t i = held_ ? held_->first : 0; held_ && i < held_->blocks.size(); ++i) {
    Block& block = held_->blocks[i];
    // The first block may begin before begin_: what was released of it is dropped now.
    if (block.begin < begin_) {
      const auto gone = static_cast<uint32_t>(begin_ - block.begin);
      block.size -= gone;
      std::memmove(block.bytes.get(), block.bytes.get() + gone, block.size);
      block.begin = begin_;
    }
    block.begin = ClientOffset(block.begin - begin_);
  }
  end_ = ClientOffset(end_ - begin_);
  begin_ = ClientOffset(0);
}

}  // namespace trafficmirror::session
