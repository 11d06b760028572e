#include "sidecar/capture/filter.h"

#include <cerrno>
#include <limits>
#include <stdexcept>
#include <string>

#include <linux/if_packet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "net/packet.h"
#include "program/start_error.h"

namespace trafficmirror::capture {
namespace {

// BPF jumps forward, by counts of instructions; here they go to labels.
class Assembler {
 public:
  struct Label {
    size_t number;
  };

  Label make_label() {
    places_.push_back(0);
    return {places_.size() - 1};
  }
  void place(Label label) { places_[label.number] = program_.size(); }

  void add(unsigned code, uint32_t value) {
    program_.push_back({static_cast<uint16_t>(code), 0, 0, value});
  }
  void load(unsigned size, int32_t offset) { add(BPF_LD | size | BPF_ABS, offset); }
  // To `match` where the accumulator is `value`; to the next instruction otherwise.
  void jump_if(uint32_t value, Label match) { branch(BPF_JEQ, value, match, here_after()); }
  void jump_if_any_bit(uint32_t bits, Label match) { branch(BPF_JSET, bits, match, here_after()); }
  void jump_unless(uint32_t value, Label other) { branch(BPF_JEQ, value, here_after(), other); }
  void jump(Label label) { branch(BPF_JEQ, 0, label, label); }

  std::vector<sock_filter> finish() {
    for (const Jump& jump : jumps_) {
      program_[jump.at].jt = distance(jump.at, jump.match);
      program_[jump.at].jf = distance(jump.at, jump.other);
    }
    return program_;
  }

 private:
  struct Jump {
    size_t at;
    Label match;
    Label other;
  };

  Label here_after() {
    places_.push_back(program_.size() + 1);
    return {places_.size() - 1};
  }
  void branch(unsigned condition, uint32_t value, Label match, Label other) {
    jumps_.push_back({program_.size(), match, other});
    add(BPF_JMP | condition | BPF_K, value);
  }
  uint8_t distance(size_t from, Label to) const {
    const size_t distance = places_[to.number] - from - 1;
    // Can't happen: with max_ports ports every jump fits the eight bits it has.
    if (distance > std::numeric_limits<uint8_t>::max())
      throw std::logic_error("a jump of the capture filter is too long");
    return static_cast<uint8_t>(distance);
  }

  std::vector<sock_filter> program_;
  std::vector<size_t> places_;
  std::vector<Jump> jumps_;
};

struct Verdicts {
  Assembler::Label match;     // the port is one of ours
  Assembler::Label no_match;  // of another port
  Assembler::Label extended;  // IPv6 with extension headers
  Assembler::Label other;
};

// Judges the packet by the port that stands `port_offset` bytes into the header of TCP or UDP.
// Without `udp_ports` every datagram is another packet.
void add_port_check(Assembler& program, const FilterOptions& options,
                    std::span<const net::Port> udp_ports, int32_t port_offset,
                    const Verdicts& verdicts) {
  const int32_t network = options.network_offset;
  const bool with_udp = !udp_ports.empty();
  const auto remember_protocol = [&] {
    if (with_udp) program.add(BPF_ST, 0);
  };
  const auto ipv6 = program.make_label();
  const auto ipv4_ports = program.make_label();
  const auto ipv6_ports = program.make_label();
  const auto ports = program.make_label();

  program.load(BPF_B, network);
  program.add(BPF_ALU | BPF_RSH | BPF_K, 4);  // the version
  program.jump_if(6, ipv6);
  program.jump_unless(4, verdicts.other);
  program.load(BPF_B, network + 9);
  remember_protocol();
  if (with_udp) program.jump_if(IPPROTO_UDP, ipv4_ports);
  program.jump_unless(IPPROTO_TCP, verdicts.other);
  program.place(ipv4_ports);
  program.load(BPF_H, network + 6);
  program.jump_if_any_bit(0x1fff, verdicts.other);  // a fragment, but not the first
  program.add(BPF_LDX | BPF_B | BPF_MSH, static_cast<uint32_t>(network));  // X = header length
  program.add(BPF_LD | BPF_H | BPF_IND, static_cast<uint32_t>(network + port_offset));
  program.jump(ports);

  program.place(ipv6);
  program.load(BPF_B, network + 6);
  remember_protocol();
  program.jump_if(IPPROTO_TCP, ipv6_ports);
  if (with_udp) program.jump_if(IPPROTO_UDP, ipv6_ports);
  const auto extension = program.make_label();
  const auto jump_if_extension = [&](Assembler::Label match) {
    for (const uint32_t type :
         {IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_FRAGMENT, IPPROTO_DSTOPTS})
      program.jump_if(type, match);
  };
  jump_if_extension(extension);
  program.jump(verdicts.other);
  program.place(extension);
  program.load(BPF_B, network + static_cast<int32_t>(net::ipv6_header_length));  // what comes next
  program.jump_if(IPPROTO_TCP, verdicts.extended);
  if (with_udp) program.jump_if(IPPROTO_UDP, verdicts.extended);
  jump_if_extension(verdicts.extended);
  program.jump(verdicts.other);
  program.place(ipv6_ports);
  program.load(BPF_H, network + static_cast<int32_t>(net::ipv6_header_length) + port_offset);

  program.place(ports);
  const auto tcp_ports = program.make_label();
  if (with_udp) {
    program.add(BPF_MISC | BPF_TAX, 0);
    program.add(BPF_LD | BPF_MEM, 0);
    program.jump_if(IPPROTO_TCP, tcp_ports);
    program.add(BPF_MISC | BPF_TXA, 0);
    for (const net::Port port : udp_ports) program.jump_if(port.number, verdicts.match);
    program.jump(verdicts.no_match);
    program.place(tcp_ports);
    program.add(BPF_MISC | BPF_TXA, 0);
  }
  for (const net::Port port : options.ports) program.jump_if(port.number, verdicts.match);
  program.jump(verdicts.no_match);
}

}  // namespace

std::vector<sock_filter> build_filter(const FilterOptions& options) {
  const size_t ports = options.ports.size() + options.udp_ports.size();
  if (ports == 0) throw program::StartError("--port is missing: name a production port");
  if (ports > max_ports)
    throw program::StartError("--port is given " + std::to_string(ports) +
                              " times: " + std::to_string(max_ports) + " ports are the most");
  constexpr int32_t source_port = 0, destination_port = 2;
  const uint32_t whole =
      options.headers_only ? headers_snap_length : std::numeric_limits<uint32_t>::max();

  Assembler program;
  const auto outgoing = program.make_label();
  const auto request = program.make_label();
  const auto no_request = program.make_label();
  const auto response = program.make_label();
  const auto accept_whole = program.make_label();
  const auto accept_headers = program.make_label();
  const auto reject = program.make_label();
  const auto load_interface = [&] { program.load(BPF_W, SKF_AD_OFF + SKF_AD_IFINDEX); };
  const auto loopback = static_cast<uint32_t>(options.loopback_index);

  program.load(BPF_W, SKF_AD_OFF + SKF_AD_PKTTYPE);
  program.jump_if(PACKET_HOST, request);
  program.jump_if(PACKET_OUTGOING, outgoing);
  program.jump(reject);

  program.place(outgoing);
  load_interface();
  program.jump_if(loopback, reject);
  program.jump(response);

  program.place(request);
  add_port_check(program, options, options.udp_ports, destination_port,
                 {accept_whole, no_request, accept_whole, reject});
  program.place(no_request);
  load_interface();
  program.jump_unless(loopback, reject);

  program.place(response);
  add_port_check(program, options, {}, source_port, {accept_headers, reject, accept_whole, reject});

  program.place(accept_whole);
  program.add(BPF_RET | BPF_K, whole);
  program.place(accept_headers);
  program.add(BPF_RET | BPF_K, headers_snap_length);
  program.place(reject);
  program.add(BPF_RET | BPF_K, 0);
  return program.finish();
}

int attach_filter(int socket, const FilterOptions& options) {
  std::vector<sock_filter> filter = build_filter(options);
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0 ? 0
                                                                                         : errno;
}

}  // namespace trafficmirror::capture
