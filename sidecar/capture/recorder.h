// Writes what a capture hands over into a file that can be replayed: pcap with nanoseconds, of the
// link type raw IP, each packet as long as it was copied, with the length it had.
//
// A thread of its own writes, so that a disk that is slow or full never holds the capture up: what
// finds no room in memory is not recorded, and counted.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "sidecar/capture/capture.h"

namespace trafficmirror::capture {

class Recorder {
 public:
  struct Options {
    std::string path;
    // A file that would grow beyond this becomes PATH.1, the one before that PATH.2, and so on.
    uint64_t file_bytes = 100 << 20;
    uint32_t files = 10;  // kept, with the one that is written; the oldest goes
  };
  // The least that `file_bytes` may be: any packet fits.
  static constexpr uint64_t least_file_bytes = 1 << 20;
  static constexpr size_t max_waiting_bytes = 8 << 20;

  struct Counters {
    uint64_t packets = 0;   // written
    uint64_t bytes = 0;     // of files
    uint64_t drops = 0;     // not recorded: no room in memory, or recording has ended
    uint64_t failures = 0;  // of writing, which end it: 0 or 1
  };

  // A file that is there already is kept, as PATH.1. Throws StartError where none can be made.
  explicit Recorder(Options options);
  // Writes what waits.
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Never waits for the disk.
  void add(const CapturedPacket& packet);
  Counters counters() const;

 private:
  void open_next();
  void write_all();
  void write_records(const std::string& records);
  void write(const char* bytes, size_t size);

  const Options options_;

  // The writer's alone.
  int file_ = -1;
  uint64_t file_size_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::string waiting_;
  uint64_t waiting_packets_ = 0;
  bool ending_ = false;
  bool failed_ = false;
  Counters counters_;

  std::thread writer_;
};

}  // namespace trafficmirror::capture
