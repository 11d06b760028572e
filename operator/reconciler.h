// Sees the cluster through informers, plans for each TrafficMirror (plan.h), and does what the plan
// says: the part of the operator that acts.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "operator/certificate_rotation.h"
#include "operator/kube/client.h"
#include "operator/plan.h"
#include "operator/webhook.h"

namespace trafficmirror::controller {

class Reconciler {
 public:
  struct Options {
    Settings settings;
    Abilities abilities;
    CertificateLifetimes lifetimes;
    // Where mirrors, production and shadows are looked for; empty: everywhere.
    std::set<std::string> watched_namespaces;
    std::string instance;  // of this program, for Events
    // The webhook's Service and MutatingWebhookConfiguration, both of that name in (or for) the
    // operator's namespace; empty where there is no webhook.
    std::string webhook;
    std::string webhook_host;  // what the API server calls it by
    std::chrono::milliseconds report_interval = std::chrono::seconds(5);
    // Counters alone are written into the status no more often than this.
    std::chrono::seconds counters_interval = std::chrono::seconds(10);
    int workers = 4;
  };

  // Follows the cluster from now on, and changes nothing before lead(). `client` has to outlive
  // this.
  Reconciler(kube::Client& client, Options options);
  ~Reconciler();
  Reconciler(const Reconciler&) = delete;
  Reconciler& operator=(const Reconciler&) = delete;

  // Whether all is known of the cluster; why not, otherwise.
  std::optional<std::string> not_ready() const;

  // Begins and ends to make the world match, from one thread. The latter waits for what is being
  // done.
  void lead();
  void follow();

  // What a pod that is about to be created gets. From any thread.
  std::vector<Injection> injections_for(const NewPod& pod) const;

  // The webhook's certificate, as soon as there is one, and whenever it is another; on a thread of
  // this, one call at a time. Set before lead().
  void on_webhook_identity(std::function<void(const KeyPair&)> use);

  std::vector<prometheus::MetricFamily> metrics() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::controller
