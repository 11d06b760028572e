// sidecar/replay/ plays the packets of a capture file to the session engine, in place of
// production.
//
//   file or stdin ─► Input (gzip, zstd) ─► PacketFile (libpcap) ─► Reader (a thread) ─► Replay ─►
//   Engine
//
// Replay gives each packet to the engine when it is due. A file, unlike production, can wait: at
// the highest speed a packet waits until there is room for it, so that nothing is shed for want of
// memory, source ports, sessions or room on the stream. Only where nothing that is under way will
// make room, since it lies with connections whose end is further on in the file, it goes on.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sidecar/capture/usable.h"
#include "sidecar/replay/reader.h"
#include "sidecar/replay/schedule.h"
#include "sidecar/session/engine.h"

namespace trafficmirror::replay {

struct Options {
  std::string path;  // "-" is stdin
  uint32_t rounds = 1;
  Schedule::Options schedule;
};

// What was read of the file, over all rounds.
struct Counts {
  uint64_t packets = 0;
  uint64_t other_ports = 0;   // TCP or UDP, but of no production port
  uint64_t left_out = 0;      // by --from and --until
  uint64_t cut_requests = 0;  // of which the capture kept only the beginning
  uint64_t rounds = 0;        // handed over to their end
  capture::UnusableCounts unusable{};
};

class Replay {
 public:
  using Clock = Schedule::Clock;

  // `engine` outlives this. As Reader's.
  Replay(Options options, std::vector<net::Port> ports, std::vector<net::Port> udp_ports,
         session::Engine& engine, int stop_descriptor);

  // To be polled for POLLIN; -1 while nothing of the file is waited for.
  int descriptor() const { return reads_ ? reader_.descriptor() : -1; }
  // Hands over what is due.
  void run(Clock::time_point now, session::Time engine_now);
  // When run() has something to do though nothing happens.
  Clock::time_point deadline() const { return deadline_; }
  // All is handed over: what remains are the sessions.
  bool handed_over() const { return handed_over_; }

  const Counts& counts() const { return counts_; }
  // Of all rounds of the file, in per cent; nothing where that is not known.
  std::optional<uint32_t> percent() const;
  // In one line, how far it is.
  std::string progress() const;
  // Several lines for a person, at the end.
  std::string report(const session::Counters& sessions, Clock::time_point now) const;

 private:
  enum class Waiting : uint8_t { nothing, file, time, target, room };

  void hand_over(Clock::time_point now, session::Time engine_now);
  // False where it has to wait.
  bool hand_over(const capture::CapturedPacket& captured, Clock::time_point now,
                 session::Time engine_now);
  bool may_go_on(const net::Packet& packet, Clock::time_point now, session::Time engine_now);
  enum class Direction : uint8_t { request, response };
  std::optional<Direction> direction_of(const net::Packet& packet) const;

  const Options options_;
  const std::vector<net::Port> ports_;  // TCP
  const std::vector<net::Port> udp_ports_;
  session::Engine& engine_;
  Schedule schedule_;
  Counts counts_;
  std::optional<Clock::time_point> begun_at_;
  bool handed_over_ = false;
  std::optional<int> percent_of_round_;
  bool reads_ = false;
  Waiting waiting_ = Waiting::nothing;
  std::optional<Clock::time_point> without_room_since_;
  // So many sessions had ended when the wait for room was in vain; it is as long as no more do.
  std::optional<uint64_t> waited_in_vain_at_;
  Clock::time_point deadline_;
  Reader reader_;
};

}  // namespace trafficmirror::replay
