#include <chrono>
#include <optional>
#include <thread>

#include <CLI/CLI.hpp>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "operator/abilities.h"
#include "operator/check.h"
#include "operator/kube/client.h"
#include "operator/kube/config.h"
#include "operator/kube/discovery.h"
#include "operator/kube/leader_election.h"
#include "operator/names.h"
#include "operator/reconciler.h"
#include "operator/webhook_server.h"
#include "program/flags.h"
#include "program/http.h"
#include "program/log.h"
#include "program/signals.h"
#include "program/start_error.h"

namespace trafficmirror::controller {
namespace {

constexpr const char* program_name = "trafficmirror-operator";

std::string host_name() {
  std::string name(256, '\0');
  ::gethostname(name.data(), name.size() - 1);
  name.resize(name.find('\0'));
  return name;
}

kube::Discovery ask(kube::Client& client) {
  auto discovery = kube::Discovery::ask(client, groups_to_discover());
  if (!discovery)
    throw program::StartError("the API server at " + client.config().host + ":" +
                              std::to_string(client.config().port) +
                              " can't be asked what it can do: " + discovery.error().message);
  const kube::Version version = discovery->version();
  if (version < oldest_server)
    throw program::StartError("the API server is Kubernetes " + std::to_string(version.major) +
                              "." + std::to_string(version.minor) + ": 1.20 or later is needed");
  if (!discovery->has(resources::mirrors))
    throw program::StartError(
        "the API server does not know TrafficMirror: apply deploy/manifests/crd.yaml first");
  return *std::move(discovery);
}

int run(int argc, const char* const* argv) {
  const program::StopSignal stop;
  program::CommonOptions common{.http = {"0.0.0.0", {http_port}}};
  net::HostPort webhook_address{"0.0.0.0", {9443}};
  Reconciler::Options options;
  std::string identity = host_name();
  std::string namespace_;
  std::chrono::milliseconds ca_lifetime = options.lifetimes.ca;
  std::chrono::milliseconds leaf_lifetime = options.lifetimes.leaf;
  std::chrono::milliseconds distribution = options.lifetimes.distribution;

  std::chrono::milliseconds patience{0};

  CLI::App app(
      "Makes the cluster match its TrafficMirror objects: sidecars beside the production pods, an\n"
      "intercept in the shadow's namespace, certificates for both, and a status that says how it "
      "is.",
      program_name);
  app.add_option("--sidecar-image", options.settings.sidecar_image, "image of the sidecar")
      ->type_name("IMAGE");
  app.add_option("--intercept-image", options.settings.intercept_image, "image of the intercept")
      ->type_name("IMAGE");
  app.add_option("--image-pull-policy", options.settings.image_pull_policy,
                 "of both; default: the API server's")
      ->type_name("Always|IfNotPresent|Never")
      ->check(CLI::IsMember({"Always", "IfNotPresent", "Never"}));
  app.add_option("--namespace", namespace_,
                 "where its own Secrets and Lease are; default: its pod's, or the context's")
      ->type_name("NAME");
  program::add_repeated_text(app, "--watch-namespace", "NAME",
                             "where mirrors, production and shadows are looked for; may be "
                             "repeated; default: everywhere",
                             [&](const std::string& name) -> std::optional<std::string> {
                               if (name.empty()) return "name a namespace";
                               options.watched_namespaces.insert(name);
                               return std::nullopt;
                             });
  program::add_duration(app, "--check", patience,
                        "looks, for so long at most, whether an operator leads and each "
                        "TrafficMirror is Ready, says what is not, and ends");
  app.add_option("--webhook", options.webhook,
                 "name of the webhook's Service in that namespace, and of its "
                 "MutatingWebhookConfiguration; without it, none is served")
      ->type_name("NAME");
  program::add_host_port(app, "--webhook-listen", webhook_address, "where the webhook is served");
  app.add_option("--webhook-host", options.webhook_host,
                 "what the API server calls the webhook by; default: its Service's name")
      ->type_name("NAME");
  app.add_option("--identity", identity, "of this one among several, such as the pod's name")
      ->type_name("NAME")
      ->capture_default_str();
  program::add_duration(app, "--ca-lifetime", ca_lifetime,
                        "of the CA of the streams' certificates");
  program::add_duration(app, "--certificate-lifetime", leaf_lifetime,
                        "of the certificates of sidecars, intercepts and the webhook");
  program::add_duration(app, "--ca-distribution", distribution,
                        "from when a new CA is trusted to when it signs");
  program::add_common_flags(app, common);
  app.footer(
      "Example:\n"
      "  trafficmirror-operator --sidecar-image example.org/trafficmirror-sidecar:1.0 \\\n"
      "      --intercept-image example.org/trafficmirror-intercept:1.0\n\n"
      "It takes the API server from $KUBECONFIG, or from the pod that it runs in. Of several, one\n"
      "leads and the others wait; all of them serve the webhook.");
  if (const auto exit_code = program::parse_flags(app, argc, argv)) return *exit_code;
  program::set_up_logging(common, program_name);

  kube::Client client(kube::load_config(), names::field_manager);
  options.settings.operator_namespace =
      namespace_.empty() ? client.config().own_namespace : namespace_;
  options.instance = identity;
  if (patience.count() > 0)
    return check(client, {options.settings.operator_namespace, names::lease},
                 options.watched_namespaces, patience);
  if (options.settings.sidecar_image.empty() || options.settings.intercept_image.empty())
    throw program::StartError("--sidecar-image and --intercept-image are required");
  const auto whole_seconds = [](std::chrono::milliseconds duration) {
    return std::chrono::duration_cast<std::chrono::seconds>(duration);
  };
  options.lifetimes.ca = whole_seconds(ca_lifetime);
  options.lifetimes.leaf = whole_seconds(leaf_lifetime);
  options.lifetimes.distribution = whole_seconds(distribution);
  if (options.webhook_host.empty())
    options.webhook_host = webhook_dns_name({options.settings.operator_namespace, options.webhook});
  const kube::Discovery discovery = ask(client);
  options.abilities = abilities_of(discovery);
  spdlog::info("Kubernetes {}.{}: {}", discovery.version().major, discovery.version().minor,
               options.abilities.ephemeral_containers
                   ? "sidecars are attached to running pods"
                   : "sidecars are injected into pods as they are created");

  Reconciler reconciler(client, options);
  std::optional<WebhookServer> webhook;
  if (!options.webhook.empty())
    webhook.emplace(webhook_address,
                    [&](const NewPod& pod) { return reconciler.injections_for(pod); });
  const program::HttpServer http(common.http, {[&] { return reconciler.not_ready(); },
                                               [&] {
                                                 auto metrics = reconciler.metrics();
                                                 if (webhook)
                                                   for (auto& family : webhook->metrics())
                                                     metrics.push_back(std::move(family));
                                                 return metrics;
                                               }});

  kube::LeaderElection election(client,
                                {.lease = {options.settings.operator_namespace, names::lease},
                                 .identity = identity,
                                 .started =
                                     [&] {
                                       spdlog::info("{} leads", identity);
                                       reconciler.lead();
                                     },
                                 .stopped =
                                     [&] {
                                       spdlog::info("{} leads no more", identity);
                                       reconciler.follow();
                                     }});
  if (webhook)
    reconciler.on_webhook_identity([&](const KeyPair& certificate) {
      if (const auto problem = webhook->use(certificate))
        spdlog::error("the webhook's certificate can't be used: {}", *problem);
    });
  std::jthread elect([&](const std::stop_token& token) { election.run(token); });
  pollfd stopped{stop.descriptor(), POLLIN, 0};
  while (::poll(&stopped, 1, -1) < 0) {
  }
  elect.request_stop();
  elect.join();
  reconciler.on_webhook_identity(nullptr);  // the webhook ends first, as it asks the reconciler
  return 0;
}

}  // namespace
}  // namespace trafficmirror::controller

int main(int argc, char** argv) {
  return trafficmirror::program::run_program(trafficmirror::controller::program_name, [&] {
    return trafficmirror::controller::run(argc, argv);
  });
}
