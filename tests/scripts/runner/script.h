// Scripts in the notation of tests/scripts/README.md, read into lines.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "net/packet.h"
#include "sidecar/session/time.h"

namespace trafficmirror::scripts {

enum class Who : uint8_t { client, server, shadow, output, event };

// A packet as a script writes it. Sequence numbers count from the sender's SYN, which is 0. What is
// unset has a default when it is sent, and is not looked at when it is expected.
struct PacketLine {
  net::TcpFlags flags;
  uint32_t sequence = 0;
  uint32_t length = 0;
  std::optional<uint32_t> acknowledgment;
  std::optional<uint16_t> window;
  net::TcpOptions options;
  bool any_options = true;
  bool any_timestamps = false;       // "ts" without values: there, whatever they are
  std::optional<uint32_t> data;      // the client byte that the payload begins with
  std::optional<uint32_t> captured;  // bytes of payload that the capture kept
};

struct Line {
  int number = 0;
  std::string text;
  session::Time at;
  Who who = Who::event;
  unsigned index = 0;  // which client, or which session; 0: the first, or the latest
  PacketLine packet;
  std::vector<std::string> words;  // of an event, or of output that is no packet
  bool is_packet = false;
};

struct Script {
  std::string purpose;
  std::map<std::string, std::string> settings;
  std::vector<Line> lines;
};

// Throws std::runtime_error naming the line.
Script read_script(const std::string& path);

}  // namespace trafficmirror::scripts
