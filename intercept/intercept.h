// The whole intercept, put together and kept in order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <prometheus/metric_family.h>

#include "intercept/client_addresses.h"
#include "intercept/lease.h"
#include "intercept/relay.h"
#include "intercept/sidecar_identity.h"
#include "net/address.h"
#include "program/signals.h"
#include "program/tls.h"

namespace trafficmirror::intercept {

// What may change while the intercept runs.
struct LiveOptions {
  std::vector<Target> targets;
  SidecarConfiguration sidecars;
};

// What was read again.
struct Reading {
  LiveOptions live;
  std::string needs_restart;  // the flags of it that differ and can't change so: "http, interface"
};

// When it is looked for what there is now.
enum class Look : uint8_t {
  if_changed,  // every second
  again,       // somebody asks for it
};

struct Options {
  net::HostPort listen{"0.0.0.0", {7443}};
  std::string interface;
  PortRange source_ports{10000, 32767};
  ClientAddresses clients{};
  // Sidecars have another intercept too, which tells them what to do.
  bool leaves_configuration = false;
  std::shared_ptr<program::Tls> tls{};                  // null: plain text
  std::shared_ptr<SidecarIdentity> sidecar_identity{};  // null: they are told of none
  LiveOptions live;  // at first; without `look_again` at least one target
  // Asked on the thread of run(): nothing where all is as it was; otherwise what it is now, or what
  // is wrong with it, in one line.
  std::function<std::optional<std::variant<Reading, std::string>>(Look look)> look_again{};
};

class Intercept {
 public:
  // Throws StartError. From here on streams are accepted, once their targets are proven.
  explicit Intercept(Options options);
  // Removes all that it put into the kernel.
  ~Intercept();
  Intercept(const Intercept&) = delete;
  Intercept& operator=(const Intercept&) = delete;

  // Keeps house on this thread until `stop_descriptor` is readable: proves paths, follows the
  // interface, holds the kernel's rules. Then resets every session and lets the streams end. On
  // `reload` it looks again at once.
  void run(int stop_descriptor, program::ReloadSignal* reload = nullptr);

  net::Port port() const;
  // Any thread.
  std::optional<std::string> not_ready() const;
  std::vector<prometheus::MetricFamily> metrics() const;
  std::string status() const;  // the JSON of status.h

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::intercept
