#include "program/flow_filter.h"

#include <algorithm>
#include <span>

#include <pcap/pcap.h>

#include "net/packet.h"

namespace trafficmirror::program {

struct FlowFilter::Program {
  Program() = default;
  ~Program() { ::pcap_freecode(&code); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  bpf_program code{};
};

std::variant<FlowFilter, std::string> FlowFilter::compile(const std::string& expression) {
  if (expression.size() > longest)
    return "is longer than " + std::to_string(longest) + " characters";
  // A packet that begins with its IP header, of either version.
  const std::unique_ptr<pcap_t, decltype(&::pcap_close)> handle(::pcap_open_dead(DLT_RAW, 65535),
                                                                &::pcap_close);
  if (!handle) return "can't be compiled: no memory";
  auto program = std::make_shared<Program>();
  if (::pcap_compile(handle.get(), &program->code, expression.c_str(), 1, PCAP_NETMASK_UNKNOWN) !=
      0)
    return std::string("is no pcap filter: ") + ::pcap_geterr(handle.get());
  return FlowFilter(expression, std::move(program));
}

bool FlowFilter::operator==(const FlowFilter& other) const {
  const std::span own(program_->code.bf_insns, program_->code.bf_len);
  const std::span others(other.program_->code.bf_insns, other.program_->code.bf_len);
  return expression_ == other.expression_ &&
         std::equal(own.begin(), own.end(), others.begin(), others.end(),
                    [](const bpf_insn& one, const bpf_insn& two) {
                      return one.code == two.code && one.jt == two.jt && one.jf == two.jf &&
                             one.k == two.k;
                    });
}

bool FlowFilter::lets_through(const net::FlowKey& flow, net::Protocol protocol) const {
  std::string first;
  if (protocol == net::Protocol::udp) {
    net::append_datagram(first, flow.client, flow.server, {});
  } else {
    net::TcpHeader tcp;
    tcp.flags.syn = true;
    net::append_packet(first, flow.client, flow.server, tcp, 0, [](uint8_t*) {});
  }
  pcap_pkthdr header{};
  header.caplen = header.len = static_cast<bpf_u_int32>(first.size());
  return ::pcap_offline_filter(&program_->code, &header,
                               reinterpret_cast<const u_char*>(first.data())) != 0;
}

}  // namespace trafficmirror::program
