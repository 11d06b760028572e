#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <CLI/CLI.hpp>
#include <grpc/support/log.h>
#include <linux/capability.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "program/flags.h"
#include "program/http.h"
#include "program/limits.h"
#include "program/log.h"
#include "program/signals.h"
#include "program/start_error.h"
#include "program/stay.h"
#include "program/tls.h"
#include "sidecar/login_flags.h"
#include "sidecar/offline_flags.h"
#include "sidecar/reload.h"
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

// What the flags fill in.
struct Flags {
  program::CommonOptions common{.http = {"127.0.0.1", {19464}}};
  program::TlsOptions tls;
  Shard::Options options;
  std::vector<net::ProductionPort> ports;
  std::string method = "ring";
  std::string delivery = "intercept", delivery_interface;
  std::chrono::milliseconds idle_timeout = std::chrono::minutes(10);
  std::chrono::milliseconds response_timeout = std::chrono::seconds(60);
  std::optional<LoginFlags> logins;
  std::optional<OfflineFlags> offline;
};

void add_flags(CLI::App& app, Flags& flags) {
  Shard::Options& options = flags.options;
  options.limits.memory = session::Limits().memory;
  program::add_ports(app, "--port", flags.ports,
                     "production port, such as 8080, or 53/udp; may be repeated")
      ->required();
  program::add_host_port(app, "--intercept", options.uplink.intercept,
                         "where the intercept listens; each address of a name is a replica")
      ->required();
  program::add_name(app, "--interface", "NAME", options.capture.interface,
                    "interface to copy from, also lo or any; default: that of the default route");
  app.add_option("--capture", flags.method,
                 "how packets are copied: ring (AF_PACKET TPACKET_V3) or pcap (libpcap)")
      ->type_name("ring|pcap")
      ->check(CLI::IsMember({"ring", "pcap"}))
      ->capture_default_str();
  app.add_option(
         "--delivery", flags.delivery,
         "how packets get to the shadow: intercept sends them; or they are sent from here, "
         "with the intercept's address as their source, direct by a raw socket, direct-link "
         "framed for --delivery-interface (libpcap): for networks that let such sources pass")
      ->type_name("intercept|direct|direct-link")
      ->check(CLI::IsMember({"intercept", "direct", "direct-link"}))
      ->capture_default_str();
  program::add_name(app, "--delivery-interface", "NAME", flags.delivery_interface,
                    "interface that direct-link sends out of; default: that of the default route");
  program::add_limit_flags(app, options.limits);
  program::add_duration(app, "--give-up-after", options.give_up_after,
                        "end, with exit code 0, without any stream for so long; default: never");
  app.add_flag("--outlive-production", options.outlive_production,
               "on SIGTERM, go on while a process here has sockets on the ports");
  program::add_duration(
      app, "--idle-timeout", flags.idle_timeout,
      "a connection without a packet for so long is forgotten; a client of UDP after 2m at "
      "the latest");
  program::add_duration(
      app, "--response-timeout", flags.response_timeout,
      "a shadow that does not answer or acknowledge for so long loses the session");
  program::add_stay_flag(app);
  flags.logins.emplace(app);
  flags.offline.emplace(app);
  program::add_tls_flags(app, flags.tls);
  program::add_common_flags(app, flags.common);
  app.footer(
      "Example:\n"
      "  trafficmirror-sidecar --port 8080 --intercept 10.0.0.7:7443\n\n"
      "On SIGHUP --percent, --filter, --copies, --max-sessions, --max-rate, --memory-limit, "
      "--turns,\n"
      "--max-lag and --over-lag are read again from the file of --config; what the intercept says "
      "of\n"
      "them goes before it.\n"
      "It needs CAP_NET_RAW, but not for --pcap with --delivery intercept. /readyz of --http says\n"
      "whether it captures and the stream is up.");
}

// What the file says by now.
std::variant<Reload::Reading, std::string> read_again(int argc, const char* const* argv,
                                                      const program::Given& at_start) {
  Flags now;
  CLI::App again("", program_name);
  add_flags(again, now);
  if (auto wrong = program::parse_flags_again(again, argc, argv)) return std::move(*wrong);
  return Reload::Reading{
      std::move(now.options.limits),
      program::differences(at_start, program::given(again), program::limit_names())};
}

int run(int argc, const char* const* argv) {
  const program::StopSignal stop;
  program::ReloadSignal reload_signal;
  Flags flags;
  Shard::Options& options = flags.options;
  CLI::App app(
      "Copies the live TCP and UDP traffic of production ports, plays each client towards the\n"
      "shadow, and streams the packets to an intercept. Production is only ever listened to.",
      program_name);
  add_flags(app, flags);
  if (const auto exit_code = program::parse_flags(app, argc, argv)) return *exit_code;
  flags.offline->check({app.get_option("--interface"), app.get_option("--capture"),
                        app.get_option("--outlive-production"), app.get_option("--stay")});
  program::set_up_logging(flags.common, program_name);
  ::gpr_set_log_function(log_of_grpc);
  options.replay = flags.offline->replay();
  options.record = flags.offline->record();
  options.uplink.sends_directly = flags.delivery != "intercept";
  if (!flags.delivery_interface.empty() && flags.delivery != "direct-link")
    throw program::StartError("--delivery-interface says nothing without --delivery direct-link");
  if (!options.replay || options.uplink.sends_directly)
    program::require_capability(CAP_NET_RAW, "CAP_NET_RAW",
                                "add it to the container's capabilities, or run as root");
  options.uplink.tls = program::load_tls(flags.tls);
  if (options.capture.interface.empty() && !options.replay)
    options.capture.interface = capture::default_route_interface();
  if (flags.delivery == "direct-link")
    options.direct_link = flags.delivery_interface.empty() ? capture::default_route_interface()
                                                           : flags.delivery_interface;
  if (flags.method == "pcap") options.method = Shard::CaptureMethod::pcap;
  for (const net::ProductionPort port : flags.ports)
    (port.protocol == net::Protocol::tcp ? options.capture.ports : options.capture.udp_ports)
        .push_back({port.number});
  options.engine.ports = options.capture.ports;
  options.engine.udp_ports = options.capture.udp_ports;
  options.engine.idle_timeout = flags.idle_timeout;
  options.engine.response_timeout = flags.response_timeout;
  options.engine.logins = flags.logins->logins(options.capture.ports);
  for (const auto& [port, begin] : options.engine.logins)
    options.uplink.reply_ports.push_back(port);
  options.engine.seed = std::random_device()();
  options.uplink.ports = options.capture.ports;
  options.uplink.udp_ports = options.capture.udp_ports;
  options.uplink.name = own_name();
  options.uplink.version = TRAFFICMIRROR_VERSION;

  std::ofstream report;
  if (!flags.offline->report().empty()) {
    report.open(flags.offline->report());
    if (!report)
      throw program::StartError("--report " + flags.offline->report() +
                                " can't be written: " + std::strerror(errno));
  }
  Reload::Read read;
  if (!program::config_file(app).empty())
    read = [argc, argv, at_start = program::given(app)] {
      return read_again(argc, argv, at_start);
    };
  Reload reload(reload_signal, std::move(read));
  Shard shard(options, stop.descriptor(), reload);
  const program::HttpServer http(
      flags.common.http, {[&] { return shard.not_ready(); }, [&] { return shard.metrics(); }});
  spdlog::info("{} {}, intercept at {}", options.replay ? "replaying" : "copying from",
               options.replay ? options.replay->path : options.capture.interface,
               program::to_text(options.uplink.intercept));
  if (!options.uplink.tls) spdlog::warn(program::plain_text_warning);
  shard.run();
  if (!options.replay) return 0;
  std::cout << shard.report_of_replay() << std::flush;
  if (report.is_open() && !(report << shard.report_of_replay() << std::flush))
    spdlog::warn("--report {} can't be written", flags.offline->report());
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
