#include "sidecar/uplink/uplink.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>

#include <grpcpp/grpcpp.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "program/flags.h"
#include "program/start_error.h"
#include "sidecar/uplink/credentials.h"
#include "sidecar/uplink/messages.h"
#include "trafficmirror/v1/mirror.grpc.pb.h"

namespace trafficmirror::uplink {
namespace {

using std::chrono::milliseconds;

// The first attempt after a loss comes within 150 ms; then twice as long each time, up to two
// seconds. The jitter keeps a hundred sidecars of one intercept from dialling in step.
constexpr milliseconds first_pause(100);
constexpr milliseconds longest_pause(2000);
// An intercept that accepts the stream answers with a lease at once.
constexpr milliseconds lease_timeout(5000);
// Headers that wait to be taken; beyond it the stream is not read, and the intercept drops what it
// can't pass on.
constexpr size_t max_inbox_bytes = 4 << 20;

std::shared_ptr<grpc::Channel> make_channel(const Uplink::Options& options) {
  grpc::ChannelArguments arguments;
  // Each attempt is a channel of its own, so that the pauses between attempts are ours and not
  // gRPC's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 3000);  // which bounds connecting
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // A host that vanishes sends no RST.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(program::to_text(options.intercept),
                                   channel_credentials(options.tls.get()), arguments);
}

// What gRPC's threads and the owner share. It outlives the uplink while a stream is still ending.
struct Shared {
  std::mutex mutex;
  std::condition_variable ended;
  std::vector<Event> inbox;
  size_t inbox_bytes = 0;
  bool notified = false;
  bool stream_running = false;  // from StartCall to OnDone
  int event_descriptor = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

  Shared() {
    if (event_descriptor < 0) throw program::StartError("eventfd failed: too many open files?");
  }
  ~Shared() { ::close(event_descriptor); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  // With the mutex held.
  void notify() {
    if (notified) return;
    notified = true;
    const uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_descriptor, &one, sizeof one);
  }
  template <typename Of>
  void push(Of&& event, size_t bytes) {
    inbox.emplace_back(std::forward<Of>(event));
    inbox_bytes += bytes;
    notify();
  }
};

// One attempt at a stream and, if it succeeds, the stream. The owner keeps it until it is told of
// its end.
//
// Operations are started under the mutex: the owner's can then not cross the end of the stream,
// since `ended_` is set under it before the hold goes that keeps OnDone away. gRPC never calls back
// out of Start….
class Stream final : public grpc::ClientBidiReactor<v1::SidecarMessage, v1::InterceptMessage> {
 public:
  static std::shared_ptr<Stream> start(const Uplink::Options& options,
                                       std::shared_ptr<Shared> shared) {
    auto stream = std::make_shared<Stream>(options, std::move(shared));
    stream->self_ = stream;
    stream->is_writing_ = true;
    stream->stub_->async()->Stream(&stream->context_, stream.get());
    stream->AddHold();
    stream->StartRead(&stream->reading_);
    stream->StartWrite(&stream->writing_);
    stream->StartCall();
    return stream;
  }

  Stream(const Uplink::Options& options, std::shared_ptr<Shared> shared)
      : tls_(options.tls),
        shared_(std::move(shared)),
        stub_(v1::Mirror::NewStub(make_channel(options))) {
    v1::Hello& hello = *writing_.mutable_hello();
    hello.set_version(options.version);
    hello.set_name(options.name);
    for (const net::Port port : options.ports) hello.add_ports(port.number);
    for (const net::Port port : options.udp_ports) hello.add_udp_ports(port.number);
    for (const net::Port port : options.reply_ports) hello.add_reply_ports(port.number);
    hello.set_wants_identity(tls_ && tls_->from_environment());
    hello.set_sends_directly(options.sends_directly);
  }

  // -- the owner's thread

  // False where the batch was dropped.
  bool send(std::string&& packets) {
    const std::lock_guard lock(shared_->mutex);
    if (ended_ || waiting_.size() > 2 * Uplink::max_waiting_bytes) return false;
    if (waiting_.empty())
      waiting_ = std::move(packets);
    else
      waiting_.append(packets);
    write_next();
    return true;
  }

  bool full() {
    const std::lock_guard lock(shared_->mutex);
    if (waiting_.size() > Uplink::max_waiting_bytes) was_full_ = true;
    return waiting_.size() > Uplink::max_waiting_bytes;
  }

  void ask_for_more_source_ports() {
    const std::lock_guard lock(shared_->mutex);
    wants_ports_ = true;
    write_next();
  }

  bool report(const session::Counters& since, const std::optional<ReplayProgress>& replay) {
    const std::lock_guard lock(shared_->mutex);
    if (ended_ || finishing_ || report_) return false;
    write_statistics(since, replay, report_.emplace());
    write_next();
    return true;
  }

  void finish() {
    const std::lock_guard lock(shared_->mutex);
    finishing_ = true;
    write_next();
  }

  void cancel(const char* reason) {
    const std::lock_guard lock(shared_->mutex);
    end(reason);
  }

  // The inbox has room again.
  void read_on() {
    const std::lock_guard lock(shared_->mutex);
    if (ended_ || !std::exchange(read_paused_, false)) return;
    StartRead(&reading_);
  }

 private:
  // Under the mutex: starts whatever is to be written next, unless a write is under way.
  void write_next() {
    if (is_writing_ || ended_) return;
    if (wants_ports_) {
      wants_ports_ = false;
      writing_.mutable_more_source_ports();
    } else if (!waiting_.empty()) {
      writing_.mutable_packets()->set_packets(std::move(waiting_));
      waiting_.clear();
      if (std::exchange(was_full_, false)) shared_->notify();
    } else if (report_) {
      *writing_.mutable_statistics() = std::move(*report_);
      report_.reset();
    } else if (finishing_) {
      is_writing_ = true;  // and stays so: nothing may follow
      StartWritesDone();
      return;
    } else {
      return;
    }
    is_writing_ = true;
    StartWrite(&writing_);
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(shared_->mutex);
    is_writing_ = !ok;  // after a failed write nothing may be written; the read fails too
    write_next();
  }

  void OnReadDone(bool ok) override {
    // Without the mutex, as it may take seconds.
    const auto limits = ok && reading_.has_configuration() ? to_limits(reading_.configuration())
                                                           : program::Limits();
    {
      const std::lock_guard lock(shared_->mutex);
      if (ok) {
        take_message(limits);
        read_paused_ = shared_->inbox_bytes > max_inbox_bytes;
        if (!read_paused_) StartRead(&reading_);
        return;
      }
      ended_ = true;
    }
    RemoveHold();
  }

  // Under the mutex.
  void end(std::string reason) {
    why_ended_ = std::move(reason);
    context_.TryCancel();
  }

  void take_message(const std::variant<program::Limits, std::string>& limits) {
    switch (reading_.message_case()) {
      case v1::InterceptMessage::kLease:
        if (auto lease = to_lease(reading_.lease()))
          shared_->push(std::move(*lease), 0);
        else
          end("the intercept's lease makes no sense");
        break;
      case v1::InterceptMessage::kHeaders: {
        Headers headers{std::move(*reading_.mutable_headers()->mutable_headers())};
        const size_t bytes = headers.bytes.size();
        shared_->push(std::move(headers), bytes);
        break;
      }
      case v1::InterceptMessage::kReplies: {
        Replies replies{std::move(*reading_.mutable_replies()->mutable_packets())};
        const size_t bytes = replies.bytes.size();
        shared_->push(std::move(replies), bytes);
        break;
      }
      case v1::InterceptMessage::kConfiguration:
        if (const auto* wrong = std::get_if<std::string>(&limits))
          end(*wrong);
        else
          shared_->push(Configuration{std::get<program::Limits>(limits)}, 0);
        if (auto identity = to_identity(reading_.configuration()); identity && tls_)
          tls_->replace(std::move(*identity));
        break;
      case v1::InterceptMessage::kDrain:
        if (reading_.drain().end()) {
          shared_->push(Stop{}, 0);
          break;
        }
        end("the intercept is ending");
        break;
      case v1::InterceptMessage::MESSAGE_NOT_SET:
        break;  // of a later version
    }
  }

  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<Shared> shared = shared_;
    const std::lock_guard lock(shared->mutex);
    std::string reason = !why_ended_.empty() ? why_ended_
                         : status.ok()       ? "the intercept ended the stream"
                                       : explain_failure(status.error_message(), tls_ != nullptr);
    // The owner's reference is the last one: a channel joins gRPC's threads when it goes, so it
    // must not go on one of them.
    self_.reset();
    shared->stream_running = false;
    shared->push(StreamLost{std::move(reason)}, 0);
    shared->ended.notify_all();
  }

  std::shared_ptr<Stream> self_;
  const std::shared_ptr<program::Tls> tls_;
  const std::shared_ptr<Shared> shared_;
  const std::unique_ptr<v1::Mirror::Stub> stub_;
  grpc::ClientContext context_;
  v1::SidecarMessage writing_;
  v1::InterceptMessage reading_;

  // Under the mutex.
  std::string waiting_;
  std::optional<v1::Statistics> report_;
  bool was_full_ = false;
  bool is_writing_ = false;
  bool wants_ports_ = false;
  bool finishing_ = false;
  bool read_paused_ = false;
  bool ended_ = false;
  std::string why_ended_;  // empty where the other side ended it
};

}  // namespace

class Uplink::Implementation {
 public:
  explicit Implementation(Options options)
      : options_(std::move(options)), random_(std::random_device()()) {}

  ~Implementation() { finish(milliseconds(0)); }

  int descriptor() const { return shared_->event_descriptor; }

  std::vector<Event> take_events() {
    std::vector<Event> events;
    {
      const std::lock_guard lock(shared_->mutex);
      events.swap(shared_->inbox);
      shared_->inbox_bytes = 0;
      if (std::exchange(shared_->notified, false)) {
        uint64_t count;
        [[maybe_unused]] const auto got = ::read(shared_->event_descriptor, &count, sizeof count);
      }
    }
    for (const Event& event : events) {
      if (std::holds_alternative<session::Lease>(event) && !leased_) {
        leased_ = true;
        pause_ = first_pause;
        ++counters_.streams;
      } else if (std::holds_alternative<StreamLost>(event)) {
        stream_.reset();
        leased_ = false;
        next_dial_ = Clock::now() + jittered(pause_);
        pause_ = std::min(2 * pause_, longest_pause);
      }
    }
    if (stream_) stream_->read_on();
    return events;
  }

  void run(Clock::time_point now) {
    if (stream_) {
      if (!leased_ && now >= lease_deadline_)
        stream_->cancel("the intercept sent no lease in time");
      return;
    }
    if (now < next_dial_) return;
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->stream_running = true;
    }
    stream_ = Stream::start(options_, shared_);
    lease_deadline_ = now + lease_timeout;
  }

  Clock::time_point next_dial() const {
    if (!stream_) return next_dial_;
    return leased_ ? Clock::time_point::max() : lease_deadline_;
  }

  void send(std::string&& packets) {
    if (!stream_ || !stream_->send(std::move(packets))) ++counters_.dropped_batches;
  }

  bool full() const { return stream_ && stream_->full(); }

  void ask_for_more_source_ports() {
    if (stream_) stream_->ask_for_more_source_ports();
  }

  bool report(const session::Counters& since, const std::optional<ReplayProgress>& replay) {
    return stream_ && stream_->report(since, replay);
  }

  void end_stream() {
    if (stream_) stream_->finish();
  }

  void finish(milliseconds timeout) {
    next_dial_ = Clock::time_point::max();
    if (!stream_) return;
    if (leased_) stream_->finish();
    {
      std::unique_lock lock(shared_->mutex);
      const auto ended = [&] { return !shared_->stream_running; };
      if (!leased_ || !shared_->ended.wait_for(lock, timeout, ended)) {
        lock.unlock();
        stream_->cancel("the sidecar is ending");
        lock.lock();
        shared_->ended.wait(lock, ended);
      }
    }
    stream_.reset();
  }

  const Counters& counters() const { return counters_; }

 private:
  milliseconds jittered(milliseconds pause) {
    return milliseconds(
        std::uniform_int_distribution<int64_t>(pause.count() / 2, pause.count() * 3 / 2)(random_));
  }

  const Options options_;
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::shared_ptr<Stream> stream_;
  bool leased_ = false;
  Clock::time_point next_dial_ = Clock::time_point::min();
  Clock::time_point lease_deadline_;
  milliseconds pause_ = first_pause;
  Counters counters_;
  std::minstd_rand random_;
};

Uplink::Uplink(Options options)
    : implementation_(std::make_unique<Implementation>(std::move(options))) {}
Uplink::~Uplink() = default;
int Uplink::descriptor() const {
  return implementation_->descriptor();
}
std::vector<Event> Uplink::take_events() {
  return implementation_->take_events();
}
void Uplink::run(Clock::time_point now) {
  implementation_->run(now);
}
Uplink::Clock::time_point Uplink::next_dial() const {
  return implementation_->next_dial();
}
void Uplink::send(std::string&& packets) {
  implementation_->send(std::move(packets));
}
bool Uplink::full() const {
  return implementation_->full();
}
void Uplink::ask_for_more_source_ports() {
  implementation_->ask_for_more_source_ports();
}
bool Uplink::report(const session::Counters& since, const std::optional<ReplayProgress>& replay) {
  return implementation_->report(since, replay);
}
void Uplink::end_stream() {
  implementation_->end_stream();
}
void Uplink::finish(std::chrono::milliseconds timeout) {
  implementation_->finish(timeout);
}
const Uplink::Counters& Uplink::counters() const {
  return implementation_->counters();
}

}  // namespace trafficmirror::uplink
