#include <array>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string_view>

#include <CLI/CLI.hpp>
#include <grpc/support/log.h>
#include <linux/capability.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "program/flags.h"
#include "program/http.h"
#include "program/limits.h"
#include "program/log.h"
#include "program/start_error.h"
#include "program/stay.h"
#include "program/signals.h"
#include "program/tls.h"
#include "sidecar/login_flags.h"
#include "sidecar/offline_flags.h"
#include "sidecar/shard.h"

namespace trafficmirror::sidecar {
namespace {

constexpr const char* program_name = "trafficmirror-sidecar";

// gRPC would write to stderr in a form of its own. Most of it is of use only to somebody who debugs
// it; why there is no stream is said by the shard.
void log_of_grpc(gpr_log_func_args* arguments) {
  const bool serious = arguments->severity == GPR_LOG_SEVERITY_ERROR &&
                       !std::string_view(arguments->message).starts_with("Handshake failed");
  spdlog::log(serious ? spdlog::level::warn : spdlog::level::debug, "grpc: {}", arguments->message);
}

// A pod's name, where the pod says it, is the same in all of its containers.
std::string own_name() {
  if (const char* pod = std::getenv("POD_NAME"); pod != nullptr && *pod != '\0') return pod;
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

int run(int argc, const char* const* argv) {
  const program::StopSignal stop;
  program::CommonOptions common;
  program::TlsOptions tls_options;
  common.http = {"127.0.0.1", {19464}};
  Shard::Options options;
  options.limits.memory = session::Limits().memory;
  std::string method = "ring";
  std::string delivery = "intercept", delivery_interface;
  std::chrono::milliseconds idle_timeout = std::chrono::minutes(10);
  std::chrono::milliseconds response_timeout = std::chrono::seconds(60);

  CLI::App app(
      "Copies the live TCP and UDP traffic of production ports, plays each client towards the\n"
      "shadow, and streams the packets to an intercept. Production is only ever listened to.",
      program_name);
  std::vector<net::ProductionPort> ports;
  program::add_ports(app, "--port", ports,
                     "production port, such as 8080, or 53/udp; may be repeated")
      ->required();
  program::add_host_port(app, "--intercept", options.uplink.intercept,
                         "where the intercept listens; each address of a name is a replica")
      ->required();
  CLI::Option* const interface =
      app.add_option("--interface", options.capture.interface,
                     "interface to copy from, also lo or any; default: that of the default route")
          ->type_name("NAME");
  CLI::Option* const capture =
      app.add_option("--capture", method,
                     "how packets are copied: ring (AF_PACKET TPACKET_V3) or pcap (libpcap)")
          ->type_name("ring|pcap")
          ->check(CLI::IsMember({"ring", "pcap"}))
          ->capture_default_str();
  app.add_option(
         "--delivery", delivery,
         "how packets get to the shadow: intercept sends them; or they are sent from here, "
         "with the intercept's address as their source, direct by a raw socket, direct-link "
         "framed for --delivery-interface (libpcap): for networks that let such sources pass")
      ->type_name("intercept|direct|direct-link")
      ->check(CLI::IsMember({"intercept", "direct", "direct-link"}))
      ->capture_default_str();
  app.add_option("--delivery-interface", delivery_interface,
                 "interface that direct-link sends out of; default: that of the default route")
      ->type_name("NAME");
  program::add_limit_flags(app, options.limits);
  program::add_duration(app, "--give-up-after", options.give_up_after,
                        "end, with exit code 0, without any stream for so long; default: never");
  CLI::Option* const outlive_production =
      app.add_flag("--outlive-production", options.outlive_production,
                   "on SIGTERM, go on while a process here has sockets on the ports");
  program::add_duration(
      app, "--idle-timeout", idle_timeout,
      "a connection without a packet for so long is forgotten; a client of UDP after 2m at "
      "the latest");
  program::add_duration(
      app, "--response-timeout", response_timeout,
      "a shadow that does not answer or acknowledge for so long loses the session");
  program::add_stay_flag(app);
  LoginFlags logins(app);
  OfflineFlags offline(app);
  program::add_tls_flags(app, tls_options);
  program::add_common_flags(app, common);
  app.footer(
      "Example:\n"
      "  trafficmirror-sidecar --port 8080 --intercept 10.0.0.7:7443\n\n"
      "What the intercept says of --percent, --filter, --max-sessions, --max-rate, "
      "--memory-limit,\n"
      "--turns, --max-lag and --over-lag goes before them.\n"
      "It needs CAP_NET_RAW, but not for --pcap with --delivery intercept. /readyz of --http says\n"
      "whether it captures and the stream is up.");
  if (const auto exit_code = program::parse_flags(app, argc, argv)) return *exit_code;
  offline.check({interface, capture, outlive_production, app.get_option("--stay")});
  program::set_up_logging(common, program_name);
  ::gpr_set_log_function(log_of_grpc);
  options.replay = offline.replay();
  options.record = offline.record();
  options.uplink.sends_directly = delivery != "intercept";
  if (!delivery_interface.empty() && delivery != "direct-link")
    throw program::StartError("--delivery-interface says nothing without --delivery direct-link");
  if (!options.replay || options.uplink.sends_directly)
    program::require_capability(CAP_NET_RAW, "CAP_NET_RAW",
                                "add it to the container's capabilities, or run as root");
  options.uplink.tls = program::load_tls(tls_options);
  if (options.capture.interface.empty() && !options.replay)
    options.capture.interface = capture::default_route_interface();
  if (delivery == "direct-link")
    options.direct_link =
        delivery_interface.empty() ? capture::default_route_interface() : delivery_interface;
  if (method == "pcap") options.method = Shard::CaptureMethod::pcap;
  for (const net::ProductionPort port : ports)
    (port.protocol == net::Protocol::tcp ? options.capture.ports : options.capture.udp_ports)
        .push_back({port.number});
  options.engine.ports = options.capture.ports;
  options.engine.udp_ports = options.capture.udp_ports;
  options.engine.idle_timeout = idle_timeout;
  options.engine.response_timeout = response_timeout;
  options.engine.logins = logins.logins(options.capture.ports);
  for (const auto& [port, begin] : options.engine.logins)
    options.uplink.reply_ports.push_back(port);
  options.engine.seed = std::random_device()();
  options.uplink.ports = options.capture.ports;
  options.uplink.udp_ports = options.capture.udp_ports;
  options.uplink.name = own_name();
  options.uplink.version = TRAFFICMIRROR_VERSION;

  Shard shard(options, stop.descriptor());
  const program::HttpServer http(
      common.http, {[&] { return shard.not_ready(); }, [&] { return shard.metrics(); }});
  spdlog::info("{} {}, intercept at {}", options.replay ? "replaying" : "copying from",
               options.replay ? options.replay->path : options.capture.interface,
               program::to_text(options.uplink.intercept));
  if (!options.uplink.tls) spdlog::warn(program::plain_text_warning);
  shard.run();
  if (!options.replay) return 0;
  std::cout << shard.report_of_replay() << std::flush;
  return shard.has_replayed() ? 0 : 1;
}

}  // namespace
}  // namespace trafficmirror::sidecar

int main(int argc, char** argv) {
  using namespace trafficmirror;
  const auto work = [&] {
    return program::run_program(sidecar::program_name, [&] { return sidecar::run(argc, argv); });
  };
  if (!program::stay_wanted(argc, argv)) return work();
  return program::run_program(sidecar::program_name, [&] {
    program::set_up_logging(program::log_options(argc, argv), sidecar::program_name);
    return program::stay(work);
  });
}
