#include <chrono>
#include <csignal>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include <CLI/CLI.hpp>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "intercept/intercept.h"
#include "intercept/membership.h"
#include "intercept/options.h"
#include "intercept/sidecar_identity.h"
#include "intercept/status.h"
#include "program/flags.h"
#include "program/http.h"
#include "program/limits.h"
#include "program/log.h"
#include "program/signals.h"
#include "program/start_error.h"
#include "program/stay.h"
#include "program/tls.h"

namespace trafficmirror::intercept {
namespace {

constexpr const char* program_name = "trafficmirror-intercept";
// How long one waits to be a member. Where the name is never heard of, it is replaced as often, and
// ephemeral containers are in their pods for good.
constexpr std::chrono::hours longest_wait{24};

struct Flags {
  Options options;
  std::string member_of;
  program::CommonOptions common{.http = {"0.0.0.0", {9464}}};
  program::TlsOptions tls;
  SidecarIdentityOptions sidecar_identity;
};

void add_flags(CLI::App& app, Flags& flags) {
  Options& options = flags.options;
  program::add_host_port(app, "--listen", options.listen, "where sidecars connect to (gRPC)");
  program::add_name(app, "--interface", "NAME", options.interface, "interface towards the shadow")
      ->required();
  program::add_repeated_text(
      app, "--target", "PORT=HOST:PORT",
      "production port (8080, or 53/udp) = shadow endpoint; may be repeated, and several for one "
      "PORT share its sessions",
      [&](const std::string& text) { return accept_target(text, options.live.targets); });
  program::add_text(
      app, "--client-address", "MODE", "masquerade",
      "the client address that the shadow sees: masquerade is the intercept's own, preserve the "
      "client's, pool=CIDR one of a network",
      [&](const std::string& text) { return accept_client_address(text, options.clients); });
  program::add_text(
      app, "--reply-path", "WAY", "loop",
      "how replies to preserve and pool come back: loop, the intercept runs in the shadow's "
      "network "
      "namespace; route, the shadow's host has a route for them to the intercept's",
      [&](const std::string& text) { return accept_reply_path(text, options.clients); });
  program::add_text(
      app, "--source-ports", "FIRST-LAST", "10000-32767",
      "ports that the sessions come from, but with preserve; outside of the kernel's "
      "net.ipv4.ip_local_port_range",
      [&](const std::string& text) { return accept_source_ports(text, options.source_ports); });
  app.add_option("--member-of", flags.member_of,
                 "one of several: work only while NAME has an address of this host, then end, and "
                 "leave it to another of them what sidecars are told")
      ->type_name("NAME");
  program::add_stay_flag(app);
  program::add_limit_flags(app, options.live.sidecars.limits);
  app.add_flag("--stop-sidecars", options.live.sidecars.stop,
               "tell every sidecar to end; of use in the file, which is followed");
  program::add_tls_flags(app, flags.tls);
  add_sidecar_identity_flags(app, flags.sidecar_identity);
  program::add_common_flags(app, flags.common);
  app.footer(
      "Example:\n"
      "  trafficmirror-intercept --interface eth0 --target 80=10.0.0.5:8080\n\n"
      "target, percent, filter, max-sessions, max-rate, memory-limit, turns, max-lag, over-lag "
      "and\n"
      "stop-sidecars are followed while it runs: it looks at the file of --config every second, "
      "and\n"
      "at once on SIGHUP.\n"
      "With a file there may be no target at all.\n"
      "The limits, where they are given, go for every sidecar, before its own flags.\n\n"
      "It needs CAP_NET_RAW and CAP_NET_ADMIN. /readyz of --http says whether the shadow's replies "
      "come back.");
}

// Whether this host has become a member. Until then nothing is set up here.
bool wait_for_membership(const Membership& membership, const Flags& flags, int stop_descriptor) {
  const std::string reason =
      flags.member_of + " has no address of this host yet, which the cluster's DNS has to say";
  const program::HttpServer http(
      flags.common.http,
      {[&] { return reason; }, [] { return std::vector<prometheus::MetricFamily>(); },
       [&] {
         return to_json({reason, {}, {}, {}});
       }});
  spdlog::info("waiting until {} has an address of this host", flags.member_of);
  const auto outcome = membership.wait(stop_descriptor, longest_wait);
  if (outcome == Membership::Outcome::gave_up)
    spdlog::warn("ending: {}, for {} hours", reason, longest_wait.count());
  return outcome == Membership::Outcome::joined;
}

int run(int argc, const char* const* argv) {
  const program::StopSignal stop;
  program::ReloadSignal reload;
  Flags flags;
  Options& options = flags.options;
  CLI::App app(
      "Receives the packets of sidecars, sends them to the shadow as a client of its network, and\n"
      "hands the headers of the shadow's replies back.",
      program_name);
  add_flags(app, flags);
  if (const auto exit_code = program::parse_flags(app, argc, argv)) return *exit_code;
  const std::string file = program::config_file(app);
  if (options.live.targets.empty() && file.empty())
    throw program::StartError("--target is required; see --help");
  if (options.clients.mode == ClientAddresses::Mode::masquerade &&
      options.source_ports.contains(flags.common.http.port.number))
    throw program::StartError("the port of --http is one of --source-ports: choose another");
  program::set_up_logging(flags.common, program_name);
  options.tls = program::load_tls(flags.tls);
  options.sidecar_identity = load_sidecar_identity(flags.sidecar_identity, options.tls.get());
  if (!file.empty()) {
    options.look_again =
        [argc, argv, at_start = program::given(app), changing = program::ChangingFile(file)](
            Look look) mutable -> std::optional<std::variant<Reading, std::string>> {
      if (!changing.changed() && look == Look::if_changed) return std::nullopt;
      Flags now;
      CLI::App again("", program_name);
      add_flags(again, now);
      if (auto wrong = program::parse_flags_again(again, argc, argv)) return std::move(*wrong);
      auto followed = program::limit_names();
      followed.insert(followed.end(), {"target", "stop-sidecars"});
      return Reading{std::move(now.options.live),
                     program::differences(at_start, program::given(again), followed)};
    };
  }

  std::optional<Membership> membership;
  if (!flags.member_of.empty()) {
    options.leaves_configuration = true;
    membership.emplace([name = flags.member_of] { return has_address_of_this_host(name); },
                       [name = flags.member_of] {
                         spdlog::info("{} has no address of this host any more", name);
                         ::kill(::getpid(), SIGTERM);  // so that all is undone as it always is
                       });
    if (!wait_for_membership(*membership, flags, stop.descriptor())) return 0;
  }
  Intercept intercept(options);
  {
    const program::HttpServer http(flags.common.http, {[&] { return intercept.not_ready(); },
                                                       [&] { return intercept.metrics(); },
                                                       [&] { return intercept.status(); }});
    spdlog::info("listening on {}; targets out of {}: {}", program::to_text(options.listen),
                 options.interface, options.live.targets.size());
    if (!options.tls) spdlog::warn(program::plain_text_warning);
    intercept.run(stop.descriptor(), &reload);
  }
  return 0;
}

}  // namespace
}  // namespace trafficmirror::intercept

int main(int argc, char** argv) {
  using namespace trafficmirror;
  const auto work = [&] {
    return program::run_program(intercept::program_name,
                                [&] { return intercept::run(argc, argv); });
  };
  if (!program::stay_wanted(argc, argv)) return work();
  return program::run_program(intercept::program_name, [&] {
    program::set_up_logging(program::log_options(argc, argv), intercept::program_name);
    return program::stay(work);
  });
}
