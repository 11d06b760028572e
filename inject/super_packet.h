// Successive segments of one connection as one packet of up to 64 KiB, which the kernel or the
// network device cuts up again on its way out (GSO, TSO): a bulk upload then passes the kernel once
// for some forty packets.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "net/address.h"
#include "net/packet.h"

namespace trafficmirror::inject {

class SuperPacket {
 public:
  static constexpr size_t max_segments = 64;

  // Takes as many whole packets off the front of `packets` as can travel together: at least two, or
  // nothing is taken and there is none. It points into what was taken.
  static std::optional<SuperPacket> take(std::string_view& packets);

  net::Family family() const { return family_; }
  net::IpAddress destination() const;
  uint32_t ip_header_length() const { return net::ip_header_length(family_); }
  // IP and TCP, with lengths for the whole, the IP checksum, and for the TCP checksum the bare
  // pseudo-header sum (CHECKSUM_PARTIAL).
  std::span<const uint8_t> headers() const { return {headers_.data(), header_length_}; }
  std::span<const std::string_view> payloads() const { return {payloads_.data(), count_}; }
  // Of every payload but the last, which may be shorter.
  uint16_t segment_size() const { return static_cast<uint16_t>(payloads_[0].size()); }
  // Of the packets that it was made of.
  size_t segment_bytes() const { return count_ * header_length_ + payload_bytes_; }

 private:
  explicit SuperPacket(net::Family family) : family_(family) {}
  void write_headers(uint8_t flags);

  net::Family family_;
  std::array<uint8_t, net::max_header_length> headers_;
  uint32_t header_length_ = 0;
  std::array<std::string_view, max_segments> payloads_;
  size_t count_ = 0;
  size_t payload_bytes_ = 0;
};

}  // namespace trafficmirror::inject
