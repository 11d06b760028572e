#include "sidecar/session/streams.h"

#include <algorithm>
#include <utility>

namespace trafficmirror::session {
namespace {

// Spreads what differs in a few bits over all of them (the last steps of splitmix64).
uint64_t mixed(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

auto find_in(const std::vector<Stream::Target>& targets, const Lease::Target& target) {
  return std::find_if(targets.begin(), targets.end(), [&](const Lease::Target& its) {
    return its.endpoint == target.endpoint && its.production_port == target.production_port &&
           its.protocol == target.protocol;
  });
}

}  // namespace

std::vector<Stream::Target> Stream::take(const Lease& lease, bool for_udp) {
  has_lease = true;
  if (lease.client_sources) {
    source_ports.lease_clients();
  } else {
    source_ports.lease(lease.sources);
    if (for_udp) udp_source_ports.lease(lease.sources);
  }
  std::vector<Target> before = std::exchange(targets, {});
  for (const Lease::Target& target : lease.targets) {
    const auto known = find_in(before, target);
    targets.push_back({target, known == before.end() ? Time::min() : known->down_until});
  }
  return before;
}

std::optional<uint16_t> Stream::find(const Lease::Target& target) const {
  const auto found = find_in(targets, target);
  if (found == targets.end()) return std::nullopt;
  return static_cast<uint16_t>(found - targets.begin());
}

void Stream::clear_lease() {
  source_ports.clear();
  udp_source_ports.clear();
  targets.clear();
  has_lease = false;
}

SegmentSink& Stream::open_sink() const {
  class Nowhere : public SegmentSink {
    void send(const Path& /*path*/, const Segment& /*segment*/) override {}
  };
  static Nowhere nowhere;
  return full ? static_cast<SegmentSink&>(nowhere) : sink;
}

Stream& Streams::add(uint64_t identity, SegmentSink& sink) {
  // No two of them begin with the same sequence numbers, though one has the identity of another.
  const uint64_t seed = mixed(seed_ + ++added_);
  const auto place = std::find(streams_.begin(), streams_.end(), nullptr);
  const auto number = static_cast<uint16_t>(place - streams_.begin());
  if (place == streams_.end()) streams_.emplace_back();
  streams_[number] = std::make_unique<Stream>(number, identity, sink, seed);
  all_.push_back(streams_[number].get());
  return *all_.back();
}

void Streams::remove(const Stream& stream) {
  all_.erase(std::find(all_.begin(), all_.end(), &stream));
  streams_[stream.number].reset();
}

std::variant<Way, ShedReason> Streams::way_for(Time now, const FlowCopy& key,
                                               net::Protocol protocol) const {
  const uint64_t hash = std::hash<FlowCopy>()(key);
  enum class Obstacle : uint8_t { no_stream, no_target, uplink_full, no_source_port };
  Obstacle obstacle = Obstacle::no_stream;
  std::optional<Way> best;
  uint64_t highest = 0;
  for (Stream* const each : all_) {
    Stream& stream = *each;
    if (!stream.has_lease || stream.closed_to_new) continue;
    const auto stopped_by = [&](Obstacle its) { obstacle = std::max(obstacle, its); };
    std::optional<uint16_t> number;
    std::pair<bool, uint64_t> highest_of_targets;
    for (size_t i = 0; i < stream.targets.size(); ++i) {
      const Stream::Target& target = stream.targets[i];
      if (target.production_port != key.server.port || target.protocol != protocol) continue;
      const std::pair its{target.is_up(now),
                          mixed(hash ^ std::hash<net::Endpoint>()(target.endpoint))};
      if (number && its < highest_of_targets) continue;
      highest_of_targets = its;
      number = static_cast<uint16_t>(i);
    }
    if (!number) {
      stopped_by(Obstacle::no_target);
      continue;
    }
    if (stream.full) {
      stopped_by(Obstacle::uplink_full);
      continue;
    }
    const net::Endpoint& to = stream.targets[*number].endpoint;
    if (protocol == net::Protocol::tcp ? !stream.source_ports.has_free({key.client, to})
                                       : !stream.udp_source_ports.has_free(to.address.family())) {
      stopped_by(Obstacle::no_source_port);
      continue;
    }
    const uint64_t rank = mixed(hash ^ stream.identity);
    if (best && rank < highest) continue;
    highest = rank;
    best = Way{&stream, *number};
  }
  if (best) return *best;
  switch (obstacle) {
    case Obstacle::no_stream:
      return ShedReason::no_stream;
    case Obstacle::no_target:
      return ShedReason::no_target;
    case Obstacle::uplink_full:
      return ShedReason::uplink_full;
    case Obstacle::no_source_port:
      break;
  }
  return ShedReason::no_source_port;
}

bool Streams::has_way_up(Time now, const FlowCopy& key) const {
  const auto way = way_for(now, key);
  const Way* found = std::get_if<Way>(&way);
  return found && found->target().is_up(now);
}

bool Streams::is_source(const net::Endpoint& client) const {
  return std::any_of(all_.begin(), all_.end(),
                     [&](const Stream* stream) { return stream->source_ports.contains(client); });
}

}  // namespace trafficmirror::session
