// The bytes of a capture file, unpacked where gzip or zstd has packed them, as a stream for
// libpcap.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace trafficmirror::replay {

class Input {
 public:
  // `path`: "-" is stdin. Once `stop_descriptor` is readable, reading fails: what is read may be a
  // pipe that never says anything. Throws StartError.
  Input(const std::string& path, int stop_descriptor);
  ~Input();
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // Up to `size` bytes; 0 at the end, negative where there is a problem().
  int64_t read(char* to, size_t size);
  // In plain words; empty while there is none.
  const std::string& problem() const { return problem_; }

  // Bytes read of the file itself, and how many it has; 0 where that is not known.
  uint64_t position() const { return position_; }
  uint64_t size() const { return size_; }

  struct Close {
    void operator()(std::FILE* stream) const { std::fclose(stream); }
  };
  // Reads from this, which has to outlive it.
  std::unique_ptr<std::FILE, Close> stream();

  // What unpacks.
  class Decoder {
   public:
    virtual ~Decoder() = default;
    // As Input::read().
    virtual int64_t read(char* to, size_t size) = 0;
  };
  // Bytes of the file itself: the next ones, of which there are none at its end. Nothing at all
  // where there is a problem().
  bool fill(std::vector<char>& bytes);
  int64_t fail(std::string problem);

 private:
  const std::string path_;
  const int stop_descriptor_;
  int file_ = -1;
  uint64_t size_ = 0;
  std::atomic<uint64_t> position_ = 0;
  std::string problem_;
  std::vector<char> first_;  // bytes that told what it is, while nobody has read them
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace trafficmirror::replay
