#include "inject/link_injector.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <netinet/if_ether.h>
#include <pcap/pcap.h>
#include <spdlog/spdlog.h>

#include "net/batch.h"
#include "program/start_error.h"

namespace trafficmirror::inject {
namespace {

constexpr std::chrono::seconds reopen_pause(1);
// Nothing is ever read: the smallest that libpcap makes do with.
constexpr int capture_buffer_bytes = 64 << 10;

net::IpAddress destination_of(std::string_view packet) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(packet.data());
  return bytes[0] >> 4 == 4 ? *net::IpAddress::from_bytes({bytes + 16, 4})
                            : *net::IpAddress::from_bytes({bytes + 24, 16});
}

// Throws StartError.
Link open_link(const std::string& interface) {
  std::array<char, PCAP_ERRBUF_SIZE> reason{};
  Link link(::pcap_create(interface.c_str(), reason.data()), ::pcap_close);
  const auto fail = [&](const char* why) {
    throw program::StartError("nothing can be sent out of --delivery-interface " + interface +
                              ": " + why);
  };
  if (!link) fail(reason.data());
  ::pcap_set_snaplen(link.get(), 1);
  ::pcap_set_buffer_size(link.get(), capture_buffer_bytes);
  if (::pcap_activate(link.get()) < 0) fail(::pcap_geterr(link.get()));
  if (::pcap_datalink(link.get()) != DLT_EN10MB) fail("it is no Ethernet; use --delivery direct");
  // It could capture as well: of what passes it wants nothing.
  bpf_insn refuse_all = BPF_STMT(BPF_RET | BPF_K, 0);
  bpf_program filter{1, &refuse_all};
  if (::pcap_setfilter(link.get(), &filter) != 0) fail(::pcap_geterr(link.get()));
  if (::pcap_setnonblock(link.get(), 1, reason.data()) != 0) fail(reason.data());
  return link;
}

}  // namespace

LinkInjector::LinkInjector(const std::string& interface, Counters& counters)
    : interface_(interface),
      counters_(counters),
      link_(open_link(interface)),
      by_kernel_(interface, counters),
      next_hops_(interface) {}

void LinkInjector::send(std::string_view packets) {
  while (!packets.empty()) {
    const auto length = net::first_packet_length(
        {reinterpret_cast<const uint8_t*>(packets.data()), packets.size()});
    if (!length) {
      program::add(counters_.errors, InjectError::other);
      return;
    }
    send_one(packets.substr(0, *length));
    packets.remove_prefix(*length);
  }
}

void LinkInjector::send_one(std::string_view packet) {
  if (!link_) follow_interface();
  const auto hop = link_ ? next_hops_.find(destination_of(packet)) : std::nullopt;
  if (!hop) return by_kernel_.send(packet);
  ether_header ethernet{};
  std::copy(hop->neighbour.begin(), hop->neighbour.end(), ethernet.ether_dhost);
  std::copy(hop->own.begin(), hop->own.end(), ethernet.ether_shost);
  ethernet.ether_type =
      htons(static_cast<uint8_t>(packet[0]) >> 4 == 4 ? ETHERTYPE_IP : ETHERTYPE_IPV6);
  frame_.assign(reinterpret_cast<const char*>(&ethernet), sizeof ethernet);
  frame_.append(packet);
  if (::pcap_inject(link_.get(), frame_.data(), frame_.size()) >= 0) {
    program::add(counters_.packets);
    program::add(counters_.bytes, packet.size());
    return;
  }
  const int error = errno;
  const InjectError reason = classify(error);
  program::add(counters_.errors, reason);
  if (const auto held_back = log_.allow(program::LogLimit::Clock::now()))
    spdlog::warn("sending towards the shadow out of {} failed: {}{}", interface_,
                 std::strerror(error), *held_back);
  if (reason == InjectError::no_interface) link_.reset();
}

// One that was made anew under the same name is another one.
void LinkInjector::follow_interface() {
  const auto now = std::chrono::steady_clock::now();
  if (now < reopened_at_ + reopen_pause) return;
  reopened_at_ = now;
  try {
    link_ = open_link(interface_);
  } catch (const program::StartError&) {
    return;  // it is away still
  }
  next_hops_.forget();
  by_kernel_.rebind();
}

}  // namespace trafficmirror::inject
