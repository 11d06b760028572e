// sidecar/capture/ copies the packets of the production ports, both directions, off an interface of
// this network namespace. It only listens: it never blocks production and holds no packet back, and
// what it can't keep up with is lost to the copy alone, and counted.
//
// Requests come whole, as the kernel had them: super-packets of up to 64 KiB whose checksum is
// still to be filled in are normal. Responses come as headers (filter.h says how both are told),
// and those of UDP not at all: nobody asks for them.
//
// There are two captures behind one interface: `ring` is our own AF_PACKET socket with a memory
// mapped ring, `pcap` is libpcap's. Neither needs more than CAP_NET_RAW.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "net/address.h"

namespace trafficmirror::capture {

struct CapturedPacket {
  std::span<const uint8_t> bytes;  // from the IP header on; valid during on_captured() only
  size_t wire_length = 0;          // as it was before it was cut; at least bytes.size()
  // The kernel says that the checksum holds, or has not been filled in because the packet has not
  // left this host. Otherwise nothing is known of it.
  bool checksum_vouched = false;
  std::chrono::nanoseconds time{0};  // since 1970, UTC
};

class PacketReceiver {
 public:
  virtual ~PacketReceiver() = default;
  virtual void on_captured(const CapturedPacket& packet) = 0;
};

struct CaptureCounters {
  uint64_t packets = 0;  // handed to the receiver
  uint64_t drops = 0;    // wanted, but there was no room left for them
};

enum class RequestCopy : uint8_t { whole, headers };

// For one thread at a time.
class Capture {
 public:
  virtual ~Capture() = default;

  // To be polled for POLLIN; read() is due when poll() reports anything, errors included. Stays the
  // same, and this object's, for its life.
  virtual int descriptor() const = 0;
  // Hands over what is there, without waiting and no more than the ring holds. False once the
  // interface is gone or went down: nothing comes any more, and the capture has to be opened again.
  virtual bool read(PacketReceiver& receiver) = 0;
  // What is copied of requests from now on: all of them, as in the beginning, or their headers
  // alone, for what only counts. Packets that wait already are as they were. False where the kernel
  // refuses; then the capture has to be opened again.
  virtual bool copy_requests(RequestCopy copy) = 0;
  // Since it was opened.
  virtual CaptureCounters counters() = 0;
};

struct CaptureOptions {
  std::string interface;         // "any" is all of them
  std::vector<net::Port> ports;  // of production, TCP; with those of UDP 1 to 64
  std::vector<net::Port> udp_ports{};
  uint64_t ring_bytes = 16ULL << 20;
};

// Both throw program::StartError: no such interface, no CAP_NET_RAW, no memory, ...
std::unique_ptr<Capture> open_ring_capture(const CaptureOptions& options);
std::unique_ptr<Capture> open_pcap_capture(const CaptureOptions& options);

// The interface that the default route leads to, IPv4's before IPv6's. Throws program::StartError
// where there is none.
std::string default_route_interface();

}  // namespace trafficmirror::capture
