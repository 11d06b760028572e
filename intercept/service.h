// The sidecars' streams over gRPC.
#pragma once

#include <chrono>
#include <memory>

#include "intercept/counters.h"
#include "intercept/relay.h"
#include "net/address.h"
#include "program/tls.h"

namespace trafficmirror::intercept {

class Service {
 public:
  // Headers that wait for a stream to take them. What is older is dropped; TCP recovers.
  static constexpr size_t max_waiting_bytes = 1 << 20;

  // Serves on threads of gRPC's own until the destructor. Port 0 is any free one. Throws StartError
  // where `listen` can't be bound. `relay` and `counters` have to outlive this. Without `tls` the
  // streams are plain text, and anybody's. Takes over gRPC's log, which is the process's.
  Service(const net::HostPort& listen, std::shared_ptr<program::Tls> tls, Relay& relay,
          Counters& counters);
  // Ends the streams that are left.
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  net::Port port() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::intercept
