#include "sidecar/uplink/addresses.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include <netdb.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program/start_error.h"

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

struct LookUp::Shared {
  const int event_descriptor = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::mutex mutex;
  std::optional<Found> found;

  Shared() {
    if (event_descriptor < 0) throw program::StartError("eventfd failed: too many open files?");
  }
  ~Shared() { ::close(event_descriptor); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  void put(Found what) {
    const std::lock_guard lock(mutex);
    found = std::move(what);
    const uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_descriptor, &one, sizeof one);
  }
};

LookUp::LookUp(std::function<Found(const std::string& host)> how)
    : how_(std::move(how)), shared_(std::make_shared<Shared>()) {}

void LookUp::start(const std::string& host) {
  running_ = true;
  try {
    std::thread([how = how_, shared = shared_, host] { shared->put(how(host)); }).detach();
  } catch (const std::system_error& error) {
    shared_->put(host + " can't be looked up: no thread: " + error.what());
  }
}

int LookUp::descriptor() const {
  return shared_->event_descriptor;
}

std::optional<Found> LookUp::take() {
  const std::lock_guard lock(shared_->mutex);
  if (!shared_->found) return std::nullopt;
  uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(shared_->event_descriptor, &count, sizeof count);
  running_ = false;
  return std::exchange(shared_->found, std::nullopt);
}

}  // namespace trafficmirror::uplink
