#include "sidecar/replay/replay.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <spdlog/fmt/fmt.h>

namespace trafficmirror::replay {
namespace {

using std::chrono::seconds;

// Between two looks at what the shadow says.
constexpr size_t most_bytes_at_a_time = 512 << 10;
// The intercept may lease more ports, once it is asked.
constexpr seconds patience_without_room(1);

double in_seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

template <typename Names, typename Values>
std::string counted(const Names& names, const Values& values) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i)
    if (values[i] > 0)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", values[i], names[i]);
  return text.empty() ? "none" : text;
}

}  // namespace

Replay::Replay(Options options, std::vector<net::Port> ports, std::vector<net::Port> udp_ports,
               session::Engine& engine, int stop_descriptor)
    : options_(std::move(options)),
      ports_(std::move(ports)),
      udp_ports_(std::move(udp_ports)),
      engine_(engine),
      schedule_(options_.schedule),
      reader_(options_.path, options_.rounds, stop_descriptor) {}

void Replay::run(Clock::time_point now, session::Time engine_now) {
  waiting_ = Waiting::nothing;
  reads_ = false;
  deadline_ = Clock::time_point::max();
  if (handed_over_) return;
  const bool waits_for_room = options_.schedule.speed == max_speed;
  if ((!begun_at_ || waits_for_room) && !engine_.has_target()) {
    waiting_ = Waiting::target;
    return;
  }
  if (!begun_at_) schedule_.begin(*(begun_at_ = now));
  hand_over(now, engine_now);
}

void Replay::hand_over(Clock::time_point now, session::Time engine_now) {
  for (size_t bytes = 0; bytes < most_bytes_at_a_time;) {
    const auto item = reader_.next();
    if (!item) {
      handed_over_ = reader_.finished();
      reads_ = !handed_over_;
      if (reads_) waiting_ = Waiting::file;
      return;
    }
    if (item->round_ended) {
      engine_.end_flows(engine_now);
      schedule_.end_round();
      ++counts_.rounds;
    } else if (!hand_over(item->packet, now, engine_now)) {
      return;
    }
    percent_of_round_ = item->round_ended ? 0 : item->percent;
    bytes += sizeof *item + item->packet.bytes.size();
    reader_.take();
  }
  deadline_ = now;  // there may be more
}

bool Replay::hand_over(const capture::CapturedPacket& captured, Clock::time_point now,
                       session::Time engine_now) {
  const auto place = schedule_.place(captured.time);
  if (place != Schedule::Place::within) {
    ++counts_.packets;
    ++counts_.left_out;
    if (place == Schedule::Place::far_behind)
      reader_.skip_rest_of(static_cast<uint32_t>(counts_.rounds));
    return true;
  }
  if (const auto due = schedule_.due(captured.time); due > now) {
    waiting_ = Waiting::time;
    deadline_ = due;
    return false;
  }
  const auto usable = capture::usable_packet(captured);
  const auto* packet = std::get_if<net::Packet>(&usable);
  const auto direction = packet ? direction_of(*packet) : std::nullopt;
  if (direction && options_.schedule.speed == max_speed && !may_go_on(*packet, now, engine_now))
    return false;

  ++counts_.packets;
  engine_.set_production_time(schedule_.pass(captured.time));
  if (!packet) {
    ++counts_.unusable[captured.bytes.empty() ? capture::Unusable::other_protocol
                                              : std::get<capture::Unusable>(usable)];
  } else if (!direction) {
    ++counts_.other_ports;
  } else {
    if (direction == Direction::request && packet->cut()) ++counts_.cut_requests;
    engine_.on_production(engine_now, *packet);
  }
  return true;
}

bool Replay::may_go_on(const net::Packet& packet, Clock::time_point now, session::Time engine_now) {
  if (!engine_.congested(engine_now, packet)) {
    without_room_since_.reset();
    return true;
  }
  if (!without_room_since_) without_room_since_ = now;
  const auto until = *without_room_since_ + patience_without_room;
  if (!engine_.busy()) {
    const session::Counters counters = engine_.counters();
    const auto ended = std::accumulate(counters.closed.begin(), counters.closed.end(), uint64_t{0});
    if (now >= until) waited_in_vain_at_ = ended;
    if (waited_in_vain_at_ == ended) return true;
    deadline_ = until;
  }
  waiting_ = Waiting::room;
  return false;
}

// Nothing where it is of another port.
std::optional<Replay::Direction> Replay::direction_of(const net::Packet& packet) const {
  const auto& ports = packet.protocol == net::Protocol::tcp ? ports_ : udp_ports_;
  const auto is_ours = [&](net::Port port) {
    return std::find(ports.begin(), ports.end(), port) != ports.end();
  };
  if (is_ours(packet.destination.port)) return Direction::request;
  return is_ours(packet.source.port) ? std::optional(Direction::response) : std::nullopt;
}

// ---- what a person reads

std::optional<uint32_t> Replay::percent() const {
  if (handed_over_) return 100;
  if (!percent_of_round_) return std::nullopt;
  return static_cast<uint32_t>((counts_.rounds * 100 + *percent_of_round_) / options_.rounds);
}

std::string Replay::progress() const {
  std::string text = fmt::format("{:.1f} s of the capture", in_seconds(schedule_.passed()));
  if (options_.rounds > 1)
    text += fmt::format(", round {} of {}", std::min<uint64_t>(counts_.rounds + 1, options_.rounds),
                        options_.rounds);
  if (percent() && !handed_over_) text += fmt::format(", {} % of it", *percent());
  switch (waiting_) {
    case Waiting::nothing:
      return text + (handed_over_ ? "; all is handed over, sessions go on" : "");
    case Waiting::file:
      return text + "; waiting for the file";
    case Waiting::time:
      return text + (deadline_ > Clock::now() + seconds(2)
                         ? fmt::format("; silent for another {:.0f} s",
                                       in_seconds(deadline_ - Clock::now()))
                         : "");
    case Waiting::target:
      return text + "; waiting for the intercept, and a target for one of the ports";
    case Waiting::room:
      return text + "; waiting for the shadow to take what there is";
  }
  return text;
}

std::string Replay::report(const session::Counters& sessions, Clock::time_point now) const {
  const Counts& read = counts_;
  std::string text =
      fmt::format("{}: {:.1f} s of the capture in {:.1f} s", options_.path,
                  in_seconds(schedule_.passed()), in_seconds(now - begun_at_.value_or(now)));
  if (options_.rounds > 1) text += fmt::format(", {} of {} rounds", read.rounds, options_.rounds);
  if (!handed_over_) text += "; stopped before its end";
  text += "\n";
  const auto line = [&](const char* name, const std::string& value) {
    text += fmt::format("  {:<11}{}\n", name, value);
  };
  const uint64_t not_usable =
      std::accumulate(read.unusable.begin(), read.unusable.end(), uint64_t{0});
  line("packets", fmt::format("{} read, {} replayed", read.packets,
                              read.packets - read.other_ports - read.left_out - not_usable));
  line("sessions", fmt::format("{} opened: {}", sessions.opened,
                               counted(session::close_reason_names, sessions.closed)));
  line("exchanges", fmt::format("{} answered by the shadow", sessions.exchanges));
  line("bytes", fmt::format("{} to the shadow, {} from it", sessions.bytes_to_shadow,
                            sessions.bytes_from_shadow));
  line("shed", counted(session::shed_reason_names, sessions.shed));

  std::string not_replayed;
  const auto add = [&](uint64_t count, const char* noun, const std::string& what) {
    if (count == 0) return;
    not_replayed += fmt::format("  {} {}{} {}\n", count, noun, count == 1 ? "" : "s", what);
  };
  using session::CloseReason;
  if (read.packets == 0) not_replayed += "  the file holds no packets\n";
  add(read.left_out, "packet", "outside --from and --until");
  add(read.other_ports, "packet", "of other ports");
  add(not_usable, "packet", "of no use: " + counted(capture::unusable_names, read.unusable));
  add(read.cut_requests, "packet", "of clients that the capture cut short (its snap length)");
  add(sessions.without_start, "connection",
      "whose start is not in the capture, taken up at the next exchange (mid_exchange)");
  add(sessions[CloseReason::capture_gap], "session",
      "reset where bytes are missing in the capture (capture_gap)");
  if (const std::string problem = reader_.problem(); !problem.empty())
    not_replayed += "  the rest of the file: " + problem + "\n";
  return text +
         (not_replayed.empty() ? "  not replayed: nothing\n" : "Not replayed\n" + not_replayed);
}

}  // namespace trafficmirror::replay
