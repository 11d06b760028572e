#include "tests/simulation/shadow.h"

#include <algorithm>

namespace trafficmirror::simulation {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ShadowConnection {
 public:
  ShadowConnection(Shadow& host, Shadow::Application& application, const net::Packet& syn,
                   Time now);

  // False once nothing of it is left.
  bool process(Time now, const net::Packet& packet);
  bool tick(Time now);
  Time deadline() const;
  bool remembers_only() const { return dead_ || time_wait_until_ != session::never; }
  net::SequenceNumber next_expected() const { return wire_in(received_) + (fin_received_ ? 1 : 0); }
  bool handshake_done() const { return established_; }

  const std::vector<Reading>& readings() const { return readings_; }
  uint64_t received() const { return received_; }

 private:
  net::SequenceNumber wire_in(uint64_t offset) const {
    return client_initial_ + 1 + static_cast<uint32_t>(offset);
  }
  net::SequenceNumber wire_out(uint64_t offset) const {
    return initial_ + 1 + static_cast<uint32_t>(offset);
  }
  uint64_t stream_end() const { return written_ + (fin_written_ ? 1 : 0); }
  const Personality& how() const { return application_.personality; }

  void receive(Time now, const net::Packet& packet);
  void deliver(Time now, std::span<const uint8_t> bytes);
  std::optional<std::string> check_turn(Time now, Reading& reading, uint64_t before,
                                        uint64_t after);
  void on_fin(Time now);
  void read(Time now);
  void run_application(Time now);
  void write(Time now);
  void output(Time now);
  void transmit(Time now, uint64_t from);
  void acknowledge(Time now);
  void reset(Time now);
  void send(Time now, net::TcpHeader header, uint32_t length);
  uint32_t free_space() const {
    return static_cast<uint32_t>(how().buffer -
                                 std::min<uint64_t>(how().buffer, received_ - read_));
  }

  Shadow& host_;
  Shadow::Application& application_;
  net::Endpoint client_, target_;
  net::SequenceNumber client_initial_, initial_;
  bool established_ = false, dead_ = false;
  bool timestamps_ = false, sack_ = false, scaled_ = false;
  uint8_t client_scale_ = 0;
  uint32_t recent_timestamp_ = 0;
  uint32_t segment_size_ = 536;

  uint64_t received_ = 0, read_ = 0;
  uint64_t right_edge_ = 0;  // of the window as advertised
  uint64_t told_ = 0;        // what it has acknowledged
  std::map<uint64_t, std::vector<uint8_t>> early_;
  bool fin_received_ = false, fin_read_ = false;
  std::optional<uint64_t> fin_at_;
  unsigned unacknowledged_segments_ = 0;
  Time acknowledge_at_ = session::never, read_at_ = session::never;

  uint64_t written_ = 0, acknowledged_ = 0, sent_ = 0, client_window_ = 0;
  bool fin_written_ = false, closed_ = false;
  unsigned duplicates_ = 0;
  Time retransmit_at_ = session::never;
  Duration timeout_ = milliseconds(200);
  unsigned retries_ = 0;
  std::vector<uint64_t> write_ends_;  // a write's last segment carries PSH
  Time time_wait_until_ = session::never;

  // The application.
  std::vector<Reading> readings_;
  size_t next_answer_ = 0;
  bool answering_ = false;
  uint64_t answer_left_ = 0;
  Time write_at_ = session::never, last_write_ = Time::min();
};

ShadowConnection::ShadowConnection(Shadow& host, Shadow::Application& application,
                                   const net::Packet& syn, Time now)
    : host_(host),
      application_(application),
      client_(syn.source),
      target_(syn.destination),
      client_initial_(syn.tcp.sequence),
      initial_(static_cast<uint32_t>(host.random.next())) {
  const net::TcpOptions& options = syn.tcp.options;
  timestamps_ = how().timestamps && options.timestamps;
  sack_ = how().selective_acknowledgment && options.sack_permitted;
  scaled_ = how().window_scale && options.window_scale;
  if (scaled_) client_scale_ = *options.window_scale;
  if (options.timestamps) recent_timestamp_ = options.timestamps->value;
  segment_size_ = options.maximum_segment_size.value_or(536) - (timestamps_ ? 12 : 0);
  client_window_ = syn.tcp.window;
  for (const auto& conversation : application.conversations)
    for (const Boundary& boundary : conversation->boundaries)
      readings_.push_back({conversation.get(), &boundary});
  transmit(now, 0);
  retransmit_at_ = now + seconds(1);
}

void ShadowConnection::send(Time now, net::TcpHeader header, uint32_t length) {
  header.acknowledgment = next_expected();
  header.flags.ack = true;
  const unsigned scale = scaled_ && !header.flags.syn ? *how().window_scale : 0;
  const uint64_t window = std::min<uint64_t>(
      std::max<uint64_t>(free_space(), right_edge_ > received_ ? right_edge_ - received_ : 0) >>
          scale,
      65535);
  header.window = static_cast<uint16_t>(window);
  right_edge_ = std::max(right_edge_, received_ + (window << scale));
  told_ = std::max(told_, received_);
  if (timestamps_)
    header.options.timestamps = net::TcpTimestamps{
        static_cast<uint32_t>(now.time_since_epoch().count() / 1000) + 0xfffff000,
        recent_timestamp_};
  acknowledge_at_ = session::never;
  unacknowledged_segments_ = 0;
  host_.send(target_, client_, header, length);
}

void ShadowConnection::acknowledge(Time now) {
  net::TcpHeader header;
  header.sequence = wire_out(sent_);
  if (sack_) {
    uint64_t begin = 0, end = 0;
    const auto add = [&] {
      if (end > begin && header.options.sack_blocks.get().size() < (timestamps_ ? 3 : 4))
        header.options.sack_blocks.push_back({wire_in(begin), wire_in(end)});
    };
    for (const auto& [offset, bytes] : early_) {
      if (offset > end) {
        add();
        begin = offset;
      }
      end = std::max(end, offset + bytes.size());
    }
    add();
  }
  send(now, header, 0);
}

void ShadowConnection::reset(Time now) {
  net::TcpHeader header;
  header.flags.rst = true;
  header.sequence = wire_out(sent_);
  send(now, header, 0);
  dead_ = true;
}

bool ShadowConnection::process(Time now, const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  const int64_t begin = tcp.sequence - wire_in(received_);
  if (!established_) {
    if (tcp.flags.rst) {
      if (tcp.sequence == next_expected()) dead_ = true;
      return !dead_;
    }
    if (tcp.flags.syn) {
      if (tcp.sequence == client_initial_) transmit(now, 0);
      return true;
    }
    if (!tcp.flags.ack || tcp.acknowledgment != wire_out(0)) return true;
    established_ = true;
    retransmit_at_ = session::never;
    timeout_ = milliseconds(200);
    retries_ = 0;
  }
  const int64_t window =
      static_cast<int64_t>(right_edge_ > received_ ? right_edge_ - received_ : 0);
  const int64_t fin = fin_received_ ? 1 : 0;
  if (tcp.flags.rst) {  // RFC 5961
    if (tcp.sequence == next_expected())
      dead_ = true;
    else if (begin > fin && begin <= window)
      acknowledge(now);
    return !dead_;
  }
  if (tcp.flags.syn) {
    acknowledge(now);
    return true;
  }
  if (!tcp.flags.ack) return true;
  if (timestamps_) {
    if (!tcp.options.timestamps) {
      host_.fail("the engine left out timestamps that were agreed on");
      return true;
    }
    if (static_cast<int32_t>(tcp.options.timestamps->value - recent_timestamp_) < 0) {
      acknowledge(now);
      return true;
    }
    if (begin <= fin) recent_timestamp_ = tcp.options.timestamps->value;
  }
  // One byte beyond the window is a probe; more was never allowed.
  if (begin + int64_t{packet.payload_length} > window + 1 && begin > -(1 << 30))
    host_.fail("the engine sent " +
               std::to_string(begin + int64_t{packet.payload_length} - window) +
               " bytes beyond the window");
  const int64_t end = begin + packet.sequence_length();
  const bool acceptable = packet.sequence_length() == 0
                              ? begin >= 0 && begin <= std::max<int64_t>(window, fin)
                              : end > fin && begin < window;
  if (!acceptable &&
      !(!fin_received_ && packet.sequence_length() == 1 && tcp.flags.fin && begin == 0)) {
    acknowledge(now);
    return true;
  }

  const int32_t advance = tcp.acknowledgment - wire_out(acknowledged_);
  if (advance > static_cast<int64_t>(sent_ - acknowledged_)) {
    acknowledge(now);
    return true;
  }
  if (advance >= 0)
    client_window_ = static_cast<uint64_t>(tcp.window) << (scaled_ ? client_scale_ : 0);
  if (advance > 0) {
    acknowledged_ += static_cast<uint64_t>(advance);
    duplicates_ = 0;
    retries_ = 0;
    timeout_ = milliseconds(200);
    retransmit_at_ = acknowledged_ < sent_ ? now + timeout_ : session::never;
    // What was lost behind it shows by more duplicates or the timeout.
  } else if (advance == 0 && packet.sequence_length() == 0 && acknowledged_ < sent_) {
    if (++duplicates_ == 3) transmit(now, acknowledged_);
  }
  receive(now, packet);
  if (!dead_) {
    run_application(now);
    output(now);
  }
  if (fin_received_ && fin_written_ && acknowledged_ == stream_end() &&
      time_wait_until_ == session::never) {
    if (acknowledge_at_ != session::never) acknowledge(now);
    time_wait_until_ = now + seconds(60);
  }
  return !dead_;
}

void ShadowConnection::receive(Time now, const net::Packet& packet) {
  if (fin_received_) return;
  const int64_t begin = packet.tcp.sequence - wire_in(received_);
  const int64_t end = begin + packet.payload_length;
  if (packet.tcp.flags.fin) fin_at_ = received_ + static_cast<uint64_t>(end);
  bool at_once = begin > 0 || !early_.empty();
  if (packet.payload_length > 0) {
    if (closed_) {  // nobody will read it
      reset(now);
      return;
    }
    auto bytes = packet.payload;
    uint64_t offset = received_;
    if (begin < 0)
      bytes = bytes.subspan(static_cast<size_t>(-begin));
    else
      offset += static_cast<uint64_t>(begin);
    if (offset + bytes.size() > right_edge_)
      bytes = bytes.first(right_edge_ > offset ? static_cast<size_t>(right_edge_ - offset) : 0);
    if (!bytes.empty()) {
      auto& slot = early_[offset];
      if (slot.size() < bytes.size()) slot.assign(bytes.begin(), bytes.end());
    }
    while (!early_.empty() && early_.begin()->first <= received_) {
      const auto first = early_.extract(early_.begin());
      if (first.key() + first.mapped().size() <= received_) continue;
      deliver(now, std::span(first.mapped()).subspan(received_ - first.key()));
      if (dead_) return;
    }
    if (++unacknowledged_segments_ >= 2) at_once = true;
    acknowledge_at_ = std::min(acknowledge_at_, now + how().delayed_acknowledgment);
    if (how().read_interval == Duration::zero())
      read(now);
    else if (read_at_ == session::never)
      read_at_ = now + how().read_interval;
  }
  if (fin_at_ == received_) {
    on_fin(now);
    at_once = true;
  }
  if (dead_) return;
  if (at_once) acknowledge(now);
}

// The heart of the simulation: whatever arrives has to be the next bytes of a conversation that
// production's server received, and in its turn. A few bytes may be those of several; one reading
// without a fault is enough.
void ShadowConnection::deliver(Time now, std::span<const uint8_t> bytes) {
  const uint64_t before = received_;
  received_ += bytes.size();
  std::vector<Reading> left;
  std::string fault = "the shadow received bytes that continue no conversation, " +
                      std::to_string(before) + " to " + std::to_string(received_);
  for (Reading reading : readings_) {
    const uint64_t start = reading.start->offset;
    size_t same = 0;
    while (same < bytes.size() && reading.conversation->byte(start + before + same) == bytes[same])
      ++same;
    if (same < bytes.size()) continue;
    size_t index = 0;
    while (application_.conversations[index].get() != reading.conversation) ++index;
    if (start + received_ > application_.server_received[index]) {
      fault = "the shadow received bytes that production's server has not received";
      continue;
    }
    if (const auto out_of_turn = application_.check_turns && application_.order != Order::any
                                     ? check_turn(now, reading, before, received_)
                                     : std::nullopt) {
      fault = *out_of_turn;
      continue;
    }
    left.push_back(reading);
  }
  readings_ = std::move(left);
  if (readings_.empty()) host_.fail(fault);
  if (how().resets_behind && received_ >= *how().resets_behind) reset(now);
}

// The first byte of an exchange arrives: the one before has been answered by then, or received,
// where that is enough.
std::optional<std::string> ShadowConnection::check_turn(Time now, Reading& reading, uint64_t before,
                                                        uint64_t after) {
  const auto& boundaries = reading.conversation->boundaries;
  const uint64_t start = reading.start->offset;
  for (const Boundary& boundary : boundaries) {
    if (boundary.offset < start + before || boundary.offset >= start + after) continue;
    // A new connection that goes on for one the shadow has closed begins at once, and where the
    // flow was open already, or nothing of the server's was captured before the client's first
    // bytes, nobody knows that the server was to speak first.
    const bool goes_on = how().closing == Personality::Closing::early_close ||
                         how().closing == Personality::Closing::early_shutdown;
    if (boundary.offset == start && (start > 0 || goes_on || !reading.conversation->syn_captured ||
                                     !reading.conversation->server_begin_captured))
      continue;
    if (boundary.production_answer == 0) continue;
    ++reading.turns;
    const std::string exchange =
        "the shadow received the exchange at " + std::to_string(boundary.offset);
    if (told_ < boundary.offset - start)
      return exchange + " before it had acknowledged the one before";
    if (application_.order == Order::received) continue;
    if (written_ < reading.turns) return exchange + " before it had answered the one before";
    if (!fin_written_ && next_answer_ < boundary.answers_before &&
        acknowledged_ < boundary.production_answer && now < last_write_ + milliseconds(2))
      return exchange + " in the midst of its answer";
  }
  return std::nullopt;
}

void ShadowConnection::on_fin(Time now) {
  fin_received_ = true;
  if (how().read_interval > Duration::zero()) read_at_ = now + how().read_interval;
  if (!std::any_of(readings_.begin(), readings_.end(), [&](const Reading& reading) {
        return reading.conversation->client_fin &&
               reading.start->offset + received_ == reading.conversation->client_bytes;
      }))
    host_.fail("FIN came before the end of the client's bytes");
}

void ShadowConnection::read(Time now) {
  const bool was_small = right_edge_ < received_ + std::min(segment_size_, how().buffer / 2);
  read_ = received_;
  fin_read_ = fin_received_;
  read_at_ = session::never;
  if (was_small && free_space() >= std::min(segment_size_, how().buffer / 2)) acknowledge(now);
}

void ShadowConnection::run_application(Time now) {
  if (how().read_interval == Duration::zero()) fin_read_ = fin_received_;
  if (fin_written_ || readings_.empty()) return;
  const Reading& reading = readings_.front();
  const auto& answers = reading.conversation->answers;
  const bool greets = received_ == 0 && !answers.empty() && answers.front().trigger == 0;
  if (received_ == 0 && !greets && !fin_read_) return;
  if (reading.start->offset > 0)
    next_answer_ = std::max(next_answer_, reading.start->answers_before);
  if (!how().never_answers && !answering_ && next_answer_ < answers.size() &&
      answers[next_answer_].trigger <= reading.start->offset + read_) {
    answering_ = true;
    answer_left_ = answers[next_answer_].length;
    if (how().length_change < 0) answer_left_ = std::max<uint64_t>(answer_left_ / 2, 1);
    if (how().length_change > 0) answer_left_ += 100;
    write_at_ = now + host_.random.duration(how().min_think, how().max_think);
  }
  const bool first = how().closing == Personality::Closing::as_production &&
                     reading.conversation->server_fin_first &&
                     reading.start->offset + read_ == reading.conversation->client_bytes;
  const bool early = how().closing == Personality::Closing::early_close ||
                     how().closing == Personality::Closing::early_shutdown;
  const bool answered_something = written_ > 0;
  const bool done = next_answer_ == answers.size() || how().never_answers;
  if (!answering_ && ((fin_read_ && done) || (first && done) || (early && answered_something) ||
                      (fin_read_ && received_ == read_))) {
    fin_written_ = true;
    closed_ = how().closing == Personality::Closing::early_close;
    output(now);
  }
}

void ShadowConnection::write(Time now) {
  write_at_ = session::never;
  const uint64_t part = how().max_writes > 1 ? host_.random.between(1, answer_left_) : answer_left_;
  written_ += part;
  write_ends_.push_back(written_);
  answer_left_ -= part;
  last_write_ = now;
  if (answer_left_ > 0) {
    write_at_ = now + how().between_writes;
  } else {
    answering_ = false;
    ++next_answer_;
    run_application(now);
  }
  output(now);
}

void ShadowConnection::output(Time now) {
  constexpr uint64_t congestion_window = 64 << 10;
  while (established_ && sent_ < stream_end() &&
         sent_ - acknowledged_ < std::min(client_window_, congestion_window))
    transmit(now, sent_);
}

void ShadowConnection::transmit(Time now, uint64_t from) {
  net::TcpHeader header;
  if (!established_) {
    header.sequence = initial_;
    header.flags.syn = true;
    header.options.maximum_segment_size = how().maximum_segment_size;
    header.options.sack_permitted = sack_;
    if (scaled_) header.options.window_scale = how().window_scale;
    send(now, header, 0);
    return;
  }
  const uint64_t length = std::min<uint64_t>(written_ - std::min(from, written_), segment_size_);
  const uint64_t end = from + length;
  header.sequence = wire_out(from);
  header.flags.psh = std::find(write_ends_.begin(), write_ends_.end(), end) != write_ends_.end();
  header.flags.fin = fin_written_ && end == written_;
  send(now, header, static_cast<uint32_t>(length));
  sent_ = std::max(sent_, end + (header.flags.fin ? 1 : 0));
  if (retransmit_at_ == session::never) retransmit_at_ = now + timeout_;
}

Time ShadowConnection::deadline() const {
  if (dead_) return session::never;
  return std::min({acknowledge_at_, read_at_, write_at_, retransmit_at_, time_wait_until_});
}

bool ShadowConnection::tick(Time now) {
  if (dead_) return false;
  if (time_wait_until_ <= now) return false;
  if (read_at_ <= now) {
    read(now);
    run_application(now);
  }
  if (write_at_ <= now) write(now);
  if (retransmit_at_ <= now) {
    if (++retries_ > 8) return false;
    timeout_ *= 2;
    retransmit_at_ = now + timeout_;
    transmit(now, acknowledged_);
  }
  if (acknowledge_at_ <= now) acknowledge(now);
  return true;
}

// ---- the host

Shadow::Shadow(Random its_random, Send to_client, Fail on_failure)
    : random(its_random), send(std::move(to_client)), fail(std::move(on_failure)) {}
Shadow::~Shadow() = default;

void Shadow::process(Time now, const net::Packet& packet) {
  const Key key{packet.source, packet.destination};
  const auto found = connections_.find(key);
  const bool opens = packet.tcp.flags.syn && !packet.tcp.flags.ack && !packet.tcp.flags.rst;
  if (found != connections_.end()) {
    // RFC 6191: a SYN behind the last connection's end opens anew.
    const bool reopens = opens && found->second->remembers_only() &&
                         packet.tcp.sequence > found->second->next_expected();
    if (!reopens) {
      if (!found->second->process(now, packet)) {
        past_.push_back(std::move(found->second));
        connections_.erase(found);
      }
      return;
    }
    past_.push_back(std::move(found->second));
    connections_.erase(found);
  }
  if (packet.tcp.flags.rst) return;
  const auto application = applications.find(packet.destination);
  if (!opens || application == applications.end() || application->second.personality.refuses) {
    answer_unknown(packet);
    return;
  }
  if (application->second.personality.silent) return;
  auto connection = std::make_unique<ShadowConnection>(*this, application->second, packet, now);
  connections_.emplace(key, std::move(connection));
}

void Shadow::answer_unknown(const net::Packet& packet) {
  net::TcpHeader reset;
  reset.flags.rst = true;
  if (packet.tcp.flags.ack) {
    reset.sequence = packet.tcp.acknowledgment;
  } else {
    reset.flags.ack = true;
    reset.acknowledgment = packet.tcp.sequence + packet.sequence_length();
  }
  send(packet.destination, packet.source, reset, 0);
}

Time Shadow::deadline() const {
  Time next = session::never;
  for (const auto& [key, connection] : connections_) next = std::min(next, connection->deadline());
  return next;
}

void Shadow::tick(Time now) {
  for (auto next = connections_.begin(); next != connections_.end();) {
    const auto connection = next++;
    if (connection->second->deadline() > now || connection->second->tick(now)) continue;
    past_.push_back(std::move(connection->second));
    connections_.erase(connection);
  }
}

bool Shadow::received_all(const Conversation& conversation, uint64_t from) const {
  const auto covers = [&](const ShadowConnection& connection) {
    return std::any_of(
        connection.readings().begin(), connection.readings().end(), [&](const Reading& reading) {
          return reading.conversation == &conversation && reading.start->offset <= from &&
                 reading.start->offset + connection.received() == conversation.client_bytes;
        });
  };
  return std::any_of(connections_.begin(), connections_.end(),
                     [&](const auto& entry) { return covers(*entry.second); }) ||
         std::any_of(past_.begin(), past_.end(), [&](const auto& past) { return covers(*past); });
}

uint64_t Shadow::complete() const {
  const auto is_complete = [](const ShadowConnection& connection) {
    return std::any_of(connection.readings().begin(), connection.readings().end(),
                       [&](const Reading& reading) {
                         return reading.start->offset + connection.received() ==
                                reading.conversation->client_bytes;
                       });
  };
  uint64_t count = 0;
  for (const auto& entry : connections_) count += is_complete(*entry.second);
  for (const auto& past : past_) count += is_complete(*past);
  return count;
}

}  // namespace trafficmirror::simulation
