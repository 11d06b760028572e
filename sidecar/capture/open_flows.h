// The connections that production has open already when mirroring begins.
#pragma once

#include <span>
#include <vector>

#include "net/address.h"

namespace trafficmirror::capture {

// The established TCP connections of this network namespace to one of the local ports that are
// between two exchanges: nothing waits in their queues, and the last data was the server's, or
// there was none from the client yet. The next client bytes begin a new exchange there.
//
// The kernel tells times in milliseconds, so a request that came within the same one as the last
// response was sent can't be told from one that was answered.
//
// Empty when the kernel can't be asked, with a warning in the log: those flows are then adopted
// after their next response.
std::vector<net::FlowKey> flows_between_exchanges(std::span<const net::Port> ports);

}  // namespace trafficmirror::capture
