#include "sidecar/shard.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>

#include "net/packet.h"
#include "program/metrics.h"
#include "program/start_error.h"
#include "sidecar/capture/open_flows.h"
#include "sidecar/uplink/messages.h"

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
// Without a stream for so long nothing is captured any more: a mirror that is stopped costs
// production nothing.
constexpr std::chrono::seconds capture_outlives_stream(10);
constexpr std::chrono::seconds report_interval(2);

session::Time to_engine_time(uplink::Uplink::Clock::time_point time) {
  return session::Time(std::chrono::duration_cast<session::Duration>(time.time_since_epoch()));
}

// Until one of the descriptors is ready, or it is `time`.
void wait_until(uplink::Uplink::Clock::time_point time, std::span<pollfd> descriptors) {
  using std::chrono::seconds;
  const auto now = uplink::Uplink::Clock::now();
  const auto left = std::max(time, now) - now;
  const timespec timeout{.tv_sec = left / seconds(1), .tv_nsec = (left % seconds(1)).count()};
  ::ppoll(descriptors.data(), descriptors.size(), &timeout, nullptr);
}

}  // namespace

Shard::Shard(Options options)
    : options_(std::move(options)),
      rewriter_([this](std::string&& batch) { uplink_.send(std::move(batch)); }),
      engine_(options_.engine, rewriter_),
      uplink_(options_.uplink) {
  configure({});
  open_capture();
}

void Shard::open_capture() {
  capture_ = options_.method == CaptureMethod::ring ? capture::open_ring_capture(options_.capture)
                                                    : capture::open_pcap_capture(options_.capture);
  current_.capturing = true;
}

void Shard::run(int stop_descriptor) {
  ::prctl(PR_SET_TIMERSLACK, 10'000);  // nanoseconds; the default is 50 µs
  last_stream_ = Clock::now();
  now_ = to_engine_time(last_stream_);
  take_up_open_flows();
  for (auto now = last_stream_;;) {
    std::array<pollfd, 3> waiting{{{stop_descriptor, POLLIN, 0},
                                   {uplink_.descriptor(), POLLIN, 0},
                                   {capture_ ? capture_->descriptor() : -1, POLLIN, 0}}};
    wait_until(now + pace, std::span(waiting).first(1));
    wait_until(deadline(), waiting);
    now = Clock::now();
    now_ = to_engine_time(now);
    if (waiting[0].revents != 0) break;
    if (waiting[1].revents != 0) take_uplink_events();
    if (current_.stream_up) last_stream_ = now;
    if (told_to_stop_ || gave_up(now)) break;
    uplink_.run(now);
    rest_without_stream(now);
    if (capture_ ? waiting[2].revents != 0 : now >= reopen_at_) read_capture();
    engine_.set_uplink_full(uplink_.full());
    engine_.run(now_);
    rewriter_.flush();
    if (now >= report_at_) report();
    publish();
  }
  engine_.drain(now_);
  rewriter_.flush();
  report();
  publish();
  uplink_.finish(finish_timeout);
}

Shard::Clock::time_point Shard::deadline() const {
  // Looked after now and then at any rate, so that the published counters are never old.
  Clock::time_point at = Clock::now() + std::chrono::seconds(1);
  at = std::min(at, uplink_.next_dial());
  if (!capture_) at = std::min(at, reopen_at_);
  if (engine_.deadline() != session::never)
    at = std::min(at, Clock::time_point(engine_.deadline().time_since_epoch()));
  return at;
}

bool Shard::gave_up(Clock::time_point now) const {
  if (options_.give_up_after.count() == 0 || now < last_stream_ + options_.give_up_after)
    return false;
  spdlog::info("no stream for {} s (--give-up-after): ending",
               std::chrono::duration_cast<std::chrono::seconds>(options_.give_up_after).count());
  return true;
}

// ---- capture

void Shard::rest_without_stream(Clock::time_point now) {
  if (!capture_ || now < last_stream_ + capture_outlives_stream) return;
  spdlog::info("there is no stream: nothing is captured until there is one");
  close_capture();
  reopen_at_ = Clock::time_point::max();
  engine_.forget_flows();
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
  const auto count = [&](Unusable reason) { ++current_.unusable[static_cast<size_t>(reason)]; };
  const auto parsed = net::parse_packet(captured.bytes, captured.wire_length);
  if (const auto* error = std::get_if<net::ParseError>(&parsed)) {
    switch (*error) {
      case net::ParseError::not_tcp:
        return count(Unusable::not_tcp);
      case net::ParseError::fragment:
        return count(Unusable::fragment);
      case net::ParseError::malformed:
        return count(Unusable::malformed);
    }
  }
  const auto& packet = std::get<net::Packet>(parsed);
  // Production throws a packet with a wrong checksum away, so it must not reach the shadow.
  if (!captured.checksum_vouched && !net::checksum_holds(packet, captured.bytes))
    return count(Unusable::bad_checksum);
  engine_.on_production(now_, packet);
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

// ---- the stream

void Shard::take_uplink_events() {
  for (uplink::Event& event : uplink_.take_events()) {
    if (const auto* headers = std::get_if<uplink::Headers>(&event)) {
      take_headers(headers->bytes);
    } else if (const auto* lease = std::get_if<session::Lease>(&event)) {
      if (!current_.stream_up)
        spdlog::info("the stream to {}:{} is up", options_.uplink.intercept.host,
                     options_.uplink.intercept.port.number);
      current_.stream_up = true;
      asked_for_ports_ = false;
      engine_.set_lease(now_, *lease);
      if (reopen_at_ == Clock::time_point::max()) {  // it was closed for want of a stream
        reopen_at_ = Clock::time_point::min();
        take_up_open_flows();
      }
    } else if (const auto* configuration = std::get_if<uplink::Configuration>(&event)) {
      configure(configuration->limits);
    } else if (std::holds_alternative<uplink::Stop>(event)) {
      spdlog::info("the intercept says that this sidecar is to end");
      told_to_stop_ = true;
    } else if (const auto* lost = std::get_if<uplink::StreamLost>(&event)) {
      if (const auto held = stream_log_.allow(Clock::now()))
        spdlog::warn("no stream to {}:{}: {}{}", options_.uplink.intercept.host,
                     options_.uplink.intercept.port.number, lost->reason, *held);
      current_.stream_up = false;
      current_.stream_problem = lost->reason;
      engine_.stream_lost();
    }
  }
  if (current_.stream_up && !asked_for_ports_ && engine_.wants_more_source_ports()) {
    asked_for_ports_ = true;
    uplink_.ask_for_more_source_ports();
  }
}

void Shard::take_headers(std::string_view headers) {
  const bool whole = uplink::for_each_header(
      headers, [&](const net::Packet& packet) { engine_.on_shadow(now_, packet); });
  if (!whole)  // the intercept sends none such
    ++current_.unusable[static_cast<size_t>(Unusable::malformed)];
}

void Shard::configure(const program::Limits& limits) {
  const program::Limits before = std::exchange(limits_, limits.over(options_.limits));
  if (limits_ == before) return;
  session::Limits of_engine;
  if (limits_.percent) of_engine.percent = *limits_.percent;
  if (limits_.max_sessions) of_engine.sessions = *limits_.max_sessions;
  if (limits_.memory != 0) of_engine.memory = limits_.memory;
  engine_.set_limits(now_, of_engine);
  if (limits == program::Limits{}) return;
  spdlog::info("the intercept says: {} % of the connections, {} sessions at most, {} bytes",
               of_engine.percent,
               limits_.max_sessions ? std::to_string(*limits_.max_sessions) : "any number of",
               of_engine.memory);
}

// What the intercept is told for whoever asks it: seconds late, and now and then not at all.
void Shard::report() {
  report_at_ = Clock::now() + report_interval;
  const session::Counters& counters = engine_.counters();
  if (current_.stream_up && uplink_.report(counters.since(reported_))) reported_ = counters;
}

// ---- what others see

void Shard::publish() {
  current_.engine = engine_.counters();
  current_.uplink = uplink_.counters();
  current_.capture = earlier_captures_;
  if (capture_) {
    const capture::CaptureCounters open = capture_->counters();
    current_.capture.packets += open.packets;
    current_.capture.drops += open.drops;
  }
  const std::lock_guard lock(published_mutex_);
  published_ = current_;
}

std::optional<std::string> Shard::not_ready() const {
  const std::lock_guard lock(published_mutex_);
  if (!published_.stream_up)
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
  const auto identities =
      options_.uplink.tls ? options_.uplink.tls->replacements() : program::Tls::Replacements{};
  using program::counter;
  using program::gauge;
  return {
      counter("trafficmirror_capture_packets_total", "Packets captured.", now.capture.packets),
      counter("trafficmirror_capture_drops_total",
              "Packets the kernel could not hand over because the capture ring was full.",
              now.capture.drops),
      counter("trafficmirror_capture_unusable_packets_total",
              "Captured packets that were not mirrored, by reason.",
              by_name("reason", unusable_names, now.unusable)),
      gauge("trafficmirror_flows", "Production connections known.", now.engine.flows),
      counter("trafficmirror_sessions_opened_total", "Sessions opened towards the shadow.",
              now.engine.opened),
      counter("trafficmirror_sessions_adopted_total",
              "Of the opened sessions, those of connections that were already open.",
              now.engine.adopted),
      gauge("trafficmirror_sessions_active", "Sessions open now.", now.engine.active),
      counter("trafficmirror_sessions_closed_total", "Sessions that ended, by reason.",
              by_name("reason", session::close_reason_names, now.engine.closed)),
      counter("trafficmirror_shed_total",
              "Production connections, and exchanges on connections without a session, that were "
              "not mirrored, by reason.",
              by_name("reason", session::shed_reason_names, now.engine.shed)),
      counter("trafficmirror_exchanges_total", "Exchanges that the shadow answered.",
              now.engine.exchanges),
      counter("trafficmirror_payload_bytes_total",
              "Client bytes the shadow acknowledged, and bytes it answered.",
              {{now.engine.bytes_to_shadow, {{"direction", "to_shadow"}}},
               {now.engine.bytes_from_shadow, {{"direction", "from_shadow"}}}}),
      counter("trafficmirror_retransmits_total", "Segments sent to the shadow again.",
              now.engine.retransmits),
      gauge("trafficmirror_memory_bytes", "Memory the engine holds; --memory-limit bounds it.",
            now.engine.memory),
      gauge("trafficmirror_stream_up", "Whether there is a stream to the intercept.",
            now.stream_up ? 1 : 0),
      counter("trafficmirror_identities_total",
              "Certificates with key and CAs that the intercept sent, by what became of them.",
              {{identities.taken, {{"result", "taken"}}},
               {identities.refused, {{"result", "refused"}}}}),
      counter("trafficmirror_streams_total", "Streams to the intercept that got a lease.",
              now.uplink.streams),
      counter("trafficmirror_uplink_dropped_batches_total",
              "Batches of packets that the stream could not take; TCP sends them again.",
              now.uplink.dropped_batches),
  };
}

}  // namespace trafficmirror::sidecar
