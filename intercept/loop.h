// What turns the shadow's replies around in its own network namespace: a veth pair, of which the
// sessions' packets go in at one end and come out of the other as if they had come from a network,
// and rules by which the replies to them leave there again.
//
//   intercept ─► trafficmirror0 ═══ trafficmirror1 ─► the shadow's TCP
//   tap       ◄─ trafficmirror0 ═══ trafficmirror1 ◄─ rule ◄─┘
//
// trafficmirror1 resolves no link addresses and puts its own on what leaves there, so that at
// trafficmirror0 it is a packet for somebody else: taps see it, the kernel's IP does not.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "inject/next_hop.h"
#include "intercept/client_addresses.h"

namespace trafficmirror::intercept {

class Loop {
 public:
  static constexpr const char* near_end = "trafficmirror0";
  static constexpr const char* far_end = "trafficmirror1";
  // Of the connections whose replies turn around, and of their packets.
  static constexpr uint32_t mark = 0x746d6972;
  // How packets are framed that go in at the near end.
  static inject::NextHop hop();

  // Takes the place of what a killed run left; from then on at no time a reply leaves in another
  // way. Throws StartError. One thread at a time.
  Loop(const ClientAddresses& clients, uint32_t mtu);
  // Removes all of it.
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  enum class Held : uint8_t { intact, put_back, failed };
  // Somebody may have removed a part: puts it back. failed: the reason is in error().
  Held hold();
  const std::string& error() const { return error_; }
  // Why there is none for a family; nothing: there is.
  const std::optional<std::string>& obstacle(net::Family family) const {
    return obstacles_[static_cast<size_t>(family)];
  }
  uint32_t mtu() const { return mtu_; }

 private:
  bool make_links();
  bool add_routes(net::Family family, bool& added);
  bool add_rules(net::Family family, uint32_t priority, bool& added);
  bool make(bool& added);

  const ClientAddresses clients_;
  const uint32_t mtu_;
  std::array<std::optional<std::string>, 2> obstacles_;  // by net::Family
  std::string error_;
};

}  // namespace trafficmirror::intercept
