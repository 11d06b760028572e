// What the intercept lets a stream use, as the engine needs it.
#pragma once

#include <vector>

#include "net/address.h"

namespace trafficmirror::session {

struct Lease {
  struct Source {
    net::IpAddress address;
    net::Port first;
    net::Port last;  // inclusive

    bool operator==(const Source&) const = default;
  };
  struct Target {
    net::Port production_port;
    net::Endpoint endpoint;
    uint16_t path_mtu = 1500;
    net::Protocol protocol = net::Protocol::tcp;  // of both ports
  };
  std::vector<Source> sources;
  std::vector<Target> targets;
  // In place of `sources`: each session's source is its client's own address and port.
  bool client_sources = false;
};

}  // namespace trafficmirror::session
