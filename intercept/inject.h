// Sends whole IP packets out of one interface.
#pragma once

#include <array>
#include <atomic>
#include <mutex>
#include <string>
#include <string_view>

#include "intercept/counters.h"
#include "intercept/descriptor.h"
#include "program/log.h"

namespace trafficmirror::intercept {

class Injector {
 public:
  // Throws StartError. `counters` has to outlive this.
  Injector(std::string interface, Counters& counters);

  // Packets one behind the other, each whole. Never waits: what the kernel does not take is counted
  // by its reason and dropped; TCP sends it again. Any thread, also several at once.
  void send(std::string_view packets);

  // The interface of that name is another one now, or was away. Any thread.
  void rebind();

 private:
  template <typename Message>
  void send_family(std::string_view& packets);
  void failed(int error, size_t packets);
  void listen_for_too_big();

  const std::string interface_;
  Counters& counters_;
  std::atomic<unsigned> interface_index_{0};
  // By net::Family. Without IPv6 in the kernel there is none for it.
  std::array<Descriptor, 2> sockets_;
  Descriptor too_big_;  // never read
  std::mutex log_mutex_;
  program::LogLimit log_limit_;
};

}  // namespace trafficmirror::intercept
