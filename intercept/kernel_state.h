// What has to stand in the kernel so that it leaves the source ports to the sidecars' sessions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "intercept/lease.h"
#include "net/address.h"
#include "program/descriptor.h"

struct nft_ctx;

namespace trafficmirror::intercept {

// An nftables table "inet trafficmirror" that
// - drops the shadow's replies before the kernel's TCP and UDP see them, or it would answer each
//   with a RST or an ICMP "port unreachable" (the tap has seen them by then), and
// - keeps connection tracking off the sessions, so that a full table of it can't lose a packet,
// and the range in net.ipv4.ip_local_reserved_ports, so that no connection of this host's own gets
// one of its ports.
//
// What a killed run left behind is replaced; beside one that runs, a second one in the same network
// namespace is refused. One thread at a time.
class KernelState {
 public:
  struct Wanted {
    std::string interface;
    PortRange ports;
    std::vector<net::IpAddress> own_addresses;
    // The table's chains in place of these, for sessions whose addresses are not the intercept's
    // own. Then no ports are reserved.
    std::string chains{};
  };

  // Throws StartError.
  explicit KernelState(Wanted wanted);
  // Removes all of it.
  ~KernelState();
  KernelState(const KernelState&) = delete;
  KernelState& operator=(const KernelState&) = delete;

  enum class Held : uint8_t { intact, put_back, failed };
  // Somebody may have flushed the rules or changed them: puts back what is not as it was made.
  // failed: the reason is in error().
  Held hold();
  const std::string& error() const { return error_; }

  // Nothing happens where they are what they were. False as with hold().
  bool set_own_addresses(std::vector<net::IpAddress> addresses);
  bool set_chains(std::string chains);

 private:
  struct FreeContext {
    void operator()(nft_ctx* context) const;
  };
  bool run(const std::string& commands);
  std::string chains_of_ports() const;
  bool make_table();
  std::optional<std::string> listing();
  void reserve_ports();
  void release_ports();

  Wanted wanted_;
  program::Descriptor only_one_;
  std::unique_ptr<nft_ctx, FreeContext> nft_;
  std::string made_;  // the table's listing as it was made
  std::string error_;
  std::vector<bool> reserved_by_others_;  // by port
  bool reserved_ = false;
};

// The text of ip_local_reserved_ports: "8080,10000-32767". Exposed for tests. What can't be read is
// passed over.
std::vector<bool> parse_port_list(const std::string& text);
std::string format_port_list(const std::vector<bool>& ports);

}  // namespace trafficmirror::intercept
