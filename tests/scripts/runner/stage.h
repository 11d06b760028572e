// Plays a script to a session engine and writes down all that comes out.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "sidecar/session/engine.h"
#include "tests/scripts/runner/script.h"

namespace trafficmirror::scripts {

class Stage : public session::SegmentSink {
 public:
  explicit Stage(const Script& script);

  // True where exactly what the script expects came out; otherwise `difference()` shows both.
  bool play();
  const std::string& difference() const { return difference_; }

  void send(const session::Path& path, const session::Segment& segment) override;

 private:
  // One thing that came out, with the session it came from.
  struct Output {
    session::Time at;
    std::string text;
    bool is_packet = false;
    PacketLine packet;  // its options' sequence numbers relative as all are
    unsigned session = 0;
    std::string wrong_bytes;  // says which, if its payload is not the client's
  };
  struct Stream {  // of one side of one connection
    net::SequenceNumber initial;
    uint32_t end = 0;  // furthest sequence number sent, relative
  };
  struct Mirrored {  // a session
    net::Endpoint source;
    Stream engine;
    Stream shadow;
    uint32_t data = 0;  // the client byte that is its first
  };

  void advance(session::Time to);
  void perform(const Line& line);
  void perform_event(const Line& line);
  void perform_packet(const Line& line);
  void run();
  session::Lease lease() const;
  static session::Limits limits(const Line& line);
  uint8_t byte_at(uint32_t sequence) const;
  std::string setting(const std::string& name, const std::string& otherwise) const;
  bool matches(const Line& line, const Output& output) const;
  std::string describe(const Output& output) const;

  const Script& script_;
  session::Time now_{};
  session::Engine engine_;
  session::Stream& stream_;
  net::Endpoint target_;
  uint16_t mtu_;
  uint16_t ports_;
  bool http2_;
  std::map<unsigned, Stream> clients_;
  std::map<unsigned, Stream> servers_;
  std::vector<Mirrored> sessions_;
  std::vector<Output> outputs_;
  session::Counters before_;
  std::string difference_;
};

}  // namespace trafficmirror::scripts
