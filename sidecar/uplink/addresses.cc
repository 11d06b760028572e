#include "sidecar/uplink/addresses.h"

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <tuple>

#include <netdb.h>
#include <sys/socket.h>

namespace trafficmirror::uplink {
namespace {

using List = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

std::variant<List, int> ask(const std::string& host, int flags) {
  addrinfo hints{};
  hints.ai_flags = flags;
  hints.ai_socktype = SOCK_STREAM;  // or each address comes three times
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &list)) return error;
  return List(list, ::freeaddrinfo);
}

}  // namespace

Found look_up(const std::string& host) {
  const auto answer = ask(host, AI_ADDRCONFIG);
  if (const int* error = std::get_if<int>(&answer))
    return host + " can't be looked up: " + ::gai_strerror(*error);
  std::vector<std::string> addresses;
  for (const int family : {AF_INET, AF_INET6}) {
    for (const addrinfo* each = std::get<List>(answer).get(); each; each = each->ai_next) {
      std::array<char, NI_MAXHOST> text{};
      if (each->ai_family == family && ::getnameinfo(each->ai_addr, each->ai_addrlen, text.data(),
                                                     text.size(), nullptr, 0, NI_NUMERICHOST) == 0)
        addresses.emplace_back(text.data());
    }
    if (!addresses.empty()) break;
  }
  if (addresses.empty()) return host + " has no IP address";
  std::sort(addresses.begin(), addresses.end());
  addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
  return addresses;
}

bool is_address(const std::string& host) {
  return std::holds_alternative<List>(ask(host, AI_NUMERICHOST));
}

std::vector<std::string> choose(std::vector<std::string> found,
                                const std::vector<std::string>& current, size_t most,
                                const std::string& sidecar) {
  if (found.size() <= most) return found;
  const auto rank = [&](const std::string& address) {
    const bool is_new = std::find(current.begin(), current.end(), address) == current.end();
    return std::tuple(is_new, std::hash<std::string>()(sidecar + " " + address), address);
  };
  std::sort(found.begin(), found.end(),
            [&](const auto& one, const auto& other) { return rank(one) < rank(other); });
  found.resize(most);
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace trafficmirror::uplink
