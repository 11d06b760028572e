// What the intercept counts. Every packet that is not injected or not passed on is in one of these.
#pragma once

#include <array>
#include <cstdint>

#include "inject/counters.h"
#include "program/counter.h"

namespace trafficmirror::intercept {

// Why a packet of a stream was not injected.
enum class Refusal : uint8_t {
  malformed,  // not a whole TCP or UDP packet; what follows it in its batch can't be found and goes
              // too
  ip_options,  // IPv4 options or IPv6 extension headers, which could lead it elsewhere
  source,      // a source that is not in the stream's lease
  target,      // a destination that is none of the stream's targets
  draining,    // the intercept is about to end
};
inline constexpr std::array<const char*, 5> refusal_names = {"malformed", "ip_options", "source",
                                                             "target", "draining"};

// Why a session of the shadow's was reset.
enum class ResetReason : uint8_t {
  stream_ended,  // its stream ended before it did
  drained,       // the intercept ends
  unknown_port,  // nothing here knows it: a leftover of an earlier run
};
inline constexpr std::array<const char*, 3> reset_reason_names = {"stream_ended", "drained",
                                                                  "unknown_port"};

// Why a sidecar got no stream.
enum class StreamRefusal : uint8_t {
  handshake,  // of TLS: plain text, no certificate, or one that no CA has signed or that has
              // expired
  hung_up,    // the other side ended the handshake: it may have refused the intercept's certificate
  identity,   // a certificate, signed by a CA, of another name than --tls-peer
};
inline constexpr std::array<const char*, 3> stream_refusal_names = {"handshake", "hung_up",
                                                                    "identity"};

// What became of a file of --config, or of the sidecars' certificate and key, that holds something
// else than before.
enum class ConfigurationResult : uint8_t { taken, refused };
inline constexpr std::array<const char*, 2> configuration_result_names = {"taken", "refused"};

using program::add;
using program::Counter;
using program::CounterByReason;

// Written by any thread, read by any.
struct Counters {
  inject::Counters injected;
  CounterByReason<refusal_names.size()> refused_packets{};
  Counter tap_packets{0};
  Counter tap_drops{0};     // the kernel found the ring full
  Counter tap_foreign{0};   // no header of a session of ours, or one that is not whole
  Counter header_drops{0};  // the stream did not take them in time
  CounterByReason<reset_reason_names.size()> sessions_reset{};
  CounterByReason<stream_refusal_names.size()> refused_streams{};
  CounterByReason<configuration_result_names.size()> configurations{};
  CounterByReason<configuration_result_names.size()> identities{};
};

}  // namespace trafficmirror::intercept
