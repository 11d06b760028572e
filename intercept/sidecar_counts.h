// What sidecars say that they have counted: sums of the differences that come up their streams.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace trafficmirror::intercept {

struct SidecarCounts {
  uint64_t sessions = 0;  // open now
  uint64_t sessions_opened = 0;
  uint64_t exchanges = 0;
  std::map<std::string, uint64_t> closed;  // sessions, by reason
  std::map<std::string, uint64_t> shed;    // by reason

  // How far it is, of one that replays a capture.
  struct Replay {
    uint64_t packets = 0;
    std::optional<uint32_t> percent;
    bool operator==(const Replay&) const = default;
  };
  std::optional<Replay> replay{};

  // Adds what was counted since; `sessions` and `replay` are no sums and stay.
  void add(const SidecarCounts& since) {
    sessions_opened += since.sessions_opened;
    exchanges += since.exchanges;
    add(closed, since.closed);
    add(shed, since.shed);
  }

  bool operator==(const SidecarCounts&) const = default;

 private:
  // A sidecar knows fewer reasons, with shorter names, but what it calls them is up to it.
  static constexpr size_t most_reasons = 64;
  static constexpr size_t longest_reason = 64;

  static void add(std::map<std::string, uint64_t>& to,
                  const std::map<std::string, uint64_t>& what) {
    for (const auto& [reason, count] : what) {
      const bool known =
          to.contains(reason) || (to.size() < most_reasons && reason.size() <= longest_reason);
      to[known ? reason : "other"] += count;
    }
  }
};

}  // namespace trafficmirror::intercept
