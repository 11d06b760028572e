#include "intercept/status.h"

#include <nlohmann/json.hpp>

namespace trafficmirror::intercept {
namespace {

nlohmann::json to_object(const SidecarCounts& counts) {
  return {{"sessions", counts.sessions},
          {"sessions_opened", counts.sessions_opened},
          {"exchanges", counts.exchanges},
          {"shed", counts.shed},
          {"closed", counts.closed}};
}

}  // namespace

std::string to_json(const Relay::Status& status) {
  nlohmann::json reply_path = nlohmann::json::array();
  for (const auto& [target, why_not] : status.targets) {
    reply_path.push_back({{"target", target.to_string()},
                          {"verified", !why_not},
                          {"message", why_not.value_or("")}});
  }
  nlohmann::json sidecars = nlohmann::json::array();
  for (const auto& [name, counts] : status.sidecars) {
    sidecars.push_back(to_object(counts));
    sidecars.back()["name"] = name;
    if (!counts.replay) continue;
    sidecars.back()["replay"]["packets"] = counts.replay->packets;
    if (counts.replay->percent) sidecars.back()["replay"]["percent"] = *counts.replay->percent;
  }
  const nlohmann::json all = {{"ready", !status.not_ready},
                              {"message", status.not_ready.value_or("")},
                              {"reply_path", std::move(reply_path)},
                              {"sidecars", std::move(sidecars)},
                              {"totals", to_object(status.totals)}};
  // A name may hold what is no UTF-8.
  return all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace trafficmirror::intercept
