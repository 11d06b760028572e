// What the engine puts out: segments and datagrams for the shadow, still without addresses.
#pragma once

#include "net/packet.h"
#include "sidecar/session/byte_queue.h"

namespace trafficmirror::session {

// The two ends of a session on the wire and what fits between them.
struct Path {
  net::Endpoint source;  // leased
  net::Endpoint target;  // the shadow
  uint16_t mtu = 1500;   // bytes of an IP packet
};

// What a segment on this path may carry, TCP options included (RFC 6691).
inline uint16_t maximum_segment_size(const Path& path) {
  const uint32_t headers =
      net::ip_header_length(path.target.address.family()) + net::tcp_header_length;
  return static_cast<uint16_t>(path.mtu > headers ? path.mtu - headers : 0);
}

// What a datagram on this path may carry.
inline uint32_t maximum_datagram_size(const Path& path) {
  const uint32_t headers =
      net::ip_header_length(path.target.address.family()) + net::udp_header_length;
  return path.mtu > headers ? path.mtu - headers : 0;
}

struct Segment {
  net::TcpHeader header;
  const ByteQueue* queue = nullptr;  // where the payload lies; not read if length is 0
  ClientOffset payload;
  uint32_t length = 0;
};

// Takes segments as they come due. The segment and its queue are valid only during the call.
class SegmentSink {
 public:
  virtual ~SegmentSink() = default;
  virtual void send(const Path& path, const Segment& segment) = 0;
  // A UDP datagram; without ports of UDP there is none.
  virtual void send_datagram(const Path& /*path*/, std::span<const uint8_t> /*payload*/) {}
};

// The way out of one connection.
struct Outlet {
  const Path& path;
  SegmentSink& sink;

  void send(const Segment& segment) const { sink.send(path, segment); }
};

}  // namespace trafficmirror::session
