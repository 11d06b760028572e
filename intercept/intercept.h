// The whole intercept, put together and kept in order.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "intercept/lease.h"
#include "net/address.h"
#include "program/tls.h"

namespace trafficmirror::intercept {

struct Options {
  net::HostPort listen{"0.0.0.0", {7443}};
  std::string interface;
  std::vector<Target> targets;  // at least one
  PortRange source_ports{10000, 32767};
  std::shared_ptr<program::Tls> tls{};  // null: plain text
};

class Intercept {
 public:
  // Throws StartError. From here on streams are accepted, once their targets are proven.
  explicit Intercept(Options options);
  // Removes all that it put into the kernel.
  ~Intercept();
  Intercept(const Intercept&) = delete;
  Intercept& operator=(const Intercept&) = delete;

  // Keeps house on this thread until `stop_descriptor` is readable: proves paths, follows the
  // interface, holds the kernel's rules. Then resets every session and lets the streams end.
  void run(int stop_descriptor);

  net::Port port() const;
  // Any thread.
  std::optional<std::string> not_ready() const;
  std::vector<prometheus::MetricFamily> metrics() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::intercept
