#include "intercept/membership.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "intercept/reply_path.h"
#include "intercept/socket_address.h"
#include "net/address.h"
#include "program/descriptor.h"
#include "program/start_error.h"

namespace trafficmirror::intercept {
namespace {

constexpr std::chrono::seconds interval{3};

}  // namespace

std::optional<bool> has_address_of_this_host(const std::string& name) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(name.c_str(), nullptr, &hints, &found);
  // There is no such name, or it has no addresses.
  if (error == EAI_NONAME || error == EAI_NODATA) return false;
  if (error != 0) return std::nullopt;
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  const auto own = local_addresses();
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    const auto address = address_of(*each->ai_addr);
    if (address && std::find(own.begin(), own.end(), *address) != own.end()) return true;
  }
  return false;
}

Listing::Change Listing::take(std::optional<bool> listed) {
  if (!listed) return Change::none;
  if (*listed) {
    misses_ = 0;
    return std::exchange(joined_, true) ? Change::none : Change::joined;
  }
  if (!joined_ || ++misses_ < answers_to_leave) return Change::none;
  joined_ = false;
  return Change::left;
}

struct Membership::Shared {
  const program::Descriptor joined{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  std::mutex mutex;
  std::condition_variable gone_changed;
  bool gone = false;

  Shared() {
    if (!joined) throw program::StartError("eventfd failed: too many open files?");
  }
};

Membership::Membership(Ask ask, std::function<void()> left) : shared_(std::make_shared<Shared>()) {
  try {
    std::thread([shared = shared_, ask = std::move(ask), left = std::move(left)] {
      Listing listing;
      std::unique_lock lock(shared->mutex);
      while (!shared->gone) {
        lock.unlock();
        const auto change = listing.take(ask());
        lock.lock();
        if (shared->gone) return;
        if (change == Listing::Change::left) return left();
        if (change == Listing::Change::joined) {
          const uint64_t one = 1;
          [[maybe_unused]] const auto written = ::write(shared->joined.get(), &one, sizeof one);
        }
        shared->gone_changed.wait_for(lock, interval, [&] { return shared->gone; });
      }
    }).detach();
  } catch (const std::system_error& error) {
    throw program::StartError(std::string("there can't be a thread for --member-of: ") +
                              error.what());
  }
}

Membership::~Membership() {
  const std::lock_guard lock(shared_->mutex);
  shared_->gone = true;
  shared_->gone_changed.notify_all();
}

Membership::Outcome Membership::wait(int stop_descriptor, std::chrono::milliseconds longest) const {
  std::array<pollfd, 2> awaited{{{stop_descriptor, POLLIN, 0}, {shared_->joined.get(), POLLIN, 0}}};
  if (::poll(awaited.data(), awaited.size(), static_cast<int>(longest.count())) <= 0)
    return Outcome::gave_up;
  return awaited[0].revents != 0 ? Outcome::stopped : Outcome::joined;
}

}  // namespace trafficmirror::intercept
