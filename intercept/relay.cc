#include "intercept/relay.h"

#include <algorithm>
#include <utility>

#include <spdlog/fmt/ranges.h>
#include <spdlog/spdlog.h>

#include "net/batch.h"

namespace trafficmirror::intercept {
namespace {

// A flood of packets for unknown ports must not keep the tap from the sessions that live.
constexpr size_t max_closed_port_answers = 256;

std::pair<net::Endpoint, net::Protocol> destination_of(const Target& target) {
  return {target.endpoint, target.protocol};
}

PortRange without_first(PortRange ports) {
  return {static_cast<uint16_t>(ports.first + 1), ports.last};
}

std::unique_ptr<LeaseBook> make_book(PortRange ports, const ClientAddresses& clients) {
  std::array<LeaseBook::Addresses, 2> pool;
  for (size_t family = 0; family < pool.size(); ++family)
    if (const auto& network = clients.pool[family]) pool[family] = addresses_of(*network);
  return std::make_unique<LeaseBook>(ports, std::vector<Target>(), pool);
}

}  // namespace

Relay::Relay(PortRange source_ports, std::vector<Target> targets, uint32_t seed, Send send,
             Counters& counters, Targets kind, const ClientAddresses& clients)
    : kind_(kind),
      to_widen_(clients.mode == ClientAddresses::Mode::pool
                    ? "the pool of --client-address or --source-ports"
                    : "--source-ports"),
      proof_port_(source_ports.first),
      send_(std::move(send)),
      counters_(counters),
      next_sequence_(seed) {
  if (clients.mode == ClientAddresses::Mode::preserve) {
    auto leases = std::make_unique<ClientLeases>(std::vector<Target>());
    client_leases_ = leases.get();
    book_ = std::move(leases);
  } else {
    book_ = make_book(without_first(source_ports), clients);
  }
  set_targets(std::move(targets));
}

void Relay::set_targets(std::vector<Target> targets) {
  std::vector<std::shared_ptr<Downlink>> lease_holders;
  {
    const std::lock_guard lock(mutex_);
    if (targets == targets_) return;
    targets_ = std::move(targets);
    book_->set_targets(targets_);
    update_copy_whole();
    std::map<Destination, PathProof> before = std::exchange(proofs_, {});
    for (const Target& target : targets_) {
      const Destination destination = destination_of(target);
      if (proofs_.contains(destination)) continue;
      if (auto known = before.extract(destination)) {
        proofs_.insert(std::move(known));
      } else {
        proofs_.try_emplace(destination, target.endpoint, proof_port_, next_sequence_,
                            target.protocol);
        next_sequence_ += 0x10000;
      }
    }
    lease_holders = downlinks();
  }
  for (const auto& downlink : lease_holders) downlink->lease_changed();
}

void Relay::configure(const SidecarConfiguration& configuration) {
  std::vector<std::shared_ptr<Downlink>> streams;
  {
    const std::lock_guard lock(mutex_);
    if (configuration == configuration_) return;
    configuration_ = configuration;
    streams = downlinks();
  }
  for (const auto& downlink : streams) downlink->configuration_changed();
}

SidecarConfiguration Relay::configuration() const {
  const std::lock_guard lock(mutex_);
  return configuration_;
}

void Relay::set_identity(std::shared_ptr<const program::TlsMaterial> identity) {
  std::vector<std::shared_ptr<Downlink>> streams;
  {
    const std::lock_guard lock(mutex_);
    identity_ = std::move(identity);
    streams = downlinks();
  }
  for (const auto& downlink : streams) downlink->configuration_changed();
}

std::shared_ptr<const program::TlsMaterial> Relay::identity() const {
  const std::lock_guard lock(mutex_);
  return identity_;
}

std::vector<net::Endpoint> Relay::endpoints() const {
  const std::lock_guard lock(mutex_);
  std::vector<net::Endpoint> endpoints;
  for (const auto& [destination, proof] : proofs_) endpoints.push_back(destination.first);
  return endpoints;
}

Relay::Proofs Relay::proof_of_ports() const {
  Proofs proofs;
  for (const Target& target : targets_) {
    const PathProof& proof = proofs_.at(destination_of(target));
    const PathProof*& of_port = proofs[target.production()];
    if (of_port == nullptr || (proof.proven() && !of_port->proven())) of_port = &proof;
  }
  return proofs;
}

std::vector<Relay::Ending> Relay::unserved_streams() const {
  std::vector<Ending> endings;
  const Proofs proofs = proof_of_ports();
  for (const Stream& stream : streams_) {
    if (!stream.downlink) continue;
    for (const net::ProductionPort port : stream.production_ports) {
      const auto proof = proofs.find(port);
      if (proof != proofs.end() && !proof->second->proven()) {
        endings.push_back({stream.downlink, proof->second->why_not()});
        break;
      }
    }
  }
  return endings;
}

std::vector<std::shared_ptr<Downlink>> Relay::downlinks() const {
  std::vector<std::shared_ptr<Downlink>> all;
  for (const Stream& stream : streams_)
    if (stream.downlink) all.push_back(stream.downlink);
  return all;
}

std::variant<StreamId, Denial> Relay::open(const std::string& sidecar,
                                           std::span<const net::ProductionPort> production_ports,
                                           std::shared_ptr<Downlink> downlink, Sender sender,
                                           std::span<const uint16_t> reply_ports) {
  if (production_ports.empty())
    return Denial{Denial::Kind::wrong, "the sidecar named no production port"};

  const std::lock_guard lock(mutex_);
  const Proofs proofs = proof_of_ports();
  for (const net::ProductionPort port : production_ports) {
    if (kind_ == Targets::fixed && !proofs.contains(port)) {
      std::vector<std::string> known;
      for (const auto& [with_target, proof] : proofs) known.push_back(with_target.to_string());
      return Denial{Denial::Kind::wrong,
                    fmt::format("production port {} has no --target here; those with one are {}",
                                port.to_string(), fmt::join(known, ", "))};
    }
  }
  if (draining_) return Denial{Denial::Kind::unavailable, "the intercept is about to end"};
  if (obstacle_) return Denial{Denial::Kind::unavailable, *obstacle_};
  for (const net::ProductionPort port : production_ports) {
    const auto proof = proofs.find(port);
    if (proof != proofs.end() && !proof->second->proven() && !configuration_.stop)
      return Denial{Denial::Kind::unavailable, proof->second->why_not()};
  }
  if (sender == Sender::sidecar && client_leases_)
    return Denial{Denial::Kind::wrong,
                  "--delivery direct is not for an intercept with --client-address preserve"};
  const auto stream = book_->open(production_ports, sender, reply_ports);
  if (!stream) {
    return Denial{
        Denial::Kind::unavailable,
        std::string("every source port is leased to another sidecar: widen ") + to_widen_};
  }
  if (streams_.size() <= *stream) streams_.resize(*stream + 1U);
  streams_[*stream] = {
      sidecar, {}, {production_ports.begin(), production_ports.end()}, std::move(downlink)};
  update_copy_whole();
  return *stream;
}

void Relay::update_copy_whole() {
  std::vector<uint16_t> ports = book_->whole_from();
  if (ports == whole_from_) return;
  whole_from_ = std::move(ports);
  copy_whole_(whole_from_);
}

void Relay::counted(StreamId stream, const SidecarCounts& since) {
  const std::lock_guard lock(mutex_);
  SidecarCounts& counts = streams_[stream].counts;
  counts.add(since);
  counts.sessions = since.sessions;
  counts.replay = since.replay;
  totals_.add(since);
}

void Relay::packets(StreamId stream, std::string_view batch) {
  // What may pass, in as few pieces as there are: one, where nothing is refused.
  std::vector<std::string_view> passed;
  std::optional<Refusal> last_refusal;
  std::optional<std::string> log;
  {
    const std::lock_guard lock(mutex_);
    const char* piece = batch.data();
    while (!batch.empty()) {
      const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(batch.data()),
                                           batch.size());
      const auto length = net::first_packet_length(bytes);
      std::optional<Refusal> refusal = Refusal::malformed;
      if (length && draining_) {
        refusal = Refusal::draining;
      } else if (length) {
        const auto parsed = net::parse_packet(bytes.first(*length), *length);
        if (const auto* packet = std::get_if<net::Packet>(&parsed))
          refusal = book_->send(stream, *packet);
      }
      const char* begin = batch.data();
      batch.remove_prefix(length.value_or(batch.size()));
      if (refusal) {
        if (begin > piece) passed.emplace_back(piece, begin - piece);
        piece = batch.data();
        add(counters_.refused_packets, *refusal);
        last_refusal = refusal;
      }
    }
    if (batch.data() > piece) passed.emplace_back(piece, batch.data() - piece);
    if (last_refusal) log = refused_log_.allow(program::LogLimit::Clock::now());
  }
  for (const std::string_view packets : passed) send_(packets);
  if (log) {
    spdlog::warn("a packet of a sidecar was refused ({}){}",
                 refusal_names[static_cast<size_t>(*last_refusal)], *log);
  }
}

void Relay::more_source_ports(StreamId stream) {
  std::shared_ptr<Downlink> downlink;
  std::optional<std::string> log;
  {
    const std::lock_guard lock(mutex_);
    if (book_->extend(stream) > 0)
      downlink = streams_[stream].downlink;
    else
      log = no_ports_log_.allow(program::LogLimit::Clock::now());
  }
  if (downlink) downlink->lease_changed();
  if (log) {
    spdlog::warn(
        "a sidecar has sessions on half of its source ports, and there are no more: those beyond "
        "are shed as no_source_port; widen {}{}",
        to_widen_, *log);
  }
}

LeaseContents Relay::lease(StreamId stream) const {
  const std::lock_guard lock(mutex_);
  LeaseContents lease;
  auto sources = book_->sources(stream);
  lease.client_sources = !sources;
  if (sources) lease.sources = std::move(*sources);
  const auto& ports = streams_[stream].production_ports;
  for (const Target& target : targets_) {
    const PathProof& proof = proofs_.at(destination_of(target));
    if (proof.proven() && proof.path() &&
        std::find(ports.begin(), ports.end(), target.production()) != ports.end())
      lease.targets.push_back({target, proof.path()->mtu});
  }
  return lease;
}

void Relay::close(StreamId stream) {
  std::string resets;
  {
    const std::lock_guard lock(mutex_);
    add(counters_.sessions_reset, ResetReason::stream_ended, book_->close(stream, resets));
    streams_[stream] = Stream();
    update_copy_whole();
  }
  send_(resets);
  stream_ended_.notify_all();
}

void Relay::headers(std::span<const std::span<const uint8_t>> packets) {
  std::string answers;
  size_t closed_port_answers = 0, foreign = 0;
  bool changed = false;
  std::vector<std::shared_ptr<Downlink>> lease_holders;
  {
    const std::lock_guard lock(mutex_);
    for (const std::span<const uint8_t> bytes : packets) {
      // Nobody down the stream could tell the length of one that doesn't say it.
      const auto parsed = net::parse_packet(bytes, 0);
      const auto* packet = std::get_if<net::Packet>(&parsed);
      if (packet == nullptr) {
        ++foreign;
        continue;
      }
      const LeaseBook::Arrived arrived = book_->arrive(*packet);
      switch (arrived.what) {
        case LeaseBook::Arrival::session: {
          if (outgoing_.size() <= arrived.stream) outgoing_.resize(arrived.stream + 1U);
          Outgoing& outgoing = outgoing_[arrived.stream];
          if (arrived.whole && packet->cut()) {
            add(counters_.tap_drops, 1);  // the shadow sends it again
            break;
          }
          if (!outgoing.downlink) {
            touched_.push_back(arrived.stream);
            outgoing.downlink = streams_[arrived.stream].downlink;
          }
          ++(arrived.whole ? outgoing.reply_count : outgoing.count);
          (arrived.whole ? outgoing.replies : outgoing.headers)
              .append(reinterpret_cast<const char*>(bytes.data()),
                      packet->header_length + (arrived.whole ? packet->payload_length : 0));
          break;
        }
        case LeaseBook::Arrival::closed_port:
          if (closed_port_answers < max_closed_port_answers &&
              append_closed_port_answer(answers, *packet))
            ++closed_port_answers;
          break;
        case LeaseBook::Arrival::foreign: {
          bool taken = false;
          if (packet->destination.port.number == proof_port_ &&
              packet->protocol == net::Protocol::tcp) {
            if (const auto found = proofs_.find({packet->source, packet->protocol});
                found != proofs_.end()) {
              PathProof& proof = found->second;
              const bool was_proven = proof.proven();
              taken = proof.take(*packet, answers);
              if (proof.proven() && !was_proven) {
                changed = true;
                if (proof.refused())
                  spdlog::warn("{} can be reached, but nothing listens there",
                               proof.target().to_string());
                else
                  spdlog::info("{} answers, and its replies come back here",
                               proof.target().to_string());
              }
            }
          }
          if (!taken) ++foreign;
          break;
        }
      }
    }
    if (changed) lease_holders = downlinks();
  }
  add(counters_.sessions_reset, ResetReason::unknown_port, closed_port_answers);
  add(counters_.tap_foreign, foreign);
  if (!answers.empty()) send_(answers);
  for (const StreamId stream : touched_) {
    Outgoing& outgoing = outgoing_[stream];
    if (outgoing.downlink && outgoing.reply_count > 0)
      outgoing.downlink->replies(outgoing.replies, outgoing.reply_count);
    if (outgoing.downlink && outgoing.count > 0)
      outgoing.downlink->headers(outgoing.headers, outgoing.count);
    outgoing.replies.clear();
    outgoing.headers.clear();
    outgoing.reply_count = outgoing.count = 0;
    outgoing.downlink.reset();
  }
  touched_.clear();
  for (const auto& downlink : lease_holders) downlink->lease_changed();
}

bool Relay::set_paths(const std::vector<std::variant<Path, std::string>>& paths) {
  bool changed = false;
  std::vector<Ending> endings;
  std::vector<std::shared_ptr<Downlink>> lease_holders;
  {
    const std::lock_guard lock(mutex_);
    // One source address for each family: that towards its first target, and as long as it serves
    // for one of them it stays, whatever targets come.
    std::array<std::optional<net::IpAddress>, 2> own;
    for (const auto& path : paths) {
      if (const auto* found = std::get_if<Path>(&path)) {
        const net::Family family = found->own_address.family();
        auto& of_family = own[static_cast<size_t>(family)];
        if (!of_family || found->own_address == book_->own_address(family))
          of_family = found->own_address;
      }
    }
    size_t next = 0;
    for (auto& [destination, proof] : proofs_) {
      auto path = paths[next++];
      if (auto* found = std::get_if<Path>(&path))
        found->own_address = *own[static_cast<size_t>(found->own_address.family())];
      const auto before = proof.path();
      proof.set_path(path);
      if (proof.path() != before) lease_holders = downlinks();
    }
    for (const net::Family family : {net::Family::ipv4, net::Family::ipv6}) {
      const auto& now = own[static_cast<size_t>(family)];
      const auto before = book_->own_address(family);
      if (!now || now == before) continue;
      book_->set_own_address(family, *now);
      changed = true;
      if (!before) continue;
      const std::string reason = "the intercept's address was " + before->to_string() + " and is " +
                                 now->to_string() + " now";
      for (const auto& downlink : downlinks()) endings.push_back({downlink, reason});
    }
    if (changed)
      for (auto& [destination, proof] : proofs_) proof.again();
  }
  for (const auto& downlink : lease_holders) downlink->lease_changed();
  for (const Ending& ending : endings) ending.downlink->end(ending.reason);
  return changed;
}

std::vector<net::IpAddress> Relay::own_addresses() const {
  const std::lock_guard lock(mutex_);
  std::vector<net::IpAddress> addresses;
  for (const net::Family family : {net::Family::ipv4, net::Family::ipv6})
    if (const auto address = book_->own_address(family)) addresses.push_back(*address);
  return addresses;
}

void Relay::set_local_addresses(std::vector<net::IpAddress> addresses) {
  const std::lock_guard lock(mutex_);
  if (client_leases_ != nullptr) client_leases_->set_local_addresses(std::move(addresses));
}

void Relay::set_obstacle(std::optional<std::string> obstacle) {
  const std::lock_guard lock(mutex_);
  obstacle_ = std::move(obstacle);
}

void Relay::prove(Clock::time_point now) {
  std::string packets;
  std::vector<Ending> endings;
  std::vector<std::shared_ptr<Downlink>> lease_holders;
  {
    const std::lock_guard lock(mutex_);
    if (obstacle_ || draining_) return;
    bool lost = false;
    for (auto& [destination, proof] : proofs_) {
      const bool was_proven = proof.proven();
      proof.tick(now, packets);
      if (was_proven && !proof.proven()) {
        lost = true;
        spdlog::warn("{}", proof.why_not());
      }
    }
    if (lost) {
      endings = unserved_streams();
      lease_holders = downlinks();
    }
  }
  if (!packets.empty()) send_(packets);
  for (const auto& downlink : lease_holders) downlink->lease_changed();
  for (const Ending& ending : endings) ending.downlink->end(ending.reason);
}

void Relay::prove_again() {
  const std::lock_guard lock(mutex_);
  for (auto& [destination, proof] : proofs_) proof.again();
}

void Relay::drain() {
  std::string resets;
  std::vector<std::shared_ptr<Downlink>> streams;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    uint32_t sessions = 0;
    for (size_t stream = 0; stream < streams_.size(); ++stream)
      if (streams_[stream].downlink)
        sessions += book_->reset_sessions(static_cast<StreamId>(stream), resets);
    add(counters_.sessions_reset, ResetReason::drained, sessions);
    streams = downlinks();
  }
  send_(resets);
  for (const auto& downlink : streams) downlink->drain();
}

bool Relay::wait_for_streams_to_end(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return stream_ended_.wait_for(lock, timeout, [&] { return downlinks().empty(); });
}

std::optional<std::string> Relay::not_ready() const {
  const std::lock_guard lock(mutex_);
  return why_not_ready();
}

Relay::Status Relay::status() const {
  const std::lock_guard lock(mutex_);
  Status status{why_not_ready(), {}, {}, totals_};
  for (const Target& target : targets_) {
    const PathProof& proof = proofs_.at(destination_of(target));
    status.targets.emplace_back(target,
                                proof.proven() ? std::nullopt : std::optional(proof.why_not()));
  }
  for (const Stream& stream : streams_) {
    if (!stream.downlink) continue;
    SidecarCounts& counts = status.sidecars[stream.sidecar];
    counts.add(stream.counts);
    counts.sessions += stream.counts.sessions;
    counts.replay = stream.counts.replay;
    status.totals.sessions += stream.counts.sessions;
  }
  return status;
}

std::optional<std::string> Relay::why_not_ready() const {
  if (draining_) return "the intercept is about to end";
  if (obstacle_) return obstacle_;
  if (configuration_.stop) return std::nullopt;
  for (const auto& [port, proof] : proof_of_ports())
    if (!proof->proven()) return proof->why_not();
  return std::nullopt;
}

Relay::Statistics Relay::statistics() const {
  const std::lock_guard lock(mutex_);
  Statistics statistics;
  statistics.streams = downlinks().size();
  statistics.free_ports = book_->free_ports();
  statistics.leased_ports = book_->leased_ports();
  for (const auto& [destination, proof] : proofs_) {
    const auto& [endpoint, protocol] = destination;
    statistics.proven.emplace_back(
        endpoint.to_string() + (protocol == net::Protocol::udp ? "/udp" : ""), proof.proven());
  }
  return statistics;
}

}  // namespace trafficmirror::intercept
