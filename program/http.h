// The HTTP server of --http: probes and metrics.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "net/address.h"

namespace trafficmirror::program {

// Serves, on threads of its own:
//   /healthz  200 "ok"
//   /readyz   200 "ready", or 503 with the reason in plain text
//   /metrics  the metrics, in Prometheus' text format
//   /status   where the program has one, JSON for programs that watch over it
class HttpServer {
 public:
  struct Handlers {
    // Nothing when ready, otherwise the reason why not.
    std::function<std::optional<std::string>()> not_ready;
    std::function<std::vector<prometheus::MetricFamily>()> metrics;
    std::function<std::string()> status{};
  };

  // The handlers are called on the server's threads, also at the same time, until the destructor
  // is through. Port 0 is any free one. Throws StartError where `address` can't be bound.
  HttpServer(const net::HostPort& address, Handlers handlers);
  // Waits for the requests at hand, no longer than about a second.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  net::Port port() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::program
