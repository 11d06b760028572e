// sidecar/uplink/ is the stream to the intercept: packets go up in batches, leases and headers come
// down. It dials, and dials again when the stream is lost.
//
// gRPC works on threads of its own. Everything here is called by the one thread that owns the
// uplink; what comes in waits in a queue until that thread takes it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "net/address.h"
#include "program/limits.h"
#include "program/tls.h"
#include "sidecar/session/counters.h"
#include "sidecar/session/lease.h"
#include "sidecar/uplink/messages.h"

namespace trafficmirror::uplink {

struct Headers {  // IP and TCP headers of the shadow's packets, one behind the other
  std::string bytes;
};
struct Replies {  // whole packets of the shadow's, likewise
  std::string bytes;
};
struct Configuration {  // replaces the one before
  program::Limits limits;
};
struct Stop {};      // the program is to end
struct StreamLost {  // in plain words, why; the uplink dials again
  std::string reason;
};
using Event = std::variant<Configuration, session::Lease, Headers, Replies, Stop, StreamLost>;

class Uplink {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    net::HostPort intercept;
    // Null: plain text. What the intercept sends to replace it is handed to it.
    std::shared_ptr<program::Tls> tls{};
    std::string name;  // of this sidecar, for the intercept's log
    std::string version;
    std::vector<net::Port> ports;  // of TCP
    std::vector<net::Port> udp_ports{};
    bool sends_directly = false;           // no packets come up the stream
    std::vector<net::Port> reply_ports{};  // those of which the first replies are needed whole
  };
  struct Counters {
    uint64_t streams = 0;          // that got a lease
    uint64_t dropped_batches = 0;  // there was no stream, or it took nothing for long

    void add(const Counters& other) {
      streams += other.streams;
      dropped_batches += other.dropped_batches;
    }
  };

  // More than this waiting for the stream to take it, and it is full(): senders should hold back.
  // Beyond twice as much batches are dropped, as a queue of a network would; TCP recovers.
  static constexpr size_t max_waiting_bytes = 1 << 20;

  explicit Uplink(Options options);
  ~Uplink();
  Uplink(const Uplink&) = delete;
  Uplink& operator=(const Uplink&) = delete;

  // Readable (POLLIN) when there are events, or the stream takes packets again after it was full.
  int descriptor() const;
  std::vector<Event> take_events();

  // Dials when it is time to. To be called at next_dial() at the latest, and after take_events().
  void run(Clock::time_point now);
  // Clock::time_point::max() while there is a stream or an attempt at one.
  Clock::time_point next_dial() const;

  // Whole IP packets, one behind the other.
  void send(std::string&& packets);
  bool full() const;
  void ask_for_more_source_ports();
  // What was counted since the last report that was taken. False where the one before still waits,
  // or there is no stream: then it is to be part of a later one. `replay`: where it is none of live
  // traffic.
  bool report(const session::Counters& since, const std::optional<ReplayProgress>& replay = {});

  // Ends the stream once everything that waits has gone out: StreamLost follows, and a further
  // dial.
  void end_stream();
  // Ends the stream so, or without waiting after `timeout`; no further dials.
  void finish(std::chrono::milliseconds timeout);

  const Counters& counters() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::uplink
