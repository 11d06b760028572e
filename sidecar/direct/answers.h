// Whether what is sent to the targets directly arrives there, as far as their answers show. A
// datagram of UDP has to be answered by nobody, and says nothing. No I/O; the time is handed in.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <vector>

#include "net/packet.h"
#include "sidecar/session/segment.h"

namespace trafficmirror::direct {

class Answers {
 public:
  using Clock = std::chrono::steady_clock;
  // A SYN is sent again after one second, and once more two seconds later.
  static constexpr std::chrono::seconds patience{4};

  // What goes to a target.
  void sent(const net::Endpoint& target, const net::TcpHeader& header, uint32_t length);
  // What came from one.
  void received(const net::Packet& packet);
  // Targets that have left something unanswered for so long since they were named last. To be
  // asked every now and then: time counts from the first call behind sent().
  std::vector<net::Endpoint> missing(Clock::time_point now);
  // Nothing of what was sent can be answered any more.
  void forget() { waiting_.clear(); }

 private:
  struct Wait {
    bool waits = false;
    std::optional<Clock::time_point> since;
  };
  // A firewall that sees one side of a connection lets its SYN pass, and nothing behind. So the
  // answer to a SYN shows nothing of what follows.
  struct Waiting {
    Wait for_syn;
    Wait for_data;
  };
  std::map<net::Endpoint, Waiting> waiting_;
};

// Notes what goes through it to `next`.
class NotingSink final : public session::SegmentSink {
 public:
  NotingSink(Answers& answers, session::SegmentSink& next) : answers_(answers), next_(next) {}

  void send(const session::Path& path, const session::Segment& segment) override {
    answers_.sent(path.target, segment.header, segment.length);
    next_.send(path, segment);
  }
  void send_datagram(const session::Path& path, std::span<const uint8_t> payload) override {
    next_.send_datagram(path, payload);
  }

 private:
  Answers& answers_;
  session::SegmentSink& next_;
};

}  // namespace trafficmirror::direct
