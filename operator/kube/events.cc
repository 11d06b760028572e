#include "operator/kube/events.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <tuple>
#include <utility>

#include <spdlog/spdlog.h>

#include "operator/kube/wall_time.h"

namespace trafficmirror::kube {
namespace {

const Resource events{.group = "", .version = "v1", .plural = "events"};
// The server takes no longer ones.
constexpr size_t longest_message = 1024;
// Of the object's name in the Event's: a name has 253 characters at most.
constexpr size_t longest_prefix = 200;

}  // namespace

class EventRecorder::Implementation {
 public:
  Implementation(Client& client, Options options) : client_(client), options_(std::move(options)) {}

  void record(const Json& about, EventType type, const std::string& reason,
              const std::string& message) {
    Said said{.about = {{"apiVersion", text_at(about, "/apiVersion")},
                        {"kind", text_at(about, "/kind")},
                        {"namespace", text_at(about, "/metadata/namespace")},
                        {"name", text_at(about, "/metadata/name")},
                        {"uid", text_at(about, "/metadata/uid")},
                        {"resourceVersion", text_at(about, "/metadata/resourceVersion")}},
              .type = type == EventType::normal ? "Normal" : "Warning",
              .reason = reason,
              .message = message.substr(0, longest_message),
              .time = to_text(std::chrono::system_clock::now())};
    const std::lock_guard lock(mutex_);
    if (queue_.size() >= options_.longest_queue) return;
    queue_.push_back(std::move(said));
    wake_.notify_one();
  }

 private:
  struct Said {
    Json about;  // an ObjectReference
    std::string type;
    std::string reason;
    std::string message;
    std::string time;
  };
  // An Event that was posted.
  struct Posted {
    Key key;
    int count = 1;
    Clock::time_point last;
  };
  // How many more Events an object may have.
  struct Allowance {
    double left;
    Clock::time_point as_of;
  };
  using Identity = std::tuple<Key, std::string, std::string, std::string, std::string>;

  void run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (wake_.wait(lock, stop, [&] { return !queue_.empty(); })) {
      if (stop.stop_requested()) return;
      const Said said = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      const auto error = post(said, {.timeout = std::chrono::seconds(5), .stop = stop});
      if (error && error->kind != ErrorKind::stopped)
        spdlog::warn("the Event {} of {} is lost: {}", said.reason, text_at(said.about, "/name"),
                     error->message);
      lock.lock();
    }
  }

  std::optional<Error> post(const Said& said, const CallOptions& call) {
    const auto now = options_.now();
    forget_old(now);
    const Key about{text_at(said.about, "/namespace"), text_at(said.about, "/name")};
    const std::string kind = text_at(said.about, "/kind");
    if (!allow({kind, about}, now)) return std::nullopt;
    const Identity identity{about, kind + text_at(said.about, "/uid"), said.type, said.reason,
                            said.message};
    if (const auto known = posted_.find(identity); known != posted_.end()) {
      Posted& posted = known->second;
      const auto counted = client_.patch(
          events, posted.key, {{"count", posted.count + 1}, {"lastTimestamp", said.time}},
          PatchType::merge, "", call);
      if (counted) {
        ++posted.count;
        posted.last = now;
        return std::nullopt;
      }
      posted_.erase(known);
      // The server keeps Events for an hour or so.
      if (counted.error().kind != ErrorKind::not_found) return counted.error();
    }
    const Key key{about.namespace_.empty() ? "default" : about.namespace_,
                  about.name.substr(0, longest_prefix) + "." + unique()};
    const Json event = {{"apiVersion", "v1"},
                        {"kind", "Event"},
                        {"metadata", {{"namespace", key.namespace_}, {"name", key.name}}},
                        {"involvedObject", said.about},
                        {"type", said.type},
                        {"reason", said.reason},
                        {"message", said.message},
                        {"source", {{"component", options_.component}}},
                        {"reportingComponent", options_.component},
                        {"reportingInstance", options_.instance},
                        {"firstTimestamp", said.time},
                        {"lastTimestamp", said.time},
                        {"count", 1}};
    const auto created = client_.create(events, event, call);
    if (!created) return created.error();
    posted_[identity] = {.key = key, .count = 1, .last = now};
    return std::nullopt;
  }

  bool allow(const std::pair<std::string, Key>& object, Clock::time_point now) {
    const double burst = options_.burst;
    Allowance& allowance = allowances_.try_emplace(object, Allowance{burst, now}).first->second;
    const std::chrono::duration<double> passed = now - allowance.as_of;
    const std::chrono::duration<double> interval = options_.interval;
    allowance.left = std::min(burst, allowance.left + passed / interval);
    allowance.as_of = now;
    // A third of a third of a third is no whole one, and has to be.
    constexpr double whole = 1 - 1e-6;
    if (allowance.left < whole) return false;
    allowance.left -= 1;
    return true;
  }

  void forget_old(Clock::time_point now) {
    std::erase_if(posted_, [&](const auto& entry) {
      return now - entry.second.last > options_.aggregate_for;
    });
    std::erase_if(allowances_, [&](const auto& entry) {
      return now - entry.second.as_of > options_.interval * options_.burst;
    });
  }

  std::string unique() {
    std::string text;
    for (int i = 0; i < 16; ++i) text += "0123456789abcdef"[random_() % 16];
    return text;
  }

  Client& client_;
  const Options options_;
  // Of the thread alone.
  std::mt19937_64 random_{std::random_device{}()};
  std::map<Identity, Posted> posted_;
  std::map<std::pair<std::string, Key>, Allowance> allowances_;

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<Said> queue_;
  // Last, so that it ends before what it uses does.
  std::jthread thread_{[this](const std::stop_token& stop) { run(stop); }};
};

EventRecorder::EventRecorder(Client& client, Options options)
    : implementation_(std::make_unique<Implementation>(client, std::move(options))) {}

EventRecorder::~EventRecorder() = default;

void EventRecorder::record(const Json& about, EventType type, const std::string& reason,
                           const std::string& message) {
  implementation_->record(about, type, reason, message);
}

}  // namespace trafficmirror::kube
