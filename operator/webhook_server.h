// The HTTPS server of the mutating webhook:
//   POST /mutate   AdmissionReview in, AdmissionReview out (webhook.h)
//   GET  /healthz  200 "ok"
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "net/address.h"
#include "operator/certificates.h"
#include "operator/webhook.h"

namespace trafficmirror::controller {

// The name that the API server calls a Service by, and checks its certificate against.
std::string webhook_dns_name(const kube::Key& service);

class WebhookServer {
 public:
  // Serves on threads of its own until its end, from which on `injections_for` is not called any
  // more; nobody before there is a certificate. Port 0 is any free one. Throws program::StartError
  // where `address` can't be bound.
  WebhookServer(const net::HostPort& address, InjectionsFor injections_for);
  // Waits for the requests at hand, no longer than a few seconds.
  ~WebhookServer();
  WebhookServer(const WebhookServer&) = delete;
  WebhookServer& operator=(const WebhookServer&) = delete;

  net::Port port() const;

  // The certificate for all handshakes from now on; connections that are there go on. Returns what
  // is wrong with it where it can't be used, and the one before stays. From any thread.
  std::optional<std::string> use(const KeyPair& identity);

  // From any thread.
  std::vector<prometheus::MetricFamily> metrics() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::controller
