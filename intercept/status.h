// What the probe server answers to GET /status, for programs that watch over an intercept.
#pragma once

#include <string>

#include "intercept/relay.h"

namespace trafficmirror::intercept {

// JSON:
//   {"ready": true, "message": "",                        why it is not ready
//    "reply_path": [{"target": "80=10.0.0.5:8080", "verified": true, "message": ""}, …],
//    "sidecars": [{"name": "checkout-abc-xyz", COUNTS}, …],   those that are connected
//    "totals": {COUNTS}}                                   of these and of all that went
// COUNTS: "sessions" (now), "sessions_opened", "exchanges", "shed" and "closed" (both by reason).
// Those of a sidecar begin anew with its streams. One that replays a capture also has
// "replay": {"packets": 47359, "percent": 40}, the latter where it knows the file's size.
std::string to_json(const Relay::Status& status);

}  // namespace trafficmirror::intercept
