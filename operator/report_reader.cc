#include "operator/report_reader.h"

#include <httplib.h>

namespace trafficmirror::controller {
namespace {

// What an intercept says is a few kilobytes; more is not read.
constexpr size_t longest_report = 4 << 20;

}  // namespace

ReportReader::ReportReader(Options options) : options_(std::move(options)) {
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { run(); });
}

ReportReader::~ReportReader() {
  queue_.shut_down();
  threads_.clear();
}

void ReportReader::follow(const kube::Key& pod, const std::string& address, uint16_t port,
                          const std::string& instance) {
  {
    const std::lock_guard lock(mutex_);
    if (address.empty()) {
      followed_.erase(pod);
      return;
    }
    Followed& followed = followed_[pod];
    if (followed.address == address && followed.reading.instance == instance) return;
    followed = {address, port, {std::nullopt, "not read yet", instance}};
  }
  queue_.add(pod);
}

std::optional<Reading> ReportReader::get(const kube::Key& pod) const {
  const std::lock_guard lock(mutex_);
  const auto found = followed_.find(pod);
  if (found == followed_.end()) return std::nullopt;
  return found->second.reading;
}

Reading ReportReader::read(const Followed& followed) const {
  Reading reading;
  reading.instance = followed.reading.instance;
  httplib::Client http(followed.address, followed.port);
  http.set_connection_timeout(options_.timeout);
  http.set_read_timeout(options_.timeout);
  std::string body;
  const auto answer = http.Get("/status", [&](const char* data, size_t size) {
    body.append(data, size);
    return body.size() <= longest_report;
  });
  if (!answer)
    reading.problem = "its status can't be read: " + httplib::to_string(answer.error());
  else if (answer->status != 200)
    reading.problem = "its status can't be read: HTTP " + std::to_string(answer->status);
  else if (!(reading.report = parse_report(body)))
    reading.problem = "what it says of its status makes no sense: is its image another version?";
  return reading;
}

void ReportReader::run() {
  while (const auto pod = queue_.get()) {
    std::optional<Followed> before;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = followed_.find(*pod); found != followed_.end()) before = found->second;
    }
    if (before) {
      const Reading reading = read(*before);
      bool changed = false;
      {
        const std::lock_guard lock(mutex_);
        const auto found = followed_.find(*pod);
        if (found != followed_.end() && found->second.address == before->address &&
            found->second.reading.instance == reading.instance) {
          changed = !(found->second.reading == reading);
          found->second.reading = reading;
        }
      }
      queue_.add_after(*pod, options_.interval);
      if (changed) options_.changed(*pod);
    }
    queue_.done(*pod);
  }
}

}  // namespace trafficmirror::controller
