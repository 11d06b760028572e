#include "sidecar/uplink/messages.h"

#include <algorithm>
#include <limits>

#include "trafficmirror/v1/mirror.pb.h"

namespace trafficmirror::uplink {
namespace {

// An intercept leases at most 256 addresses, in blocks of 256 ports.
constexpr int max_sources = 1 << 16;
constexpr int max_targets = 1024;

net::Port to_port(uint32_t number) {
  return net::Port{static_cast<uint16_t>(number)};
}

std::optional<net::IpAddress> to_address(const std::string& bytes) {
  return net::IpAddress::from_bytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

// False where it is none of them.
template <typename Choice, size_t count>
bool read_choice(int number, const std::array<const char*, count>& names,
                 std::optional<Choice>& choice) {
  if (number < 0 || static_cast<size_t>(number) > names.size()) return false;
  if (number > 0) choice = static_cast<Choice>(number - 1);
  return true;
}

}  // namespace

std::optional<session::Lease> to_lease(const v1::Lease& message) {
  if (message.sources_size() > max_sources || message.targets_size() > max_targets)
    return std::nullopt;
  session::Lease lease;
  lease.client_sources = message.client_sources();
  for (const v1::SourceRange& range : message.sources()) {
    const auto address = to_address(range.address());
    if (!address || range.first_port() == 0 || range.first_port() > range.last_port() ||
        range.last_port() > 65535)
      return std::nullopt;
    lease.sources.push_back({*address, to_port(range.first_port()), to_port(range.last_port())});
  }
  for (const v1::Target& target : message.targets()) {
    const auto address = to_address(target.address());
    if (!address || target.port() == 0 || target.port() > 65535 || target.production_port() > 65535)
      return std::nullopt;
    // RFC 791: a path carries at least 68 bytes; 576 is what every host has to take.
    const uint32_t mtu = std::clamp<uint32_t>(target.path_mtu(), 576, 65535);
    lease.targets.push_back({to_port(target.production_port()),
                             {*address, to_port(target.port())},
                             static_cast<uint16_t>(mtu),
                             target.udp() ? net::Protocol::udp : net::Protocol::tcp});
  }
  return lease;
}

std::variant<program::Limits, std::string> to_limits(const v1::Configuration& message) {
  const char* const out_of_bounds = "the intercept says a limit that is out of its bounds";
  program::Limits limits;
  if (message.has_percent()) limits.percent = message.percent();
  if (message.has_max_sessions()) limits.max_sessions = message.max_sessions();
  if (message.has_max_rate()) limits.max_rate = message.max_rate();
  if (message.has_copies()) limits.copies = message.copies();
  if (message.has_filter()) {
    auto compiled = program::FlowFilter::compile(message.filter());
    if (const auto* wrong = std::get_if<std::string>(&compiled))
      return "the intercept says --filter " + message.filter() + ", which here " + *wrong;
    limits.filter = std::get<program::FlowFilter>(std::move(compiled));
  }
  limits.memory = message.memory_limit();
  // Of both, 0 is what is not there; what a later version may say is out of bounds.
  if (!read_choice(message.turns(), program::turns_names, limits.turns) ||
      !read_choice(message.over_lag(), program::over_lag_names, limits.over_lag))
    return out_of_bounds;
  limits.max_lag = std::chrono::milliseconds(
      std::min<uint64_t>(message.max_lag(), std::numeric_limits<int64_t>::max()));
  if (!program::within_bounds(limits)) return out_of_bounds;
  return limits;
}

std::optional<program::TlsMaterial> to_identity(const v1::Configuration& message) {
  if (!message.has_identity()) return std::nullopt;
  const v1::Identity& identity = message.identity();
  return program::TlsMaterial{identity.certificate(), identity.key(), identity.ca()};
}

void write_statistics(const session::Counters& since, const std::optional<ReplayProgress>& replay,
                      v1::Statistics& message) {
  if (replay) {
    message.mutable_replay()->set_packets(replay->packets);
    if (replay->percent) message.mutable_replay()->set_percent(*replay->percent);
  }
  message.set_sessions(since.active);
  message.set_sessions_opened(since.opened);
  message.set_exchanges(since.exchanges);
  const auto write = [](const auto& names, const auto& counts, auto& to) {
    for (size_t i = 0; i < names.size(); ++i)
      if (counts[i] > 0) to[names[i]] = counts[i];
  };
  write(session::close_reason_names, since.closed, *message.mutable_sessions_closed());
  write(session::shed_reason_names, since.shed, *message.mutable_shed());
}

}  // namespace trafficmirror::uplink
