#include "net/address.h"

#include <algorithm>
#include <charconv>

#include <arpa/inet.h>
#include <xxhash.h>

namespace trafficmirror::net {

// The hashes below read these objects as bytes, so they must have no padding.
static_assert(sizeof(Endpoint) == 18 && sizeof(FlowKey) == 36);

IpAddress IpAddress::from_ipv4(std::span<const uint8_t, 4> bytes) {
  IpAddress address;
  std::copy(mapped.begin(), mapped.end(), address.bytes_.begin() + 8);
  std::copy(bytes.begin(), bytes.end(), address.bytes_.begin() + 12);
  return address;
}

IpAddress IpAddress::from_ipv6(std::span<const uint8_t, 16> bytes) {
  IpAddress address;
  std::copy(bytes.begin(), bytes.end(), address.bytes_.begin());
  return address;
}

std::optional<IpAddress> IpAddress::from_bytes(std::span<const uint8_t> bytes) {
  if (bytes.size() == 4) return from_ipv4(bytes.first<4>());
  if (bytes.size() == 16) return from_ipv6(bytes.first<16>());
  return std::nullopt;
}

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return std::nullopt;  // inet_pton would stop there
  const std::string copy(text);
  std::array<uint8_t, 16> bytes{};
  if (inet_pton(AF_INET, copy.c_str(), bytes.data()) == 1)
    return from_ipv4(std::span<const uint8_t>(bytes).first<4>());
  if (inet_pton(AF_INET6, copy.c_str(), bytes.data()) == 1)
    return from_ipv6(std::span<const uint8_t, 16>(bytes));
  return std::nullopt;
}

std::string IpAddress::to_string() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  inet_ntop(family() == Family::ipv4 ? AF_INET : AF_INET6, bytes().data(), text.data(),
            text.size());
  return text.data();
}

namespace {

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number == 0) return std::nullopt;
  return number;
}

}  // namespace

std::optional<ProductionPort> ProductionPort::parse(std::string_view text) {
  const size_t slash = text.find('/');
  const auto number = parse_port(text.substr(0, slash));
  const std::string_view protocol =
      slash == std::string_view::npos ? "tcp" : text.substr(slash + 1);
  if (!number || (protocol != "tcp" && protocol != "udp")) return std::nullopt;
  return ProductionPort{*number, protocol == "tcp" ? Protocol::tcp : Protocol::udp};
}

std::string ProductionPort::to_string() const {
  return std::to_string(number) + (protocol == Protocol::udp ? "/udp" : "");
}

std::optional<HostPort> HostPort::parse(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  if (host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  else if (host.find(':') != std::string_view::npos)
    return std::nullopt;
  constexpr std::string_view never_in_a_host("[]\0", 3);
  if (host.find_first_of(never_in_a_host) != std::string_view::npos) return std::nullopt;
  const auto number = parse_port(port);
  if (!number || host.empty()) return std::nullopt;
  return HostPort{std::string(host), Port{*number}};
}

std::optional<Endpoint> Endpoint::parse(std::string_view text) {
  const auto split = HostPort::parse(text);
  if (!split) return std::nullopt;
  const auto address = IpAddress::parse(split->host);
  if (!address) return std::nullopt;
  return Endpoint{*address, split->port};
}

std::string Endpoint::to_string() const {
  const std::string host = address.to_string();
  return (address.family() == Family::ipv6 ? "[" + host + "]" : host) + ":" +
         std::to_string(port.number);
}

std::string FlowKey::to_string() const {
  return client.to_string() + " > " + server.to_string();
}

}  // namespace trafficmirror::net

size_t std::hash<trafficmirror::net::Endpoint>::operator()(
    const trafficmirror::net::Endpoint& endpoint) const noexcept {
  return XXH3_64bits(&endpoint, sizeof endpoint);
}

size_t std::hash<trafficmirror::net::FlowKey>::operator()(
    const trafficmirror::net::FlowKey& key) const noexcept {
  return XXH3_64bits(&key, sizeof key);
}
