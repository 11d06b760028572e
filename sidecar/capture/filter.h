// Which packets the kernel hands to a capture, and how much of each: a classic BPF program, run
// before anything is copied.
//
//   request   came in for this host, TCP or UDP, to one of the ports: whole
//   response  goes out of this host, TCP, from one of the ports: its headers
//   anything else: nothing
//
// The direction is what tells a request from one of this host's own to another server on the same
// port number, which goes out, and whose response comes in.
//
// On lo each packet is seen twice, going out and then coming in. There, what goes out is passed
// over and what comes in is a request or a response by its ports: libpcap shows nothing else of lo.
//
// IPv6 packets with TCP or UDP, or further headers, behind an extension header are let through
// whole, for user space to judge. Only the first fragment of an IPv4 packet has ports; the others
// are left out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <linux/filter.h>

#include "net/address.h"

namespace trafficmirror::capture {

inline constexpr size_t max_ports = 64;

// How much is copied of headers, counted from where the data of the socket begins: the network
// header with SOCK_DGRAM, the link header with SOCK_RAW. It holds the longest headers there are:
// 14 bytes of Ethernet with a VLAN tag of 4, 60 of IPv4 or 40 of IPv6, 60 of TCP.
inline constexpr uint32_t headers_snap_length = 192;

struct FilterOptions {
  std::span<const net::Port> ports;  // TCP
  std::span<const net::Port> udp_ports{};
  // Where the network header is: 0 when the data of the socket begins with it (SOCK_DGRAM), which
  // also reaches headers in a fragment of the socket buffer; SKF_NET_OFF for any other socket.
  int32_t network_offset = SKF_NET_OFF;
  int loopback_index = 1;  // interface number of lo
  // Of requests too, only as much as of responses.
  bool headers_only = false;
};

// Throws program::StartError unless there are 1 to max_ports ports, of both protocols together.
std::vector<sock_filter> build_filter(const FilterOptions& options);

// Replaces the filter of the socket. The result is 0 or an error number. Throws as build_filter().
int attach_filter(int socket, const FilterOptions& options);

}  // namespace trafficmirror::capture
