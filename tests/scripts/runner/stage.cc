#include "tests/scripts/runner/stage.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

namespace trafficmirror::scripts {
namespace {

constexpr uint16_t production_port = 80;
constexpr const char* client_address = "192.0.2.7";
constexpr uint16_t first_client_port = 40001;
constexpr session::Duration tolerance = std::chrono::milliseconds(1);

session::Engine::Options engine_options(const Script& script) {
  const auto value = [&](const char* name, uint64_t otherwise) {
    const auto found = script.settings.find(name);
    return found == script.settings.end() ? otherwise : std::stoull(found->second);
  };
  session::Engine::Options options;
  options.ports = {net::Port{production_port}};
  options.limits.memory = value("memory-limit", options.limits.memory);
  options.idle_timeout = std::chrono::seconds(value("idle-timeout", 600));
  options.response_timeout = std::chrono::seconds(value("response-timeout", 60));
  return options;
}

net::Endpoint endpoint(const char* address, uint16_t port) {
  return {*net::IpAddress::parse(address), net::Port{port}};
}

std::string seconds(session::Time time) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.6f",
                static_cast<double>(time.time_since_epoch().count()) / 1e6);
  return text.data();
}

}  // namespace

Stage::Stage(const Script& script)
    : script_(script),
      engine_(engine_options(script)),
      stream_(engine_.add_stream(0, *this)),
      target_(endpoint(setting("family", "ipv4") == "ipv6" ? "fd02::1" : "10.2.0.1", 8080)),
      mtu_(static_cast<uint16_t>(std::stoul(setting("mtu", "1500")))),
      ports_(static_cast<uint16_t>(std::stoul(setting("source-ports", "100")))),
      http2_(setting("http2", "no") == "yes") {
  if (setting("lease", "yes") == "yes") engine_.set_lease(now_, stream_, lease());
}

std::string Stage::setting(const std::string& name, const std::string& otherwise) const {
  const auto found = script_.settings.find(name);
  return found == script_.settings.end() ? otherwise : found->second;
}

session::Lease Stage::lease() const {
  const char* source = target_.address.family() == net::Family::ipv6 ? "fd09::1" : "10.9.0.1";
  const bool own = setting("own-address", "no") == "yes";
  if (own) source = client_address;
  const uint16_t first = own ? first_client_port : 10000;
  return {{{*net::IpAddress::parse(source), net::Port{first},
            net::Port{static_cast<uint16_t>(first + ports_ - 1)}}},
          {{net::Port{production_port}, target_, mtu_}}};
}

bool Stage::play() {
  std::vector<const Line*> expected;
  for (size_t i = 0; i < script_.lines.size(); ++i) {
    const Line& line = script_.lines[i];
    advance(line.at);
    if (line.who == Who::output) {
      expected.push_back(&line);
      continue;
    }
    perform(line);
    // What happens at one time, line by line, is one batch.
    const bool batch_goes_on = i + 1 < script_.lines.size() &&
                               script_.lines[i + 1].who != Who::output &&
                               script_.lines[i + 1].at == line.at;
    if (!batch_goes_on) run();
  }

  bool right = true;
  size_t at = 0;
  const size_t most = std::max(expected.size(), outputs_.size());
  for (; at < most; ++at) {
    const Line* line = at < expected.size() ? expected[at] : nullptr;
    const Output* output = at < outputs_.size() ? &outputs_[at] : nullptr;
    if (line && output && matches(*line, *output)) {
      difference_ += "    " + describe(*output) + "\n";
      continue;
    }
    right = false;
    if (line)
      difference_ += "  - " + seconds(line->at) + "  " + line->text.substr(line->text.find('>')) +
                     "   (line " + std::to_string(line->number) + ")\n";
    if (output) difference_ += "  + " + describe(*output) + "\n";
  }
  return right;
}

void Stage::advance(session::Time to) {
  while (engine_.deadline() <= to && engine_.deadline() != session::never) {
    const session::Time due = std::max(now_, engine_.deadline());
    now_ = due;
    run();
    if (engine_.deadline() <= due) throw std::runtime_error("the engine's deadline does not move");
  }
  now_ = to;
}

void Stage::run() {
  engine_.run(now_);
  const session::Counters counters = engine_.counters();
  const auto count = [&](const auto& names, const auto& now, const auto& then, const char* what) {
    for (size_t i = 0; i < names.size(); ++i)
      for (uint64_t n = then[i]; n < now[i]; ++n)
        outputs_.push_back({now_, std::string(what) + " " + names[i], false, {}, 0, {}});
  };
  count(session::close_reason_names, counters.closed, before_.closed, "closed");
  count(session::shed_reason_names, counters.shed, before_.shed, "shed");
  before_ = counters;
}

void Stage::perform(const Line& line) {
  if (line.is_packet)
    perform_packet(line);
  else
    perform_event(line);
}

void Stage::perform_event(const Line& line) {
  const std::string& what = line.words[0];
  if (what == "lease") {
    if (line.words.size() > 2 && line.words[1] == "mtu")
      mtu_ = static_cast<uint16_t>(std::stoul(line.words[2]));
    engine_.set_lease(now_, stream_, lease());
  } else if (what == "lost") {
    engine_.stream_lost(stream_);
  } else if (what == "full") {
    session::Engine::set_uplink_full(stream_, true);
  } else if (what == "free") {
    session::Engine::set_uplink_full(stream_, false);
  } else if (what == "drain") {
    engine_.drain(now_);
  } else if (what == "limits") {
    engine_.set_limits(now_, limits(line));
  } else if (what == "idle-flow" || what == "likely-idle-flow") {
    engine_.on_idle_flow(
        now_, {endpoint(client_address, first_client_port), endpoint("10.1.0.1", production_port)},
        what == "idle-flow" ? session::Boundary::certain : session::Boundary::likely);
  } else if (what != "nothing") {
    throw std::runtime_error("line " + std::to_string(line.number) + ": '" + what +
                             "' is no event");
  }
}

session::Limits Stage::limits(const Line& line) {
  session::Limits limits;
  for (size_t i = 1; i + 1 < line.words.size(); i += 2) {
    const std::string& name = line.words[i];
    const std::string& value = line.words[i + 1];
    session::Pacing& pacing = limits.pacing;
    if (name == "percent")
      limits.percent = std::stod(value);
    else if (name == "sessions")
      limits.sessions = std::stoull(value);
    else if (name == "copies")
      limits.copies = static_cast<uint16_t>(std::stoul(value));
    else if (name == "memory")
      limits.memory = std::stoull(value);
    else if (name == "filter-out")
      limits.filter = [out = first_client_port + std::stoi(value) - 1](const net::FlowKey& key,
                                                                       net::Protocol) {
        return key.client.port.number != out;
      };
    else if (name == "rate")
      limits.rate = static_cast<uint32_t>(std::stoul(value));
    else if (name == "turns" && value == "wait")
      pacing.turns = session::Turns::wait;
    else if (name == "turns" && value == "eager")
      pacing.turns = session::Turns::eager;
    else if (name == "turns" && value == "off")
      pacing.turns = session::Turns::off;
    else if (name == "max-lag")
      pacing.max_lag = session::Duration(std::llround(std::stod(value) * 1e6));
    else if (name == "over-lag" && value == "shed")
      pacing.over_lag = session::OverLag::shed;
    else if (name == "over-lag" && value == "catch-up")
      pacing.over_lag = session::OverLag::catch_up;
    else
      throw std::runtime_error("line " + std::to_string(line.number) + ": '" + name + " " + value +
                               "' is no limit");
  }
  return limits;
}

void Stage::perform_packet(const Line& line) {
  const unsigned index = std::max(line.index, 1U);
  const auto client_port = static_cast<uint16_t>(first_client_port + index - 1);
  const net::Endpoint client = endpoint(client_address, client_port);
  const net::Endpoint server = endpoint("10.1.0.1", production_port);
  Stream* own = nullptr;
  Stream* other = nullptr;
  net::Packet packet;
  if (line.who == Who::shadow) {
    if (sessions_.empty() || line.index > sessions_.size())
      throw std::runtime_error("line " + std::to_string(line.number) +
                               ": there is no such session");
    Mirrored& mirrored = line.index == 0 ? sessions_.back() : sessions_[line.index - 1];
    own = &mirrored.shadow;
    other = &mirrored.engine;
    packet.source = target_;
    packet.destination = mirrored.source;
  } else {
    const bool from_client = line.who == Who::client;
    Stream& clients = clients_.try_emplace(index).first->second;
    Stream& servers = servers_.try_emplace(index).first->second;
    own = from_client ? &clients : &servers;
    other = from_client ? &servers : &clients;
    packet.source = from_client ? client : server;
    packet.destination = from_client ? server : client;
    const auto initial = [&](const char* name, uint32_t otherwise) {
      return net::SequenceNumber(
          static_cast<uint32_t>(std::stoul(setting(name, std::to_string(otherwise)))));
    };
    if (clients.end == 0) clients.initial = initial("client-initial", 1000);
    if (servers.end == 0) servers.initial = initial("server-initial", 900000);
    // A further SYN, beyond the old connection, opens anew.
    if (from_client && line.packet.flags.syn && line.packet.sequence == 0 && clients.end > 1) {
      clients = {clients.initial + clients.end + 100000, 0};
      servers = {servers.initial + servers.end + 100000, 0};
    }
  }
  const PacketLine& said = line.packet;
  packet.tcp.flags = said.flags;
  packet.tcp.sequence = own->initial + said.sequence;
  if (said.flags.ack)
    packet.tcp.acknowledgment = other->initial + said.acknowledgment.value_or(other->end);
  packet.tcp.window = said.window.value_or(65535);
  packet.tcp.options = said.options;
  net::SackBlocks blocks;
  for (const net::SackBlock& block : said.options.sack_blocks.get())
    blocks.push_back({other->initial + block.begin.value(), other->initial + block.end.value()});
  packet.tcp.options.sack_blocks = blocks;
  packet.payload_length = said.length;
  own->end = std::max(own->end, said.sequence + packet.sequence_length());

  if (line.who == Who::shadow) {  // its payload stays behind
    engine_.on_shadow(now_, stream_, packet);
    return;
  }
  std::vector<uint8_t> bytes(std::min(said.captured.value_or(said.length), said.length));
  for (uint32_t i = 0; i < bytes.size(); ++i)
    bytes[i] = byte_at(said.data.value_or(said.sequence) + i);
  packet.payload = bytes;
  engine_.on_production(now_, packet);
}

// The client's byte at a sequence number.
uint8_t Stage::byte_at(uint32_t sequence) const {
  constexpr std::string_view preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  if (http2_ && sequence >= 1 && sequence <= preface.size())
    return static_cast<uint8_t>(preface[sequence - 1]);
  return static_cast<uint8_t>(sequence * 2654435761U >> 13);
}

void Stage::send(const session::Path& path, const session::Segment& segment) {
  const net::TcpHeader& header = segment.header;
  auto mirrored = std::find_if(sessions_.rbegin(), sessions_.rend(),
                               [&](const Mirrored& m) { return m.source == path.source; });
  if (header.flags.syn &&
      (mirrored == sessions_.rend() || mirrored->engine.initial != header.sequence)) {
    sessions_.push_back({path.source, {header.sequence, 0}, {net::SequenceNumber(5000000), 0}, 1});
    mirrored = sessions_.rbegin();
  }
  Output output;
  output.at = now_;
  output.is_packet = true;
  output.session = static_cast<unsigned>(sessions_.rend() - mirrored);
  PacketLine& packet = output.packet;
  packet.flags = header.flags;
  packet.sequence = static_cast<uint32_t>(header.sequence - mirrored->engine.initial);
  packet.length = segment.length;
  if (header.flags.ack)
    packet.acknowledgment = static_cast<uint32_t>(header.acknowledgment - mirrored->shadow.initial);
  packet.window = header.window;
  packet.options = header.options;
  packet.options.sack_blocks = {};
  for (const net::SackBlock& block : header.options.sack_blocks.get())
    packet.options.sack_blocks.push_back(
        {net::SequenceNumber(static_cast<uint32_t>(block.begin - mirrored->shadow.initial)),
         net::SequenceNumber(static_cast<uint32_t>(block.end - mirrored->shadow.initial))});
  if (segment.length > 0) {
    std::vector<uint8_t> bytes(segment.length);
    segment.queue->copy(segment.payload, segment.length, bytes.data());
    // Which bytes of the client's they are; a session need not begin with the first.
    const auto are = [&](uint32_t from) {
      for (uint32_t i = 0; i < segment.length; ++i)
        if (bytes[i] != byte_at(from + i)) return false;
      return true;
    };
    uint32_t from = mirrored->data + packet.sequence - 1;
    if (packet.sequence == 1)
      for (from = 1; from < 1'000'000 && !are(from);) ++from;
    if (are(from)) {
      if (packet.sequence == 1) mirrored->data = from;
      packet.data = from;
    } else {
      output.wrong_bytes = "with bytes that are not the client's";
    }
  }
  mirrored->engine.end = std::max(
      mirrored->engine.end, packet.sequence + packet.length + header.flags.syn + header.flags.fin);
  outputs_.push_back(std::move(output));
}

bool Stage::matches(const Line& line, const Output& output) const {
  if (line.at - output.at > tolerance || output.at - line.at > tolerance) return false;
  if (line.is_packet != output.is_packet) return false;
  if (!line.is_packet) {
    std::string text;
    for (const std::string& word : line.words) text += (text.empty() ? "" : " ") + word;
    return text == output.text;
  }
  const PacketLine& expected = line.packet;
  const PacketLine& found = output.packet;
  const net::TcpOptions& options = expected.options;
  if (line.index != 0 && line.index != output.session) return false;
  if (expected.flags != found.flags || expected.sequence != found.sequence ||
      expected.length != found.length || !output.wrong_bytes.empty())
    return false;
  if (expected.acknowledgment && expected.acknowledgment != found.acknowledgment) return false;
  if (expected.window && expected.window != found.window) return false;
  // A session begins with the client's first byte unless the script says otherwise.
  if (found.length > 0 && found.sequence == 1 && expected.data.value_or(1) != found.data)
    return false;
  if (expected.data && expected.data != found.data) return false;
  if (expected.any_timestamps && !found.options.timestamps) return false;
  if (!expected.any_options) {
    net::TcpOptions rest = found.options;
    if (expected.any_timestamps) rest.timestamps.reset();
    return options == rest;
  }
  return (!options.maximum_segment_size ||
          options.maximum_segment_size == found.options.maximum_segment_size) &&
         (!options.window_scale || options.window_scale == found.options.window_scale) &&
         (!options.sack_permitted || found.options.sack_permitted) &&
         (!options.timestamps || options.timestamps == found.options.timestamps) &&
         (options.sack_blocks.empty() || options.sack_blocks == found.options.sack_blocks);
}

std::string Stage::describe(const Output& output) const {
  std::string text = seconds(output.at) + "  >";
  if (!output.is_packet) return text + " " + output.text;
  const PacketLine& packet = output.packet;
  if (sessions_.size() > 1) text += "#" + std::to_string(output.session);
  text += " ";
  if (packet.flags.syn) text += 'S';
  if (packet.flags.fin) text += 'F';
  if (packet.flags.rst) text += 'R';
  if (packet.flags.psh) text += 'P';
  if (packet.flags.ack) text += '.';
  text += " " + std::to_string(packet.sequence);
  if (packet.length > 0) text += ":" + std::to_string(packet.sequence + packet.length);
  if (packet.acknowledgment) text += " ack " + std::to_string(*packet.acknowledgment);
  text += " win " + std::to_string(*packet.window);
  const net::TcpOptions& options = packet.options;
  if (options.maximum_segment_size) text += " mss " + std::to_string(*options.maximum_segment_size);
  if (options.sack_permitted) text += " sackOK";
  if (options.timestamps)
    text += " ts " + std::to_string(options.timestamps->value) + " " +
            std::to_string(options.timestamps->echo);
  if (options.window_scale) text += " wscale " + std::to_string(*options.window_scale);
  for (const net::SackBlock& block : options.sack_blocks.get())
    text +=
        " sack " + std::to_string(block.begin.value()) + ":" + std::to_string(block.end.value());
  if (packet.data) text += " data " + std::to_string(*packet.data);
  return text + (output.wrong_bytes.empty() ? "" : " " + output.wrong_bytes);
}

}  // namespace trafficmirror::scripts
