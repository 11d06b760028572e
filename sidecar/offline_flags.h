// The flags of a replay, --pcap and those that go with it, and of a recording, --record.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "sidecar/capture/recorder.h"
#include "sidecar/replay/replay.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
class Option;
}  // namespace CLI

namespace trafficmirror::sidecar {

// To live until the flags are parsed, as what they fill in.
class OfflineFlags {
 public:
  explicit OfflineFlags(CLI::App& app);

  // Throws StartError where one was given that says nothing without another, or with it. `live`:
  // flags of other parts that are for a live sidecar alone.
  void check(std::initializer_list<const CLI::Option*> live) const;

  // Nothing where the flag for it was not given.
  std::optional<replay::Options> replay() const;
  std::optional<capture::Recorder::Options> record() const;
  // Where the report of the replay is written, too; empty where that was not asked for.
  const std::string& report() const { return report_; }

 private:
  std::string pcap_;
  replay::Options replay_;
  std::string report_;
  capture::Recorder::Options record_;
  std::vector<const CLI::Option*> of_replay_;
  std::vector<const CLI::Option*> of_record_;
  const CLI::Option* record_flag_;
};

}  // namespace trafficmirror::sidecar
