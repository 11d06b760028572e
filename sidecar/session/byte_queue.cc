#include "sidecar/session/byte_queue.h"

#include <algorithm>
#include <cstring>

namespace trafficmirror::session {

void ByteQueue::append(std::span<const uint8_t> bytes) {
  if (first_ < blocks_.size()) {
    Block& last = blocks_.back();
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
  blocks_.push_back({end_, size, capacity, std::make_unique_for_overwrite<uint8_t[]>(capacity)});
  std::memcpy(blocks_.back().bytes.get(), bytes.data(), size);
  end_ = end_ + size;
  allocated_ += capacity + sizeof(Block);
}

void ByteQueue::release(ClientOffset offset) {
  begin_ = std::max(begin_, offset);
  while (first_ < blocks_.size() && blocks_[first_].begin + blocks_[first_].size <= begin_) {
    allocated_ -= blocks_[first_].capacity + sizeof(Block);
    blocks_[first_++].bytes.reset();
  }
  if (first_ == blocks_.size()) {
    blocks_ = std::vector<Block>();  // an idle session holds nothing
    first_ = 0;
  } else if (first_ * 2 > blocks_.size()) {
    blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(first_));
    first_ = 0;
  }
}

void ByteQueue::copy(ClientOffset offset, uint32_t length, uint8_t* to) const {
  auto block =
      std::upper_bound(blocks_.begin() + static_cast<std::ptrdiff_t>(first_), blocks_.end(), offset,
                       [](ClientOffset value, const Block& b) { return value < b.begin; }) -
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
  for (size_t i = first_; i < blocks_.size(); ++i) {
    // The first block may begin before begin_: what was released of it is dropped now.
    if (blocks_[i].begin < begin_) {
      const auto gone = static_cast<uint32_t>(begin_ - blocks_[i].begin);
      blocks_[i].size -= gone;
      std::memmove(blocks_[i].bytes.get(), blocks_[i].bytes.get() + gone, blocks_[i].size);
      blocks_[i].begin = begin_;
    }
    blocks_[i].begin = ClientOffset(blocks_[i].begin - begin_);
  }
  end_ = ClientOffset(end_ - begin_);
  begin_ = ClientOffset(0);
}

}  // namespace trafficmirror::session
