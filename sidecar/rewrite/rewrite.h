// sidecar/rewrite/ turns the engine's segments and datagrams into whole packets: leased source,
// shadow destination, fresh checksums. Packets gather in batches, one behind the other, as the
// stream carries them.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "sidecar/session/segment.h"

namespace trafficmirror::rewrite {

class Rewriter : public session::SegmentSink {
 public:
  using Deliver = std::function<void(std::string&& batch)>;

  // `deliver` takes each batch: in flush(), and in send() whenever one is full.
  explicit Rewriter(Deliver deliver) : deliver_(std::move(deliver)) {}

  void send(const session::Path& path, const session::Segment& segment) override;
  void send_datagram(const session::Path& path, std::span<const uint8_t> payload) override;

  void flush();

 private:
  // What a gRPC message costs is mostly the same at any size up to here.
  static constexpr size_t full_batch = 64 << 10;

  Deliver deliver_;
  std::string batch_;
};

}  // namespace trafficmirror::rewrite
