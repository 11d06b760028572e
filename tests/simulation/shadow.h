// A model of the shadow: a small TCP server, written on its own from the RFCs and knowing nothing
// of the engine's code, with an application that answers as production's did, or does not.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "net/packet.h"
#include "tests/simulation/production.h"
#include "tests/simulation/random.h"

namespace trafficmirror::simulation {

// How the shadow's host and application behave.
struct Personality {
  enum class Closing : uint8_t {
    after_client,    // waits for the client's FIN
    as_production,   // first where production's server was first
    early_shutdown,  // behind each answer, and reads on
    early_close,     // behind each answer, and resets what comes then
  };
  Closing closing = Closing::after_client;
  bool refuses = false;  // RST for a SYN
  bool silent = false;   // nothing for a SYN
  bool never_answers = false;
  std::optional<uint64_t> resets_behind;  // RST once it has read this many bytes
  Duration min_think{50};
  Duration max_think{5000};
  unsigned max_writes = 1;  // an answer is written in so many parts
  Duration between_writes{500};
  int length_change = 0;      // its answers are shorter (-1), as long (0) or longer (1)
  uint32_t buffer = 1 << 16;  // bytes it can hold unread
  Duration read_interval{0};  // the application reads this rarely; 0: at once
  Duration delayed_acknowledgment{40'000};
  bool selective_acknowledgment = true;
  bool timestamps = true;
  std::optional<uint8_t> window_scale = 7;
  std::optional<uint16_t> maximum_segment_size = 1460;
};

// What has to be so when the first byte of an exchange arrives.
enum class Order : uint8_t { answered, received, any };  // of the exchange before

// What one connection received: which part of which conversation it can be.
struct Reading {
  const Conversation* conversation;
  const Boundary* start;
  uint64_t turns = 0;  // exchanges begun behind the first
};

class ShadowConnection;

class Shadow {
 public:
  using Send = std::function<void(const net::Endpoint& from, const net::Endpoint& to,
                                  const net::TcpHeader&, uint32_t length)>;
  using Fail = std::function<void(const std::string&)>;

  Shadow(Random its_random, Send to_client, Fail on_failure);
  ~Shadow();

  // The conversations that may be mirrored to `target`, oldest first. The pointers stay valid.
  struct Application {
    Personality personality;
    std::vector<std::unique_ptr<Conversation>> conversations;
    std::vector<uint64_t> server_received;  // of each conversation, by now
    bool check_turns = true;                // its answers tell exchanges apart
    Order order = Order::answered;
  };
  std::map<net::Endpoint, Application> applications;

  void process(Time now, const net::Packet& packet);
  Time deadline() const;
  void tick(Time now);

  // Connections, past ones too, that received all of a conversation from `from` on at the latest.
  bool received_all(const Conversation& conversation, uint64_t from) const;
  // Connections that received a conversation to its end.
  uint64_t complete() const;

  Random random;
  Send send;
  Fail fail;

 private:
  void answer_unknown(const net::Packet& packet);

  using Key = std::pair<net::Endpoint, net::Endpoint>;  // client, target
  std::map<Key, std::unique_ptr<ShadowConnection>> connections_;
  std::vector<std::unique_ptr<ShadowConnection>> past_;
};

}  // namespace trafficmirror::simulation
