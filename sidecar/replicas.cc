#include "sidecar/replicas.h"

#include <algorithm>

#include <spdlog/spdlog.h>

#include "program/flags.h"
#include "sidecar/direct/answers.h"
#include "sidecar/direct/own_path.h"
#include "sidecar/rewrite/rewrite.h"
#include "sidecar/uplink/messages.h"

namespace trafficmirror::sidecar {
namespace {

using std::chrono::seconds;

constexpr seconds look_up_interval(10);
constexpr seconds look_up_interval_without_stream(2);
// Many streams may be lost at a time.
constexpr seconds shortest_look_up_interval(1);

// The intercept knows the path from itself to each target.
session::Lease fit_to_own_paths(session::Lease lease) {
  for (session::Lease::Target& target : lease.targets)
    if (const auto own = direct::own_path_mtu(target.endpoint); own && *own < target.path_mtu)
      target.path_mtu = static_cast<uint16_t>(*own);
  return lease;
}

}  // namespace

struct Replicas::Replica {
  Replica(uplink::Uplink::Options options, session::Engine& engine,
          const SendDirectly& send_directly)
      : host(options.intercept.host),
        name(program::to_text(options.intercept)),
        uplink(std::move(options)),
        rewriter([this, &send_directly](std::string&& batch) {
          if (send_directly)
            send_directly(batch);
          else
            uplink.send(std::move(batch));
        }),
        noting(answers, rewriter),
        stream(engine.add_stream(
            std::hash<std::string>()(host),
            send_directly ? noting : static_cast<session::SegmentSink&>(rewriter))) {}

  const std::string host;  // an address
  const std::string name;  // with its port
  uplink::Uplink uplink;
  rewrite::Rewriter rewriter;
  direct::Answers answers;  // to what is sent directly
  direct::NotingSink noting;
  session::Stream& stream;
  bool up = false;  // its stream has a lease
  bool asked_for_ports = false;
  bool has_address = true;  // it is one of the name's
  bool ending = false;      // its stream is, as nobody needs it any more
  program::LogLimit log;

  void open_or_close() { session::Engine::close_to_new_sessions(stream, !has_address || ending); }
};

Replicas::Replicas(uplink::Uplink::Options options, session::Engine& engine, LookUp how,
                   SendDirectly send_directly)
    : options_(std::move(options)),
      engine_(engine),
      send_directly_(std::move(send_directly)),
      how_(std::move(how)) {
  if (uplink::is_address(options_.intercept.host)) {
    look_up_at_ = Clock::time_point::max();
    add(options_.intercept.host);
  }
  list_streams();
}

Replicas::~Replicas() {
  for (const auto& replica : replicas_) engine_.remove_stream(replica->stream);
}

int Replicas::descriptor_of(const Replica& replica) {
  return replica.uplink.descriptor();
}

// ---- addresses that come and go

void Replicas::follow(uplink::Found found, Clock::time_point now) {
  const bool up = std::any_of(replicas_.begin(), replicas_.end(),
                              [](const auto& replica) { return replica->up; });
  look_up_at_ = now + (up ? look_up_interval : look_up_interval_without_stream);
  if (const auto* reason = std::get_if<std::string>(&found)) {
    if (replicas_.empty()) problem_ = *reason;
    if (const auto held = look_up_log_.allow(now)) spdlog::warn("{}{}", *reason, *held);
    return;
  }
  std::vector<std::string> current;
  for (const auto& replica : replicas_) current.push_back(replica->host);
  const auto& all = std::get<std::vector<std::string>>(found);
  const auto chosen = uplink::choose(all, current, most, options_.name);
  if (const size_t left_out = all.size() - chosen.size();
      std::exchange(left_out_, left_out) != left_out && left_out > 0)
    spdlog::warn("{} has {} addresses: there are streams to {}, and {} are left out",
                 options_.intercept.host, all.size(), most, left_out);

  for (const auto& replica : replicas_) {
    const bool has_address = std::find(chosen.begin(), chosen.end(), replica->host) != chosen.end();
    const bool before = std::exchange(replica->has_address, has_address);
    if (before && !has_address)
      spdlog::info("{} is no address of {} any more: it gets no new sessions", replica->host,
                   options_.intercept.host);
    else if (!before && has_address)
      spdlog::info("{} is an address of {} again", replica->host, options_.intercept.host);
    replica->open_or_close();
  }
  for (const std::string& address : chosen) {
    if (std::find(current.begin(), current.end(), address) != current.end()) continue;
    spdlog::info("{} is an address of {}", address, options_.intercept.host);
    add(address);
  }
  remove_those_gone();
}

void Replicas::add(const std::string& address) {
  uplink::Uplink::Options options = options_;
  options.intercept.host = address;
  replicas_.push_back(std::make_unique<Replica>(std::move(options), engine_, send_directly_));
}

void Replicas::remove_those_gone() {
  std::erase_if(replicas_, [&](const auto& replica) {
    if (replica->has_address || replica->up) return false;
    engine_.remove_stream(replica->stream);
    of_those_gone_.add(replica->uplink.counters());
    return true;
  });
  list_streams();
}

void Replicas::list_streams() {
  streams_.clear();
  for (const auto& replica : replicas_)
    if (replica->has_address) streams_.emplace_back(replica->name, replica->up);
  if (streams_.empty()) streams_.emplace_back(program::to_text(options_.intercept), false);
}

// ---- streams

Replicas::Said Replicas::take_events(Clock::time_point now, session::Time engine_now) {
  Said said;
  if (auto found = look_up_.take()) follow(std::move(*found), now);
  bool lost = false;  // one that was there
  for (const auto& each : replicas_) {
    Replica& replica = *each;
    for (const uplink::Event& event : replica.uplink.take_events()) {
      lost = lost || (replica.up && std::holds_alternative<uplink::StreamLost>(event));
      take(replica, event, now, engine_now, said);
    }
    if (replica.up && !replica.asked_for_ports &&
        session::Engine::wants_more_source_ports(replica.stream)) {
      replica.asked_for_ports = true;
      replica.uplink.ask_for_more_source_ports();
    }
  }
  if (lost) {
    // It may have another address now.
    if (look_up_at_ != Clock::time_point::max())
      look_up_at_ = std::min(look_up_at_, looked_up_at_ + shortest_look_up_interval);
    remove_those_gone();
  }
  return said;
}

void Replicas::take(Replica& replica, const uplink::Event& event, Clock::time_point now,
                    session::Time engine_now, Said& said) {
  const auto on_shadow = [&](const net::Packet& packet) {
    replica.answers.received(packet);
    engine_.on_shadow(engine_now, replica.stream, packet);
  };
  if (const auto* headers = std::get_if<uplink::Headers>(&event)) {
    // The intercept sends none that are malformed.
    if (!uplink::for_each_header(headers->bytes, on_shadow)) ++said.malformed_headers;
  } else if (const auto* replies = std::get_if<uplink::Replies>(&event)) {
    if (!uplink::for_each_reply(replies->bytes, on_shadow)) ++said.malformed_headers;
  } else if (const auto* lease = std::get_if<session::Lease>(&event)) {
    if (!replica.up) spdlog::info("the stream to {} is up", replica.name);
    replica.asked_for_ports = false;
    engine_.set_lease(engine_now, replica.stream,
                      send_directly_ ? fit_to_own_paths(*lease) : *lease);
    if (!std::exchange(replica.up, true)) list_streams();
  } else if (const auto* configuration = std::get_if<uplink::Configuration>(&event)) {
    said.configuration = *configuration;
  } else if (std::holds_alternative<uplink::Stop>(event)) {
    said.stop = true;
  } else if (const auto* lost = std::get_if<uplink::StreamLost>(&event)) {
    if (!replica.ending) {
      if (const auto held = replica.log.allow(now))
        spdlog::warn("no stream to {}: {}{}", replica.name, lost->reason, *held);
      problem_ = lost->reason;
    }
    replica.up = replica.ending = false;
    engine_.stream_lost(replica.stream);
    replica.answers.forget();
    replica.open_or_close();
  }
}

void Replicas::run(Clock::time_point now) {
  if (!look_up_.running() && now >= look_up_at_) {
    looked_up_at_ = now;
    look_up_.start([how = how_, host = options_.intercept.host] { return how(host); });
  }
  bool up = false;
  for (const auto& each : replicas_) {
    Replica& replica = *each;
    if (replica.up && !replica.has_address && !replica.ending &&
        replica.stream.counters.active == 0) {
      replica.ending = true;
      if (replica.uplink.report(engine_.unreported(replica.stream)))
        engine_.set_reported(replica.stream);
      replica.uplink.end_stream();
    }
    replica.uplink.run(now);
    session::Engine::set_uplink_full(replica.stream, replica.uplink.full());
    warn_of_missing_answers(replica, now);
    up = up || replica.up;
  }
  if (up || !last_stream_) last_stream_ = now;
  without_stream_ = now - *last_stream_;
}

// The intercept reaches the target, or there would be no lease for it.
void Replicas::warn_of_missing_answers(Replica& replica, Clock::time_point now) {
  for (const net::Endpoint& target : replica.answers.missing(now)) {
    if (const auto held = missing_answers_log_.allow(now))
      spdlog::warn(
          "the shadow at {} answers nothing of what is sent to it directly: it is down, or the "
          "network drops packets with another host's source address, or of connections that it "
          "sees one side of; then use --delivery intercept{}",
          target.to_string(), *held);
  }
}

Replicas::Clock::time_point Replicas::deadline() const {
  Clock::time_point at = look_up_.running() ? Clock::time_point::max() : look_up_at_;
  for (const auto& replica : replicas_) at = std::min(at, replica->uplink.next_dial());
  return at;
}

void Replicas::flush() {
  for (const auto& replica : replicas_) replica->rewriter.flush();
}

void Replicas::report(const std::optional<uplink::ReplayProgress>& replay) {
  for (const auto& replica : replicas_)
    if (replica->up && replica->uplink.report(engine_.unreported(replica->stream), replay))
      engine_.set_reported(replica->stream);
}

void Replicas::finish(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  for (const auto& replica : replicas_) replica->uplink.end_stream();
  for (const auto& replica : replicas_)
    replica->uplink.finish(
        std::max(std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()),
                 std::chrono::milliseconds(0)));
}

uplink::Uplink::Counters Replicas::counters() const {
  uplink::Uplink::Counters all = of_those_gone_;
  for (const auto& replica : replicas_) all.add(replica->uplink.counters());
  return all;
}

}  // namespace trafficmirror::sidecar
