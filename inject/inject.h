// Sends whole IP packets, whatever their source: the kernel routes them. Out of one interface,
// successive segments of one connection leave as a super-packet, where the kernel's own way out is
// plain Ethernet; its netfilter rules for what a host sends are then passed by.
#pragma once

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <sys/socket.h>

#include "inject/counters.h"
#include "inject/next_hop.h"
#include "inject/super_packet.h"
#include "program/descriptor.h"
#include "program/log.h"

namespace trafficmirror::inject {

class Injector {
 public:
  // Out of `interface` alone; empty: wherever a route leads. Where there is a `next_hop`, the
  // kernel routes nothing: every packet goes there. Throws StartError. `counters` has to outlive
  // this.
  Injector(std::string interface, Counters& counters,
           std::optional<NextHop> next_hop = std::nullopt);

  // Packets one behind the other, each whole. Never waits: what the kernel does not take is counted
  // by its reason and dropped; TCP sends it again. Any thread, also several at once.
  void send(std::string_view packets);

  // The interface of that name is another one now, or was away. Any thread.
  void rebind();

 private:
  void send_each(std::string_view packets);
  void send_on_link(std::string_view packets, const NextHop& hop);
  void send_messages(int socket, std::span<mmsghdr> messages);
  template <typename Address>
  void send_family(std::string_view& packets);
  bool send_super(const SuperPacket& super);
  void failed(int error, size_t packets);
  void listen_for_too_big();

  const std::string interface_;
  Counters& counters_;
  const std::optional<NextHop> fixed_hop_;
  std::atomic<unsigned> interface_index_{0};
  // By net::Family. Without IPv6 in the kernel there is none for it.
  std::array<program::Descriptor, 2> sockets_;
  program::Descriptor too_big_;  // never read
  program::Descriptor link_;
  NextHops next_hops_;
  std::mutex log_mutex_;
  program::LogLimit log_limit_;
};

}  // namespace trafficmirror::inject
