#include "intercept/client_addresses.h"

#include <algorithm>
#include <charconv>
#include <sstream>

#include "net/client_address.h"

namespace trafficmirror::intercept {
namespace {

constexpr uint64_t most_addresses = 256;

uint8_t bits_of(net::Family family) {
  return family == net::Family::ipv4 ? 32 : 128;
}

// `address` with only the bits of a prefix left.
net::IpAddress masked(const net::IpAddress& address, uint8_t prefix_length) {
  std::array<uint8_t, 16> bytes{};
  const auto from = address.bytes();
  for (size_t i = 0; i < from.size(); ++i) {
    const int bits = std::clamp(prefix_length - static_cast<int>(i) * 8, 0, 8);
    bytes[i] = from[i] & static_cast<uint8_t>(0xff00 >> bits);
  }
  return *net::IpAddress::from_bytes(std::span(bytes).first(from.size()));
}

net::IpAddress plus(const net::IpAddress& address, uint64_t offset) {
  std::array<uint8_t, 16> bytes{};
  const auto from = address.bytes();
  std::copy(from.begin(), from.end(), bytes.begin());
  for (size_t i = from.size(); i-- > 0 && offset > 0; offset >>= 8) {
    offset += bytes[i];
    bytes[i] = static_cast<uint8_t>(offset);
  }
  return *net::IpAddress::from_bytes(std::span(bytes).first(from.size()));
}

}  // namespace

std::optional<Network> Network::parse(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto address = net::IpAddress::parse(text.substr(0, slash));
  const std::string_view length = text.substr(slash + 1);
  Network network;
  const auto [end, error] =
      std::from_chars(length.data(), length.data() + length.size(), network.prefix_length);
  if (!address || error != std::errc() || end != length.data() + length.size() ||
      network.prefix_length > bits_of(address->family()) ||
      masked(*address, network.prefix_length) != *address)
    return std::nullopt;
  network.first = *address;
  return network;
}

bool Network::contains(const net::IpAddress& address) const {
  return address.family() == first.family() && masked(address, prefix_length) == first;
}

std::string Network::to_string() const {
  return first.to_string() + "/" + std::to_string(prefix_length);
}

std::optional<std::string> parse_pool(const std::string& text,
                                      std::array<std::optional<Network>, 2>& pool) {
  std::istringstream networks(text + ",");
  for (std::string part; std::getline(networks, part, ',');) {
    const auto network = Network::parse(part);
    if (!network) return "'" + part + "' is no network: write it as CIDR, such as 198.18.0.0/15";
    for (const net::IpAddress& address : {network->first, addresses_of(*network).back()})
      if (!net::may_be_client(address) || network->prefix_length == 0)
        return part + " has addresses that no client may have, such as " + address.to_string();
    auto& of_family = pool[static_cast<size_t>(network->first.family())];
    if (of_family) return "there can be one network of each family";
    of_family = *network;
  }
  return std::nullopt;
}

std::optional<net::IpAddress> ClientAddresses::proof_address(net::Family family) const {
  // Documentation's addresses are no client's (RFC 5737, RFC 3849).
  if (mode == Mode::preserve)
    return net::IpAddress::parse(family == net::Family::ipv4 ? "192.0.2.1" : "2001:db8::1");
  const auto& network = pool[static_cast<size_t>(family)];
  if (!network) return std::nullopt;
  return addresses_of(*network).front();
}

std::vector<net::IpAddress> addresses_of(const Network& pool) {
  const int host_bits = bits_of(pool.first.family()) - pool.prefix_length;
  // Of a wider one as if it had as many as fit.
  uint64_t count = uint64_t{1} << std::min(host_bits, 62);
  uint64_t first = 0;
  if (host_bits >= 2) {
    first = 1;
    count -= pool.first.family() == net::Family::ipv4 ? 2 : 1;
  }
  const uint64_t step = std::max<uint64_t>(count / most_addresses, 1);
  std::vector<net::IpAddress> addresses;
  for (uint64_t i = 0; i < std::min(count, most_addresses); ++i)
    addresses.push_back(plus(pool.first, first + i * step));
  return addresses;
}

}  // namespace trafficmirror::intercept
