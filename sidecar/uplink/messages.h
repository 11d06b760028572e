// What comes down the stream, read with the caution due to bytes of another host. No gRPC and no
// I/O.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "net/packet.h"
#include "program/limits.h"
#include "program/tls.h"
#include "sidecar/session/counters.h"
#include "sidecar/session/lease.h"

namespace trafficmirror::v1 {
class Configuration;
class Lease;
class Statistics;
}  // namespace trafficmirror::v1

namespace trafficmirror::uplink {

// Nothing where the lease makes no sense: an address of no family, ports that are none, or more of
// either than an intercept can have.
std::optional<session::Lease> to_lease(const v1::Lease& message);

// Or why they can't be used, in plain words. Names of hosts in a filter are looked up, which may
// take seconds.
std::variant<program::Limits, std::string> to_limits(const v1::Configuration& message);

// Nothing where there is none. Whether it is one shows when it is read.
std::optional<program::TlsMaterial> to_identity(const v1::Configuration& message);

// How far the replay of a capture is.
struct ReplayProgress {
  uint64_t packets = 0;             // read of it and dealt with
  std::optional<uint32_t> percent;  // of all of it, where its size is known
};

// Names of reasons for which nothing was counted are left out.
void write_statistics(const session::Counters& since, const std::optional<ReplayProgress>& replay,
                      v1::Statistics& message);

// Calls `take(const net::Packet&)` for each header of a batch. False where one can't be read; the
// rest of the batch can't be told apart then.
template <typename Take>
bool for_each_header(std::string_view headers, Take&& take) {
  while (!headers.empty()) {
    const auto parsed =
        net::parse_packet({reinterpret_cast<const uint8_t*>(headers.data()), headers.size()}, 0);
    const auto* packet = std::get_if<net::Packet>(&parsed);
    if (!packet) return false;
    // Only headers are there, so where one ends is where the next begins.
    net::Packet header = *packet;
    header.payload = {};
    take(header);
    headers.remove_prefix(packet->header_length);
  }
  return true;
}

// The same for whole packets; false where one is cut, too.
template <typename Take>
bool for_each_reply(std::string_view packets, Take&& take) {
  while (!packets.empty()) {
    const auto parsed =
        net::parse_packet({reinterpret_cast<const uint8_t*>(packets.data()), packets.size()}, 0);
    const auto* packet = std::get_if<net::Packet>(&parsed);
    if (!packet || packet->cut()) return false;
    take(*packet);
    packets.remove_prefix(packet->header_length + packet->payload_length);
  }
  return true;
}

}  // namespace trafficmirror::uplink
