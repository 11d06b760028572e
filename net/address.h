// net/ holds what both programs speak: addresses, TCP and UDP packets of IPv4 and IPv6, and their
// checksums. It does no I/O and depends on nothing of the project.
//
// One address type serves both families, so that no code is written twice for IPv6.
#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace trafficmirror::net {

enum class Family : uint8_t { ipv4, ipv6 };

// Each numbers its ports apart from the other's.
enum class Protocol : uint8_t { tcp, udp };

struct Port {
  uint16_t number = 0;
  auto operator<=>(const Port&) const = default;
};

// An IPv4 address is kept as its IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2), which no
// honest packet carries, so sixteen bytes hold either family.
class IpAddress {
 public:
  IpAddress() = default;  // the IPv6 unspecified address
  static IpAddress from_ipv4(std::span<const uint8_t, 4> bytes);
  static IpAddress from_ipv6(std::span<const uint8_t, 16> bytes);
  // 4 or 16 bytes in network order; anything else is no address.
  static std::optional<IpAddress> from_bytes(std::span<const uint8_t> bytes);
  static std::optional<IpAddress> parse(std::string_view text);

  Family family() const {  // asked several times for each packet
    uint64_t high;
    uint32_t middle;
    std::memcpy(&high, bytes_.data(), sizeof high);
    std::memcpy(&middle, bytes_.data() + 8, sizeof middle);
    return high == 0 && middle == std::bit_cast<uint32_t>(mapped) ? Family::ipv4 : Family::ipv6;
  }
  // The address as it stands in a packet: 4 or 16 bytes in network order, valid as long as this
  // object.
  std::span<const uint8_t> bytes() const {
    return family() == Family::ipv4 ? std::span<const uint8_t>(bytes_).subspan(12)
                                    : std::span<const uint8_t>(bytes_);
  }
  std::string to_string() const;

  auto operator<=>(const IpAddress&) const = default;

 private:
  static constexpr std::array<uint8_t, 4> mapped = {0, 0, 0xff, 0xff};  // behind eight zeros
  std::array<uint8_t, 16> bytes_{};
};

// One of production's ports that are mirrored.
struct ProductionPort {
  uint16_t number = 0;
  Protocol protocol = Protocol::tcp;

  // "8080", "8080/tcp" or "53/udp".
  static std::optional<ProductionPort> parse(std::string_view text);
  // "8080" or "53/udp".
  std::string to_string() const;

  auto operator<=>(const ProductionPort&) const = default;
};

struct Endpoint {
  IpAddress address;
  Port port;

  // "10.0.0.1:80" or "[fd00::1]:80".
  static std::optional<Endpoint> parse(std::string_view text);
  std::string to_string() const;

  auto operator<=>(const Endpoint&) const = default;
};

// The four-tuple of a production connection, or of a client's datagrams, seen from the client.
struct FlowKey {
  Endpoint client;
  Endpoint server;

  std::string to_string() const;

  auto operator<=>(const FlowKey&) const = default;
};

// Splits "HOST:PORT" or "[HOST]:PORT"; HOST may be a name. Nothing where the port is missing or out
// of range.
struct HostPort {
  std::string host;
  Port port;

  static std::optional<HostPort> parse(std::string_view text);
};

}  // namespace trafficmirror::net

template <>
struct std::hash<trafficmirror::net::Endpoint> {
  size_t operator()(const trafficmirror::net::Endpoint& endpoint) const noexcept;
};
template <>
struct std::hash<trafficmirror::net::FlowKey> {
  size_t operator()(const trafficmirror::net::FlowKey& key) const noexcept;
};
