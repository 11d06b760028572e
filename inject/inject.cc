#include "inject/inject.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include "net/batch.h"
#include "program/start_error.h"

namespace trafficmirror::inject {
namespace {

constexpr int send_buffer_bytes = 8 << 20;
constexpr size_t packets_a_call = 128;

// The virtio_net_hdr of linux/virtio_net.h, which C++ compilers don't take. In host byte order.
struct Offload {
  uint8_t flags = 1;  // VIRTIO_NET_HDR_F_NEEDS_CSUM
  uint8_t gso_type = 0;
  uint16_t header_length = 0;
  uint16_t gso_size = 0;
  uint16_t checksum_start = 0;
  uint16_t checksum_offset = 16;  // in a TCP header
};
constexpr uint8_t gso_tcp_ipv4 = 1;
constexpr uint8_t gso_tcp_ipv6 = 4;

net::Family family_of(char first_byte) {
  return static_cast<uint8_t>(first_byte) >> 4 == 4 ? net::Family::ipv4 : net::Family::ipv6;
}

// Where a packet goes, out of its own header. The port of a raw socket's address is 0.
void set_destination(sockaddr_in& to, const char* packet, unsigned /*scope*/) {
  to.sin_family = AF_INET;
  std::memcpy(&to.sin_addr, packet + 16, 4);
}
void set_destination(sockaddr_in6& to, const char* packet, unsigned scope) {
  to.sin6_family = AF_INET6;
  std::memcpy(&to.sin6_addr, packet + 24, 16);
  if (IN6_IS_ADDR_LINKLOCAL(&to.sin6_addr)) to.sin6_scope_id = scope;
}

ethhdr ethernet_header(const NextHop& hop, net::Family family) {
  ethhdr header{};
  std::copy(hop.neighbour.begin(), hop.neighbour.end(), header.h_dest);
  std::copy(hop.own.begin(), hop.own.end(), header.h_source);
  header.h_proto = htons(family == net::Family::ipv4 ? ETH_P_IP : ETH_P_IPV6);
  return header;
}

}  // namespace

InjectError classify(int error) {
  switch (error) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
      return InjectError::queue_full;
    case EPERM:
    case EACCES:
      return InjectError::not_permitted;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EADDRNOTAVAIL:
      return InjectError::unreachable;
    case EMSGSIZE:
      return InjectError::too_long;
    case ENODEV:
    case ENXIO:
    case ENETDOWN:
      return InjectError::no_interface;
    default:
      return InjectError::other;
  }
}

Injector::Injector(std::string interface, Counters& counters, std::optional<NextHop> next_hop)
    : interface_(std::move(interface)),
      counters_(counters),
      fixed_hop_(next_hop),
      next_hops_(interface_) {
  const auto widen = [](int socket) {
    // A failure leaves the system's own size, which only makes queue_full likelier.
    if (::setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, &send_buffer_bytes,
                     sizeof send_buffer_bytes) != 0)
      ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes, sizeof send_buffer_bytes);
  };
  const std::array<int, 2> families = {AF_INET, AF_INET6};
  for (size_t i = 0; i < families.size(); ++i) {
    // IPPROTO_RAW: packets come with their IP header, and nothing is received (raw(7)).
    sockets_[i] = program::Descriptor(
        ::socket(families[i], SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW));
    const int socket = sockets_[i].get();
    if (socket < 0) {
      if (families[i] == AF_INET6 && errno == EAFNOSUPPORT) continue;
      throw program::StartError(std::string("no raw socket can be opened: ") +
                                std::strerror(errno));
    }
    widen(socket);
  }
  // Protocol 0: nothing is received.
  link_ = program::Descriptor(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (!link_ || ::setsockopt(link_.get(), SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0)
    throw program::StartError(std::string("a packet socket can't be set up: ") +
                              std::strerror(errno));
  widen(link_.get());
  if (sockets_[static_cast<size_t>(net::Family::ipv6)]) listen_for_too_big();
  rebind();
}

// The kernel remembers a path MTU out of ICMPv6 "packet too big" only where a socket of the
// packet's protocol wants to know of errors; look_up_path then sees it. Such a socket would also
// get a copy of every TCP packet that comes in, so a filter refuses them all. IPv4 does without:
// these packets may be fragmented on their way.
void Injector::listen_for_too_big() {
  too_big_ =
      program::Descriptor(::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP));
  sock_filter refuse_all = BPF_STMT(BPF_RET | BPF_K, 0);
  const sock_fprog filter = {1, &refuse_all};
  const int on = 1;
  if (!too_big_ ||
      ::setsockopt(too_big_.get(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
      ::setsockopt(too_big_.get(), IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof on) != 0)
    throw program::StartError(std::string("a raw socket can't be set up: ") + std::strerror(errno));
}

void Injector::rebind() {
  if (interface_.empty()) return;
  interface_index_ = ::if_nametoindex(interface_.c_str());
  next_hops_.forget();  // its link address may be another one too
  for (const program::Descriptor& socket : sockets_) {
    if (socket && ::setsockopt(socket.get(), SOL_SOCKET, SO_BINDTODEVICE, interface_.c_str(),
                               static_cast<socklen_t>(interface_.size())) != 0)
      failed(errno, 0);
  }
}

// Packets of one connection keep their order.
void Injector::send(std::string_view packets) {
  if (interface_.empty()) return send_each(packets);
  std::string_view rest = packets;
  while (!rest.empty()) {
    const std::string_view from_here = rest;
    if (const auto super = SuperPacket::take(rest)) {
      send_each(packets.substr(0, packets.size() - from_here.size()));
      if (!send_super(*super)) send_each(from_here.substr(0, from_here.size() - rest.size()));
      packets = rest;
    } else {
      const auto length =
          net::first_packet_length({reinterpret_cast<const uint8_t*>(rest.data()), rest.size()});
      rest.remove_prefix(length.value_or(rest.size()));
    }
  }
  send_each(packets);
}

// False where it has to travel as single packets.
bool Injector::send_super(const SuperPacket& super) {
  const auto hop = fixed_hop_ ? fixed_hop_ : next_hops_.find(super.destination());
  if (!hop) return false;
  const bool ipv4 = super.family() == net::Family::ipv4;
  const auto header_length = sizeof(ethhdr) + super.headers().size();
  ethhdr ethernet = ethernet_header(*hop, super.family());
  Offload offload;
  offload.gso_type = ipv4 ? gso_tcp_ipv4 : gso_tcp_ipv6;
  offload.header_length = static_cast<uint16_t>(header_length);
  offload.gso_size = super.segment_size();
  offload.checksum_start = static_cast<uint16_t>(sizeof(ethhdr) + super.ip_header_length());

  std::array<iovec, SuperPacket::max_segments + 3> parts;
  parts[0] = {&offload, sizeof offload};
  parts[1] = {&ethernet, sizeof ethernet};
  parts[2] = {const_cast<uint8_t*>(super.headers().data()), super.headers().size()};
  size_t count = 3;
  for (const std::string_view payload : super.payloads())
    parts[count++] = {const_cast<char*>(payload.data()), payload.size()};
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_protocol = ethernet.h_proto;
  to.sll_ifindex = static_cast<int>(interface_index_.load(std::memory_order_relaxed));
  msghdr message{};
  message.msg_name = &to;
  message.msg_namelen = sizeof to;
  message.msg_iov = parts.data();
  message.msg_iovlen = count;

  const size_t packets = super.payloads().size();
  ssize_t sent = 0;
  do sent = ::sendmsg(link_.get(), &message, 0);
  while (sent < 0 && errno == EINTR);
  if (sent >= 0) {
    program::add(counters_.packets, packets);
    program::add(counters_.bytes, super.segment_bytes());
    return true;
  }
  if (errno == EINVAL) return false;  // a link that can't cut them up
  failed(errno, packets);
  return true;
}

void Injector::send_each(std::string_view packets) {
  if (fixed_hop_) return send_on_link(packets, *fixed_hop_);
  while (!packets.empty()) {
    if (family_of(packets[0]) == net::Family::ipv4)
      send_family<sockaddr_in>(packets);
    else
      send_family<sockaddr_in6>(packets);
  }
}

// Sends as many packets of one family as there are at the front, up to a call's worth, and takes
// them off.
template <typename Address>
void Injector::send_family(std::string_view& packets) {
  std::array<mmsghdr, packets_a_call> messages;
  std::array<iovec, packets_a_call> parts;
  std::array<Address, packets_a_call> addresses;
  const net::Family family = family_of(packets[0]);
  const unsigned scope = interface_index_.load(std::memory_order_relaxed);
  size_t count = 0;
  while (count < packets_a_call && !packets.empty() && family_of(packets[0]) == family) {
    const auto length = net::first_packet_length(
        {reinterpret_cast<const uint8_t*>(packets.data()), packets.size()});
    if (!length) {
      failed(EINVAL, 1);
      packets = {};
      break;
    }
    addresses[count] = {};
    set_destination(addresses[count], packets.data(), scope);
    parts[count] = {const_cast<char*>(packets.data()), *length};
    messages[count] = {};
    messages[count].msg_hdr.msg_name = &addresses[count];
    messages[count].msg_hdr.msg_namelen = sizeof(Address);
    messages[count].msg_hdr.msg_iov = &parts[count];
    messages[count].msg_hdr.msg_iovlen = 1;
    packets.remove_prefix(*length);
    ++count;
  }

  send_messages(sockets_[static_cast<size_t>(family)].get(), {messages.data(), count});
}

void Injector::send_on_link(std::string_view packets, const NextHop& hop) {
  std::array ethernet = {ethernet_header(hop, net::Family::ipv4),
                         ethernet_header(hop, net::Family::ipv6)};
  Offload none{.flags = 0, .checksum_offset = 0};
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = static_cast<int>(interface_index_.load(std::memory_order_relaxed));
  std::array<mmsghdr, packets_a_call> messages;
  std::array<std::array<iovec, 3>, packets_a_call> parts;
  while (!packets.empty()) {
    size_t count = 0;
    for (; count < packets_a_call && !packets.empty(); ++count) {
      const auto length = net::first_packet_length(
          {reinterpret_cast<const uint8_t*>(packets.data()), packets.size()});
      if (!length) {
        failed(EINVAL, 1);
        packets = {};
        break;
      }
      ethhdr& header = ethernet[static_cast<size_t>(family_of(packets[0]))];
      parts[count] = {iovec{&none, sizeof none}, iovec{&header, sizeof header},
                      iovec{const_cast<char*>(packets.data()), *length}};
      messages[count] = {};
      messages[count].msg_hdr.msg_name = &to;
      messages[count].msg_hdr.msg_namelen = sizeof to;
      messages[count].msg_hdr.msg_iov = parts[count].data();
      messages[count].msg_hdr.msg_iovlen = parts[count].size();
      packets.remove_prefix(*length);
    }
    send_messages(link_.get(), {messages.data(), count});
  }
}

// The last part of each is the packet.
void Injector::send_messages(int socket, std::span<mmsghdr> messages) {
  size_t sent_bytes = 0, sent_packets = 0;
  for (size_t next = 0; next < messages.size();) {
    const int sent =
        ::sendmmsg(socket, &messages[next], static_cast<unsigned>(messages.size() - next), 0);
    if (sent > 0) {
      for (const size_t end = next + sent; next < end; ++next) {
        const msghdr& message = messages[next].msg_hdr;
        sent_bytes += message.msg_iov[message.msg_iovlen - 1].iov_len;
      }
      sent_packets += sent;
    } else if (errno == EAGAIN) {
      failed(errno, messages.size() - next);  // the others would find the buffer as full
      break;
    } else if (errno != EINTR) {
      failed(errno, 1);
      ++next;
    }
  }
  program::add(counters_.packets, sent_packets);
  program::add(counters_.bytes, sent_bytes);
}

void Injector::failed(int error, size_t packets) {
  program::add(counters_.errors, classify(error), packets);
  const std::lock_guard lock(log_mutex_);
  if (const auto held_back = log_limit_.allow(program::LogLimit::Clock::now()))
    spdlog::warn("sending towards the shadow{} failed: {}{}",
                 interface_.empty() ? "" : " out of " + interface_, std::strerror(error),
                 *held_back);
}

}  // namespace trafficmirror::inject
