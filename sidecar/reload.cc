#include "sidecar/reload.h"

#include <spdlog/spdlog.h>

namespace trafficmirror::sidecar {

std::optional<program::Limits> Reload::take() {
  auto read = reading_.take();
  asked_ = signal_.take() || asked_;
  // While it is being read, the file may change once more.
  if (asked_ && !reading_.running()) {
    asked_ = false;
    if (read_)
      reading_.start(read_);
    else
      spdlog::warn("SIGHUP: there is no file of --config to read again");
  }
  if (!read) return std::nullopt;
  if (const auto* wrong = std::get_if<std::string>(&*read)) {
    ++counters_.refused;
    spdlog::error("{}; what was read before stays in use", *wrong);
    return std::nullopt;
  }
  ++counters_.taken;
  auto& [limits, needs_restart] = std::get<Reading>(*read);
  if (!needs_restart.empty())
    spdlog::warn("these flags in it differ from those at the start, and need a restart: {}",
                 needs_restart);
  return std::move(limits);
}

}  // namespace trafficmirror::sidecar
