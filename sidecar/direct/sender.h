// sidecar/direct/ sends sessions' packets from here, with the intercept's address as their source,
// where the network lets such packets pass. The intercept only returns the shadow's headers.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <prometheus/metric_family.h>

#include "inject/inject.h"
#include "inject/link_injector.h"

namespace trafficmirror::direct {

class Sender {
 public:
  // The kernel routes the packets; or they are handed to the link of an interface. Throws
  // StartError.
  explicit Sender(const std::optional<std::string>& link_interface);

  // Whole IP packets, one behind the other. Never waits: what the kernel does not take is counted
  // and dropped; TCP sends it again.
  void send(std::string_view packets);

  // Any thread.
  std::vector<prometheus::MetricFamily> metrics() const;

 private:
  inject::Counters counters_;
  std::optional<inject::Injector> injector_;  // one of these two
  std::optional<inject::LinkInjector> link_;
};

}  // namespace trafficmirror::direct
