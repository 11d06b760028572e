// What an intercept says of itself at /status.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace trafficmirror::controller {

struct Report {
  struct ReplyPath {
    std::string target;  // "8080=10.0.0.5:8080"
    bool verified = false;
    std::string message;  // why not
    bool operator==(const ReplyPath&) const = default;
  };
  bool ready = false;
  std::string message;  // why not
  std::vector<ReplyPath> reply_path;
  // By the name of the sidecar's pod: its sessions now.
  std::map<std::string, uint64_t> sidecars;
  // And how far it is, if it replays a capture.
  struct Replay {
    uint64_t packets = 0;
    std::optional<uint32_t> percent;
    bool operator==(const Replay&) const = default;
  };
  std::map<std::string, Replay> replays;
  // Since the intercept's start.
  uint64_t exchanges = 0;
  uint64_t shed = 0;  // for whatever reason

  bool operator==(const Report&) const = default;
};

// Nothing where it is none.
std::optional<Report> parse_report(const std::string& text);

// What was read last from an intercept's pod.
struct Reading {
  std::optional<Report> report;
  std::string problem;  // why there is none
  // The pod's UID and how often its container was started anew: what counts from zero each time.
  std::string instance;

  bool operator==(const Reading&) const = default;
};

}  // namespace trafficmirror::controller
