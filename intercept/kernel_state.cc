#include "intercept/kernel_state.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fcntl.h>
#include <nftables/libnftables.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "program/start_error.h"

namespace trafficmirror::intercept {
namespace {

constexpr const char* reserved_ports_file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
constexpr const char* port_range_file = "/proc/sys/net/ipv4/ip_local_port_range";
constexpr const char* remove_table =
    "add table inet trafficmirror\ndelete table inet trafficmirror\n";
constexpr size_t all_ports = 65536;

std::string read_line(const char* file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// The source ports that a table names, as make_table() wrote it.
std::optional<PortRange> ports_of(const std::string& table) {
  constexpr std::string_view before = "tcp sport ";
  const size_t at = table.find(before);
  if (at == std::string::npos) return std::nullopt;
  std::istringstream in(table.substr(at + before.size()));
  PortRange ports;
  char dash = 0;
  if (!(in >> ports.first >> dash >> ports.last) || ports.last < ports.first) return std::nullopt;
  return ports;
}

// In one write, as /proc wants it.
bool write_line(const char* file, const std::string& line) {
  const program::Descriptor out(::open(file, O_WRONLY | O_CLOEXEC));
  const std::string text = line + "\n";
  return out && ::write(out.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

std::string first_line(const char* text) {
  return std::string(text, std::strcspn(text, "\n"));
}

// An abstract socket: its name is known in this network namespace only, as the rules are, and goes
// with the process, however that ends.
program::Descriptor require_only_one() {
  constexpr std::string_view name("\0trafficmirror-intercept", 24);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, name.size());
  program::Descriptor socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address),
             static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())) != 0)
    throw program::StartError(
        errno == EADDRINUSE
            ? "another intercept runs in this network namespace: one serves any number of sidecars"
            : std::string("a local socket can't be bound: ") + std::strerror(errno));
  return socket;
}

std::string range_text(PortRange ports) {
  return std::to_string(ports.first) + "-" + std::to_string(ports.last);
}

}  // namespace

std::vector<bool> parse_port_list(const std::string& text) {
  std::vector<bool> ports(all_ports);
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    std::istringstream numbers(part);
    size_t first = 0, last = 0;
    if (!(numbers >> first)) continue;
    char dash = 0;
    if (!(numbers >> dash >> last)) last = first;
    for (size_t port = first; port <= last && port < all_ports; ++port) ports[port] = true;
  }
  return ports;
}

std::string format_port_list(const std::vector<bool>& ports) {
  std::string text;
  for (size_t first = 0; first < ports.size(); ++first) {
    if (!ports[first]) continue;
    size_t last = first;
    while (last + 1 < ports.size() && ports[last + 1]) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(first);
    if (last > first) text += '-' + std::to_string(last);
    first = last;
  }
  return text;
}

void KernelState::FreeContext::operator()(nft_ctx* context) const {
  ::nft_ctx_free(context);
}

KernelState::KernelState(Wanted wanted)
    : wanted_(std::move(wanted)),
      only_one_(require_only_one()),
      nft_(::nft_ctx_new(NFT_CTX_DEFAULT)) {
  if (!nft_) throw program::StartError("nftables can't be reached: out of memory");
  ::nft_ctx_buffer_output(nft_.get());
  ::nft_ctx_buffer_error(nft_.get());
  ::nft_ctx_output_set_flags(nft_.get(), NFT_CTX_OUTPUT_STATELESS | NFT_CTX_OUTPUT_NUMERIC_ALL);
  if (wanted_.chains.empty()) reserve_ports();
  if (!make_table()) {
    release_ports();
    throw program::StartError("the nftables table inet trafficmirror can't be made: " + error_ +
                              "; it needs nf_tables in the kernel and CAP_NET_ADMIN");
  }
}

KernelState::~KernelState() {
  if (!run(remove_table))
    spdlog::warn("the nftables table inet trafficmirror could not be removed: {}", error_);
  release_ports();
}

bool KernelState::run(const std::string& commands) {
  if (::nft_run_cmd_from_buffer(nft_.get(), commands.c_str()) == 0) return true;
  error_ = first_line(::nft_ctx_get_error_buffer(nft_.get()));
  return false;
}

std::string KernelState::chains_of_ports() const {
  const std::string ports = range_text(wanted_.ports);
  std::string drops;
  for (const net::IpAddress& address : wanted_.own_addresses) {
    for (const char* protocol : {"tcp", "udp"})
      drops += "iifname \"" + wanted_.interface + "\" " +
               (address.family() == net::Family::ipv4 ? "ip" : "ip6") + " daddr " +
               address.to_string() + " " + protocol + " dport " + ports + " counter drop\n";
  }
  return "chain replies {\n"
         "type filter hook prerouting priority -300; policy accept;\n" +
         drops +
         "}\n"
         "chain injected {\n"
         "type filter hook output priority -300; policy accept;\n"
         "tcp sport " +
         ports +
         " notrack\n"
         "udp sport " +
         ports +
         " notrack\n"
         "}\n";
}

// One transaction: there is no moment without the rules where they stood before.
bool KernelState::make_table() {
  const std::string chains = wanted_.chains.empty() ? chains_of_ports() : wanted_.chains;
  if (!run(remove_table + std::string("table inet trafficmirror {\n") + chains + "}\n"))
    return false;
  made_ = listing().value_or("");
  return true;
}

std::optional<std::string> KernelState::listing() {
  if (!run("list table inet trafficmirror\n")) return std::nullopt;
  return ::nft_ctx_get_output_buffer(nft_.get());
}

KernelState::Held KernelState::hold() {
  const auto now = listing();
  if (now && *now == made_) return Held::intact;
  return make_table() ? Held::put_back : Held::failed;
}

bool KernelState::set_own_addresses(std::vector<net::IpAddress> addresses) {
  if (addresses == wanted_.own_addresses) return true;
  wanted_.own_addresses = std::move(addresses);
  return make_table();
}

bool KernelState::set_chains(std::string chains) {
  if (chains == wanted_.chains) return true;
  wanted_.chains = std::move(chains);
  return make_table();
}

void KernelState::reserve_ports() {
  std::vector<bool> ports = parse_port_list(read_line(reserved_ports_file));
  // A killed run leaves its table, and with it the range that it reserved.
  if (const auto left = ports_of(listing().value_or("")))
    std::fill(ports.begin() + left->first, ports.begin() + left->last + 1, false);
  reserved_by_others_ = ports;  // and stays so when we go
  std::fill(ports.begin() + wanted_.ports.first, ports.begin() + wanted_.ports.last + 1, true);
  reserved_ = write_line(reserved_ports_file, format_port_list(ports));
  if (reserved_) return;

  const int error = errno;
  std::istringstream range(read_line(port_range_file));
  uint32_t own_first = 0, own_last = 0;
  if (range >> own_first >> own_last &&
      (own_last < wanted_.ports.first || wanted_.ports.last < own_first))
    return;
  throw program::StartError(
      std::string(reserved_ports_file) + " can't be written (" + std::strerror(error) +
      "), and --source-ports " + range_text(wanted_.ports) +
      " overlaps the ports the kernel gives its own connections (" + std::to_string(own_first) +
      "-" + std::to_string(own_last) + "): choose a range outside of them");
}

void KernelState::release_ports() {
  if (!reserved_) return;
  std::vector<bool> ports = parse_port_list(read_line(reserved_ports_file));
  for (size_t port = wanted_.ports.first; port <= wanted_.ports.last; ++port)
    ports[port] = reserved_by_others_[port];
  if (!write_line(reserved_ports_file, format_port_list(ports)))
    spdlog::warn("{} could not be restored: {}", reserved_ports_file, std::strerror(errno));
}

}  // namespace trafficmirror::intercept
