#include "sidecar/session/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace trafficmirror::session {
namespace {

// Packets captured on different CPUs may stand in another order than they went by; what the server
// says it has received and we have not is missing only after this long.
constexpr Duration gap_grace = std::chrono::milliseconds(200);
// A client that offers less than this is not followed: RFC 791 lets every path carry 68 bytes, and
// segments of a few bytes each are an attack (CVE-2019-11479).
constexpr uint16_t min_mss = 536;

// How far a connection's sequence numbers may move unseen: what a fast one sends while the capture
// is out for half a second.
constexpr int32_t most_unseen = 64 << 20;

// Whether a number is of another connection than the one that is at `known`.
bool is_elsewhere(net::SequenceNumber number, net::SequenceNumber known) {
  const int32_t distance = number - known;
  return distance > most_unseen || distance < -most_unseen;
}

// Whether a client's bytes are surely the beginning of a request, for the protocol whose requests
// say so: HTTP/1 (RFC 9110 section 9).
bool begins_request(std::span<const uint8_t> bytes) {
  constexpr std::array<std::string_view, 9> methods = {
      "GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH "};
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return std::any_of(methods.begin(), methods.end(),
                     [&](std::string_view method) { return text.starts_with(method); });
}

// The packet without the bytes from `end` on: production's server takes none behind a FIN.
net::Packet cut_at(net::Packet packet, net::SequenceNumber end) {
  const auto most = static_cast<uint32_t>(std::max(end - packet.tcp.sequence, 0));
  packet.payload_length = std::min(packet.payload_length, most);
  packet.payload = packet.payload.first(std::min<size_t>(packet.payload.size(), most));
  return packet;
}

// A batch of captured packets touches fewer; what a rare one took is given back.
constexpr size_t most_touched = 4096;

// What a flow and a session cost beside their values, as bench/idle_sessions.cc measures it: the
// links of the map's and the list's nodes, the allocator's header and rounding, the map's bucket, a
// place among the timers, the source port.
constexpr size_t flow_overhead = 52;
constexpr size_t session_overhead = 48;
constexpr size_t flow_size = sizeof(std::pair<const FlowCopy, Flow>) + flow_overhead;
constexpr size_t session_size = sizeof(SessionEntry) + session_overhead;

}  // namespace

Engine::Engine(Options options)
    : options_(std::move(options)),
      streams_(options_.seed),
      datagram_flows_(options_.idle_timeout) {
  set_limits(Time::min(), options_.limits);
}

void Engine::set_limits(Time now, const Limits& limits) {
  if (options_.limits.pacing != limits.pacing)
    for (SessionEntry& entry : sessions_) touch(entry);
  options_.limits = limits;
  last_sampled_ = limits.percent >= 100
                      ? UINT64_MAX
                      : static_cast<uint64_t>(std::ldexp(limits.percent / 100, 64));
  rate_limit_.set(limits.rate);
  most_copies_ = std::max(most_copies_, limits.copies);
  shed_newest(now);
}

// ---- the streams
// ------------------------------------------------------------------------------------------------

void Engine::remove_stream(Stream& stream) {
  stream_lost(stream);
  streams_.remove(stream);
}

void Engine::set_lease(Time now, Stream& stream, const Lease& lease) {
  const std::vector<Stream::Target> before = stream.take(lease, !options_.udp_ports.empty());
  for (auto next = sessions_.begin(); next != sessions_.end();) {
    SessionEntry& entry = *next++;
    if (entry.stream != stream.number) continue;
    const Stream::Target& its = before[entry.target];
    if (const auto target = stream.find(its)) {
      entry.target = *target;
      entry.session.connection().set_maximum_segment_size(maximum_segment_size(path_of(entry)));
    } else {
      // Its RST needs an address to go to until it is sent.
      entry.target = static_cast<uint16_t>(stream.targets.size());
      stream.targets.push_back(its);
      close(now, entry, CloseReason::target_gone);
      stream.targets.pop_back();
    }
  }
  end_datagram_flows(CloseReason::target_gone, [&](DatagramFlow& flow) {
    if (flow.stream != stream.number) return false;
    const auto target = stream.find(before[flow.target]);
    if (target) flow.target = *target;
    return !target;
  });
}

void Engine::stream_lost(Stream& stream) {
  for (auto next = sessions_.begin(); next != sessions_.end();) {
    SessionEntry& entry = *next++;
    if (entry.stream == stream.number) remove(Time::min(), entry, CloseReason::stream_lost);
  }
  end_datagram_flows(CloseReason::stream_lost,
                     [&](const DatagramFlow& flow) { return flow.stream == stream.number; });
  stream.touched.clear();
  stream.clear_lease();
  stream.full = false;
  // What its intercept could not be told any more is told to another.
  counters_.add(std::exchange(stream.counters, {}));
  reported_.add(std::exchange(stream.reported, {}));
}

void Engine::drain(Time now) {
  draining_ = true;
  for (auto& [key, flow] : flows_)
    if (flow.start_shed) shed(flow, *flow.start_shed);
  while (!sessions_.empty()) close(now, sessions_.front(), CloseReason::drained);
  end_datagram_flows(CloseReason::drained, [](const DatagramFlow&) { return true; });
}

// ---- production
// ------------------------------------------------------------------------------------------------

// A client's port may be one of production's too: then the handshake says who the client is, and of
// a connection whose handshake was not seen nobody can.
std::optional<bool> Engine::is_from_client(const net::Packet& packet) const {
  const auto is_production = [&](net::Port port) {
    return std::find(options_.ports.begin(), options_.ports.end(), port) != options_.ports.end();
  };
  if (!is_production(packet.destination.port)) return false;
  if (!is_production(packet.source.port)) return true;
  if (packet.tcp.flags.syn && !packet.tcp.flags.ack) return true;
  if (flows_.contains({{packet.source, packet.destination}})) return true;
  if (flows_.contains({{packet.destination, packet.source}})) return false;
  return std::nullopt;
}

void Engine::on_production(Time now, const net::Packet& packet) {
  if (packet.protocol == net::Protocol::udp) {
    on_datagram(now, packet);
    return;
  }
  const auto from_client = is_from_client(packet);
  if (!from_client) return;
  FlowCopy key{*from_client ? net::FlowKey{packet.source, packet.destination}
                            : net::FlowKey{packet.destination, packet.source}};
  const net::TcpFlags& flags = packet.tcp.flags;
  if (*from_client && flags.syn && (flags.ack || streams_.is_source(key.client))) {
    // A target that leads back to production: each mirrored connection would be mirrored again,
    // without end.
    if (!flags.ack) ++counters_[ShedReason::own_traffic];
    return;
  }
  for (; key.copy < most_copies_; ++key.copy) on_copy(now, key, *from_client, packet);
}

void Engine::on_copy(Time now, const FlowCopy& key, bool from_client, const net::Packet& packet) {
  const bool is_surplus = key.copy >= options_.limits.copies;
  auto found = flows_.find(key);
  if (is_surplus && (found == flows_.end() || !found->second.session)) {
    if (found != flows_.end()) end_flow(now, found->second, CloseReason::finished);
    return;
  }
  if (from_client && packet.tcp.flags.syn) {
    on_syn(now, key, packet);
    return;
  }
  if (found == flows_.end()) {
    // The last segments of a flow that has ended bring no new one to life.
    if (packet.payload_length == 0 || streams_.is_source(key.client) || left_out(key)) return;
    if (!add_flow(now, key)) return;
    if (key.copy == 0) ++counters_.without_start;
    found = flows_.find(key);
  }
  Flow& flow = found->second;
  flow.last_seen = production_time(now);
  if (from_client)
    on_client(now, flow, packet);
  else
    on_server(now, flow, packet);
}

void Engine::on_syn(Time now, const FlowCopy& key, const net::Packet& packet) {
  if (const auto found = flows_.find(key); found != flows_.end()) {
    if (found->second.syn == packet.tcp.sequence) return;  // sent again
    end_flow(now, found->second, CloseReason::flow_reused);
  }
  if (key.copy >= options_.limits.copies) return;
  if (const auto reason = left_out(key)) {
    ++counters_[*reason];
    return;
  }
  Flow* added = add_flow(now, key);
  if (!added) return;
  Flow& flow = *added;
  flow.syn = packet.tcp.sequence;
  flow.client = Reassembly(packet.tcp.sequence + 1);
  flow.boundary = Boundary::certain;
  mirror(now, flow, &packet);
}

void Engine::on_idle_flow(Time now, const net::FlowKey& key, Boundary boundary) {
  if (streams_.is_source(key.client) || left_out(key)) return;
  for (FlowCopy each{key}; each.copy < options_.limits.copies; ++each.copy) {
    if (flows_.contains(each)) continue;
    if (Flow* flow = add_flow(now, each)) flow->boundary = boundary;
  }
}

void Engine::on_client(Time now, Flow& flow, const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  if (tcp.flags.rst) {
    // RFC 5961 section 3.2: production's server heeds only the exact number. Its own FIN, which a
    // client resets behind when it will not read the rest, takes one.
    if (flow.client && tcp.sequence == flow.client->next() + (flow.client_finished ? 1 : 0))
      end_flow(now, flow, CloseReason::production_reset);
    return;
  }
  if (!tcp.flags.ack) return;
  // RFC 5961 section 5: production's server drops what acknowledges bytes that it never sent.
  if (flow.server_next && is_elsewhere(tcp.acknowledgment, *flow.server_next)) return;
  if (!flow.answer_seen && packet.payload_length == 0) flow.saw_answer(tcp.acknowledgment);
  if (tcp.flags.fin && !flow.client_fin) {
    flow.client_fin = tcp.sequence + packet.payload_length;
    flow.client_fin_acknowledgment = tcp.acknowledgment;
  }
  const net::Packet before_fin = flow.client_fin ? cut_at(packet, *flow.client_fin) : packet;
  if (before_fin.payload_length > 0) {
    if (flow.boundary == Boundary::certain &&
        (!flow.client || flow.client->next() == before_fin.tcp.sequence))
      learn_protocol(flow, before_fin);
    if (flow.session)
      take_client_bytes(now, flow, before_fin);
    else
      watch_client_bytes(now, flow, before_fin);
  }
  if (!flow.client_fin || flow.client_finished) return;
  if (flow.session && flow.client->next() != *flow.client_fin)
    return;  // bytes are missing before it
  flow.client_finished = true;
  if (flow.session) {
    flow.session->session.client_finished(now, flow.new_answer(flow.client_fin_acknowledgment));
    touch(*flow.session);
  }
  end_flow_if_finished(now, flow);
}

void Engine::take_client_bytes(Time now, Flow& flow, const net::Packet& packet) {
  SessionEntry& entry = *flow.session;
  if (flow.taken_up_blindly_at && packet.tcp.sequence < *flow.taken_up_blindly_at) {
    close(now, entry, CloseReason::capture_gap);
    return;
  }
  const net::SequenceNumber acknowledgment = packet.tcp.acknowledgment;
  // What the server has said meanwhile says nothing of when it was sent first.
  const bool received_before = flow.server_received && *flow.server_received > packet.tcp.sequence;
  const bool sent_again =
      received_before || packet.tcp.sequence != flow.client->next() || flow.client->has_gap();
  bool exchange_began = false;
  const auto deliver = [&](std::span<const uint8_t> bytes, const Reassembly::Sent& sent) {
    Session::AnswerSeen seen = flow.new_answer(sent.acknowledgment);
    if (seen) {
      seen->more_under_way = sent.more_under_way;
      seen->sent_again = sent_again;
      // The first one was taken into account when the session was opened.
      exchange_began = exchange_began || entry.session.connection().end() > ClientOffset(0);
    }
    entry.session.client_sent(now, bytes, seen);
    flow.saw_answer(sent.acknowledgment);
    flow.boundary = Boundary::unknown;
  };
  if (flow.gap && packet.tcp.sequence <= flow.gap->at && acknowledgment > flow.gap->server_next) {
    const net::Packet in_gap = cut_at(packet, flow.gap->end);
    flow.client->insert(in_gap.tcp.sequence, in_gap.payload, {flow.gap->server_next, false},
                        deliver);
  }
  // What was cut by the capture is not there; if nobody sends it again it is a gap.
  flow.client->insert(packet.tcp.sequence, packet.payload,
                      {acknowledgment, !received_before && flow.more_under_way(acknowledgment)},
                      deliver);
  touch(entry);
  look_for_gap(now, flow, flow.server_next.value_or(acknowledgment));
  account(now, entry);
  if (exchange_began) count_exchange(now);
}

void Engine::watch_client_bytes(Time now, Flow& flow, const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  const net::SequenceNumber end = tcp.sequence + packet.payload_length;
  if (flow.client && end <= flow.client->next()) return;  // sent again
  const bool in_order = !flow.client || tcp.sequence == flow.client->next();
  const bool request = begins_request(packet.payload);
  const bool first =
      flow.boundary == Boundary::certain || (flow.boundary == Boundary::likely && request);
  const bool begins_exchange = first || !flow.answer_seen || flow.new_answer(tcp.acknowledgment);
  // A clean boundary: all that the client said before has been received and answered, and it has
  // seen the answer.
  const bool all_received = !flow.server_received || *flow.server_received == tcp.sequence;
  // Behind a login that the shadow has not seen it would understand nothing.
  const bool logged_in = has_login(flow) && !(flow.syn && tcp.sequence == *flow.syn + 1);
  const bool boundary =
      in_order && all_received && !logged_in && (first || flow.new_answer(tcp.acknowledgment));
  if (boundary && request) learn_protocol(flow, packet);
  if (boundary && (first || request || is_exchange_behind_answer(flow)) && !packet.cut() &&
      !flow.client_finished && now >= flow.retry_at) {
    if (mirror(now, flow, nullptr)) {
      flow.boundary = Boundary::unknown;
      if (!flow.client) {
        flow.taken_up_blindly_at = tcp.sequence;
        flow.session->session.hold();
      }
      flow.client = Reassembly(tcp.sequence);
      // What was said before is not the new session's, except for a greeting: the shadow has one
      // too.
      if (!flow.syn || tcp.sequence != *flow.syn + 1) flow.answer_seen = tcp.acknowledgment;
      take_client_bytes(now, flow, packet);
      return;
    }
  } else if (begins_exchange) {
    shed(flow, now < flow.retry_at ? ShedReason::shadow_down : ShedReason::mid_exchange);
  }
  flow.spoke_behind_answer |= boundary;
  flow.counted = false;
  flow.boundary = Boundary::unknown;
  flow.client = Reassembly(end);
  flow.saw_answer(tcp.acknowledgment);
}

// From the bytes that begin an exchange.
void Engine::learn_protocol(const Flow& flow, const net::Packet& packet) {
  if (begins_request(packet.payload))
    protocols_[flow.key->server.port] = Protocol::http;
  else if (!packet.cut())
    protocols_.try_emplace(flow.key->server.port, Protocol::other);
}

// A server may answer before it has read the whole request (RFC 9112 section 9.3), and the rest of
// it comes behind the answer: HTTP tells it from a request. Where nobody knows yet what is spoken,
// the second time is believed: a request is answered early only once.
bool Engine::is_exchange_behind_answer(const Flow& flow) const {
  const auto protocol = protocols_.find(flow.key->server.port);
  return protocol == protocols_.end() ? flow.spoke_behind_answer
                                      : protocol->second == Protocol::other;
}

void Engine::on_server(Time now, Flow& flow, const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  if (tcp.flags.rst) {
    const bool refused = flow.syn && !flow.server_next && tcp.acknowledgment == *flow.syn + 1;
    if (refused || (flow.server_next && tcp.sequence == *flow.server_next)) {
      // What it had received by now tells whether all of it was captured.
      if (tcp.flags.ack) flow.saw_server_acknowledgment(tcp.acknowledgment);
      end_flow(now, flow, CloseReason::production_reset);
    }
    return;
  }
  if ((tcp.flags.syn && flow.server_syn.value_or(tcp.sequence) != tcp.sequence) ||
      (flow.server_next && is_elsewhere(tcp.sequence, *flow.server_next))) {
    // A new connection on the four-tuple, whose SYN was not captured.
    end_flow(now, flow, CloseReason::flow_reused);
    return;
  }
  if (tcp.flags.syn) flow.server_syn = tcp.sequence;
  const net::SequenceNumber begin = tcp.sequence + tcp.flags.syn;
  const net::SequenceNumber end = begin + packet.payload_length;
  if (!flow.server_next) flow.server_next = begin;
  if (!flow.answer_seen) flow.answer_seen = *flow.server_next;
  if (end > *flow.server_next) {
    if (flow.session) {
      flow.session->session.server_sent(static_cast<uint64_t>(end - *flow.server_next));
      touch(*flow.session);
    }
    flow.server_next = end;
  }
  // First seen in its middle: from here on the client's bytes are known to be whole or not.
  if (tcp.flags.ack && !flow.client) flow.client = Reassembly(tcp.acknowledgment);
  if (tcp.flags.ack) flow.saw_server_acknowledgment(tcp.acknowledgment);
  if (flow.taken_up_blindly_at && tcp.flags.ack) {
    if (flow.session && tcp.acknowledgment < *flow.taken_up_blindly_at) {
      close(now, *flow.session, CloseReason::capture_gap);  // it has not received what came before
    } else if (flow.session) {
      flow.session->session.release();
      touch(*flow.session);
    }
    flow.taken_up_blindly_at.reset();
  }
  if (flow.session) look_for_gap(now, flow, begin);
  if (tcp.flags.fin) {
    flow.server_next = end + 1;
    flow.server_finished = true;
    end_flow_if_finished(now, flow);
  }
}

void Engine::look_for_gap(Time now, Flow& flow, net::SequenceNumber server_next) {
  if (!flow.missing_bytes()) {
    flow.gap.reset();
  } else if (!flow.gap || flow.gap->at != flow.client->next()) {
    // Each byte has its own grace: under load the capture may be behind all the time.
    flow.gap = std::make_unique<Flow::Gap>(Flow::Gap{
        production_time(now) + gap_grace, flow.client->next(), *flow.server_received, server_next});
    flow_timers_.schedule(flow, flow.gap->deadline);
  }
}

// ---- flows
// -----------------------------------------------------------------------------------------------------

bool Engine::room_for(size_t bytes) const {
  // A little is kept free for the sessions there are.
  return counters_.memory + bytes <= options_.limits.memory / 16 * 15;
}

Flow* Engine::add_flow(Time now, const FlowCopy& key) {
  if (!room_for(flow_size)) {
    ++counters_[ShedReason::memory_limit];
    return nullptr;
  }
  const auto added = flows_.try_emplace(key).first;
  Flow& flow = added->second;
  flow.key = &added->first;
  flow.last_seen = production_time(now);
  flow_timers_.schedule(flow, flow.last_seen + options_.idle_timeout);
  counters_.memory += flow_size;
  return &flow;
}

// Production's connection is over. Its session lives on until it has delivered what it holds.
void Engine::end_flow(Time now, Flow& flow, CloseReason reason) {
  if (SessionEntry* entry = flow.session) {
    entry->flow = nullptr;
    flow.session = nullptr;
    if (flow.missing_bytes() || flow.client->has_gap()) {
      close(now, *entry, CloseReason::capture_gap);
    } else if (reason != CloseReason::finished) {
      entry->session.client_reset(now, reason);
      touch(*entry);
    }
  }
  if (flow.start_shed) shed(flow, *flow.start_shed);
  flow_timers_.remove(flow);
  counters_.memory -= flow_size;
  flows_.erase(flows_.find(*flow.key));
}

void Engine::end_flow_if_finished(Time now, Flow& flow) {
  if (flow.client_finished && flow.server_finished) end_flow(now, flow, CloseReason::finished);
}

void Engine::on_flow_timer(Time now, Flow& flow) {
  const Time at = production_time(now);
  if (flow.gap && flow.gap->deadline <= at) {
    flow.gap.reset();
    if (flow.session && flow.missing_bytes()) close(now, *flow.session, CloseReason::capture_gap);
  }
  if (at >= flow.last_seen + options_.idle_timeout) {
    if (flow.session) close(now, *flow.session, CloseReason::idle_timeout);
    end_flow(now, flow, CloseReason::finished);
    return;
  }
  flow_timers_.schedule(flow, std::min(flow.last_seen + options_.idle_timeout,
                                       flow.gap ? flow.gap->deadline : never));
}

void Engine::end_flows(Time now) {
  while (!flows_.empty()) {
    Flow& flow = flows_.begin()->second;
    // That the server has what came before is not in the capture.
    if (flow.session && flow.taken_up_blindly_at)
      close(now, *flow.session, CloseReason::capture_gap);
    end_flow(now, flow, flow.client_finished ? CloseReason::finished : CloseReason::capture_ended);
  }
  end_datagram_flows(CloseReason::capture_ended,
                     [](const DatagramFlow& flow) { return flow.unanswered == 0; });
  datagram_flows_.end(
      now + std::min(options_.response_timeout, DatagramFlows::longest_silence_behind_first));
}

// ---- sessions
// --------------------------------------------------------------------------------------------------

// A session that takes another's place is within them already.
std::optional<ShedReason> Engine::beyond_limits(Time now, const Flow& flow) {
  if (const auto reason = left_out(*flow.key)) return reason;
  if (all_sessions_open()) return ShedReason::session_limit;
  if (!rate_limit_.has_room(now)) return ShedReason::rate_limit;
  return std::nullopt;
}

bool Engine::has_target() const {
  const auto is_ours = [&](const Lease::Target& target) {
    const auto& ports = target.protocol == net::Protocol::tcp ? options_.ports : options_.udp_ports;
    return std::find(ports.begin(), ports.end(), target.production_port) != ports.end();
  };
  return std::any_of(streams_.all().begin(), streams_.all().end(), [&](const Stream* stream) {
    return stream->has_lease &&
           std::any_of(stream->targets.begin(), stream->targets.end(), is_ours);
  });
}

bool Engine::congested(Time now, const net::Packet& packet) const {
  // The last quarter is for what one packet may bring, and for what sessions need meanwhile.
  if (counters_.memory > options_.limits.memory / 4 * 3) return true;
  if (std::any_of(streams_.all().begin(), streams_.all().end(),
                  [](const Stream* stream) { return stream->full; }))
    return true;
  FlowCopy key{{packet.source, packet.destination}};
  const net::Protocol protocol = packet.protocol;
  if (protocol == net::Protocol::udp ? !is_datagram_for_production(packet)
                                     : !is_from_client(packet).value_or(false))
    return false;
  if (left_out(key, protocol) || streams_.is_source(key.client)) return false;
  size_t sessions = sessions_.size() + datagram_flows_.size();
  for (; key.copy < options_.limits.copies; ++key.copy)
    if (opens_session(key, packet) &&
        (++sessions > options_.limits.sessions || !rate_limit_.has_room(now) ||
         is_without_way(now, key, protocol)))
      return true;
  return false;
}

bool Engine::opens_session(const FlowCopy& key, const net::Packet& packet) const {
  if (packet.protocol == net::Protocol::udp) return !datagram_flows_.contains(key);
  const auto found = flows_.find(key);
  const bool known = found != flows_.end();
  const net::TcpFlags& flags = packet.tcp.flags;
  return flags.syn ? !flags.ack && !(known && found->second.syn == packet.tcp.sequence)
                   : packet.payload_length > 0 && !(known && found->second.session);
}

bool Engine::is_without_way(Time now, const FlowCopy& key, net::Protocol protocol) const {
  const auto way = streams_.way_for(now, key, protocol);
  const auto* obstacle = std::get_if<ShedReason>(&way);
  if (obstacle && *obstacle == ShedReason::no_source_port && protocol == net::Protocol::udp)
    return !datagram_flows_.least_needed(production_time(Time::min()));
  return obstacle && *obstacle != ShedReason::no_target;
}

bool Engine::mirror(Time now, Flow& flow, const net::Packet* syn) {
  std::variant<SessionEntry*, ShedReason> result = nullptr;
  if (const auto beyond = beyond_limits(now, flow)) {
    result = *beyond;
  } else {
    const auto way = streams_.way_for(now, *flow.key);
    if (const auto* none = std::get_if<ShedReason>(&way))
      result = *none;
    else
      result = open_session(now, std::get<Way>(way), flow.key->client, syn);
  }
  if (const auto* reason = std::get_if<ShedReason>(&result)) {
    if (syn)
      flow.start_shed = *reason;
    else
      shed(flow, *reason);
    return false;
  }
  flow.session = std::get<SessionEntry*>(result);
  if (const auto login = options_.logins.find(flow.key->server.port);
      login != options_.logins.end())
    flow.session->session.log_in(login->second());
  if (!syn) ++stream_of(*flow.session).counters.adopted;
  flow.session->flow = &flow;
  flow.start_shed.reset();
  flow.counted = false;
  rate_limit_.spend(now);
  return true;
}

void Engine::shed(Flow& flow, ShedReason reason) {
  if (!flow.counted) ++counters_[flow.start_shed.value_or(reason)];
  flow.start_shed.reset();
}

std::variant<SessionEntry*, ShedReason> Engine::open_session(Time now, const Way& way,
                                                             const net::Endpoint& client,
                                                             const net::Packet* syn) {
  Stream& stream = *way.stream;
  if (draining_ || !stream.has_lease) return ShedReason::no_stream;
  if (stream.full) return ShedReason::uplink_full;
  if (!room_for(session_size)) return ShedReason::memory_limit;
  Stream::Target& target = way.target();
  const auto source = stream.source_ports.take({client, target.endpoint});
  if (!source) return ShedReason::no_source_port;
  target.set_tried(now);

  const Path path{stream.source_ports.endpoint(*source), target.endpoint, target.path_mtu};
  Connection::Options options;
  options.initial_sequence = stream.source_ports.initial_sequence(*source);
  options.family = target.endpoint.address.family();
  options.maximum_segment_size = maximum_segment_size(path);
  options.give_up = options_.response_timeout;
  if (syn) {
    // The client's own options, as far as the engine can honour them.
    const net::TcpOptions& offered = syn->tcp.options;
    if (offered.maximum_segment_size)
      options.maximum_segment_size =
          std::min(options.maximum_segment_size, std::max(*offered.maximum_segment_size, min_mss));
    options.window_scale = offered.window_scale.has_value();
    options.sack = offered.sack_permitted;
    options.timestamps = offered.timestamps.has_value();
  }
  SessionEntry& entry =
      sessions_.emplace_back(stream.number, *source, way.target_number, options, now);
  entry.self = std::prev(sessions_.end());
  stream.source_ports.set_user(*source, entry);
  ++stream.counters.opened;
  ++stream.counters.active;
  entry.accounted = session_size;
  counters_.memory += session_size;
  touch(entry);
  return &entry;
}

void Engine::on_shadow(Time now, Stream& stream, const net::Packet& packet) {
  if (packet.protocol == net::Protocol::udp) {
    on_answer(stream, packet);
    return;
  }
  SessionEntry* entry = stream.source_ports.user(packet.destination, packet.source);
  if (!entry || stream.targets[entry->target].endpoint != packet.source) {
    if (packet.tcp.flags.rst) return;
    // RFC 9293 section 3.10.7.1: to a port that is closed.
    Segment reset;
    reset.header.flags.rst = true;
    if (packet.tcp.flags.ack) {
      reset.header.sequence = packet.tcp.acknowledgment;
    } else {
      reset.header.flags.ack = true;
      reset.header.acknowledgment = packet.tcp.sequence + packet.sequence_length();
    }
    stream.open_sink().send(Path{packet.destination, packet.source}, reset);
    return;
  }
  if (!packet.tcp.flags.rst) stream.targets[entry->target].set_up();
  entry->session.process(now, packet, stream.counters);
  touch(*entry);
}

Path Engine::path_of(const SessionEntry& entry) {
  const Stream& stream = stream_of(entry);
  const Lease::Target& target = stream.targets[entry.target];
  return {stream.source_ports.endpoint(entry.source), target.endpoint, target.path_mtu};
}

void Engine::touch(SessionEntry& entry) {
  if (entry.touched) return;
  entry.touched = true;
  stream_of(entry).touched.push_back(&entry);
}

void Engine::set_busy(SessionEntry& entry, bool busy) {
  if (std::exchange(entry.busy, busy) == busy) return;
  size_t& all = stream_of(entry).busy;
  busy ? ++all : --all;
}

bool Engine::busy() const {
  return std::any_of(streams_.all().begin(), streams_.all().end(), [](const Stream* stream) {
    return stream->full || stream->busy > 0 || !stream->touched.empty();
  });
}

Time Engine::deadline() const {
  Time at = production_time_ ? never
                             : std::min(flow_timers_.next(), datagram_flows_.next_by_production());
  at = std::min(at, datagram_flows_.next_by_now());
  for (const Stream* stream : streams_.all())
    if (!stream->full) at = std::min(at, stream->timers.next());
  return at;
}

void Engine::run(Time now) {
  while (flow_timers_.next() <= production_time(now))
    on_flow_timer(now, static_cast<Flow&>(flow_timers_.pop()));
  while (const DatagramFlow* flow = datagram_flows_.due(production_time(now), now))
    end_datagram_flow(*flow, datagram_flows_.ending(*flow) ? CloseReason::capture_ended
                                                           : CloseReason::idle_timeout);
  for (Stream* const each : streams_.all()) {
    Stream& stream = *each;
    if (stream.full) continue;
    while (stream.timers.next() <= now) touch(static_cast<SessionEntry&>(stream.timers.pop()));
    // By index: a session that ends may bring another into the list.
    for (size_t i = 0; i < stream.touched.size(); ++i)
      if (stream.touched[i]) dispatch(now, *stream.touched[i]);
    stream.touched.clear();
    if (stream.touched.capacity() > most_touched) stream.touched.shrink_to_fit();
  }
}

void Engine::dispatch(Time now, SessionEntry& entry) {
  entry.touched = false;
  Stream& stream = stream_of(entry);
  const Pacing& pacing = options_.limits.pacing;
  entry.session.dispatch(now, pacing, {path_of(entry), stream.open_sink()}, stream.counters);
  if (const auto reason = entry.session.closed()) {
    remove(now, entry, *reason);
    return;
  }
  const Time deadline = entry.session.deadline(pacing);
  stream.timers.schedule(entry, deadline);
  set_busy(entry, deadline != never);
  account(now, entry);
}

void Engine::close(Time now, SessionEntry& entry, CloseReason reason) {
  entry.session.close(reason);
  Stream& stream = stream_of(entry);
  entry.session.dispatch(now, options_.limits.pacing, {path_of(entry), stream.open_sink()},
                         stream.counters);
  remove(now, entry, entry.session.closed().value_or(reason));
}

void Engine::remove(Time now, SessionEntry& entry, CloseReason reason) {
  Stream& stream = stream_of(entry);
  ++stream.counters[reason];
  --stream.counters.active;
  if (const Login::Failure* failure = entry.session.login_failure();
      failure && reason == failure->reason && options_.login_failed)
    options_.login_failed(stream.targets[entry.target].endpoint, *failure);
  Flow* flow = entry.flow;
  if (flow) flow->session = nullptr;
  const bool down =
      reason == CloseReason::shadow_refused || reason == CloseReason::shadow_unresponsive;
  if (down) stream.targets[entry.target].set_down(now);
  // Before a session that goes on takes it: a client's own address and port has no substitute.
  stream.source_ports.give_back(entry.source, entry.session.connection().next_initial_sequence());
  if (entry.session.has_rest()) continue_in_new_session(now, entry);
  if (flow && !flow->session) {
    flow->gap.reset();
    if (down && !streams_.has_way_up(now, *flow->key)) flow->retry_at = now + Stream::Target::pause;
    // What was held for the session is gone; the flow is watched for its next boundary from here
    // on.
    flow->client = Reassembly(flow->client->next());
    flow->counted = flow->boundary == Boundary::certain;
  }
  stream.timers.remove(entry);
  set_busy(entry, false);
  if (entry.touched)
    std::replace(stream.touched.begin(), stream.touched.end(), &entry,
                 static_cast<SessionEntry*>(nullptr));
  counters_.memory -= entry.accounted;
  sessions_.erase(entry.self);
}

// The shadow has closed, production has not: what the client has to say goes on in a new session
// with the same target, by the same stream.
void Engine::continue_in_new_session(Time now, SessionEntry& entry) {
  Stream& stream = stream_of(entry);
  const net::Endpoint client = stream.source_ports.endpoint(entry.source);
  const auto result = open_session(now, {&stream, entry.target}, client, nullptr);
  if (const auto* reason = std::get_if<ShedReason>(&result)) {
    ++counters_[*reason];
    return;
  }
  SessionEntry& next = *std::get<SessionEntry*>(result);
  next.session.take_rest_of(entry.session);
  next.flow = entry.flow;
  if (next.flow) next.flow->session = &next;
}

void Engine::account(Time now, SessionEntry& entry) {
  // A session that holds more than 4 GiB is far beyond any limit that makes sense.
  const uint64_t held = session_size + entry.session.allocated() +
                        (entry.flow && entry.flow->client ? entry.flow->client->allocated() : 0);
  counters_.memory += held - entry.accounted;
  entry.accounted = static_cast<uint32_t>(held);
  if (counters_.memory <= options_.limits.memory) return;
  // The newest goes first, unless it is this one that takes the room of all.
  if (held > options_.limits.memory / 2)
    close(now, entry, CloseReason::memory_limit);
  else
    shed_newest(now);
}

void Engine::shed_newest(Time now) {
  while (counters_.memory > options_.limits.memory && !sessions_.empty())
    close(now, sessions_.back(), CloseReason::memory_limit);
  end_datagram_flows(CloseReason::memory_limit, [&](const DatagramFlow&) {
    return counters_.memory > options_.limits.memory;
  });
}

// An exchange can't be left out of a session, so where too many begin sessions have to go.
void Engine::count_exchange(Time now) {
  if (!rate_limit_.spend(now) && !sessions_.empty())
    close(now, sessions_.back(), CloseReason::rate_limit);
}

// ---- datagrams
// -------------------------------------------------------------------------------------------------

bool Engine::is_datagram_for_production(const net::Packet& packet) const {
  return std::find(options_.udp_ports.begin(), options_.udp_ports.end(), packet.destination.port) !=
         options_.udp_ports.end();
}

void Engine::on_datagram(Time now, const net::Packet& packet) {
  if (!is_datagram_for_production(packet)) return;
  FlowCopy key{{packet.source, packet.destination}};
  if (streams_.is_source(key.client)) {
    ++counters_[ShedReason::own_traffic];
    return;
  }
  for (; key.copy < options_.limits.copies; ++key.copy)
    if (const auto reason = mirror_datagram(now, key, packet)) ++counters_[*reason];
}

std::optional<ShedReason> Engine::mirror_datagram(Time now, const FlowCopy& key,
                                                  const net::Packet& packet) {
  DatagramFlow* flow = datagram_flows_.find(key);
  std::optional<Way> way;
  if (!flow) {
    if (const auto reason = left_out(key, packet.protocol)) return reason;
    if (all_sessions_open()) return ShedReason::session_limit;
    if (draining_) return ShedReason::no_stream;
    const auto found = datagram_way_for(now, key);
    if (const auto* none = std::get_if<ShedReason>(&found)) return *none;
    way = std::get<Way>(found);
    if (!room_for(DatagramFlows::flow_size)) return ShedReason::memory_limit;
  }
  Stream& stream = way ? *way->stream : streams_[flow->stream];
  const Lease::Target& target = stream.targets[way ? way->target_number : flow->target];
  if (stream.full) return ShedReason::uplink_full;
  if (packet.cut()) return ShedReason::cut;
  // RFC 8085 section 3.2: a datagram is not to be fragmented on its way.
  if (packet.payload_length > maximum_datagram_size({{}, target.endpoint, target.path_mtu}))
    return ShedReason::too_long;
  if (!rate_limit_.has_room(now)) return ShedReason::rate_limit;
  rate_limit_.spend(now);

  if (!flow) {
    // There is one free, or it would be no way.
    const auto source = stream.udp_source_ports.take(target.endpoint.address.family());
    flow = &datagram_flows_.add(
        {.key = key, .stream = stream.number, .target = way->target_number, .source = *source});
    counters_.memory += DatagramFlows::flow_size;
    ++stream.counters.opened;
    ++stream.counters.active;
  }
  datagram_flows_.sent(*flow, production_time(now), now);
  stream.counters.bytes_to_shadow += packet.payload_length;
  stream.sink.send_datagram(path_of(*flow), packet.payload);
  return std::nullopt;
}

// Of clients that take a port for each question there are always more than there are source ports,
// if they are many enough; those that have had time for their answer make room.
std::variant<Way, ShedReason> Engine::datagram_way_for(Time now, const FlowCopy& key) {
  const auto way = streams_.way_for(now, key, net::Protocol::udp);
  const auto* none = std::get_if<ShedReason>(&way);
  if (!none || *none != ShedReason::no_source_port) return way;
  const DatagramFlow* least_needed = datagram_flows_.least_needed(production_time(now));
  if (!least_needed) return way;
  end_datagram_flow(*least_needed, CloseReason::idle_timeout);
  return streams_.way_for(now, key, net::Protocol::udp);
}

// What comes without a question, or behind the answer to the last one, is no exchange.
void Engine::on_answer(Stream& stream, const net::Packet& packet) {
  const auto source = stream.udp_source_ports.find(packet.destination);
  DatagramFlow* flow = source ? datagram_flows_.find(stream.number, *source) : nullptr;
  if (!flow || stream.targets[flow->target].endpoint != packet.source) return;
  stream.counters.bytes_from_shadow += packet.payload_length;
  if (flow->unanswered == 0) return;
  --flow->unanswered;
  ++stream.counters.exchanges;
  if (flow->unanswered == 0 && datagram_flows_.ending(*flow))
    end_datagram_flow(*flow, CloseReason::capture_ended);
}

void Engine::end_datagram_flow(const DatagramFlow& flow, CloseReason reason) {
  Stream& stream = streams_[flow.stream];
  ++stream.counters[reason];
  --stream.counters.active;
  counters_.memory -= DatagramFlows::flow_size;
  stream.udp_source_ports.give_back(flow.source, net::SequenceNumber());
  datagram_flows_.remove(flow);
}

template <typename Which>
void Engine::end_datagram_flows(CloseReason reason, Which&& which) {
  datagram_flows_.for_each([&](DatagramFlow& flow) {
    if (which(flow)) end_datagram_flow(flow, reason);
  });
}

Path Engine::path_of(const DatagramFlow& flow) const {
  const Stream& stream = streams_[flow.stream];
  const Lease::Target& target = stream.targets[flow.target];
  return {stream.udp_source_ports.endpoint(flow.source), target.endpoint, target.path_mtu};
}

Counters Engine::counters() const {
  Counters all = counters_;
  for (const Stream* stream : streams_.all()) all.add(stream->counters);
  all.flows = flows_.size() + datagram_flows_.size();
  return all;
}

Counters Engine::unreported(const Stream& stream) const {
  Counters since = stream.counters.since(stream.reported);
  since.add(counters_.since(reported_));
  return since;
}

void Engine::set_reported(Stream& stream) {
  stream.reported = stream.counters;
  reported_ = counters_;
}

}  // namespace trafficmirror::session
