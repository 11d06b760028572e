// Sends whole IP packets out of one interface: the kernel routes them. Successive segments of one
// connection leave as a super-packet, where the kernel's own way out is plain Ethernet; its
// netfilter rules for what a host sends are then passed by.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <sys/socket.h>

#include "intercept/counters.h"
#include "intercept/descriptor.h"
#include "intercept/next_hop.h"
#include "intercept/super_packet.h"
#include "program/log.h"

namespace trafficmirror::intercept {

class Injector {
 public:
  // Throws StartError. `counters` has to outlive this. Where there is a `next_hop`, the kernel
  // routes nothing: every packet goes there.
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
  std::optional<NextHop> next_hop(const net::IpAddress& to);
  void failed(int error, size_t packets);
  void listen_for_too_big();

  const std::string interface_;
  Counters& counters_;
  const std::optional<NextHop> fixed_hop_;
  std::atomic<unsigned> interface_index_{0};
  // By net::Family. Without IPv6 in the kernel there is none for it.
  std::array<Descriptor, 2> sockets_;
  Descriptor too_big_;  // never read
  Descriptor link_;
  struct KnownNextHop {
    std::optional<NextHop> next_hop;
    std::chrono::steady_clock::time_point good_until;
  };
  std::mutex next_hops_mutex_;
  std::map<net::IpAddress, KnownNextHop> next_hops_;  // of targets, which are few
  std::mutex log_mutex_;
  program::LogLimit log_limit_;
};

}  // namespace trafficmirror::intercept
