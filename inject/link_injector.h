// Hands whole IP packets to the link itself, through libpcap: the kernel's routing and its
// netfilter rules for what a host sends are passed by.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "inject/counters.h"
#include "inject/inject.h"
#include "inject/next_hop.h"
#include "program/log.h"

struct pcap;

namespace trafficmirror::inject {

using Link = std::unique_ptr<pcap, void (*)(pcap*)>;

class LinkInjector {
 public:
  // Throws StartError. `counters` has to outlive this.
  LinkInjector(const std::string& interface, Counters& counters);

  // As Injector::send(), but for one thread. While the next hop's link address is not known the
  // kernel sends what goes there, which finds it out.
  void send(std::string_view packets);

 private:
  void send_one(std::string_view packet);
  void follow_interface();

  const std::string interface_;
  Counters& counters_;
  Link link_;  // null while the interface is gone
  Injector by_kernel_;
  NextHops next_hops_;
  std::chrono::steady_clock::time_point reopened_at_;
  std::string frame_;
  program::LogLimit log_;
};

}  // namespace trafficmirror::inject
