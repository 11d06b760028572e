// Reads a capture file ahead, on a thread of its own: a disk, a pipe and a decoder may keep one
// waiting, and sessions can't wait with it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "sidecar/capture/capture.h"
#include "sidecar/replay/input.h"

namespace trafficmirror::replay {

class Reader {
 public:
  // Twice this is read ahead at most.
  static constexpr size_t max_waiting_bytes = 1 << 20;

  // Reads `path` ("-" is stdin) so many times. Returns when there is a first packet, or there will
  // be none, or `stop_descriptor` is readable. Throws StartError where not one packet can be read.
  Reader(const std::string& path, uint32_t rounds, int stop_descriptor);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Readable when next() has something that it had not when it was last asked.
  int descriptor() const { return event_; }

  struct Item {
    bool round_ended = false;  // then there is no packet
    // Of this round's file, as far as was read for it, in per cent; nothing where its size is not
    // known.
    std::optional<int> percent;
    capture::CapturedPacket packet;
  };
  // What comes next, the same until take(). Nothing where it is not read yet, or all is taken:
  // finished() tells.
  std::optional<Item> next();
  void take() { ++taken_; }
  bool finished();
  // Nothing more is wanted of this round, the first of which is 0; its end follows.
  void skip_rest_of(uint32_t round) { wanted_from_ = round + 1; }

  // Why not all of the file could be read; empty where it could.
  std::string problem() const;

 private:
  struct Entry {
    size_t begin;  // in `bytes`
    uint32_t length;
    size_t wire_length;
    std::chrono::nanoseconds time;
    bool round_ended;
    std::optional<int8_t> percent;
  };
  struct Batch {
    std::vector<uint8_t> bytes;
    std::vector<Entry> entries;
  };

  void read(const std::string& path, uint32_t rounds);
  void read_round(const std::string& path, uint32_t round);
  // False where no more is wanted.
  bool push(const capture::CapturedPacket& packet, bool round_ended, const Input& input);
  void wait_for_first(int stop_descriptor);

  int event_;
  int stop_;
  std::atomic<uint32_t> wanted_from_ = 0;

  Batch current_;  // the owner's
  size_t taken_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable room_;
  Batch waiting_;
  bool ending_ = false;
  bool finished_ = false;
  uint64_t packets_ = 0;
  std::string problem_;

  std::thread thread_;
};

}  // namespace trafficmirror::replay
