// A production connection as the capture on the server's host sees it: a random conversation,
// written down packet by packet with the loss, reordering and retransmission of the client's
// network.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "net/packet.h"
#include "tests/simulation/random.h"

namespace trafficmirror::simulation {

struct CapturedPacket {
  Time at;
  std::string bytes;
  bool from_client;
  bool captured = true;
  uint64_t server_received;  // client bytes the production server has in order after this packet
};

// Where the client began to speak after it had seen new bytes of the server.
struct Boundary {
  uint64_t offset;
  uint64_t production_answer;  // bytes the server had sent in between
  size_t answers_before;       // of Conversation::answers
};

// One write of the server.
struct Answer {
  uint64_t trigger;  // client bytes the server had when it wrote
  uint32_t length;
};

enum class Kind : uint8_t {
  keep_alive,
  pipelined,
  server_first,
  upload,
  download,
  streaming,
  half_close,
  one_way,
};
inline constexpr std::array kind_names = {
    "keep_alive", "pipelined", "server_first", "upload",
    "download",   "streaming", "half_close",   "one_way",
};

struct Conversation {
  Kind kind{};
  uint64_t content = 0;  // tells this conversation's bytes from any other's
  std::vector<CapturedPacket> packets;
  std::vector<Boundary> boundaries;  // ascending; the first is 0
  std::vector<Answer> answers;
  // When nothing was under way and the next bytes were to begin an exchange.
  std::vector<std::pair<Time, Time>> idle;
  uint64_t client_bytes = 0;
  bool client_fin = false;
  bool server_fin_first = false;
  bool reset = false;
  bool stray = false;                                // has packets of no connection
  bool syn_captured = false;                         // in this run
  std::optional<net::SequenceNumber> server_begins;  // its first byte
  bool client_bytes_captured = false;                // some of them
  bool server_begin_captured = false;                // before that, a packet that tells of it

  uint8_t byte(uint64_t offset) const {
    return static_cast<uint8_t>(mix(content ^ (offset / 8)) >> (offset % 8 * 8));
  }
};

struct ConversationOptions {
  bool network_faults = true;  // loss, reordering and duplicates before the capture
  bool stray_packets = false;
  bool unclean_end = false;  // may end without FIN or RST
  uint64_t max_bulk = 1 << 17;
};

Conversation make_conversation(Random& random, Kind kind, const net::FlowKey& key, Time start,
                               const ConversationOptions& options);

}  // namespace trafficmirror::simulation
