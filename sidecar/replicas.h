// The replicas of the intercept: one stream to each address that its name has, now and later.
//
// The name is looked up every ten seconds and when a stream is lost; a look-up that fails changes
// nothing. A new address gets a stream, and new sessions with it. An address that the name has no
// longer gets none any more; its sessions live on until their end, and its stream with them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "program/background.h"
#include "program/log.h"
#include "sidecar/session/engine.h"
#include "sidecar/uplink/addresses.h"
#include "sidecar/uplink/uplink.h"

namespace trafficmirror::sidecar {

class Replicas {
 public:
  using Clock = uplink::Uplink::Clock;
  // Streams at a time, but for those to addresses that are going. Each may take a few MiB.
  static constexpr size_t most = 16;

  // Whole packets, one behind the other, on their way to the shadow.
  using SendDirectly = std::function<void(std::string_view packets)>;

  // Called on a thread of its own, also after this has gone.
  using LookUp = std::function<uplink::Found(const std::string& host)>;

  // `options.intercept` is the name and port of all. `engine` outlives this.
  // `send_directly`: in place of the streams; wanted with `options.sends_directly`.
  Replicas(uplink::Uplink::Options options, session::Engine& engine, LookUp how = uplink::look_up,
           SendDirectly send_directly = {});
  ~Replicas();
  Replicas(const Replicas&) = delete;
  Replicas& operator=(const Replicas&) = delete;

  // Calls `take(int)` for each descriptor that is readable when take_events() has something to do.
  template <typename Take>
  void for_each_descriptor(Take&& take) const {
    take(look_up_.descriptor());
    for (const auto& replica : replicas_) take(descriptor_of(*replica));
  }

  // What was said that concerns the whole sidecar; the last one counts.
  struct Said {
    std::optional<uplink::Configuration> configuration;
    bool stop = false;               // the program is to end
    uint64_t malformed_headers = 0;  // batches with some
  };
  // Gives the engine what has come down the streams.
  Said take_events(Clock::time_point now, session::Time engine_now);
  // Looks up and dials when it is time to. To be called at deadline() at the latest, and after
  // take_events(); before the engine's run().
  void run(Clock::time_point now);
  Clock::time_point deadline() const;
  // Sends what the engine has put out.
  void flush();
  // Tells each what it is to know of what was counted, and how far the replay is, if it is one.
  void report(const std::optional<uplink::ReplayProgress>& replay = {});
  // Ends all streams once everything that waits has gone out, at the latest after `timeout`.
  void finish(std::chrono::milliseconds timeout);

  // For how long there was no stream to any of them, by the last run().
  Clock::duration without_stream() const { return without_stream_; }
  // Why there is none, in plain words; empty before the first attempt has failed.
  const std::string& problem() const { return problem_; }
  // Address and port of each that the name has, and whether there is a stream. Never empty: without
  // an address it is the name.
  const std::vector<std::pair<std::string, bool>>& streams() const { return streams_; }
  // Those of replicas that are gone too.
  uplink::Uplink::Counters counters() const;

 private:
  struct Replica;

  static int descriptor_of(const Replica& replica);
  void follow(uplink::Found found, Clock::time_point now);
  void add(const std::string& address);
  void take(Replica& replica, const uplink::Event& event, Clock::time_point now,
            session::Time engine_now, Said& said);
  void remove_those_gone();
  void list_streams();
  void warn_of_missing_answers(Replica& replica, Clock::time_point now);

  const uplink::Uplink::Options options_;
  session::Engine& engine_;
  const SendDirectly send_directly_;
  const LookUp how_;
  program::Background<uplink::Found> look_up_;
  Clock::time_point look_up_at_ = Clock::time_point::min();
  Clock::time_point looked_up_at_ = Clock::time_point::min();
  std::vector<std::unique_ptr<Replica>> replicas_;
  size_t left_out_ = 0;
  uplink::Uplink::Counters of_those_gone_;
  std::optional<Clock::time_point> last_stream_;  // there was one then
  Clock::duration without_stream_{0};
  std::string problem_;
  std::vector<std::pair<std::string, bool>> streams_;
  program::LogLimit look_up_log_;
  program::LogLimit missing_answers_log_{std::chrono::minutes(1)};
};

}  // namespace trafficmirror::sidecar
