#include "sidecar/replay/reader.h"

#include <algorithm>
#include <array>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "program/start_error.h"
#include "sidecar/replay/packet_file.h"

namespace trafficmirror::replay {
namespace {

int make_event() {
  const int descriptor = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (descriptor < 0) throw program::StartError("eventfd failed: too many open files?");
  return descriptor;
}

void notify(int event) {
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(event, &one, sizeof one);
}

}  // namespace

Reader::Reader(const std::string& path, uint32_t rounds, int stop_descriptor)
    : event_(make_event()), stop_(make_event()) {
  thread_ = std::thread([this, path, rounds] { read(path, rounds); });
  wait_for_first(stop_descriptor);
  std::string problem;
  {
    const std::lock_guard lock(mutex_);
    if (packets_ == 0) problem = problem_;
  }
  if (problem.empty()) return;
  thread_.join();
  ::close(event_);
  ::close(stop_);
  throw program::StartError(problem);
}

Reader::~Reader() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  room_.notify_one();
  notify(stop_);
  thread_.join();
  ::close(event_);
  ::close(stop_);
}

void Reader::wait_for_first(int stop_descriptor) {
  std::array<pollfd, 2> waiting = {{{event_, POLLIN, 0}, {stop_descriptor, POLLIN, 0}}};
  ::poll(waiting.data(), waiting.size(), -1);
}

std::optional<Reader::Item> Reader::next() {
  if (taken_ == current_.entries.size()) {
    current_.bytes.clear();
    current_.entries.clear();
    taken_ = 0;
    {
      const std::lock_guard lock(mutex_);
      std::swap(current_, waiting_);
      uint64_t count;
      [[maybe_unused]] const auto got = ::read(event_, &count, sizeof count);
    }
    room_.notify_one();
    if (current_.entries.empty()) return std::nullopt;
  }
  const Entry& entry = current_.entries[taken_];
  Item item;
  item.round_ended = entry.round_ended;
  item.percent = entry.percent;
  item.packet.bytes = std::span(current_.bytes).subspan(entry.begin, entry.length);
  item.packet.wire_length = entry.wire_length;
  item.packet.time = entry.time;
  return item;
}

bool Reader::finished() {
  if (taken_ < current_.entries.size()) return false;
  const std::lock_guard lock(mutex_);
  return finished_ && waiting_.entries.empty();
}

std::string Reader::problem() const {
  const std::lock_guard lock(mutex_);
  return problem_;
}

// ---- the thread

void Reader::read(const std::string& path, uint32_t rounds) {
  std::string problem;
  try {
    for (uint32_t round = 0; round < rounds; ++round) read_round(path, round);
  } catch (const std::exception& error) {  // it is no capture, or is gone
    problem = error.what();
  }
  const std::lock_guard lock(mutex_);
  if (problem_.empty()) problem_ = problem;
  finished_ = true;
  notify(event_);
}

void Reader::read_round(const std::string& path, uint32_t round) {
  PacketFile file(path, stop_);
  while (round >= wanted_from_) {
    const auto packet = file.next();
    if (!packet) break;
    if (!push(*packet, false, file.input())) return;
  }
  {
    const std::lock_guard lock(mutex_);
    if (problem_.empty()) problem_ = file.problem();
    if (!problem_.empty() && packets_ == 0) return;
  }
  push({}, true, file.input());
}

bool Reader::push(const capture::CapturedPacket& packet, bool round_ended, const Input& input) {
  // A file that is still written grows.
  std::optional<int8_t> percent;
  if (input.size() > 0)
    percent = static_cast<int8_t>(std::min<uint64_t>(100, input.position() * 100 / input.size()));
  std::unique_lock lock(mutex_);
  room_.wait(lock, [&] {
    return ending_ ||
           waiting_.bytes.size() + waiting_.entries.size() * sizeof(Entry) < max_waiting_bytes;
  });
  if (ending_) return false;
  if (waiting_.entries.empty()) notify(event_);
  packets_ += round_ended ? 0 : 1;
  waiting_.entries.push_back({waiting_.bytes.size(), static_cast<uint32_t>(packet.bytes.size()),
                              packet.wire_length, packet.time, round_ended, percent});
  waiting_.bytes.insert(waiting_.bytes.end(), packet.bytes.begin(), packet.bytes.end());
  return true;
}

}  // namespace trafficmirror::replay
