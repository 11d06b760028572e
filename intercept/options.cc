#include "intercept/options.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>

#include <netdb.h>
#include <sys/socket.h>

#include "intercept/socket_address.h"

namespace trafficmirror::intercept {
namespace {

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

}  // namespace

std::optional<std::string> accept_target(const std::string& text, std::vector<Target>& targets) {
  const size_t equals = text.find('=');
  const auto port = equals == std::string::npos
                        ? std::nullopt
                        : net::ProductionPort::parse(std::string_view(text).substr(0, equals));
  const auto to = equals == std::string::npos
                      ? std::nullopt
                      : net::HostPort::parse(std::string_view(text).substr(equals + 1));
  if (!port || !to)
    return "write it as PORT=HOST:PORT, such as 80=10.0.0.5:8080 or 53/udp=10.0.0.5:53";

  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(to->host.c_str(), nullptr, &hints, &found);
  if (error != 0) return to->host + " can't be resolved: " + ::gai_strerror(error);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, ::freeaddrinfo);
  const auto address = address_of(*found->ai_addr);
  if (!address) return to->host + " has no IP address";
  const Target target{port->number, {*address, to->port}, port->protocol};
  if (std::find(targets.begin(), targets.end(), target) != targets.end())
    return "the same target is there twice";
  if (targets.size() == max_targets)
    return "there are more than " + std::to_string(max_targets) + " targets";
  targets.push_back(target);
  return std::nullopt;
}

std::optional<std::string> accept_source_ports(const std::string& text, PortRange& ports) {
  const size_t dash = text.find('-');
  const auto first = parse_port(std::string_view(text).substr(0, dash));
  const auto last = dash == std::string::npos ? std::nullopt
                                              : parse_port(std::string_view(text).substr(dash + 1));
  if (!first || !last) return "write it as FIRST-LAST, such as 10000-32767";
  if (*first < 1024) return "ports below 1024 are those of services: begin at 1024 or above";
  if (*last <= *first) return "LAST has to be above FIRST";
  ports = {*first, *last};
  return std::nullopt;
}

std::optional<std::string> accept_client_address(const std::string& text,
                                                 ClientAddresses& clients) {
  ClientAddresses read;
  read.reply_path = clients.reply_path;
  constexpr std::string_view pool = "pool=";
  if (text == "preserve") {
    read.mode = ClientAddresses::Mode::preserve;
  } else if (text.starts_with(pool)) {
    read.mode = ClientAddresses::Mode::pool;
    if (auto wrong = parse_pool(text.substr(pool.size()), read.pool)) return wrong;
  } else if (text != "masquerade") {
    return "there is no such mode; there are masquerade (the shadow sees the intercept's own "
           "address), preserve (the client's own) and pool=CIDR";
  }
  clients = read;
  return std::nullopt;
}

std::optional<std::string> accept_reply_path(const std::string& text, ClientAddresses& clients) {
  if (text == "loop")
    clients.reply_path = ClientAddresses::ReplyPath::loop;
  else if (text == "route")
    clients.reply_path = ClientAddresses::ReplyPath::route;
  else
    return "there is no such way; there are loop (the intercept runs in the shadow's network "
           "namespace) and route (a route on the shadow's host leads to the intercept's)";
  return std::nullopt;
}

}  // namespace trafficmirror::intercept
