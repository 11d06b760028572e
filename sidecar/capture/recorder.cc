#include "sidecar/capture/recorder.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program/start_error.h"

namespace trafficmirror::capture {
namespace {

// A wake-up for each packet would cost more than the packet; what waits for so long is lost if this
// process is killed.
constexpr std::chrono::milliseconds write_interval(100);
constexpr size_t worth_a_wakeup = 1 << 20;

// The headers of a file and of each packet in it, in this machine's byte order (the magic number
// tells it): draft-ietf-opsawg-pcap.
struct FileHeader {
  uint32_t magic = 0xa1b23c4d;  // with nanoseconds
  uint16_t version_major = 2;
  uint16_t version_minor = 4;
  uint32_t reserved[2] = {0, 0};
  uint32_t snap_length = 262144;  // the most that libpcap takes
  uint32_t link_type = 101;       // LINKTYPE_RAW: begins with the IP header
};
static_assert(sizeof(FileHeader) == 24);

struct RecordHeader {
  uint32_t seconds;
  uint32_t nanoseconds;
  uint32_t captured_length;
  uint32_t length;
};
static_assert(sizeof(RecordHeader) == 16);

std::system_error failure(const std::string& what) {
  return {errno, std::generic_category(), what};
}

}  // namespace

Recorder::Recorder(Options options) : options_(std::move(options)) {
  struct stat status {};
  if (::stat(options_.path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
    throw program::StartError("--record " + options_.path + " is no file that can be replaced");
  try {
    open_next();
  } catch (const std::system_error& error) {
    throw program::StartError("--record " + std::string(error.what()));
  }
  writer_ = std::thread([this] { write_all(); });
}

Recorder::~Recorder() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  writer_.join();
  if (file_ >= 0) ::close(file_);
}

void Recorder::add(const CapturedPacket& packet) {
  const auto length = static_cast<uint32_t>(packet.bytes.size());
  const auto seconds = std::chrono::floor<std::chrono::seconds>(packet.time);
  const RecordHeader header{static_cast<uint32_t>(seconds.count()),
                            static_cast<uint32_t>((packet.time - seconds).count()), length,
                            static_cast<uint32_t>(packet.wire_length)};
  const std::lock_guard lock(mutex_);
  if (failed_ || waiting_.size() + sizeof header + length > max_waiting_bytes) {
    ++counters_.drops;
    return;
  }
  const bool worth_it_before = waiting_.size() >= worth_a_wakeup;
  waiting_.append(reinterpret_cast<const char*>(&header), sizeof header);
  waiting_.append(reinterpret_cast<const char*>(packet.bytes.data()), length);
  ++waiting_packets_;
  if (!worth_it_before && waiting_.size() >= worth_a_wakeup) wake_.notify_one();
}

Recorder::Counters Recorder::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

// ---- the writer

void Recorder::write_all() {
  std::string records;
  for (bool last = false; !last;) {
    uint64_t packets = 0;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, write_interval,
                     [&] { return ending_ || waiting_.size() >= worth_a_wakeup; });
      last = ending_;
      records.clear();
      records.swap(waiting_);
      packets = std::exchange(waiting_packets_, 0);
    }
    if (records.empty()) continue;
    try {
      write_records(records);
      const std::lock_guard lock(mutex_);
      counters_.packets += packets;
      counters_.bytes += records.size();
    } catch (const std::system_error& error) {
      spdlog::error("--record {}: nothing more is recorded", error.what());
      const std::lock_guard lock(mutex_);
      failed_ = true;
      ++counters_.failures;
      counters_.drops += packets + std::exchange(waiting_packets_, 0);
      waiting_ = {};
      return;
    }
  }
}

void Recorder::write_records(const std::string& records) {
  size_t begin = 0;  // of what is still to be written
  for (size_t at = 0; at < records.size();) {
    RecordHeader header;
    std::memcpy(&header, &records[at], sizeof header);
    const size_t size = sizeof header + header.captured_length;
    if (file_size_ + (at - begin) + size > options_.file_bytes) {
      write(&records[begin], at - begin);
      begin = at;
      open_next();
    }
    at += size;
  }
  write(&records[begin], records.size() - begin);
}

// What is there of former files is moved on by one name; a new one takes the first.
void Recorder::open_next() {
  if (file_ >= 0) ::close(std::exchange(file_, -1));
  const auto name = [&](uint32_t number) {
    return number == 0 ? options_.path : options_.path + "." + std::to_string(number);
  };
  for (uint32_t number = options_.files - 1; number > 0; --number) {
    const std::string from = name(number - 1);
    if (std::rename(from.c_str(), name(number).c_str()) != 0 && errno != ENOENT)
      throw failure("renaming " + from);
  }
  // It holds what clients sent: for this user alone.
  file_ = ::open(options_.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file_ < 0) throw failure(options_.path);
  file_size_ = 0;
  const FileHeader header;
  write(reinterpret_cast<const char*>(&header), sizeof header);
}

void Recorder::write(const char* bytes, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(file_, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw failure("writing " + options_.path);
    bytes += written;
    size -= static_cast<size_t>(written);
    file_size_ += static_cast<uint64_t>(written);
  }
}

}  // namespace trafficmirror::capture
