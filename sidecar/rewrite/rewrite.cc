#include "sidecar/rewrite/rewrite.h"

#include "net/packet.h"

namespace trafficmirror::rewrite {

void Rewriter::send(const session::Path& path, const session::Segment& segment) {
  net::append_packet(
      batch_, path.source, path.target, segment.header, segment.length,
      [&](uint8_t* to) { segment.queue->copy(segment.payload, segment.length, to); });
  if (batch_.size() >= full_batch) flush();
}

void Rewriter::send_datagram(const session::Path& path, std::span<const uint8_t> payload) {
  net::append_datagram(batch_, path.source, path.target, payload);
  if (batch_.size() >= full_batch) flush();
}

void Rewriter::flush() {
  if (batch_.empty()) return;
  const size_t capacity = batch_.size();
  deliver_(std::move(batch_));
  batch_.clear();
  batch_.reserve(capacity);  // the next one is likely as large
}

}  // namespace trafficmirror::rewrite
