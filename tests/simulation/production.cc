#include "tests/simulation/production.h"

#include <algorithm>
#include <map>

namespace trafficmirror::simulation {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

class Writer {
 public:
  Writer(Random& random, Conversation& conversation, const net::FlowKey& key, Time start,
         const ConversationOptions& options)
      : random_(random), out_(conversation), key_(key), options_(options), now_(start) {
    // Now and then the sequence numbers wrap early.
    const auto initial = [&] {
      return net::SequenceNumber(random.chance(0.2) ? static_cast<uint32_t>(-random.scale(14))
                                                    : static_cast<uint32_t>(random.next()));
    };
    client_initial_ = initial();
    server_initial_ = initial();
    max_segment_ = random.chance(0.3) ? 60000 : 1448;  // super-packets
    syn_options_.maximum_segment_size =
        static_cast<uint16_t>(random.chance(0.1) ? random.between(1, 9000) : 1460);
    syn_options_.sack_permitted = random.chance(0.8);
    if (random.chance(0.8)) syn_options_.window_scale = static_cast<uint8_t>(random.below(15));
    if (random.chance(0.7)) syn_options_.timestamps = net::TcpTimestamps{1, 0};
    faults_ = options.network_faults && random.chance(0.5) ? 0.05 : 0;
  }

  void pass(Duration duration) { now_ += duration; }
  void think() {
    pass(random_.chance(0.1) ? random_.duration(milliseconds(100), milliseconds(3000))
                             : microseconds(random_.scale(15)));
  }

  void handshake() {
    net::TcpHeader syn;
    syn.sequence = client_initial_;
    syn.flags.syn = true;
    syn.options = syn_options_;
    emit(true, syn, 0);
    if (random_.chance(faults_)) {
      pass(milliseconds(1000));
      emit(true, syn, 0);
    }
    net::TcpHeader answer;
    answer.sequence = server_initial_;
    answer.acknowledgment = client_initial_ + 1;
    answer.flags.syn = answer.flags.ack = true;
    answer.options = syn_options_;
    emit(false, answer, 0);
    if (random_.chance(0.9)) client_acknowledges();  // or with the first data
  }

  // The client writes: bytes that go out in segments, which the network may mistreat.
  void client_sends(uint64_t bytes) {
    if (bytes == 0) return;
    const uint64_t begin = out_.client_bytes;
    if (begin == 0 || client_seen_ > spoke_at_) {
      out_.boundaries.push_back({begin, client_seen_ - spoke_at_, out_.answers.size()});
      spoke_at_ = client_seen_;
    }
    out_.client_bytes += bytes;
    struct Piece {
      uint64_t begin, end;
    };
    std::vector<Piece> pieces;
    for (uint64_t at = begin; at < out_.client_bytes;) {
      const uint64_t most = std::min(max_segment_, out_.client_bytes - at);
      const uint64_t length = random_.chance(0.2) ? random_.between(1, most) : most;
      pieces.push_back({at, at + length});
      at += length;
    }
    for (size_t i = 0; i + 1 < pieces.size(); ++i)  // comes later, or lost and sent again
      if (random_.chance(faults_))
        std::swap(pieces[i], pieces[i + 1 + random_.below(pieces.size() - i - 1)]);
    for (const Piece& piece : pieces) {
      client_segment(piece.begin, piece.end);
      if (random_.chance(faults_)) {  // sent again, cut anew
        const uint64_t from =
            random_.between(piece.begin > 3000 ? piece.begin - 3000 : 0, piece.begin);
        client_segment(from, random_.between(from + 1, piece.end));
      }
      if (random_.chance(0.5)) server_acknowledges();
    }
    if (options_.stray_packets && random_.chance(0.1)) stray_segment();
    if (random_.chance(0.8)) server_acknowledges();
  }

  void server_sends(uint64_t trigger, uint64_t bytes) {
    out_.answers.push_back({trigger, static_cast<uint32_t>(bytes)});
    const uint64_t end = server_sent_ + bytes;
    while (server_sent_ < end) {
      const uint64_t length = std::min(max_segment_, end - server_sent_);
      server_segment(server_sent_, server_sent_ + length);
      server_sent_ += length;
      if (random_.chance(faults_)) server_segment(server_sent_ - length, server_sent_);
      if (random_.chance(0.3)) {
        client_seen_ = std::max(client_seen_, server_sent_);
        client_acknowledges();
      }
    }
  }
  void server_sends(uint64_t bytes) { server_sends(out_.client_bytes, bytes); }

  void client_sees(uint64_t offset) { client_seen_ = std::max(client_seen_, offset); }
  void client_sees_all() { client_sees(server_sent_); }
  uint64_t server_sent() const { return server_sent_; }
  uint64_t client_seen() const { return client_seen_; }
  Time now() const { return now_; }

  void client_acknowledges() { emit(true, client_header(out_.client_bytes), 0); }
  void client_fin() {
    net::TcpHeader fin = client_header(out_.client_bytes);
    fin.flags.fin = true;
    client_fin_ = true;
    emit(true, fin, 0);
    if (random_.chance(faults_)) emit(true, fin, 0);
    server_acknowledges();
    out_.client_fin = true;
  }
  void server_fin() {
    net::TcpHeader fin = server_header(server_sent_);
    fin.flags.fin = true;
    emit(false, fin, 0);
    server_fin_ = true;
    client_sees_all();
  }
  void client_reset() {
    net::TcpHeader reset = client_header(out_.client_bytes);
    reset.flags.rst = true;
    emit(true, reset, 0);
    out_.reset = true;
  }
  void server_reset() {
    net::TcpHeader reset = server_header(server_sent_);
    reset.flags.rst = true;
    emit(false, reset, 0);
    out_.reset = true;
  }
  void idle(Time from) { out_.idle.emplace_back(from, now_); }

 private:
  net::TcpHeader client_header(uint64_t offset) const {
    net::TcpHeader header;
    header.sequence = client_initial_ + 1 + static_cast<uint32_t>(offset) + (client_fin_ ? 1 : 0);
    header.acknowledgment =
        server_initial_ + 1 + static_cast<uint32_t>(client_seen_) + (server_fin_ ? 1 : 0);
    header.flags.ack = true;
    header.window = 1000;
    if (syn_options_.timestamps) header.options.timestamps = net::TcpTimestamps{2, 2};
    return header;
  }
  net::TcpHeader server_header(uint64_t offset) const {
    net::TcpHeader header;
    header.sequence = server_initial_ + 1 + static_cast<uint32_t>(offset) + (server_fin_ ? 1 : 0);
    header.acknowledgment =
        client_initial_ + 1 + static_cast<uint32_t>(server_received_) + (client_fin_ ? 1 : 0);
    header.flags.ack = true;
    header.window = 1000;
    if (syn_options_.timestamps) header.options.timestamps = net::TcpTimestamps{2, 2};
    return header;
  }
  void server_acknowledges() { emit(false, server_header(server_sent_), 0); }

  void client_segment(uint64_t begin, uint64_t end) {
    arrived(begin, end);
    net::TcpHeader header = client_header(begin);
    header.flags.psh = end == out_.client_bytes;
    emit(true, header, static_cast<uint32_t>(end - begin), begin);
  }
  void server_segment(uint64_t begin, uint64_t end) {
    net::TcpHeader header = server_header(begin);
    header.flags.psh = true;
    emit(false, header, static_cast<uint32_t>(end - begin));
  }
  // Far outside of every window: of an earlier connection, or an attacker's.
  void stray_segment() {
    net::TcpHeader header = client_header(out_.client_bytes);
    header.sequence =
        header.sequence + static_cast<uint32_t>(random_.between(1U << 28, ~0U - (1U << 28)));
    emit(true, header, 100, uint64_t{1} << 60);
    out_.stray = true;
  }

  void arrived(uint64_t begin, uint64_t end) {
    uint64_t& furthest = arrived_[begin];
    furthest = std::max(furthest, end);
    for (auto next = arrived_.begin(); next != arrived_.end() && next->first <= server_received_;
         next = arrived_.erase(next))
      server_received_ = std::max(server_received_, next->second);
  }

  void emit(bool from_client, const net::TcpHeader& header, uint32_t length, uint64_t offset = 0) {
    pass(microseconds(random_.chance(0.05) ? random_.scale(14) : random_.scale(7)));
    CapturedPacket packet;
    packet.at = now_;
    packet.from_client = from_client;
    packet.server_received = server_received_;
    net::append_packet(packet.bytes, from_client ? key_.client : key_.server,
                       from_client ? key_.server : key_.client, header, length, [&](uint8_t* to) {
                         for (uint32_t i = 0; i < length; ++i) to[i] = out_.byte(offset + i);
                       });
    out_.packets.push_back(std::move(packet));
  }

  Random& random_;
  Conversation& out_;
  net::FlowKey key_;
  ConversationOptions options_;
  Time now_;
  net::SequenceNumber client_initial_;
  net::SequenceNumber server_initial_;
  net::TcpOptions syn_options_;
  uint64_t max_segment_;
  double faults_;
  uint64_t server_sent_ = 0;
  uint64_t server_received_ = 0;
  std::map<uint64_t, uint64_t> arrived_;  // client bytes out of order: begin to end
  uint64_t client_seen_ = 0;
  uint64_t spoke_at_ = 0;  // client_seen_ when the client last spoke
  bool client_fin_ = false;
  bool server_fin_ = false;
};

void converse(Random& random, Writer& writer, const Conversation& conversation,
              const ConversationOptions& options) {
  const auto exchange = [&](uint64_t request, uint64_t response) {
    writer.client_sends(request);
    writer.think();
    writer.server_sends(response);
    writer.client_sees_all();
    const Time idle = writer.now();
    writer.think();
    writer.idle(idle);
  };
  const uint64_t exchanges = random.scale(3);
  switch (conversation.kind) {
    case Kind::keep_alive:
      for (uint64_t i = 0; i < exchanges; ++i) exchange(random.scale(11), random.scale(13));
      break;
    case Kind::server_first:
      writer.think();
      writer.server_sends(0, random.scale(8));
      writer.client_sees_all();
      writer.think();
      for (uint64_t i = 0; i < exchanges; ++i) exchange(random.scale(10), random.scale(10));
      break;
    case Kind::pipelined:
      for (uint64_t i = 0; i < exchanges; ++i) {
        const uint64_t depth = random.scale(3);
        std::vector<uint64_t> ends;
        for (uint64_t j = 0; j < depth; ++j) {
          writer.client_sends(random.scale(9));
          ends.push_back(conversation.client_bytes);
        }
        writer.think();
        for (const uint64_t end : ends) writer.server_sends(end, random.scale(8));
        writer.client_sees_all();
        writer.think();
      }
      break;
    case Kind::upload: {
      const uint64_t size = random.below(options.max_bulk);
      while (conversation.client_bytes < size) {
        writer.client_sends(random.between(1, std::min<uint64_t>(20000, size)));
        writer.think();
      }
      exchange(random.scale(8), random.scale(8));
      break;
    }
    case Kind::download:
      exchange(random.scale(8), 1 + random.below(options.max_bulk));
      if (random.chance(0.5)) exchange(random.scale(8), random.scale(8));
      break;
    case Kind::streaming:
      for (uint64_t i = 0; i < 4 * exchanges; ++i) {
        if (random.chance(0.5))
          writer.client_sends(random.scale(10));
        else
          writer.server_sends(random.scale(10));
        if (random.chance(0.5))
          writer.client_sees(random.between(writer.client_seen(), writer.server_sent()));
        if (random.chance(0.3)) writer.think();
      }
      break;
    case Kind::half_close:
      writer.client_sends(random.scale(12));
      writer.client_fin();
      writer.think();
      writer.server_sends(random.scale(12));
      writer.client_sees_all();
      writer.server_fin();
      break;
    case Kind::one_way:
      for (uint64_t i = 0; i < exchanges; ++i) {
        writer.client_sends(random.scale(10));
        writer.think();
      }
      break;
  }
}

}  // namespace

Conversation make_conversation(Random& random, Kind kind, const net::FlowKey& key, Time start,
                               const ConversationOptions& options) {
  Conversation conversation;
  conversation.kind = kind;
  conversation.content = random.next();
  Writer writer(random, conversation, key, start, options);
  writer.handshake();
  converse(random, writer, conversation, options);
  if (kind == Kind::half_close) return conversation;
  switch (random.below(options.unclean_end ? 7 : 6)) {
    case 0:
    case 1:
      writer.client_fin();
      writer.think();
      writer.server_fin();
      writer.client_acknowledges();
      break;
    case 2:
      conversation.server_fin_first = true;
      writer.server_fin();
      writer.client_acknowledges();
      writer.think();
      writer.client_fin();
      break;
    case 3:
      writer.client_reset();
      break;
    case 4:
      writer.server_reset();
      break;
    case 5:
      writer.client_fin();
      writer.think();
      if (random.chance(0.5))
        writer.client_reset();
      else
        writer.server_reset();
      break;
    default:
      break;
  }
  if (conversation.boundaries.empty()) conversation.boundaries.push_back({0, 0, 0});
  return conversation;
}

}  // namespace trafficmirror::simulation
