// --client-address: which addresses the shadow sees its clients have.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "net/address.h"

namespace trafficmirror::intercept {

// What a CIDR names.
struct Network {
  net::IpAddress first;
  uint8_t prefix_length = 0;

  // "198.18.0.0/15"; bits behind the prefix have to be 0.
  static std::optional<Network> parse(std::string_view text);
  bool contains(const net::IpAddress& address) const;
  std::string to_string() const;

  bool operator==(const Network&) const = default;
};

struct ClientAddresses {
  enum class Mode : uint8_t {
    masquerade,  // the intercept's own
    preserve,    // production's clients' own, with their ports
    pool,        // out of networks of nobody's
  };
  // How replies to addresses that are not the intercept's own get there.
  enum class ReplyPath : uint8_t {
    loop,   // it runs in the shadow's network namespace and turns them around there
    route,  // a route on the shadow's host leads them to its own
  };
  Mode mode = Mode::masquerade;
  ReplyPath reply_path = ReplyPath::loop;        // of no meaning with masquerade
  std::array<std::optional<Network>, 2> pool{};  // by net::Family; with Mode::pool at least one

  bool loops() const { return mode != Mode::masquerade && reply_path == ReplyPath::loop; }
  bool are_routed() const { return mode != Mode::masquerade && reply_path == ReplyPath::route; }
  // Where the intercept's own handshakes come from that prove the way of replies; none: there are
  // no addresses of that family. Not for masquerade.
  std::optional<net::IpAddress> proof_address(net::Family family) const;
};

// "198.18.0.0/15,fd00:1::/64": one network of each family at most. Returns what is wrong with it
// where it is none.
std::optional<std::string> parse_pool(const std::string& text,
                                      std::array<std::optional<Network>, 2>& pool);

// The addresses of a pool that sessions come from: at most 256 of them, spread over all of it.
// Those that IPv4 and IPv6 set apart in a subnet are left out where there are others (RFC 919
// section 7, RFC 4291 section 2.6.1).
std::vector<net::IpAddress> addresses_of(const Network& pool);

}  // namespace trafficmirror::intercept
