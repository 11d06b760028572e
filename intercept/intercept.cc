#include "intercept/intercept.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <variant>

#include <linux/capability.h>
#include <net/if.h>
#include <poll.h>
#include <spdlog/fmt/ranges.h>
#include <spdlog/spdlog.h>

#include "inject/inject.h"
#include "intercept/counters.h"
#include "intercept/kernel_state.h"
#include "intercept/loop.h"
#include "intercept/path.h"
#include "intercept/relay.h"
#include "intercept/reply_path.h"
#include "intercept/service.h"
#include "intercept/status.h"
#include "intercept/tap.h"
#include "program/log.h"
#include "program/metrics.h"
#include "program/start_error.h"

namespace trafficmirror::intercept {
namespace {

using Clock = Relay::Clock;

constexpr uint32_t default_mtu = 1500;
constexpr std::chrono::milliseconds turn{100};
constexpr std::chrono::seconds configuration_interval{1};
constexpr std::chrono::seconds identity_interval{1};
constexpr std::chrono::seconds path_interval{1};
constexpr std::chrono::seconds kernel_state_interval{2};
// How long the sidecars have to end their streams after a Drain.
constexpr std::chrono::seconds drain_time{1};

std::string interface_names() {
  std::string names;
  if (struct if_nameindex* all = ::if_nameindex()) {
    for (const auto* each = all; each->if_index != 0; ++each)
      names += (names.empty() ? "" : ", ") + std::string(each->if_name);
    ::if_freenameindex(all);
  }
  return names;
}

// Targets on loopback become those that they stand for. What is wrong with one, if anything is.
std::optional<std::string> fit_to_clients(std::vector<Target>& targets, const Options& options) {
  if (options.clients.mode == ClientAddresses::Mode::masquerade) return std::nullopt;
  for (const Target& target : targets)
    if (target.protocol == net::Protocol::udp)
      return "the target " + target.to_string() +
             " is of UDP, which is mirrored with --client-address masquerade alone";
  return options.clients.loops() ? resolve_loopback(targets, options.interface) : std::nullopt;
}

// Checks what would otherwise fail later with words that don't help; targets on loopback become
// those that they stand for.
Options require_startable(Options options) {
  program::require_capability(CAP_NET_RAW, "CAP_NET_RAW",
                              "it is needed to send the sidecars' packets and to see the replies");
  program::require_capability(CAP_NET_ADMIN, "CAP_NET_ADMIN",
                              "it is needed to keep the kernel from answering the replies itself");
  if (::if_nametoindex(options.interface.c_str()) == 0 ||
      options.interface.find_first_of("\"\\*") != std::string::npos)
    throw program::StartError("--interface " + options.interface + " does not exist; there are " +
                              interface_names());
  const ClientAddresses& clients = options.clients;
  if (clients.mode == ClientAddresses::Mode::masquerade &&
      options.source_ports.contains(options.listen.port.number))
    throw program::StartError("the port of --listen is one of --source-ports: choose another");
  if (clients.mode == ClientAddresses::Mode::masquerade &&
      clients.reply_path == ClientAddresses::ReplyPath::route)
    throw program::StartError(
        "--reply-path route is for --client-address preserve and pool: replies to the intercept's "
        "own address need no route of theirs");
  auto wrong_target = fit_to_clients(options.live.targets, options);
  if (!wrong_target && clients.loops()) wrong_target = why_not_looped(options.live.targets);
  if (wrong_target) throw program::StartError(*wrong_target);
  if (const auto wrong = why_not_pool(clients)) throw program::StartError(*wrong);
  return options;
}

// What differs, as it is now, for the log; empty where nothing does.
std::string changes(const LiveOptions& before, const LiveOptions& now) {
  std::vector<std::string> changed;
  if (before.targets != now.targets) {
    std::vector<std::string> targets;
    for (const Target& target : now.targets) targets.push_back(target.to_string());
    changed.push_back(fmt::format("target [{}]", fmt::join(targets, ", ")));
  }
  if (auto limits = program::changes(before.sidecars.limits, now.sidecars.limits); !limits.empty())
    changed.push_back(std::move(limits));
  if (before.sidecars.stop != now.sidecars.stop)
    changed.push_back(fmt::format("stop-sidecars {}", now.sidecars.stop));
  return fmt::format("{}", fmt::join(changed, ", "));
}

// The name that sessions' packets go out of and replies come in from.
std::string interface_of_sessions(const Options& options) {
  return options.clients.loops() ? Loop::near_end : options.interface;
}

// A metric with one sample for each name.
template <size_t size>
prometheus::MetricFamily by_name(std::string name, std::string help, const char* label,
                                 const CounterByReason<size>& counters,
                                 const std::array<const char*, size>& names) {
  std::vector<program::Sample> samples;
  for (size_t i = 0; i < size; ++i)
    samples.push_back({counters[i].load(std::memory_order_relaxed), {{label, names[i]}}});
  return program::counter(std::move(name), std::move(help), std::move(samples));
}

template <size_t size>
prometheus::MetricFamily by_reason(std::string name, std::string help,
                                   const CounterByReason<size>& counters,
                                   const std::array<const char*, size>& reasons) {
  return by_name(std::move(name), std::move(help), "reason", counters, reasons);
}

}  // namespace

class Intercept::Implementation {
 public:
  explicit Implementation(Options options)
      : options_(require_startable(std::move(options))),
        session_interface_(interface_of_sessions(options_)),
        kernel_state_(options_.clients.loops() ? make_kernel_state() : nullptr),
        loop_(options_.clients.loops()
                  ? std::make_unique<Loop>(options_.clients,
                                           mtu_of(options_.interface).value_or(default_mtu))
                  : nullptr),
        interface_index_(::if_nametoindex(session_interface_.c_str())),
        reply_paths_(options_.clients, options_.interface, loop_.get(), counters_),
        relay_(
            options_.source_ports, options_.live.targets, std::random_device()(),
            [this](std::string_view packets) { injector_.send(packets); }, counters_,
            options_.look_again ? Relay::Targets::changing : Relay::Targets::fixed,
            options_.clients),
        injector_(session_interface_, counters_.injected,
                  loop_ ? std::optional(Loop::hop()) : std::nullopt),
        tap_(session_interface_, tap_filter_ = wanted_tap_filter(), counters_) {
    relay_.set_copy_whole([this](const std::vector<uint16_t>& ports) { tap_.copy_whole(ports); });
    if (options_.leaves_configuration) relay_.leave_configuration_to_others();
    relay_.configure(options_.live.sidecars);
    if (options_.sidecar_identity) relay_.set_identity(options_.sidecar_identity->material());
    look_up_paths();
    // Nothing is proven yet, so a stream that comes now is told to come back.
    service_ = std::make_unique<Service>(options_.listen, options_.tls, relay_, counters_);
    if (!kernel_state_) kernel_state_ = make_kernel_state();
    tap_thread_ = std::thread([this] {
      tap_.run([this](std::span<const Tap::Headers> packets) { relay_.headers(packets); });
    });
  }

  ~Implementation() {
    service_.reset();
    tap_.stop();
    tap_thread_.join();
  }

  void run(int stop_descriptor, program::ReloadSignal* reload) {
    std::array<pollfd, 2> waiting = {
        {{stop_descriptor, POLLIN, 0}, {reload ? reload->descriptor() : -1, POLLIN, 0}}};
    do {
      keep_house(Clock::now());
      if (reload && reload->take()) look_at_configuration(Look::again);
      ::poll(waiting.data(), waiting.size(), static_cast<int>(turn.count()));
    } while (waiting[0].revents == 0);

    spdlog::info("ending: every session of the shadow's is reset");
    relay_.drain();
    if (!relay_.wait_for_streams_to_end(drain_time))
      spdlog::info("not every sidecar ended its stream; they are cut");
  }

  net::Port port() const { return service_->port(); }
  std::optional<std::string> not_ready() const { return relay_.not_ready(); }
  std::vector<prometheus::MetricFamily> metrics() const;
  std::string status() const { return to_json(relay_.status()); }

 private:
  void keep_house(Clock::time_point now) {
    if (options_.look_again && now >= next_configuration_look_) {
      next_configuration_look_ = now + configuration_interval;
      look_at_configuration(Look::if_changed);
    }
    if (options_.sidecar_identity && now >= next_identity_look_) {
      next_identity_look_ = now + identity_interval;
      look_at_identity();
    }
    if (now >= next_path_look_) {
      next_path_look_ = now + path_interval;
      follow_interface();
      if (look_up_paths()) hold_kernel_state();
      tap_.read_statistics();
    }
    if (now >= next_kernel_look_) {
      next_kernel_look_ = now + kernel_state_interval;
      hold_kernel_state();
    }
    relay_.prove(now);
  }

  void look_at_configuration(Look look) {
    if (!options_.look_again) {
      spdlog::warn("SIGHUP: there is no file of --config to read again");
      return;
    }
    auto found = options_.look_again(look);
    if (!found) return;
    auto* const reading = std::get_if<Reading>(&*found);
    const auto wrong = reading ? fit_to_clients(reading->live.targets, options_)
                               : std::optional(std::get<std::string>(*found));
    if (wrong) {
      add(counters_.configurations, ConfigurationResult::refused);
      spdlog::error("{}; what was read before stays in use", *wrong);
      return;
    }
    add(counters_.configurations, ConfigurationResult::taken);
    const std::string changed = changes(live_, reading->live);
    spdlog::info("the file of --config is read; {}",
                 changed.empty() ? "it changes nothing" : "changed: " + changed);
    if (!reading->needs_restart.empty())
      spdlog::warn("these flags in it differ from those at the start, and need a restart: {}",
                   reading->needs_restart);
    live_ = std::move(reading->live);
    relay_.set_targets(live_.targets);
    relay_.configure(live_.sidecars);
    next_path_look_ = Clock::time_point();  // new targets need their paths
  }

  void look_at_identity() {
    const auto found = options_.sidecar_identity->look_again();
    if (!found) return;
    if (const auto* wrong = std::get_if<std::string>(&*found)) {
      add(counters_.identities, ConfigurationResult::refused);
      spdlog::error("{}; what was read before stays in use", *wrong);
      return;
    }
    add(counters_.identities, ConfigurationResult::taken);
    spdlog::info("the sidecars that have their certificate in the environment are sent a new one");
    relay_.set_identity(std::get<SidecarIdentity::Material>(*found));
  }

  // An interface that was made anew has another index under the same name.
  void follow_interface() {
    const unsigned index = ::if_nametoindex(session_interface_.c_str());
    if (index == interface_index_) return;
    if (index == 0) {
      spdlog::warn("interface {} is gone; waiting for it to come back", session_interface_);
    } else {
      if (!tap_.rebind()) return;  // gone again: the next look says so
      injector_.rebind();
      spdlog::info("interface {} is there again", session_interface_);
      relay_.prove_again();
    }
    interface_index_ = index;
  }

  bool look_up_paths() {
    std::vector<std::variant<Path, std::string>> paths;
    if (options_.clients.mode == ClientAddresses::Mode::masquerade) {
      for (const net::Endpoint& endpoint : relay_.endpoints())
        paths.push_back(look_up_path(options_.interface, endpoint));
      return relay_.set_paths(paths);
    }
    relay_.set_local_addresses(local_addresses());
    reply_paths_.begin();
    for (const net::Endpoint& endpoint : relay_.endpoints())
      paths.push_back(reply_paths_.look_up(endpoint));
    relay_.set_paths(paths);
    if (const Tap::Filter wanted = wanted_tap_filter(); wanted != tap_filter_)
      tap_.set_filter(tap_filter_ = wanted);
    // The rules are those of the targets and addresses there are now.
    return options_.clients.are_routed() && kernel_state_;
  }

  // What the loop carries is the sessions'. A route brings also what is not, of which the targets'
  // ports tell the most.
  Tap::Filter wanted_tap_filter() const {
    if (options_.clients.loops()) return {.ports = {1, UINT16_MAX}, .any_link_address = true};
    if (!options_.clients.are_routed()) return {.ports = options_.source_ports};
    PortRange ports{UINT16_MAX, 0};
    for (const net::Endpoint& endpoint : relay_.endpoints()) {
      ports.first = std::min(ports.first, endpoint.port.number);
      ports.last = std::max(ports.last, endpoint.port.number);
    }
    return {.ports = ports, .of_source = true};
  }

  std::unique_ptr<KernelState> make_kernel_state() {
    KernelState::Wanted wanted{options_.interface, options_.source_ports, {}, chains()};
    if (wanted.chains.empty()) wanted.own_addresses = relay_.own_addresses();
    return std::make_unique<KernelState>(std::move(wanted));
  }

  // Of the sessions whose addresses are not the intercept's own.
  std::string chains() const {
    if (options_.clients.loops()) return loop_chains(options_.clients);
    if (!options_.clients.are_routed()) return "";
    return route_chains(options_.clients, options_.interface, relay_.endpoints(),
                        local_addresses());
  }

  // Whether all of the loop stands.
  bool hold_loop() {
    if (!loop_) return true;
    switch (loop_->hold()) {
      case Loop::Held::intact:
        break;
      case Loop::Held::put_back:
        spdlog::warn(
            "interfaces, routes or rules of the loop were removed by somebody: they are put back");
        follow_interface();
        relay_.prove_again();
        break;
      case Loop::Held::failed:
        if (const auto held_back = kernel_state_log_.allow(Clock::now()))
          spdlog::error("the loop is gone and can't be put back: {}{}", loop_->error(), *held_back);
        relay_.prove_again();
        relay_.set_obstacle("the loop can't be put in place: " + loop_->error());
        return false;
    }
    return true;
  }

  void hold_kernel_state() {
    if (!hold_loop()) return;
    const bool addresses_set = options_.clients.mode == ClientAddresses::Mode::masquerade
                                   ? kernel_state_->set_own_addresses(relay_.own_addresses())
                                   : kernel_state_->set_chains(chains());
    const auto held = addresses_set ? kernel_state_->hold() : KernelState::Held::failed;
    switch (held) {
      case KernelState::Held::intact:
        break;
      case KernelState::Held::put_back:
        spdlog::warn(
            "the nftables table inet trafficmirror was removed or changed by somebody: it is put "
            "back; sessions that were answered meanwhile are lost");
        relay_.prove_again();
        break;
      case KernelState::Held::failed:
        if (const auto held_back = kernel_state_log_.allow(Clock::now()))
          spdlog::error("the nftables table inet trafficmirror is gone and can't be put back: {}{}",
                        kernel_state_->error(), *held_back);
        relay_.prove_again();
        break;
    }
    relay_.set_obstacle(held == KernelState::Held::failed
                            ? std::optional("the kernel's rules that keep it from answering the "
                                            "shadow can't be put in place: " +
                                            kernel_state_->error())
                            : std::nullopt);
  }

  const Options options_;
  LiveOptions live_ = options_.live;  // as read last
  const std::string session_interface_;
  Counters counters_;
  std::unique_ptr<KernelState> kernel_state_;  // refuses a second intercept before it does harm
  std::unique_ptr<Loop> loop_;                 // null: replies do not turn around here
  unsigned interface_index_;
  ReplyPaths reply_paths_;
  Relay relay_;
  inject::Injector injector_;
  Tap::Filter tap_filter_;
  Tap tap_;
  std::unique_ptr<Service> service_;
  std::thread tap_thread_;
  program::LogLimit kernel_state_log_;
  Clock::time_point next_configuration_look_;
  Clock::time_point next_identity_look_;
  Clock::time_point next_path_look_;
  Clock::time_point next_kernel_look_;
};

std::vector<prometheus::MetricFamily> Intercept::Implementation::metrics() const {
  using program::counter;
  using program::gauge;
  const auto value = [](const Counter& of) { return of.load(std::memory_order_relaxed); };
  const Relay::Statistics relay = relay_.statistics();
  std::vector<program::Sample> proven;
  for (const auto& [target, is_proven] : relay.proven)
    proven.push_back({is_proven, {{"target", target}}});
  return {
      gauge("trafficmirror_streams_active", "Sidecars' streams.", relay.streams),
      gauge("trafficmirror_source_ports", "Source ports by state.",
            {{relay.free_ports, {{"state", "free"}}}, {relay.leased_ports, {{"state", "leased"}}}}),
      gauge("trafficmirror_reply_path_proven",
            "1 where a handshake of the intercept's own has shown that the target's replies come "
            "back here; of UDP, where there is a route to it.",
            std::move(proven)),
      counter("trafficmirror_injected_packets_total", "Packets sent towards the shadow.",
              value(counters_.injected.packets)),
      counter("trafficmirror_injected_bytes_total", "Bytes of these packets, headers included.",
              value(counters_.injected.bytes)),
      by_reason("trafficmirror_inject_errors_total", "Packets that the kernel did not send.",
                counters_.injected.errors, inject::inject_error_names),
      by_reason("trafficmirror_refused_packets_total",
                "Packets of a sidecar's that its lease does not allow.", counters_.refused_packets,
                refusal_names),
      counter("trafficmirror_tap_packets_total", "Packets seen for the source ports.",
              value(counters_.tap_packets)),
      counter("trafficmirror_tap_drops_total", "Packets that the tap was too slow for.",
              value(counters_.tap_drops)),
      counter("trafficmirror_tap_foreign_total",
              "Packets seen for the source ports that are none of a shadow's.",
              value(counters_.tap_foreign)),
      counter("trafficmirror_header_drops_total",
              "Headers that a sidecar's stream did not take in time.",
              value(counters_.header_drops)),
      by_reason("trafficmirror_sessions_reset_total",
                "Sessions at the shadow that the intercept reset.", counters_.sessions_reset,
                reset_reason_names),
      by_name("trafficmirror_configurations_total",
              "Contents of the file of --config that were read, by what became of them.", "result",
              counters_.configurations, configuration_result_names),
      by_name(
          "trafficmirror_sidecar_identities_total",
          "Contents of --sidecar-tls-certificate, --sidecar-tls-key and --tls-ca that were read "
          "anew, by what became of them.",
          "result", counters_.identities, configuration_result_names),
      by_reason("trafficmirror_refused_streams_total",
                "Connections that TLS did not let pass as a sidecar's.", counters_.refused_streams,
                stream_refusal_names),
  };
}

Intercept::Intercept(Options options)
    : implementation_(std::make_unique<Implementation>(std::move(options))) {}

Intercept::~Intercept() = default;

void Intercept::run(int stop_descriptor, program::ReloadSignal* reload) {
  implementation_->run(stop_descriptor, reload);
}

net::Port Intercept::port() const {
  return implementation_->port();
}

std::optional<std::string> Intercept::not_ready() const {
  return implementation_->not_ready();
}

std::string Intercept::status() const {
  return implementation_->status();
}

std::vector<prometheus::MetricFamily> Intercept::metrics() const {
  return implementation_->metrics();
}

}  // namespace trafficmirror::intercept
