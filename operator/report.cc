#include "operator/report.h"

#include "operator/kube/object.h"

namespace trafficmirror::controller {

std::optional<Report> parse_report(const std::string& text) {
  try {
    const kube::Json json = kube::Json::parse(text);
    Report report;
    report.ready = json.at("ready");
    report.message = json.value("message", "");
    for (const auto& path : json.at("reply_path"))
      report.reply_path.push_back(
          {path.at("target"), path.at("verified"), path.value("message", "")});
    for (const auto& sidecar : json.at("sidecars")) {
      report.sidecars[sidecar.at("name")] += sidecar.at("sessions").get<uint64_t>();
      if (!sidecar.contains("replay")) continue;
      Report::Replay& replay = report.replays[sidecar.at("name")];
      replay.packets = sidecar["replay"].at("packets");
      if (sidecar["replay"].contains("percent")) replay.percent = sidecar["replay"]["percent"];
    }
    report.exchanges = json.at("totals").at("exchanges");
    for (const auto& [reason, count] : json.at("totals").at("shed").items())
      report.shed += count.get<uint64_t>();
    return report;
  } catch (const kube::Json::exception&) {
    return std::nullopt;
  }
}

}  // namespace trafficmirror::controller
