#include "sidecar/replay/input.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "program/start_error.h"

namespace trafficmirror::replay {
namespace {

constexpr size_t read_at_a_time = 64 << 10;
constexpr std::string_view gzip_magic("\x1f\x8b", 2);          // RFC 1952
constexpr std::string_view zstd_magic("\x28\xb5\x2f\xfd", 4);  // RFC 8878

class Plain : public Input::Decoder {
 public:
  explicit Plain(Input& input) : input_(input) {}

  int64_t read(char* to, size_t size) override {
    if (taken_ == bytes_.size()) {
      if (!input_.fill(bytes_)) return -1;
      taken_ = 0;
    }
    const size_t count = std::min(size, bytes_.size() - taken_);
    std::memcpy(to, bytes_.data() + taken_, count);
    taken_ += count;
    return static_cast<int64_t>(count);
  }

 private:
  Input& input_;
  std::vector<char> bytes_;
  size_t taken_ = 0;
};

class Gzip : public Input::Decoder {
 public:
  explicit Gzip(Input& input) : input_(input) {
    constexpr int with_gzip_header = 16;
    if (inflateInit2(&stream_, MAX_WBITS + with_gzip_header) != Z_OK)
      throw program::StartError("there is no memory to unpack gzip");
  }
  ~Gzip() override { inflateEnd(&stream_); }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  int64_t read(char* to, size_t size) override {
    stream_.next_out = reinterpret_cast<Bytef*>(to);
    stream_.avail_out = static_cast<uInt>(size);
    while (stream_.avail_out == size) {
      if (stream_.avail_in == 0) {
        if (!input_.fill(bytes_)) return -1;
        if (bytes_.empty()) return between_members_ ? 0 : input_.fail("its gzip data end too soon");
        stream_.next_in = reinterpret_cast<Bytef*>(bytes_.data());
        stream_.avail_in = static_cast<uInt>(bytes_.size());
      }
      // A file may be several of them, one behind the other.
      if (std::exchange(between_members_, false)) inflateReset(&stream_);
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_STREAM_END)
        between_members_ = true;
      else if (result != Z_OK)
        return input_.fail("its gzip data are corrupt");
    }
    return static_cast<int64_t>(size - stream_.avail_out);
  }

 private:
  Input& input_;
  z_stream stream_{};
  std::vector<char> bytes_;
  bool between_members_ = false;
};

class Zstd : public Input::Decoder {
 public:
  explicit Zstd(Input& input) : input_(input), stream_(ZSTD_createDStream()) {
    if (!stream_) throw program::StartError("there is no memory to unpack zstd");
  }

  int64_t read(char* to, size_t size) override {
    ZSTD_outBuffer out{to, size, 0};
    while (out.pos == 0) {
      if (in_.pos == in_.size) {
        if (!input_.fill(bytes_)) return -1;
        if (bytes_.empty()) return between_frames_ ? 0 : input_.fail("its zstd data end too soon");
        in_ = {bytes_.data(), bytes_.size(), 0};
      }
      const size_t result = ZSTD_decompressStream(stream_.get(), &out, &in_);
      if (ZSTD_isError(result))
        return input_.fail(std::string("its zstd data are corrupt: ") + ZSTD_getErrorName(result));
      between_frames_ = result == 0;
    }
    return static_cast<int64_t>(out.pos);
  }

 private:
  struct Free {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };
  Input& input_;
  std::unique_ptr<ZSTD_DStream, Free> stream_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  std::vector<char> bytes_;
  bool between_frames_ = false;
};

}  // namespace

Input::Input(const std::string& path, int stop_descriptor)
    : path_(path), stop_descriptor_(stop_descriptor) {
  // Not even a named pipe that nobody writes to holds it up here.
  file_ = path == "-" ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                      : ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (file_ < 0) throw program::StartError("--pcap " + path_ + ": " + std::strerror(errno));
  struct stat status {};
  if (::fstat(file_, &status) == 0 && S_ISREG(status.st_mode))
    size_ = static_cast<uint64_t>(status.st_size);

  std::vector<char> more;
  while (first_.size() < zstd_magic.size() && fill(more) && !more.empty())
    first_.insert(first_.end(), more.begin(), more.end());
  const std::string_view begin(first_.data(), first_.size());
  if (begin.starts_with(gzip_magic))
    decoder_ = std::make_unique<Gzip>(*this);
  else if (begin.starts_with(zstd_magic))
    decoder_ = std::make_unique<Zstd>(*this);
  else
    decoder_ = std::make_unique<Plain>(*this);
}

Input::~Input() {
  ::close(file_);
}

bool Input::fill(std::vector<char>& bytes) {
  if (!problem_.empty()) return false;
  if (decoder_ && !first_.empty()) {
    bytes = std::exchange(first_, {});
    return true;
  }
  for (;;) {
    std::array<pollfd, 2> waiting = {{{file_, POLLIN, 0}, {stop_descriptor_, POLLIN, 0}}};
    ::poll(waiting.data(), waiting.size(), -1);
    if (waiting[1].revents != 0) return fail("reading was stopped") >= 0;
    bytes.resize(read_at_a_time);
    const ssize_t count = ::read(file_, bytes.data(), bytes.size());
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count < 0) return fail(std::strerror(errno)) >= 0;
    bytes.resize(static_cast<size_t>(count));
    position_ += bytes.size();
    return true;
  }
}

int64_t Input::fail(std::string problem) {
  problem_ = std::move(problem);
  return -1;
}

int64_t Input::read(char* to, size_t size) {
  return problem_.empty() ? decoder_->read(to, size) : -1;
}

std::unique_ptr<std::FILE, Input::Close> Input::stream() {
  cookie_io_functions_t functions{};
  functions.read = [](void* input, char* to, size_t size) -> ssize_t {
    const auto count = static_cast<Input*>(input)->read(to, size);
    if (count < 0) errno = EIO;
    return count;
  };
  std::unique_ptr<std::FILE, Close> stream(::fopencookie(this, "r", functions));
  if (!stream) throw program::StartError("--pcap " + path_ + ": " + std::strerror(errno));
  std::setvbuf(stream.get(), nullptr, _IOFBF, read_at_a_time);
  return stream;
}

}  // namespace trafficmirror::replay
