#include "operator/kube/leader_election.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <random>
#include <utility>

#include <spdlog/spdlog.h>

#include "operator/kube/wall_time.h"

namespace trafficmirror::kube {
namespace {

constexpr std::chrono::milliseconds longest_release = std::chrono::seconds(1);

std::string wall_time() {
  return to_text_with_microseconds(std::chrono::system_clock::now());
}

}  // namespace

class LeaderElection::Implementation {
 public:
  Implementation(Client& client, Options options) : client_(client), options_(std::move(options)) {}

  void run(const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any never;
    while (!stop.stop_requested()) {
      const auto wait = step(stop);
      std::unique_lock lock(mutex);
      never.wait_for(lock, stop, wait, [] { return false; });
    }
    release();
  }

  std::chrono::milliseconds step(const std::stop_token& stop) {
    const auto begin = options_.now();
    if (leads_ && begin >= deadline()) lose("the lease could not be renewed in time");
    if (const auto error = acquire_or_renew(stop)) {
      if (leads_ && !holder_.empty() && holder_ != options_.identity)
        lose("it is " + holder_ + "'s");
      else if (leads_ && options_.now() >= deadline())
        lose(error->message);
      else if (leads_)
        spdlog::warn("renewing the lease {}: {}", to_text(options_.lease), error->message);
      else if (error->kind != ErrorKind::conflict && error->kind != ErrorKind::stopped)
        spdlog::warn("acquiring the lease {}: {}", to_text(options_.lease), error->message);
    } else {
      {
        const std::lock_guard lock(mutex_);
        renewed_ = begin;
      }
      // An answer that came too late is no longer worth anything.
      if (!leads_ && options_.now() < deadline()) win();
    }
    if (leads_)
      return std::clamp(std::chrono::ceil<std::chrono::milliseconds>(deadline() - options_.now()),
                        std::chrono::milliseconds::zero(), options_.retry_period);
    // Those that wait for the lease need not all ask at once.
    std::uniform_int_distribution<std::chrono::milliseconds::rep> part(
        0, options_.retry_period.count() / 5);
    return options_.retry_period + std::chrono::milliseconds(part(random_));
  }

  void release() {
    if (!leads_) return;
    // First nothing is done any more, and then others may begin.
    lose("released");
    Json lease = lease_;
    lease["spec"]["holderIdentity"] = "";
    lease["spec"]["leaseDurationSeconds"] = 1;
    lease["spec"]["renewTime"] = wall_time();
    const auto released = client_.update(leases, lease, "", {.timeout = longest_release});
    if (!released)
      spdlog::warn("releasing the lease {}: {}", to_text(options_.lease), released.error().message);
  }

  bool leading() const {
    const std::lock_guard lock(mutex_);
    return leads_ && options_.now() < deadline();
  }

  std::string leader() const {
    const std::lock_guard lock(mutex_);
    return holder_;
  }

 private:
  // Nothing where the lease is ours now. Otherwise a conflict where it is another's, and else what
  // went wrong.
  std::optional<Error> acquire_or_renew(const std::stop_token& stop) {
    // In the normal case a renewal is this one request.
    if (leads_) {
      auto error = write(stop);
      if (!error || error->kind != ErrorKind::conflict) return error;
    }
    auto current = client_.get(leases, options_.lease, call(stop));
    if (!current && current.error().kind == ErrorKind::not_found) {
      const Json metadata = {{"name", options_.lease.name},
                             {"namespace", options_.lease.namespace_}};
      lease_ = {{"apiVersion", leases.group_version()}, {"kind", "Lease"}, {"metadata", metadata}};
      return write(stop);
    }
    if (!current) return current.error();
    observe(*std::move(current));
    if (!holder_.empty() && holder_ != options_.identity &&
        options_.now() < observed_ + duration_of(lease_))
      return Error{.kind = ErrorKind::conflict, .message = "it is " + holder_ + "'s"};
    return write(stop);
  }

  // Makes the lease ours, as of now; a conflict where it was changed since we saw it.
  std::optional<Error> write(const std::stop_token& stop) {
    const bool is_new = !lease_["metadata"].contains("resourceVersion");
    Json lease = lease_;
    Json& spec = lease["spec"];
    const std::string time = wall_time();
    if (text_at(lease, "/spec/holderIdentity") != options_.identity) {
      const Json transitions = spec.is_object() ? spec.value("leaseTransitions", Json(0)) : Json(0);
      spec["leaseTransitions"] =
          (transitions.is_number_integer() ? transitions.get<int>() : 0) + (is_new ? 0 : 1);
      spec["acquireTime"] = time;
    }
    spec["holderIdentity"] = options_.identity;
    spec["leaseDurationSeconds"] = options_.lease_duration.count();
    spec["renewTime"] = time;
    auto written = is_new ? client_.create(leases, lease, call(stop))
                          : client_.update(leases, lease, "", call(stop));
    if (!written) {
      Error error = written.error();
      if (error.kind == ErrorKind::already_exists) error.kind = ErrorKind::conflict;
      return error;
    }
    observe(*std::move(written));
    return std::nullopt;
  }

  // A request that hangs leaves time for another, and none goes on when we lead no more.
  CallOptions call(const std::stop_token& stop) const {
    auto timeout = options_.renew_deadline / 2;
    if (leads_)
      timeout =
          std::clamp(std::chrono::ceil<std::chrono::milliseconds>(deadline() - options_.now()),
                     std::chrono::milliseconds(1), timeout);
    return {.timeout = timeout, .stop = stop};
  }

  // The time in it is another machine's. All that counts is when we saw it change.
  void observe(Json lease) {
    if (!lease_.contains("spec") || lease.value("spec", Json()) != lease_["spec"])
      observed_ = options_.now();
    lease_ = std::move(lease);
    const std::lock_guard lock(mutex_);
    holder_ = text_at(lease_, "/spec/holderIdentity");
  }

  std::chrono::seconds duration_of(const Json& lease) const {
    const Json::json_pointer path("/spec/leaseDurationSeconds");
    if (lease.contains(path) && lease[path].is_number_integer())
      return std::chrono::seconds(lease[path].get<int64_t>());
    return options_.lease_duration;
  }

  Clock::time_point deadline() const { return renewed_ + options_.renew_deadline; }

  void win() {
    {
      const std::lock_guard lock(mutex_);
      leads_ = true;
    }
    spdlog::info("{} leads, by the lease {}", options_.identity, to_text(options_.lease));
    if (options_.started) options_.started();
  }

  void lose(const std::string& reason) {
    {
      const std::lock_guard lock(mutex_);
      leads_ = false;
    }
    spdlog::info("{} leads no more: {}", options_.identity, reason);
    if (options_.stopped) options_.stopped();
  }

  Client& client_;
  const Options options_;
  std::minstd_rand random_{std::random_device{}()};
  Json lease_;                  // as we saw it last
  Clock::time_point observed_;  // when its content changed

  // Written by one thread, which reads them without a lock.
  mutable std::mutex mutex_;
  bool leads_ = false;
  Clock::time_point renewed_;
  std::string holder_;
};

LeaderElection::LeaderElection(Client& client, Options options)
    : implementation_(std::make_unique<Implementation>(client, std::move(options))) {}

LeaderElection::~LeaderElection() = default;

void LeaderElection::run(const std::stop_token& stop) {
  implementation_->run(stop);
}

std::chrono::milliseconds LeaderElection::step(const std::stop_token& stop) {
  return implementation_->step(stop);
}

void LeaderElection::release() {
  implementation_->release();
}

bool LeaderElection::leading() const {
  return implementation_->leading();
}

std::string LeaderElection::leader() const {
  return implementation_->leader();
}

}  // namespace trafficmirror::kube
