// Sees the headers of what the shadow sends, and of some ports all of it, before the kernel's rules
// drop it.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "intercept/counters.h"
#include "intercept/lease.h"
#include "program/descriptor.h"

namespace trafficmirror::intercept {

// A ring of packet headers shared with the kernel (packet(7), TPACKET_V2): each packet is there as
// soon as it came, without the wait for a block to fill that TPACKET_V3 has. A filter lets through
// only TCP and UDP that came in for, or from, a port of the range. What does not fit into the ring
// and is wanted whole comes through the socket's queue besides (PACKET_COPY_THRESH), in the ring's
// order.
class Tap {
 public:
  struct Filter {
    PortRange ports;
    bool of_source = false;
    // Also what has another link address than the interface.
    bool any_link_address = false;

    bool operator==(const Filter&) const = default;
  };
  using Headers = std::span<const uint8_t>;
  // What came, oldest first; the bytes are good during the call only.
  using Handler = std::function<void(std::span<const Headers>)>;

  // Throws StartError. `counters` has to outlive this. It sees packets from here on.
  Tap(std::string interface, const Filter& filter, Counters& counters);
  ~Tap();
  Tap(const Tap&) = delete;
  Tap& operator=(const Tap&) = delete;

  // Calls `handler` on this thread until stop(). Under load it reads at most every 250 µs, so that
  // many packets share what a wake-up costs; a packet that comes after quiet is read at once.
  void run(const Handler& handler);
  // Any thread.
  void stop();

  // Another filter from here on. Any thread; throws StartError.
  void set_filter(const Filter& filter);
  // From these ports of the shadow's, packets are there whole from here on, up to
  // first_reply_bytes; of all others only what fits into the ring. Any thread.
  void copy_whole(const std::vector<uint16_t>& from);
  // The interface of that name is another one now. Any thread; false where it can't be bound yet.
  bool rebind();
  // Adds what the kernel dropped since the last call to the counters. Any thread.
  void read_statistics();

 private:
  size_t take_batch(const Handler& handler);
  Headers take_whole(size_t number, Headers in_ring);

  const std::string interface_;
  std::mutex filter_mutex_;
  Filter filter_;                     // under it
  std::vector<uint16_t> whole_from_;  // likewise
  Counters& counters_;
  program::Descriptor socket_;
  program::Descriptor stop_;
  uint8_t* ring_ = nullptr;
  size_t next_frame_ = 0;
  std::vector<std::vector<uint8_t>> whole_;  // packets of a batch
};

}  // namespace trafficmirror::intercept
