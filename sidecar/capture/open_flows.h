// What the kernel knows of production's sockets: the connections that are open already when
// mirroring begins, and whether production is still there when it ends.
#pragma once

#include <span>
#include <vector>

#include "net/address.h"

namespace trafficmirror::capture {

struct OpenFlow {
  net::FlowKey key;
  // False where a request may have come behind the last answer: the kernel's times are of
  // milliseconds, some of ticks of four, and do not tell which of the two was later.
  bool certain = false;

  auto operator<=>(const OpenFlow&) const = default;
};

// The established TCP connections of this network namespace to one of the local ports that are
// between two exchanges: nothing waits in their queues, and the last data was the server's, or
// there was none from the client yet. The next client bytes begin a new exchange there.
//
// Empty when the kernel can't be asked, with a warning in the log: those flows are then adopted
// after their next response.
std::vector<OpenFlow> flows_between_exchanges(std::span<const net::Port> ports);

// Whether a process of this network namespace still listens on one of the ports of TCP, has a
// connection there that its client has not reset, or a socket on one of the ports of UDP. False
// when the kernel can't be asked, with a warning in the log.
bool has_sockets(std::span<const net::Port> ports, std::span<const net::Port> udp_ports = {});

}  // namespace trafficmirror::capture
