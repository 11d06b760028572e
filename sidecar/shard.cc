#include "sidecar/shard.h"

#include <algorithm>
#include <numeric>

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>

#include "program/metrics.h"
#include "program/start_error.h"
#include "sidecar/capture/open_flows.h"

namespace trafficmirror::sidecar {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// After a look at what has come in the next one follows no sooner than this. What comes alone is
// passed on at once; what comes in quick succession shares a wake-up and a message on the stream,
// which cost most of what mirroring costs.
constexpr microseconds pace(500);
constexpr milliseconds reopen_pause(500);
constexpr milliseconds finish_timeout(2000);
// Without a stream for so long, requests are only counted: what nobody is going to get is not
// copied.
constexpr std::chrono::seconds copying_outlives_stream(10);
constexpr std::chrono::seconds report_interval(2);
constexpr std::chrono::seconds progress_interval(2);
constexpr milliseconds between_looks_for_production(100);
// From the end of production's last socket: what it sent last has been captured then, and the
// shadow has mostly answered it.
constexpr milliseconds until_all_is_captured(20);
constexpr milliseconds until_all_is_answered(1000);

session::Time to_engine_time(Replicas::Clock::time_point time) {
  return session::Time(std::chrono::duration_cast<session::Duration>(time.time_since_epoch()));
}

session::Pacing pacing_of(const program::Limits& limits) {
  session::Pacing pacing;
  switch (limits.turns.value_or(program::Turns::wait)) {
    case program::Turns::wait:
      pacing.turns = session::Turns::wait;
      break;
    case program::Turns::eager:
      pacing.turns = session::Turns::eager;
      break;
    case program::Turns::off:
      pacing.turns = session::Turns::off;
      break;
  }
  pacing.max_lag = limits.max_lag;
  pacing.over_lag = limits.over_lag == program::OverLag::catch_up ? session::OverLag::catch_up
                                                                  : session::OverLag::shed;
  return pacing;
}

template <typename Choice, typename Names>
const char* name_of(Choice choice, const Names& names) {
  return names[static_cast<size_t>(choice)];
}

session::Limits to_engine_limits(const program::Limits& limits) {
  session::Limits of_engine;
  if (limits.percent) of_engine.percent = *limits.percent;
  if (limits.max_sessions) of_engine.sessions = *limits.max_sessions;
  if (limits.memory != 0) of_engine.memory = limits.memory;
  if (limits.max_rate) of_engine.rate = *limits.max_rate;
  if (limits.copies) of_engine.copies = static_cast<uint16_t>(*limits.copies);
  if (limits.filter)
    of_engine.filter = [filter = *limits.filter](const net::FlowKey& key, net::Protocol protocol) {
      return filter.lets_through(key, protocol);
    };
  of_engine.pacing = pacing_of(limits);
  return of_engine;
}

// With the defaults, but for those that bound nothing.
std::string describe(const program::Limits& limits) {
  const session::Limits in_use = to_engine_limits(limits);
  std::string text = fmt::format(
      "{} % of the connections, {} sessions at most, {} bytes, turns {}", in_use.percent,
      limits.max_sessions ? std::to_string(in_use.sessions) : "any number of", in_use.memory,
      name_of(limits.turns.value_or(program::Turns::wait), program::turns_names));
  if (limits.max_lag.count() != 0)
    text += fmt::format(
        ", up to {} ms late and then {}", limits.max_lag.count(),
        name_of(limits.over_lag.value_or(program::OverLag::shed), program::over_lag_names));
  if (limits.max_rate) text += fmt::format(", up to {} requests a second", in_use.rate);
  if (in_use.copies > 1) text += fmt::format(", {} copies of each", in_use.copies);
  if (limits.filter) text += fmt::format(", filter: {}", limits.filter->expression());
  return text;
}

// Until one of the descriptors is ready, or it is `time`.
void wait_until(Replicas::Clock::time_point time, std::span<pollfd> descriptors) {
  using std::chrono::seconds;
  const auto now = Replicas::Clock::now();
  const auto left = std::max(time, now) - now;
  const timespec timeout{.tv_sec = left / seconds(1), .tv_nsec = (left % seconds(1)).count()};
  ::ppoll(descriptors.data(), descriptors.size(), &timeout, nullptr);
}

}  // namespace

Shard::Shard(Options options, int stop_descriptor, Reload& reload)
    : options_(std::move(options)),
      stop_descriptor_(stop_descriptor),
      reload_(reload),
      engine_(with_login_log(options_.engine)),
      direct_(options_.uplink.sends_directly
                  ? std::make_unique<direct::Sender>(options_.direct_link)
                  : nullptr),
      replicas_(options_.uplink, engine_, uplink::look_up,
                direct_ ? [this](std::string_view packets) { direct_->send(packets); }
                        : Replicas::SendDirectly()),
      own_limits_(options_.limits) {
  apply_limits();
  if (options_.replay) {
    replay_ = std::make_unique<replay::Replay>(*options_.replay, options_.engine.ports,
                                               options_.engine.udp_ports, engine_, stop_descriptor);
    current_.capturing = true;
    return;
  }
  if (options_.record) recorder_ = std::make_unique<capture::Recorder>(*options_.record);
  open_capture();
}

void Shard::open_capture() {
  capture_ = options_.method == CaptureMethod::ring ? capture::open_ring_capture(options_.capture)
                                                    : capture::open_pcap_capture(options_.capture);
  request_copy_ = capture::RequestCopy::whole;
  current_.capturing = true;
}

void Shard::run() {
  ::prctl(PR_SET_TIMERSLACK, 10'000);  // nanoseconds; the default is 50 µs
  auto now = Clock::now();
  now_ = to_engine_time(now);
  show_progress_at_ = now + progress_interval;
  if (!replay_) take_up_open_flows();
  for (std::vector<pollfd> waiting;;) {
    const int source = replay_ ? replay_->descriptor() : capture_ ? capture_->descriptor() : -1;
    waiting.assign({{asked_to_stop_ ? -1 : stop_descriptor_, POLLIN, 0}, {source, POLLIN, 0}});
    const size_t first_of_reload = waiting.size();
    reload_.for_each_descriptor([&](int descriptor) {
      waiting.push_back({descriptor, POLLIN, 0});
    });
    const size_t first_of_streams = waiting.size();
    replicas_.for_each_descriptor([&](int descriptor) {
      waiting.push_back({descriptor, POLLIN, 0});
    });
    wait_until(now + pace, std::span(waiting).first(1));
    wait_until(deadline(), waiting);
    now = Clock::now();
    now_ = to_engine_time(now);
    asked_to_stop_ = asked_to_stop_ || waiting[0].revents != 0;
    if (asked_to_stop_ && may_stop(now)) break;
    const auto is_ready = [](const pollfd& descriptor) { return descriptor.revents != 0; };
    if (std::any_of(waiting.begin() + first_of_reload, waiting.begin() + first_of_streams,
                    is_ready))
      read_again();
    if (std::any_of(waiting.begin() + first_of_streams, waiting.end(), is_ready))
      take_stream_events(now);
    replicas_.run(now);
    if (told_to_stop_ || gave_up()) break;
    copy_what_is_of_use();
    if (replay_)
      replay(now);
    else if (capture_ ? is_ready(waiting[1]) : now >= reopen_at_)
      read_capture();
    engine_.run(now_);
    replicas_.flush();
    replayed_ = replay_ && replay_->handed_over() && engine_.counters().active == 0;
    if (replayed_) break;
    if (now >= report_at_) report();
    publish();
  }
  engine_.drain(now_);
  replicas_.flush();
  report();
  publish();
  replicas_.finish(finish_timeout);
}

Shard::Clock::time_point Shard::deadline() const {
  // Looked after now and then at any rate, so that the published counters are never old.
  Clock::time_point at = Clock::now() + std::chrono::seconds(1);
  at = std::min(at, replicas_.deadline());
  if (replay_)
    at = std::min(at, replay_->deadline());
  else if (!capture_)
    at = std::min(at, reopen_at_);
  if (asked_to_stop_) at = std::min(at, look_for_production_at_);
  if (engine_.deadline() != session::never)
    at = std::min(at, Clock::time_point(engine_.deadline().time_since_epoch()));
  return at;
}

bool Shard::gave_up() const {
  if (options_.give_up_after.count() == 0 || replicas_.without_stream() < options_.give_up_after)
    return false;
  spdlog::info("no stream for {} s (--give-up-after): ending",
               std::chrono::duration_cast<std::chrono::seconds>(options_.give_up_after).count());
  return true;
}

bool Shard::may_stop(Clock::time_point now) {
  if (!options_.outlive_production) return true;
  if (now < look_for_production_at_) return false;
  look_for_production_at_ = now + between_looks_for_production;
  if (!production_gone_at_) {
    if (capture::has_sockets(options_.capture.ports, options_.capture.udp_ports)) return false;
    production_gone_at_ = now;
    look_for_production_at_ = now + until_all_is_captured;
    return false;
  }
  return engine_.counters().active == 0 || now >= *production_gone_at_ + until_all_is_answered;
}

// ---- capture

void Shard::copy_what_is_of_use() {
  const auto copy = recorder_ || replicas_.without_stream() < copying_outlives_stream
                        ? capture::RequestCopy::whole
                        : capture::RequestCopy::headers;
  if (!capture_ || copy == request_copy_) return;
  spdlog::info(copy == capture::RequestCopy::headers
                   ? "there is no stream: requests are only counted until there is one"
                   : "there is a stream again: requests are mirrored");
  request_copy_ = copy;
  if (capture_->copy_requests(copy)) return;
  spdlog::warn("the kernel refuses another filter: the capture is opened anew");
  close_capture();
  reopen_at_ = Clock::time_point::min();
}

void Shard::read_capture() {
  if (!capture_) {
    try {
      open_capture();
      spdlog::info("capturing again from {}", options_.capture.interface);
    } catch (const program::StartError& error) {
      if (const auto held = capture_log_.allow(Clock::now()))
        spdlog::warn("not capturing: {}{}", error.what(), *held);
      reopen_at_ = Clock::now() + reopen_pause;
      return;
    }
  }
  if (capture_->read(*this)) return;
  spdlog::warn("interface {} is gone: waiting for it to come back", options_.capture.interface);
  close_capture();
  reopen_at_ = Clock::now() + reopen_pause;
}

void Shard::close_capture() {
  const capture::CaptureCounters last = capture_->counters();
  earlier_captures_.packets += last.packets;
  earlier_captures_.drops += last.drops;
  capture_.reset();
  current_.capturing = false;
}

void Shard::on_captured(const capture::CapturedPacket& captured) {
  if (recorder_) recorder_->add(captured);
  const auto usable = capture::usable_packet(captured);
  if (const auto* reason = std::get_if<capture::Unusable>(&usable))
    ++current_.unusable[*reason];
  else
    engine_.on_production(now_, std::get<net::Packet>(usable));
}

// Connections that were open before: the kernel knows which of them are between two exchanges. What
// has been captured meanwhile is more recent, so it is looked at first, and flows that spoke wait
// for their next boundary.
void Shard::take_up_open_flows() {
  const std::vector<capture::OpenFlow> flows =
      capture::flows_between_exchanges(options_.capture.ports);
  read_capture();
  for (const capture::OpenFlow& flow : flows)
    engine_.on_idle_flow(now_, flow.key,
                         flow.certain ? session::Boundary::certain : session::Boundary::likely);
  if (!flows.empty())
    spdlog::info("{} connections are open and idle: they are mirrored from their next request on",
                 flows.size());
}

void Shard::replay(Clock::time_point now) {
  replay_->run(now, now_);
  if (now < show_progress_at_) return;
  show_progress_at_ = now + progress_interval;
  const session::Counters counted = engine_.counters();
  spdlog::info("{}: {} sessions, {} of them open, {} exchanges, {} shed", replay_->progress(),
               counted.opened, counted.active, counted.exchanges,
               std::accumulate(counted.shed.begin(), counted.shed.end(), uint64_t{0}));
}

std::string Shard::report_of_replay() const {
  return replay_->report(engine_.counters(), Clock::now());
}

// ---- the streams

void Shard::take_stream_events(Clock::time_point now) {
  const Replicas::Said said = replicas_.take_events(now, now_);
  // All replicas have the same to say, one a little sooner than another.
  if (said.configuration) configure(said.configuration->limits);
  if (said.stop) {
    spdlog::info("the intercept says that this sidecar is to end");
    told_to_stop_ = true;
  }
  current_.unusable[capture::Unusable::malformed] += said.malformed_headers;
}

void Shard::configure(const program::Limits& of_intercept) {
  limits_of_intercept_ = of_intercept;
  if (apply_limits()) spdlog::info("changed by the intercept; in use: {}", describe(limits_));
}

void Shard::read_again() {
  const auto read = reload_.take();
  current_.configurations = reload_.counters();
  if (!read) return;
  const std::string changed = program::changes(std::exchange(own_limits_, *read), *read);
  apply_limits();
  spdlog::info("the file of --config is read; {}; in use: {}",
               changed.empty() ? "it changes nothing" : "changed: " + changed, describe(limits_));
}

bool Shard::apply_limits() {
  const program::Limits before = std::exchange(limits_, limits_of_intercept_.over(own_limits_));
  if (limits_ == before) return false;
  engine_.set_limits(now_, to_engine_limits(limits_));
  return true;
}

session::Engine::Options Shard::with_login_log(session::Engine::Options options) {
  options.login_failed = [this](const auto& shadow, const auto& failure) {
    const auto held = login_log_.allow(Clock::now());
    if (!held) return;
    // A part of it is what others said.
    std::string why = failure.why;
    std::replace_if(
        why.begin(), why.end(), [](unsigned char each) { return each < ' ' || each == 127; }, '?');
    spdlog::warn("a login to the shadow {} failed ({}): {}{}", shadow.to_string(),
                 session::close_reason_names[static_cast<size_t>(failure.reason)], why, *held);
  };
  return options;
}

// What the intercept is told for whoever asks it: seconds late, and now and then not at all.
void Shard::report() {
  report_at_ = Clock::now() + report_interval;
  std::optional<uplink::ReplayProgress> progress;
  if (replay_) progress = {replay_->counts().packets, replay_->percent()};
  replicas_.report(progress);
}

// ---- what others see

void Shard::publish() {
  current_.engine = engine_.counters();
  current_.uplink = replicas_.counters();
  current_.streams = replicas_.streams();
  current_.stream_problem = replicas_.problem();
  current_.capture = earlier_captures_;
  if (capture_) {
    const capture::CaptureCounters open = capture_->counters();
    current_.capture.packets += open.packets;
    current_.capture.drops += open.drops;
  }
  if (replay_) {
    current_.capture.packets = replay_->counts().packets;
    current_.unusable = replay_->counts().unusable;
  }
  if (recorder_) current_.record = recorder_->counters();
  const std::lock_guard lock(published_mutex_);
  published_ = current_;
}

std::optional<std::string> Shard::not_ready() const {
  const std::lock_guard lock(published_mutex_);
  if (std::none_of(published_.streams.begin(), published_.streams.end(),
                   [](const auto& stream) { return stream.second; }))
    return "no stream to the intercept" +
           (published_.stream_problem.empty() ? "" : ": " + published_.stream_problem);
  if (!published_.capturing) return "interface " + options_.capture.interface + " is gone";
  return std::nullopt;
}

std::vector<prometheus::MetricFamily> Shard::metrics() const {
  Published now;
  {
    const std::lock_guard lock(published_mutex_);
    now = published_;
  }
  const auto by_name = [](const char* label, const auto& names, const auto& values) {
    std::vector<program::Sample> samples;
    for (size_t i = 0; i < names.size(); ++i) samples.push_back({values[i], {{label, names[i]}}});
    return samples;
  };
  std::vector<program::Sample> streams;
  for (const auto& [intercept, up] : now.streams)
    streams.push_back({up ? 1U : 0U, {{"intercept", intercept}}});
  const auto identities =
      options_.uplink.tls ? options_.uplink.tls->replacements() : program::Tls::Replacements{};
  std::array<double, session::Lags::bounds.size()> lag_bounds{};
  for (size_t i = 0; i < lag_bounds.size(); ++i)
    lag_bounds[i] = std::chrono::duration<double>(session::Lags::bounds[i]).count();
  using program::counter;
  using program::gauge;
  std::vector<prometheus::MetricFamily> families = {
      counter("trafficmirror_capture_packets_total", "Packets captured.", now.capture.packets),
      counter("trafficmirror_capture_drops_total",
              "Packets the kernel could not hand over because the capture ring was full.",
              now.capture.drops),
      counter("trafficmirror_capture_unusable_packets_total",
              "Captured packets that were not mirrored, by reason.",
              by_name("reason", capture::unusable_names, now.unusable)),
      gauge("trafficmirror_flows",
            "Production connections and clients of UDP known, each as often as it is mirrored.",
            now.engine.flows),
      counter("trafficmirror_sessions_opened_total", "Sessions opened towards the shadow.",
              now.engine.opened),
      counter("trafficmirror_sessions_adopted_total",
              "Of the opened sessions, those of connections that were already open.",
              now.engine.adopted),
      gauge("trafficmirror_sessions_active", "Sessions open now.", now.engine.active),
      counter("trafficmirror_sessions_closed_total", "Sessions that ended, by reason.",
              by_name("reason", session::close_reason_names, now.engine.closed)),
      counter("trafficmirror_shed_total",
              "Production connections, exchanges on connections without a session, and datagrams "
              "that were not mirrored, by reason.",
              by_name("reason", session::shed_reason_names, now.engine.shed)),
      counter("trafficmirror_exchanges_total", "Exchanges that the shadow answered.",
              now.engine.exchanges),
      program::histogram("trafficmirror_exchange_lag_seconds",
                         "How much later the first byte of an exchange was sent to the shadow than "
                         "it was captured.",
                         lag_bounds, now.engine.lags.exchanges,
                         static_cast<double>(now.engine.lags.sum) / 1e6),
      counter(
          "trafficmirror_payload_bytes_total",
          "Client bytes the shadow acknowledged, or of UDP were sent to it, and bytes it answered.",
          {{now.engine.bytes_to_shadow, {{"direction", "to_shadow"}}},
           {now.engine.bytes_from_shadow, {{"direction", "from_shadow"}}}}),
      counter("trafficmirror_retransmits_total", "Segments sent to the shadow again.",
              now.engine.retransmits),
      gauge("trafficmirror_memory_bytes", "Memory the engine holds; --memory-limit bounds it.",
            now.engine.memory),
      gauge("trafficmirror_stream_up",
            "Whether there is a stream to a replica of the intercept, by its address.", streams),
      counter("trafficmirror_identities_total",
              "Certificates with key and CAs that the intercept sent, by what became of them.",
              {{identities.taken, {{"result", "taken"}}},
               {identities.refused, {{"result", "refused"}}}}),
      counter("trafficmirror_configurations_total",
              "Readings of the file of --config on SIGHUP, by what became of them.",
              {{now.configurations.taken, {{"result", "taken"}}},
               {now.configurations.refused, {{"result", "refused"}}}}),
      counter("trafficmirror_streams_total", "Streams to the intercept that got a lease.",
              now.uplink.streams),
      counter("trafficmirror_uplink_dropped_batches_total",
              "Batches of packets that the stream could not take; TCP sends them again, UDP does "
              "not.",
              now.uplink.dropped_batches),
  };
  if (options_.record) {
    families.insert(
        families.end(),
        {counter("trafficmirror_record_packets_total", "Packets written by --record.",
                 now.record.packets),
         counter("trafficmirror_record_bytes_total", "Bytes written by --record.",
                 now.record.bytes),
         counter("trafficmirror_record_drops_total",
                 "Packets that were not recorded: the disk was too slow, or recording has ended.",
                 now.record.drops),
         counter("trafficmirror_record_failures_total",
                 "Whether writing has failed, which ends recording.", now.record.failures)});
  }
  if (direct_) {
    auto of_direct = direct_->metrics();
    std::move(of_direct.begin(), of_direct.end(), std::back_inserter(families));
  }
  return families;
}

}  // namespace trafficmirror::sidecar
