// A shard: one capture or replay, one engine and a stream to each replica of the intercept, all
// driven by one thread. Packets are read in batches off the ring, go through the engine and the
// rewriter where they lie, and leave as a batch on the stream; no lock and no other thread stands
// between.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "program/limits.h"
#include "program/log.h"
#include "sidecar/capture/capture.h"
#include "sidecar/capture/recorder.h"
#include "sidecar/capture/usable.h"
#include "sidecar/direct/sender.h"
#include "sidecar/reload.h"
#include "sidecar/replay/replay.h"
#include "sidecar/replicas.h"
#include "sidecar/session/engine.h"

namespace trafficmirror::sidecar {

class Shard : private capture::PacketReceiver {
 public:
  enum class CaptureMethod : uint8_t { ring, pcap };
  struct Options {
    capture::CaptureOptions capture;
    CaptureMethod method = CaptureMethod::ring;
    std::optional<replay::Options> replay;               // in place of a capture
    std::optional<capture::Recorder::Options> record{};  // what is captured
    session::Engine::Options engine;                     // but for its limits
    program::Limits limits;                              // at first; where the intercept says none
    uplink::Uplink::Options uplink;
    // What is sent directly is handed to this interface's link; none: the kernel routes it.
    std::optional<std::string> direct_link{};
    // Without a stream to any replica for so long it ends; 0: it does not.
    std::chrono::milliseconds give_up_after{0};
    // Once it is asked to stop, it goes on for as long as production has sockets on its ports.
    bool outlive_production = false;
  };

  // Opens the capture, or the file to replay; throws StartError where that fails. `reload` outlives
  // this.
  Shard(Options options, int stop_descriptor, Reload& reload);

  // Mirrors until `stop_descriptor` is readable (and production is gone, if it is to be outlived),
  // the intercept says that it is to end, there was no stream for too long, or the file is
  // replayed. Then resets what is open at the shadow and ends the stream.
  void run();

  // Behind a replay: what came of it, and whether it came to its end and any bytes of it reached
  // the shadow.
  std::string report_of_replay() const;
  bool has_replayed() const { return replayed_ && engine_.counters().bytes_to_shadow > 0; }

  // Any thread.
  std::optional<std::string> not_ready() const;
  std::vector<prometheus::MetricFamily> metrics() const;

 private:
  using Clock = Replicas::Clock;
  struct Published {  // what the probes see: one moment, so that the sums close
    session::Counters engine;
    capture::CaptureCounters capture;
    uplink::Uplink::Counters uplink;
    Reload::Counters configurations;
    capture::UnusableCounts unusable{};
    capture::Recorder::Counters record;
    bool capturing = false;
    std::vector<std::pair<std::string, bool>> streams;  // to whom, and whether it is there
    std::string stream_problem;
  };

  void on_captured(const capture::CapturedPacket& captured) override;
  void read_capture();
  void replay(Clock::time_point now);
  void open_capture();
  void take_up_open_flows();
  void close_capture();
  void copy_what_is_of_use();
  bool gave_up() const;
  // After it was asked to stop: whether it may.
  bool may_stop(Clock::time_point now);
  void take_stream_events(Clock::time_point now);
  void configure(const program::Limits& of_intercept);
  void read_again();
  bool apply_limits();  // whether they are other ones now
  session::Engine::Options with_login_log(session::Engine::Options options);
  void report();
  void publish();
  // The latest moment at which something has to be done though no descriptor is readable.
  Clock::time_point deadline() const;

  const Options options_;
  const int stop_descriptor_;
  Reload& reload_;
  session::Engine engine_;
  std::unique_ptr<direct::Sender> direct_;  // null where packets go up the streams
  Replicas replicas_;
  std::unique_ptr<capture::Capture> capture_;    // null while the interface is gone, or in a replay
  std::unique_ptr<capture::Recorder> recorder_;  // null where nothing is recorded
  std::unique_ptr<replay::Replay> replay_;       // null where it is live
  bool replayed_ = false;                        // to its end
  Clock::time_point show_progress_at_;
  capture::RequestCopy request_copy_ = capture::RequestCopy::whole;
  capture::CaptureCounters earlier_captures_;
  Clock::time_point reopen_at_;
  bool told_to_stop_ = false;   // by the intercept
  bool asked_to_stop_ = false;  // by stop_descriptor
  Clock::time_point look_for_production_at_;
  std::optional<Clock::time_point> production_gone_at_;
  Clock::time_point report_at_;
  program::Limits own_limits_;
  program::Limits limits_of_intercept_;
  program::Limits limits_;  // in use
  session::Time now_;
  Published current_;
  program::LogLimit capture_log_;
  program::LogLimit login_log_;

  mutable std::mutex published_mutex_;
  Published published_;
};

}  // namespace trafficmirror::sidecar
