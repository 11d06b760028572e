#include "sidecar/direct/sender.h"

#include "program/metrics.h"

namespace trafficmirror::direct {

Sender::Sender(const std::optional<std::string>& link_interface) {
  if (link_interface)
    link_.emplace(*link_interface, counters_);
  else
    injector_.emplace("", counters_);
}

void Sender::send(std::string_view packets) {
  if (link_)
    link_->send(packets);
  else
    injector_->send(packets);
}

std::vector<prometheus::MetricFamily> Sender::metrics() const {
  using program::counter;
  const auto value = [](const program::Counter& of) { return of.load(std::memory_order_relaxed); };
  std::vector<program::Sample> errors;
  for (size_t i = 0; i < inject::inject_error_names.size(); ++i)
    errors.push_back({value(counters_.errors[i]), {{"reason", inject::inject_error_names[i]}}});
  return {
      counter("trafficmirror_injected_packets_total", "Packets sent to the shadow directly.",
              value(counters_.packets)),
      counter("trafficmirror_injected_bytes_total", "Bytes of these packets, headers included.",
              value(counters_.bytes)),
      counter("trafficmirror_inject_errors_total",
              "Packets that the kernel did not send; TCP sends them again.", std::move(errors)),
  };
}

}  // namespace trafficmirror::direct
