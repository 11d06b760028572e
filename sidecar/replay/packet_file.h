// The packets of a capture file, one after the other: pcap or pcapng, also packed by gzip or zstd.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "sidecar/capture/capture.h"
#include "sidecar/replay/input.h"

struct pcap;

namespace trafficmirror::replay {

class PacketFile {
 public:
  // As Input's. Throws StartError where it is no capture that can be read.
  PacketFile(const std::string& path, int stop_descriptor);

  // Valid until the next call. Its bytes begin with the IP header; there are none where the frame
  // holds no IP packet. Nothing behind the last packet that can be read.
  std::optional<capture::CapturedPacket> next();
  // Why there is no further packet, in plain words; empty where the file ends as it should.
  const std::string& problem() const { return problem_; }

  const Input& input() const { return input_; }

 private:
  struct Close {
    void operator()(pcap* file) const;
  };

  const std::string path_;
  Input input_;
  std::unique_ptr<pcap, Close> file_;
  int link_type_ = 0;
  uint64_t packets_ = 0;
  std::string problem_;
};

}  // namespace trafficmirror::replay
