#include "intercept/service.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include "intercept/credentials.h"
#include "program/descriptor.h"
#include "program/flags.h"
#include "program/log.h"
#include "program/start_error.h"
#include "trafficmirror/v1/mirror.grpc.pb.h"

namespace trafficmirror::intercept {
namespace {

std::string bytes_of(const net::IpAddress& address) {
  const auto bytes = address.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_lease(const LeaseContents& contents, v1::Lease& lease) {
  lease.set_client_sources(contents.client_sources);
  for (const auto& [address, ports] : contents.sources) {
    v1::SourceRange& range = *lease.add_sources();
    range.set_address(bytes_of(address));
    range.set_first_port(ports.first);
    range.set_last_port(ports.last);
  }
  for (const auto& [from, path_mtu] : contents.targets) {
    v1::Target& target = *lease.add_targets();
    target.set_production_port(from.production_port);
    target.set_address(bytes_of(from.endpoint.address));
    target.set_port(from.endpoint.port.number);
    target.set_path_mtu(path_mtu);
    target.set_udp(from.protocol == net::Protocol::udp);
  }
}

SidecarCounts to_counts(const v1::Statistics& statistics) {
  SidecarCounts counts;
  counts.sessions = statistics.sessions();
  counts.sessions_opened = statistics.sessions_opened();
  counts.exchanges = statistics.exchanges();
  counts.closed.insert(statistics.sessions_closed().begin(), statistics.sessions_closed().end());
  counts.shed.insert(statistics.shed().begin(), statistics.shed().end());
  if (statistics.has_replay()) {
    const v1::Replay& replay = statistics.replay();
    counts.replay.emplace().packets = replay.packets();
    if (replay.has_percent()) counts.replay->percent = replay.percent();
  }
  return counts;
}

void write_identity(const program::TlsMaterial& from, v1::Identity& identity) {
  identity.set_certificate(from.certificate);
  identity.set_key(from.key);
  identity.set_ca(from.ca);
}

void write_configuration(const SidecarConfiguration& from, v1::Configuration& configuration) {
  const program::Limits& limits = from.limits;
  if (limits.percent) configuration.set_percent(*limits.percent);
  if (limits.max_sessions) configuration.set_max_sessions(*limits.max_sessions);
  if (limits.memory != 0) configuration.set_memory_limit(limits.memory);
  if (limits.max_rate) configuration.set_max_rate(*limits.max_rate);
  if (limits.copies) configuration.set_copies(*limits.copies);
  if (limits.filter) configuration.set_filter(limits.filter->expression());
  // Of both, 0 is what is not there.
  if (limits.turns) configuration.set_turns(static_cast<v1::Turns>(int(*limits.turns) + 1));
  if (limits.max_lag.count() != 0)
    configuration.set_max_lag(static_cast<uint64_t>(limits.max_lag.count()));
  if (limits.over_lag)
    configuration.set_over_lag(static_cast<v1::OverLag>(int(*limits.over_lag) + 1));
}

// Whether a stream's sidecar has shown, in a handshake of TLS, that it is the one expected.
enum class Proof : uint8_t { none, certificate };

// One sidecar's stream. gRPC calls the On... functions, the others are called by the relay. One
// write is under way at a time; headers that come meanwhile gather and go with the next, so the
// batches are the larger the busier it is.
class Stream final : public grpc::ServerBidiReactor<v1::SidecarMessage, v1::InterceptMessage>,
                     public Downlink {
 public:
  static Stream* start(Relay& relay, Counters& counters, const std::string& peer, Proof proof) {
    auto stream = std::make_shared<Stream>(relay, counters, peer, proof);
    stream->self_ = stream;  // until OnDone
    stream->StartRead(&stream->received_);
    return stream.get();
  }

  Stream(Relay& relay, Counters& counters, std::string peer, Proof proof)
      : relay_(relay), counters_(counters), peer_(std::move(peer)), proof_(proof) {}

  // --- of the relay

  void headers(std::string& batch, size_t count) override { wait(headers_waiting_, batch, count); }
  void replies(std::string& batch, size_t count) override { wait(replies_waiting_, batch, count); }

  void lease_changed() override {
    {
      const std::lock_guard lock(mutex_);
      lease_waits_ = true;
    }
    write_next();
  }

  void configuration_changed() override {
    {
      const std::lock_guard lock(mutex_);
      configuration_waits_ = true;
    }
    write_next();
  }

  void drain() override {
    {
      const std::lock_guard lock(mutex_);
      drain_waits_ = true;
    }
    write_next();
  }

  void end(const std::string& reason) override { finish({grpc::StatusCode::UNAVAILABLE, reason}); }

  // --- of gRPC

  void OnReadDone(bool ok) override {
    if (!ok) {
      leave();
      finish(grpc::Status::OK);
      return;
    }
    switch (received_.message_case()) {
      case v1::SidecarMessage::kHello:
        hello(received_.hello());
        break;
      case v1::SidecarMessage::kPackets:
        if (!id_) return protocol_error("the first message has to be a hello");
        relay_.packets(*id_, received_.packets().packets());
        break;
      case v1::SidecarMessage::kMoreSourcePorts:
        if (!id_) return protocol_error("the first message has to be a hello");
        relay_.more_source_ports(*id_);
        break;
      case v1::SidecarMessage::kStatistics:
        if (!id_) return protocol_error("the first message has to be a hello");
        relay_.counted(*id_, to_counts(received_.statistics()));
        break;
      case v1::SidecarMessage::MESSAGE_NOT_SET:
        break;  // of a newer version
    }
    StartRead(&received_);
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      // The connection is gone; what waits has nowhere to go.
      if (!ok && !finish_) finish_ = grpc::Status::OK;
    }
    write_next();
  }

  void OnCancel() override { finish(grpc::Status::CANCELLED); }

  void OnDone() override {
    leave();
    const auto last = std::move(self_);
  }

 private:
  struct Waiting {
    std::string packets;
    size_t count = 0;
  };

  void wait(Waiting& waiting, std::string& batch, size_t count) {
    {
      const std::lock_guard lock(mutex_);
      if (waiting.packets.size() + batch.size() > Service::max_waiting_bytes) {
        add(counters_.header_drops, waiting.count);
        waiting = {};
      }
      if (waiting.packets.empty())
        waiting.packets.swap(batch);
      else
        waiting.packets.append(batch);
      waiting.count += count;
    }
    batch.clear();
    write_next();
  }

  void hello(const v1::Hello& hello) {
    if (id_) return protocol_error("a second hello");
    name_ = hello.name();
    std::vector<net::ProductionPort> ports;
    for (const auto& [numbers, protocol] : {std::pair(&hello.ports(), net::Protocol::tcp),
                                            std::pair(&hello.udp_ports(), net::Protocol::udp)}) {
      for (const uint32_t port : *numbers) {
        if (port > UINT16_MAX) return protocol_error("a hello with a port over 65535");
        ports.push_back({static_cast<uint16_t>(port), protocol});
      }
    }
    const Sender sender = hello.sends_directly() ? Sender::sidecar : Sender::intercept;
    // Those that are none of its ports change nothing.
    const std::vector<uint16_t> reply_ports(hello.reply_ports().begin(), hello.reply_ports().end());
    auto opened = relay_.open(name_, ports, self_, sender, reply_ports);
    if (const auto* denial = std::get_if<Denial>(&opened)) {
      spdlog::info("the stream of {} ({}) is not accepted: {}", name_, peer_, denial->reason);
      finish({denial->kind == Denial::Kind::wrong ? grpc::StatusCode::INVALID_ARGUMENT
                                                  : grpc::StatusCode::UNAVAILABLE,
              denial->reason});
      return;
    }
    spdlog::info("{} ({}, version {}) sends{}", name_, peer_, hello.version(),
                 sender == Sender::sidecar ? " directly" : "");
    {
      const std::lock_guard lock(mutex_);
      id_ = std::get<StreamId>(opened);
      // A key is for nobody else.
      gets_identity_ = hello.wants_identity() && proof_ == Proof::certificate;
      configuration_waits_ = relay_.tells_configuration();
      lease_waits_ = true;
    }
    write_next();
  }

  void protocol_error(const std::string& reason) {
    finish({grpc::StatusCode::INVALID_ARGUMENT, reason});
  }

  // The stream's part in the relay is over. Reads follow one another and OnDone is last, so there
  // is no other call with this id at the same time, but for the lease being written.
  void leave() {
    std::optional<StreamId> id;
    {
      const std::lock_guard lock(mutex_);
      id.swap(id_);
      if (!finish_) finish_ = grpc::Status::OK;
    }
    if (!id) return;
    relay_.close(*id);
    spdlog::info("the stream of {} ({}) ended", name_, peer_);
  }

  void finish(grpc::Status status) {
    {
      const std::lock_guard lock(mutex_);
      if (!finish_) finish_ = std::move(status);
    }
    write_next();
  }

  // Starts the next write, or the end, unless a write is under way. Whoever sets writing_ owns
  // message_ until OnWriteDone, so gRPC is called without the lock.
  void write_next() {
    std::unique_lock lock(mutex_);
    if (writing_ || finished_) return;
    if (finish_) {
      finished_ = true;
      lock.unlock();
      Finish(*finish_);
      return;
    }
    if (!id_) return;  // nothing goes before the hello
    const auto write_control = [&] {
      writing_ = true;
      lock.unlock();
      StartWrite(&control_);
    };
    if (configuration_waits_) {
      configuration_waits_ = false;
      const SidecarConfiguration configuration = relay_.configuration();
      end_waits_ = configuration.stop;
      control_.Clear();
      write_configuration(configuration, *control_.mutable_configuration());
      if (const auto identity = gets_identity_ ? relay_.identity() : nullptr)
        write_identity(*identity, *control_.mutable_configuration()->mutable_identity());
      write_control();
    } else if (lease_waits_) {
      lease_waits_ = false;
      control_.Clear();
      write_lease(relay_.lease(*id_), *control_.mutable_lease());
      write_control();
    } else if (!replies_waiting_.packets.empty()) {
      control_.Clear();
      control_.mutable_replies()->set_packets(std::move(replies_waiting_.packets));
      replies_waiting_ = {};
      write_control();
    } else if (!headers_waiting_.packets.empty()) {
      // The two strings change places for good, so neither is made again for each batch.
      std::string& headers = *headers_.mutable_headers()->mutable_headers();
      headers.clear();
      headers.swap(headers_waiting_.packets);
      headers_waiting_.count = 0;
      writing_ = true;
      lock.unlock();
      StartWrite(&headers_);
    } else if (end_waits_ || drain_waits_) {
      control_.Clear();
      control_.mutable_drain()->set_end(end_waits_);
      end_waits_ = drain_waits_ = false;
      write_control();
    }
  }

  Relay& relay_;
  Counters& counters_;
  const std::string peer_;
  const Proof proof_;
  std::string name_;
  std::shared_ptr<Stream> self_;
  v1::SidecarMessage received_;
  v1::InterceptMessage control_;
  v1::InterceptMessage headers_;

  std::mutex mutex_;
  std::optional<StreamId> id_;
  Waiting headers_waiting_;
  Waiting replies_waiting_;
  bool gets_identity_ = false;
  bool configuration_waits_ = false;
  bool lease_waits_ = false;
  bool end_waits_ = false;
  bool drain_waits_ = false;
  bool writing_ = false;
  bool finished_ = false;
  std::optional<grpc::Status> finish_;
};

// A stream that is not taken.
class RefusedStream final
    : public grpc::ServerBidiReactor<v1::SidecarMessage, v1::InterceptMessage> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// Counts and logs who gets no stream. Any thread.
class Refusals {
 public:
  explicit Refusals(Counters& counters) : counters_(counters) {}

  void add(StreamRefusal refusal, const std::string& line) {
    intercept::add(counters_.refused_streams, refusal);
    const std::lock_guard lock(mutex_);
    program::LogLimit& limit = logs_[static_cast<size_t>(refusal)];
    if (const auto held = limit.allow(program::LogLimit::Clock::now()))
      spdlog::warn("{}{}", line, *held);
  }

 private:
  Counters& counters_;
  std::mutex mutex_;
  std::array<program::LogLimit, stream_refusal_names.size()> logs_;
};

// gRPC's log is the process's, so there is one of these.
std::mutex watcher_mutex;
Refusals* watcher = nullptr;

// gRPC writes to stderr in a form of its own what is, at most, of use to somebody who debugs it;
// but for the handshakes that failed, of which it tells in no other way.
void log_of_grpc(gpr_log_func_args* arguments) {
  spdlog::debug("grpc: {}", arguments->message);
  const std::lock_guard lock(watcher_mutex);
  if (watcher == nullptr) return;
  if (const auto failed = failed_handshake(arguments->message))
    watcher->add(failed->refusal, "no stream, as the TLS handshake failed: " + failed->reason);
}

// While it lives, failed handshakes are among the refusals; where there are none, null.
class HandshakeWatch {
 public:
  explicit HandshakeWatch(Refusals* refusals) {
    watch(refusals);
    ::gpr_set_log_function(log_of_grpc);
    // That is how it logs them.
    if (refusals != nullptr) ::gpr_set_log_verbosity(GPR_LOG_SEVERITY_DEBUG);
  }
  ~HandshakeWatch() { watch(nullptr); }
  HandshakeWatch(const HandshakeWatch&) = delete;
  HandshakeWatch& operator=(const HandshakeWatch&) = delete;

 private:
  static void watch(Refusals* refusals) {
    const std::lock_guard lock(watcher_mutex);
    watcher = refusals;
  }
};

// gRPC does not say why it could not listen, so it is tried beforehand.
void require_bindable(const net::HostPort& listen) {
  const auto fail = [&](const std::string& reason) {
    throw program::StartError("--listen " + program::to_text(listen) + " " + reason);
  };
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(listen.host.c_str(), std::to_string(listen.port.number).c_str(),
                                  &hints, &found);
  if (error != 0) fail(std::string("can't be resolved: ") + ::gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, ::freeaddrinfo);
  const program::Descriptor socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(socket.get(), found->ai_addr, found->ai_addrlen) == 0 &&
      ::listen(socket.get(), 1) == 0)
    return;
  if (errno == EADDRINUSE) fail("is taken: choose another port, or stop what listens there");
  if (errno == EADDRNOTAVAIL) fail("is no address of this host");
  fail(std::string("can't be listened on: ") + std::strerror(errno));
}

}  // namespace

class Service::Implementation final : public v1::Mirror::CallbackService {
 public:
  Implementation(const net::HostPort& listen, std::shared_ptr<program::Tls> tls, Relay& relay,
                 Counters& counters)
      : relay_(relay),
        counters_(counters),
        refusals_(counters),
        tls_(std::move(tls)),
        credentials_(server_credentials(tls_)),
        watch_(tls_ ? &refusals_ : nullptr) {
    require_bindable(listen);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(program::to_text(listen), credentials_, &port_);
    builder.RegisterService(this);
    // Or a second intercept could listen on the same port and take half of the streams.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // A sidecar whose host has vanished is noticed within about 8 s, and its sessions are reset.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
    server_ = builder.BuildAndStart();
    if (!server_ || port_ == 0)
      throw program::StartError("--listen " + program::to_text(listen) + " can't be listened on");
  }

  ~Implementation() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  grpc::ServerBidiReactor<v1::SidecarMessage, v1::InterceptMessage>* Stream(
      grpc::CallbackServerContext* context) override {
    if (tls_) {
      if (const auto other = other_identity(*context->auth_context(), tls_->peer())) {
        const std::string reason =
            "its certificate is not that of " + tls_->peer() + " (--tls-peer) but of " + *other;
        refusals_.add(StreamRefusal::identity,
                      "the stream of " + context->peer() + " is refused: " + reason);
        return new RefusedStream(
            {grpc::StatusCode::PERMISSION_DENIED, "refused by the intercept: " + reason});
      }
    }
    return intercept::Stream::start(relay_, counters_, context->peer(),
                                    tls_ ? Proof::certificate : Proof::none);
  }

  int port() const { return port_; }

 private:
  Relay& relay_;
  Counters& counters_;
  Refusals refusals_;
  const std::shared_ptr<program::Tls> tls_;
  const std::shared_ptr<grpc::ServerCredentials> credentials_;
  const HandshakeWatch watch_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

Service::Service(const net::HostPort& listen, std::shared_ptr<program::Tls> tls, Relay& relay,
                 Counters& counters)
    : implementation_(std::make_unique<Implementation>(listen, std::move(tls), relay, counters)) {}

Service::~Service() = default;

net::Port Service::port() const {
  return net::Port{static_cast<uint16_t>(implementation_->port())};
}

}  // namespace trafficmirror::intercept
