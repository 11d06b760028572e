// An open-loop HTTP/1.1 load generator: one thread, one epoll.
//
// Requests are due on a fixed time grid, whatever the server does. When every connection is busy
// they queue, and their latency counts from the time they were due: a slow server cannot slow down
// its own measurement (coordinated omission). A request is never sent twice.

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

namespace {

using Nanoseconds = int64_t;
constexpr Nanoseconds second = 1'000'000'000;
constexpr Nanoseconds drain_time = 5 * second;
constexpr Nanoseconds connect_time = 5 * second;
constexpr Nanoseconds reconnect_pause = 50'000'000;

volatile sig_atomic_t stop_asked = 0;

Nanoseconds now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * second + t.tv_nsec;
}

struct Options {
  std::string connect;
  double rate = 100;
  double seconds = 10;
  size_t connections = 10;
  std::string mode = "keepalive";
  std::string path = "/";
  std::string id_prefix = "r";
  size_t body_bytes = 0;
  uint32_t pacing = 0;
  std::string log;
  double report_every = 0;
};

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

Address resolve(const std::string& endpoint) {
  auto colon = endpoint.rfind(':');
  if (colon == std::string::npos) {
    throw std::runtime_error("--connect " + endpoint + ": HOST:PORT is wanted");
  }
  std::string host = endpoint.substr(0, colon);
  std::string port = endpoint.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    throw std::runtime_error("--connect " + endpoint + ": " + gai_strerror(error));
  }
  Address address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

// The body of a request is a function of its size and id alone, so that anybody can make it again.
void append_body(std::string& out, size_t bytes, std::string_view id) {
  uint64_t state = 0xcbf29ce484222325ULL ^ bytes;
  for (char c : id) {
    state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  size_t at = out.size();
  out.resize(at + bytes);
  for (size_t left = bytes; left > 0;) {
    state += 0x9e3779b97f4a7c15ULL;  // splitmix64
    uint64_t word = state;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ULL;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebULL;
    word ^= word >> 31;
    size_t count = std::min(left, sizeof word);
    std::memcpy(out.data() + at, &word, count);
    at += count;
    left -= count;
  }
}

// Reads one response, in whatever pieces it comes.
class Response {
 public:
  enum class Progress { incomplete, complete, malformed };

  void reset() { *this = Response(); }
  int status() const { return status_; }
  bool keep_alive() const { return keep_alive_; }
  bool complete() const { return part_ == Part::done; }

  Progress feed(std::string_view bytes) {
    while (!bytes.empty()) {
      switch (part_) {
        case Part::head:
        case Part::chunk_size:
        case Part::trailer:
          if (!take_line(bytes)) {
            return line_.size() > max_line ? Progress::malformed : Progress::incomplete;
          }
          if (!use_line()) {
            return Progress::malformed;
          }
          line_.clear();
          break;
        case Part::body:
        case Part::chunk: {
          size_t count = static_cast<size_t>(std::min<uint64_t>(left_, bytes.size()));
          bytes.remove_prefix(count);
          left_ -= count;
          if (left_ == 0) {
            part_ = part_ == Part::body ? Part::done : Part::chunk_size;
          }
          break;
        }
        case Part::until_close:
          return Progress::incomplete;
        case Part::done:
          return Progress::malformed;  // more than was asked for
      }
    }
    return part_ == Part::done ? Progress::complete : Progress::incomplete;
  }

  // Without a length, the end of the connection is the end of the body.
  bool complete_at_close() const { return part_ == Part::until_close; }

 private:
  enum class Part { head, body, chunk_size, chunk, trailer, until_close, done };
  static constexpr size_t max_line = 16384;

  bool take_line(std::string_view& bytes) {
    size_t end = bytes.find('\n');
    if (end == std::string_view::npos) {
      line_.append(bytes);
      bytes = {};
      return false;
    }
    line_.append(bytes.substr(0, end));
    bytes.remove_prefix(end + 1);
    if (!line_.empty() && line_.back() == '\r') {
      line_.pop_back();
    }
    return true;
  }

  bool use_line() {
    switch (part_) {
      case Part::head:
        return line_.empty() ? end_head() : use_head_line();
      case Part::chunk_size:
        if (line_.empty()) {
          return true;  // the line end after a chunk's data
        }
        if (!parse_number(line_, left_, 16)) {
          return false;
        }
        part_ = left_ == 0 ? Part::trailer : Part::chunk;
        return true;
      default:
        if (line_.empty()) {
          part_ = Part::done;
        }
        return true;
    }
  }

  bool use_head_line() {
    std::string_view line = line_;
    if (status_ == 0) {
      uint64_t status = 0;
      if (!line.starts_with("HTTP/1.") || line.size() < 12 ||
          !parse_number(line.substr(9, 3), status, 10)) {
        return false;
      }
      status_ = static_cast<int>(status);
      keep_alive_ = line[7] == '1';
      return true;
    }
    size_t colon = line.find(':');
    if (colon == std::string_view::npos) {
      return false;
    }
    std::string_view name = line.substr(0, colon);
    std::string_view value = line.substr(colon + 1);
    while (value.starts_with(' ')) {
      value.remove_prefix(1);
    }
    if (equal(name, "content-length")) {
      has_length_ = true;
      return parse_number(value, left_, 10);
    }
    if (equal(name, "transfer-encoding")) {
      chunked_ = equal(value, "chunked");
      return chunked_;
    }
    if (equal(name, "connection")) {
      keep_alive_ = !equal(value, "close");
    }
    return true;
  }

  bool end_head() {
    if (status_ == 0) {
      return false;
    }
    if (status_ < 200) {  // an interim response: the real one follows
      reset();
    } else if (chunked_) {
      part_ = Part::chunk_size;
    } else if (status_ == 204 || (has_length_ && left_ == 0)) {
      part_ = Part::done;
    } else {
      part_ = has_length_ ? Part::body : Part::until_close;
    }
    return true;
  }

  static bool parse_number(std::string_view text, uint64_t& number, int base) {
    return std::from_chars(text.data(), text.data() + text.size(), number, base).ec == std::errc();
  }

  static bool equal(std::string_view text, std::string_view lower) {
    return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
      return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b;
    });
  }

  Part part_ = Part::head;
  std::string line_;
  int status_ = 0;
  bool keep_alive_ = false;
  bool chunked_ = false;
  bool has_length_ = false;
  uint64_t left_ = 0;
};

class Latencies {
 public:
  void add(Nanoseconds latency) {
    microseconds_.push_back(static_cast<uint32_t>(
        std::clamp<Nanoseconds>(latency / 1000, 0, std::numeric_limits<uint32_t>::max())));
  }
  void clear() { microseconds_.clear(); }
  void sort() { std::sort(microseconds_.begin(), microseconds_.end()); }
  // After sort(). The smallest latency that is not less than the given part of all.
  uint32_t quantile(double part) const {
    if (microseconds_.empty()) {
      return 0;
    }
    auto count = static_cast<double>(microseconds_.size());
    auto rank = static_cast<size_t>(std::max(0.0, std::ceil(part * count) - 1));
    return microseconds_[std::min(rank, microseconds_.size() - 1)];
  }

 private:
  std::vector<uint32_t> microseconds_;
};

struct Connection {
  enum class State { closed, connecting, idle, busy, closing };
  State state = State::closed;
  int fd = -1;
  uint32_t generation = 0;  // tells an event of a former socket in this place from one of this
  std::string out;
  size_t out_sent = 0;
  Response response;
  int64_t request = -1;  // the number of the request in hand
  Nanoseconds reopen_at = 0;
};

class Load {
 public:
  explicit Load(Options options)
      : options_(std::move(options)),
        address_(resolve(options_.connect)),
        keep_alive_(options_.mode == "keepalive"),
        total_(std::llround(options_.rate * options_.seconds)),
        interval_(static_cast<double>(second) / options_.rate),
        connections_(options_.connections),
        epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    if (!options_.log.empty()) {
      log_ = std::fopen(options_.log.c_str(), "w");
      if (log_ == nullptr) {
        throw std::runtime_error("--log " + options_.log + ": " + std::strerror(errno));
      }
    }
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  ~Load() {
    for (Connection& c : connections_) {
      if (c.fd >= 0) {
        close(c.fd);
      }
    }
    close(epoll_);
    if (log_ != nullptr) {
      std::fclose(log_);
    }
  }

  void run() {
    open_first();
    start_ = now();
    const Nanoseconds report_interval = std::llround(options_.report_every * second);
    Nanoseconds report_at = report_interval > 0 ? start_ + report_interval : forever;
    Nanoseconds end = forever;
    while (true) {
      Nanoseconds time = now();
      if (stop_asked != 0 && total_ > due_at(time)) {
        total_ = due_at(time);
      }
      reopen(time);
      start_due(time);
      if (time >= report_at) {
        report();
        report_at += report_interval;
      }
      if (next_ == total_ && in_flight_ == 0) {
        break;
      }
      if (end == forever && due_at(time) == total_) {
        end = time + drain_time;
      }
      if (time >= end) {
        break;
      }
      Nanoseconds until = std::min(report_at, end);
      if (due_at(time) < total_) {
        until = std::min(until, scheduled(due_at(time)));
      }
      if (reopening_ > 0) {
        until = std::min(until, time + reconnect_pause);
      }
      wait(until - time);
    }
    finished_ = now();
    for (Connection& c : connections_) {
      if (c.request >= 0) {
        fail(c, "timeout");
      }
    }
    if (next_ < total_) {
      failed_["not sent"] += total_ - next_;
    }
    if (report_interval > 0 && finished_ + report_interval > report_at) {
      report();
    }
    summary();
  }

 private:
  static constexpr Nanoseconds forever = std::numeric_limits<Nanoseconds>::max();

  Nanoseconds scheduled(int64_t request) const {
    return start_ + static_cast<Nanoseconds>(static_cast<double>(request) * interval_);
  }

  // How many requests are due at this time.
  int64_t due_at(Nanoseconds time) const {
    auto count = static_cast<int64_t>(static_cast<double>(time - start_) / interval_) + 1;
    return std::min(count, total_);
  }

  // Kept-alive connections are there before the grid begins: it measures requests, not connects.
  void open_first() {
    if (!keep_alive_) {
      for (size_t i = 0; i < connections_.size(); ++i) {
        free_.push_back(i);
      }
      return;
    }
    for (size_t i = 0; i < connections_.size(); ++i) {
      open(i);
    }
    const Nanoseconds end = now() + connect_time;
    while (free_.size() < connections_.size()) {
      Nanoseconds time = now();
      if (time >= end || stop_asked != 0) {
        throw std::runtime_error(options_.connect + ": only " + std::to_string(free_.size()) +
                                 " of " + std::to_string(connections_.size()) +
                                 " connections opened");
      }
      reopen(time);
      wait(std::min(end - time, reconnect_pause));
    }
  }

  void open(size_t index) {
    Connection& c = connections_[index];
    c.fd = socket(address_.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c.fd < 0) {
      throw std::runtime_error(std::string("socket: ") + std::strerror(errno));
    }
    int on = 1;
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (options_.pacing > 0)
      setsockopt(c.fd, SOL_SOCKET, SO_MAX_PACING_RATE, &options_.pacing, sizeof options_.pacing);
    ++c.generation;
    c.state = Connection::State::connecting;
    epoll_event event{};
    // Edge-triggered: one epoll_ctl for the life of a connection.
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.u64 = static_cast<uint64_t>(c.generation) << 32 | index;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, c.fd, &event);
    const auto* to = reinterpret_cast<const sockaddr*>(&address_.storage);
    if (connect(c.fd, to, address_.length) != 0 && errno != EINPROGRESS) {
      connect_failed(index);
    }
  }

  void connect_failed(size_t index) {
    Connection& c = connections_[index];
    if (c.request >= 0) {
      fail(c, "connect");
    }
    close_connection(index);
  }

  // Closes, and sees to a successor: at once for a connection that had lived, else after a pause.
  void close_connection(size_t index) {
    Connection& c = connections_[index];
    bool had_lived = c.state != Connection::State::connecting;
    close(c.fd);
    c.fd = -1;
    c.state = Connection::State::closed;
    c.response.reset();
    if (!keep_alive_) {
      free_.push_back(index);
      return;
    }
    c.reopen_at = had_lived ? 0 : now() + reconnect_pause;
    ++reopening_;
  }

  void reopen(Nanoseconds time) {
    if (reopening_ == 0) {
      return;
    }
    for (size_t i = 0; i < connections_.size(); ++i) {
      Connection& c = connections_[i];
      if (c.state == Connection::State::closed && c.reopen_at <= time) {
        --reopening_;
        open(i);
      }
    }
  }

  void start_due(Nanoseconds time) {
    const int64_t due = due_at(time);
    while (next_ < due && !free_.empty()) {
      size_t index = free_.front();  // the longest idle first: all of them are used in turn
      free_.pop_front();
      Connection& c = connections_[index];
      if (keep_alive_ && c.state != Connection::State::idle) {
        continue;  // closed by the server while it was idle
      }
      c.request = next_++;
      ++in_flight_;
      ++sent_;
      write_request(c);
      if (keep_alive_) {
        c.state = Connection::State::busy;
        send_out(index);
      } else {
        open(index);
      }
    }
  }

  std::string id_of(int64_t request) const {
    return options_.id_prefix + "-" + std::to_string(request);
  }

  void write_request(Connection& c) {
    const std::string id = id_of(c.request);
    std::string& out = c.out;
    out.clear();
    c.out_sent = 0;
    out += options_.body_bytes > 0 ? "POST " : "GET ";
    out += options_.path;
    out += "?id=";
    out += id;
    out += " HTTP/1.1\r\nHost: ";
    out += options_.connect;
    out += "\r\nUser-Agent: trafficmirror-load\r\n";
    if (!keep_alive_) {
      out += "Connection: close\r\n";
    }
    if (options_.body_bytes > 0) {
      out += "Content-Type: application/octet-stream\r\nContent-Length: ";
      out += std::to_string(options_.body_bytes);
      out += "\r\n";
    }
    out += "\r\n";
    if (options_.body_bytes > 0) {
      append_body(out, options_.body_bytes, id);
    }
  }

  void send_out(size_t index) {
    Connection& c = connections_[index];
    while (c.out_sent < c.out.size()) {
      ssize_t count =
          send(c.fd, c.out.data() + c.out_sent, c.out.size() - c.out_sent, MSG_NOSIGNAL);
      if (count < 0) {
        if (errno == EINTR) {
          continue;
        }
        if (errno != EAGAIN) {
          lost(index, "reset");
        }
        return;
      }
      c.out_sent += static_cast<size_t>(count);
    }
    if (c.response.complete()) {
      finish(index);
    }
  }

  // The connection went away under a request, or under none.
  void lost(size_t index, const char* reason) {
    Connection& c = connections_[index];
    if (c.request >= 0) {
      fail(c, reason);
    }
    close_connection(index);
  }

  void fail(Connection& c, const char* reason) {
    ++failed_[reason];
    ++failed_since_report_;
    c.request = -1;
    --in_flight_;
  }

  void wait(Nanoseconds timeout) {
    std::array<epoll_event, 256> events;
    timespec limit{};
    timeout = std::max<Nanoseconds>(timeout, 0);
    limit.tv_sec = timeout / second;
    limit.tv_nsec = timeout % second;
    int count = epoll_pwait2(epoll_, events.data(), events.size(), &limit, nullptr);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      auto index = static_cast<size_t>(event.data.u64 & 0xffffffff);
      if (connections_[index].generation == event.data.u64 >> 32 && connections_[index].fd >= 0) {
        handle(index, event.events);
      }
    }
  }

  void handle(size_t index, uint32_t events) {
    Connection& c = connections_[index];
    if (c.state == Connection::State::connecting) {
      if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
        connect_failed(index);
        return;
      }
      if ((events & EPOLLOUT) == 0) {
        return;
      }
      ++opened_;
      if (c.request < 0) {
        c.state = Connection::State::idle;
        free_.push_back(index);
        return;
      }
      c.state = Connection::State::busy;
    }
    const uint32_t generation = c.generation;
    if ((events & EPOLLOUT) != 0 && c.out_sent < c.out.size()) {
      send_out(index);
    }
    if (c.generation == generation && c.fd >= 0 &&
        (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) != 0) {
      receive(index, (events & ~static_cast<uint32_t>(EPOLLIN | EPOLLOUT)) != 0);
    }
  }

  // `ending`: the end of the connection is already there and raises no edge of its own.
  void receive(size_t index, bool ending) {
    static std::array<char, 65536> buffer;
    Connection& c = connections_[index];
    while (true) {
      ssize_t count = recv(c.fd, buffer.data(), buffer.size(), 0);
      if (count < 0) {
        if (errno == EINTR) {
          continue;
        }
        if (errno != EAGAIN) {
          lost(index, "reset");
        }
        return;
      }
      if (count == 0) {
        if (c.request >= 0 && c.response.complete_at_close()) {
          answered(c);
        }
        lost(index, "closed");
        return;
      }
      if (c.request < 0) {
        // Bytes nobody asked for. A closing connection waits for its end only.
        if (c.state == Connection::State::idle) {
          lost(index, "malformed");
          return;
        }
        continue;
      }
      switch (c.response.feed({buffer.data(), static_cast<size_t>(count)})) {
        case Response::Progress::malformed:
          lost(index, "malformed");
          return;
        case Response::Progress::complete:
          // A server may answer before it has read the whole body. The rest must go out before the
          // connection serves another request: send_out() finishes it then.
          if (c.out_sent == c.out.size()) {
            finish(index);
          }
          break;
        case Response::Progress::incomplete:
          break;
      }
      if (c.fd < 0 || (static_cast<size_t>(count) < buffer.size() && !ending)) {
        return;  // a short read: the next byte, or the end, raises a new edge
      }
    }
  }

  void finish(size_t index) {
    Connection& c = connections_[index];
    bool keep = keep_alive_ && c.response.keep_alive();
    answered(c);
    c.response.reset();
    if (keep) {
      c.state = Connection::State::idle;
      free_.push_back(index);
    } else {
      // The server closes first, as it was asked to: TIME_WAIT stays with it and the client's
      // ports are free again.
      c.state = Connection::State::closing;
    }
  }

  void answered(Connection& c) {
    if (c.response.status() < 200 || c.response.status() > 299) {
      fail(c, "status");
      return;
    }
    Nanoseconds latency = now() - scheduled(c.request);
    all_.add(latency);
    if (options_.report_every > 0) {
      recent_.add(latency);
    }
    ++ok_;
    if (log_ != nullptr) {
      std::fprintf(log_, "%s-%lld\n", options_.id_prefix.c_str(),
                   static_cast<long long>(c.request));
    }
    c.request = -1;
    --in_flight_;
  }

  void report() {
    recent_.sort();
    std::printf(
        "{\"seconds\": %.1f, \"sent\": %lld, \"ok\": %lld, \"failed\": %lld, \"queued\": %lld, "
        "\"p50_us\": %u, \"p99_us\": %u, \"max_us\": %u}\n",
        static_cast<double>(now() - start_) / second, static_cast<long long>(sent_ - sent_before_),
        static_cast<long long>(ok_ - ok_before_), static_cast<long long>(failed_since_report_),
        static_cast<long long>(due_at(now()) - next_), recent_.quantile(0.5),
        recent_.quantile(0.99), recent_.quantile(1));
    std::fflush(stdout);
    sent_before_ = sent_;
    ok_before_ = ok_;
    failed_since_report_ = 0;
    recent_.clear();
  }

  void summary() {
    int64_t failed = 0;
    std::string reasons;
    for (const auto& [reason, count] : failed_) {
      failed += count;
      reasons += (reasons.empty() ? "\"" : ", \"") + reason + "\": " + std::to_string(count);
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    double cpu = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
                 static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    double elapsed = static_cast<double>(finished_ - start_) / second;
    all_.sort();
    std::printf(
        "{\"requests\": %lld, \"sent\": %lld, \"ok\": %lld, \"failed\": %lld, "
        "\"failed_by\": {%s}, \"p50_us\": %u, \"p99_us\": %u, \"p999_us\": %u, \"max_us\": %u, "
        "\"rate\": %.1f, \"seconds\": %.3f, \"connections_opened\": %lld, "
        "\"cpu_us_per_request\": %.1f}\n",
        static_cast<long long>(total_), static_cast<long long>(sent_), static_cast<long long>(ok_),
        static_cast<long long>(failed), reasons.c_str(), all_.quantile(0.5), all_.quantile(0.99),
        all_.quantile(0.999), all_.quantile(1),
        elapsed > 0 ? static_cast<double>(ok_) / elapsed : 0.0, elapsed,
        static_cast<long long>(opened_), sent_ > 0 ? cpu / static_cast<double>(sent_) : 0.0);
    std::fflush(stdout);
  }

  Options options_;
  Address address_;
  bool keep_alive_;
  int64_t total_;
  double interval_;
  std::vector<Connection> connections_;
  std::deque<size_t> free_;  // idle connections, or places for one
  size_t reopening_ = 0;
  int epoll_;
  FILE* log_ = nullptr;
  Nanoseconds start_ = 0;
  Nanoseconds finished_ = 0;
  int64_t next_ = 0;  // the first request that no connection has taken
  int64_t in_flight_ = 0;
  int64_t sent_ = 0;
  int64_t sent_before_ = 0;
  int64_t ok_ = 0;
  int64_t ok_before_ = 0;
  int64_t opened_ = 0;
  int64_t failed_since_report_ = 0;
  std::map<std::string, int64_t> failed_;
  Latencies all_;
  Latencies recent_;
};

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Sends HTTP/1.1 requests on a fixed time grid, each with an id of its own.");
  app.add_option("--connect", options.connect, "HOST:PORT or [IPV6]:PORT")->required();
  app.add_option("--rate", options.rate, "requests a second")->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "how long")->check(CLI::PositiveNumber);
  app.add_option("--connections", options.connections, "connections open at once, at most")
      ->check(CLI::PositiveNumber);
  app.add_option("--mode", options.mode, "keepalive, or close: a connection for each request")
      ->check(CLI::IsMember({"keepalive", "close"}));
  app.add_option("--path", options.path, "path that is asked for, with ?id=PREFIX-N after it");
  app.add_option("--id-prefix", options.id_prefix, "PREFIX of the ids");
  app.add_option("--body-bytes", options.body_bytes, "POST a body of so many bytes");
  app.add_option("--pacing", options.pacing, "bytes a second on each connection, at most");
  app.add_option("--log", options.log, "file for the ids that were answered 2xx, one a line");
  app.add_option("--report-every", options.report_every, "seconds between lines of figures");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  struct sigaction action {};
  action.sa_handler = [](int) { stop_asked = 1; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  prctl(PR_SET_TIMERSLACK, 5000UL);  // the grid is finer than the default slack of 50 microseconds
  Load(options).run();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "trafficmirror-load: %s\n", error.what());
    return 1;
  }
}
