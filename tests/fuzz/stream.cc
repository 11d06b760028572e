// The stream between sidecar and intercept, as a hostile peer may fill it. Up: whatever batches
// come, the relay passes nothing on that the lease does not allow. Down: leases and batches of
// headers are read or turned down; what the relay sends down can be read.
#include <array>
#include <cstring>
#include <memory>
#include <set>
#include <variant>
#include <vector>

#include <spdlog/spdlog.h>

#include "intercept/relay.h"
#include "net/batch.h"
#include "sidecar/session/source_ports.h"
#include "sidecar/uplink/messages.h"
#include "tests/fuzz/fuzz.h"
#include "trafficmirror/v1/mirror.pb.h"

namespace trafficmirror::fuzz {
namespace {

using intercept::PortRange;
using intercept::Relay;
using intercept::Sender;
using intercept::StreamId;
using intercept::Target;

constexpr PortRange source_ports = {10000, 13000};

net::Endpoint endpoint(const char* text) {
  return *net::Endpoint::parse(text);
}

// What the oracle knows of a packet. It reads the bytes itself, so that a mistake of the parser's
// is not one of its own.
struct Ends {
  std::string source;  // 4 or 16 bytes
  std::string destination;
  uint16_t source_port;
  uint16_t destination_port;
  net::Protocol protocol;
};

Ends ends_of(std::span<const uint8_t> packet) {
  const bool ipv4 = packet[0] >> 4 == 4;
  const size_t headers = ipv4 ? 20 : 40;
  const bool udp = packet[ipv4 ? 9 : 6] == 17;
  require(udp || packet[ipv4 ? 9 : 6] == 6, "it is TCP or UDP, right behind the IP header");
  require(packet.size() >= headers + (udp ? 8 : 20), "its header is there");
  if (udp)
    require(net::load16(&packet[headers + 4]) >= 8 &&
                headers + net::load16(&packet[headers + 4]) <= packet.size(),
            "the datagram has its length");
  else
    require(packet[headers + 12] >> 4 >= 5 &&
                headers + size_t{packet[headers + 12]} / 16 * 4 <= packet.size(),
            "the TCP header has its length");
  if (ipv4) {
    require(packet[0] == 0x45, "no IP options pass");
    require((net::load16(&packet[6]) & 0x3fff) == 0, "no fragment passes");
  }
  const auto text = as_text(packet);
  const size_t address = ipv4 ? 4 : 16;
  return {std::string(text.substr(headers - 2 * address, address)),
          std::string(text.substr(headers - address, address)), net::load16(&packet[headers]),
          net::load16(&packet[headers + 2]), udp ? net::Protocol::udp : net::Protocol::tcp};
}

std::string raw(const net::IpAddress& address) {
  return std::string(as_text(address.bytes()));
}

class Down : public intercept::Downlink {
 public:
  void headers(std::string& batch, size_t count) override {
    size_t read = 0;
    require(uplink::for_each_header(batch, [&](const net::Packet&) { ++read; }),
            "what goes down can be read");
    require(read == count, "and is as many headers as it says");
    batch.clear();
  }
  void replies(std::string& batch, size_t count) override {
    size_t read = 0;
    require(uplink::for_each_reply(batch, [&](const net::Packet&) { ++read; }),
            "whole packets that go down can be read");
    require(read == count, "and are as many as it says");
    batch.clear();
  }
  void lease_changed() override {}
  void configuration_changed() override {}
  void drain() override {}
  void end(const std::string& reason) override { require(!reason.empty(), "an end has a reason"); }
};

// The relay with two streams: one may reach all targets, the other that of one port.
class Intercept {
 public:
  explicit Intercept(Input& input) : input_(input) {
    set_paths("10.0.1.2", "fd00::2");
    prove();
    open(0);
    open(1);
    require(streams_[0].has_value() && streams_[1].has_value(), "proven paths are served");
  }

  void run() {
    for (int i = 0; i < 200 && !input_.empty(); ++i) step();
    for (size_t i = 0; i < streams_.size(); ++i) close(i);
    require(relay_.statistics().leased_ports == 0, "every port came back");
  }

 private:
  void step() {
    const uint8_t what = input_.u8();
    const size_t stream = (what >> 4) % streams_.size();
    switch (what % 16) {
      case 0:
        return close(stream);
      case 1:
        return open(stream);
      case 2:
        if (streams_[stream]) relay_.more_source_ports(*streams_[stream]);
        return;
      case 3:
        return set_paths((what & 0x20) != 0 ? "10.0.1.3" : "10.0.1.2", "fd00::2");
      case 4:
        return relay_.prove_again();
      case 5:
        return prove();
      case 6:
        if (what == 0xf6) relay_.drain();
        return;
      case 7:
      case 8:
      case 9:
      case 10:
        return headers(what >> 4);
      default:
        return packets(stream, input_.u8() % 4 + 1);
    }
  }

  void set_paths(const char* ipv4, const char* ipv6) {
    std::vector<std::variant<intercept::Path, std::string>> paths;
    for (const net::Endpoint& target : relay_.endpoints()) {
      const bool is_ipv4 = target.address.family() == net::Family::ipv4;
      paths.emplace_back(
          intercept::Path{*net::IpAddress::parse(is_ipv4 ? ipv4 : ipv6), is_ipv4 ? 1500U : 1400U});
    }
    relay_.set_paths(paths);
  }

  // Answers the relay's own SYNs.
  void prove() {
    proofs_.clear();
    relay_.prove(now_ += std::chrono::seconds(1));
    const std::string syns = std::exchange(proofs_, "");
    size_t at = 0;
    while (at < syns.size()) {
      const auto bytes = as_bytes(std::string_view(syns).substr(at));
      const auto length = net::first_packet_length(bytes);
      require(length.has_value(), "what the relay sends is whole");
      at += *length;
      const auto parsed = net::parse_packet(bytes.first(*length), *length);
      const auto& syn = std::get<net::Packet>(parsed);
      net::TcpHeader tcp;
      tcp.flags = {.syn = true, .ack = true};
      tcp.acknowledgment = syn.tcp.sequence + 1;
      std::string answer;
      net::append_packet(answer, syn.destination, syn.source, tcp, 0, [](uint8_t*) {});
      const std::span<const uint8_t> one = as_bytes(answer);
      relay_.headers({&one, 1});
    }
  }

  void open(size_t stream) {
    if (streams_[stream]) return;
    constexpr std::array<uint16_t, 3> reply_ports = {80, 6379, 53};
    const auto opened = relay_.open("pod-1", production_ports(stream), std::make_shared<Down>(),
                                    Sender::intercept, reply_ports);
    if (const auto* id = std::get_if<StreamId>(&opened)) streams_[stream] = *id;
  }

  void close(size_t stream) {
    if (!streams_[stream]) return;
    relay_.close(*streams_[stream]);
    streams_[stream].reset();
  }

  static std::vector<net::ProductionPort> production_ports(size_t stream) {
    using Ports = std::vector<net::ProductionPort>;
    return stream == 0 ? Ports{{80}, {6379}, {53, net::Protocol::udp}} : Ports{{6379}};
  }

  // A packet near to one that may pass.
  std::string packet(bool up) {
    const uint8_t form = input_.u8();
    if (form == 0xff) return std::string(as_text(input_.bytes(input_.u8())));
    const uint8_t with = input_.u8();
    constexpr std::array<const char*, 4> own = {"10.0.1.2:1", "[fd00::2]:1", "10.0.1.3:1",
                                                "10.0.0.7:1"};
    net::Endpoint source = endpoint(own[form % own.size()]);
    source.port.number = static_cast<uint16_t>(9990 + (form >> 2) % 4 * 256 + (with & 0x1f));
    const size_t to = (with >> 5) % (targets_.size() + 1);
    net::Endpoint destination =
        to == targets_.size() ? endpoint("10.0.0.7:80") : targets_[to].endpoint;
    if (source.address.family() != destination.address.family())
      destination = targets_[source.address.family() == net::Family::ipv4 ? 0 : 1].endpoint;
    if (!up) std::swap(source, destination);
    net::TcpHeader tcp;
    const uint8_t bits = input_.u8();
    tcp.flags = {.fin = (bits & 1) != 0,
                 .syn = (bits & 2) != 0,
                 .rst = (bits & 4) != 0,
                 .psh = false,
                 .ack = (bits & 8) != 0};
    tcp.sequence = net::SequenceNumber(bits >> 4);
    tcp.acknowledgment = net::SequenceNumber(bits >> 5);
    std::string text;
    const std::string payload(with & 7U, 'x');
    if (to < targets_.size() && targets_[to].protocol == net::Protocol::udp)
      net::append_datagram(text, source, destination, as_bytes(payload));
    else
      net::append_packet(text, source, destination, tcp, with & 7U, [&](uint8_t* to_bytes) {
        std::memcpy(to_bytes, payload.data(), payload.size());
      });
    // Then changed in a few places, or cut.
    for (int changes = form >> 6; changes > 0; --changes)
      text[input_.u8() % text.size()] = static_cast<char>(input_.u8());
    if ((form & 0x30) == 0x30) text.resize(input_.u8() % (text.size() + 1));
    return text;
  }

  void packets(size_t stream, int count) {
    std::string batch;
    for (int i = 0; i < count; ++i) batch += packet(true);
    if (!streams_[stream]) return;
    checking_ = stream;
    relay_.packets(*streams_[stream], batch);
    checking_.reset();
  }

  void headers(int count) {
    std::vector<std::string> texts(static_cast<size_t>(count));
    for (std::string& text : texts) text = packet(false);
    std::vector<std::span<const uint8_t>> all(texts.size());
    std::transform(texts.begin(), texts.end(), all.begin(),
                   [](const std::string& text) { return as_bytes(text); });
    relay_.headers(all);
  }

  // What the relay sends into the network.
  void sent(std::string_view packets) {
    if (!checking_) proofs_ += packets;
    while (!packets.empty()) {
      const auto bytes = as_bytes(packets);
      const auto length = net::first_packet_length(bytes);
      require(length.has_value(), "what is injected is whole");
      const Ends ends = ends_of(bytes.first(*length));
      if (checking_)
        require_leased(*checking_, ends);
      else
        require(source_ports.contains(ends.source_port), "it comes from a port of the intercept's");
      packets.remove_prefix(*length);
    }
  }

  void require_leased(size_t stream, const Ends& ends) const {
    const intercept::LeaseContents lease = relay_.lease(*streams_[stream]);
    require(std::any_of(lease.sources.begin(), lease.sources.end(),
                        [&](const intercept::SourceRange& range) {
                          return raw(range.address) == ends.source &&
                                 range.ports.contains(ends.source_port);
                        }),
            "the source is leased");
    const std::vector<net::ProductionPort> ports = production_ports(stream);
    require(std::any_of(targets_.begin(), targets_.end(),
                        [&](const Target& target) {
                          return std::find(ports.begin(), ports.end(), target.production()) !=
                                     ports.end() &&
                                 target.protocol == ends.protocol &&
                                 raw(target.endpoint.address) == ends.destination &&
                                 target.endpoint.port.number == ends.destination_port;
                        }),
            "the destination is a target of the stream's");
  }

  Input& input_;
  const std::vector<Target> targets_ = {{80, endpoint("10.0.0.5:8080")},
                                        {80, endpoint("[fd00::5]:8080")},
                                        {6379, endpoint("10.0.0.6:6379")},
                                        {53, endpoint("10.0.0.6:53"), net::Protocol::udp}};
  intercept::Counters counters_;
  std::string proofs_;
  std::optional<size_t> checking_;  // the stream whose packets are being passed
  Relay relay_{source_ports, targets_, 1000, [this](std::string_view packets) { sent(packets); },
               counters_};
  Relay::Clock::time_point now_{std::chrono::hours(1)};
  std::array<std::optional<StreamId>, 2> streams_;
};

void fuzz_lease(Input& input) {
  v1::Lease message;
  const auto bytes = input.rest();
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  const auto lease = uplink::to_lease(message);
  if (!lease) return;
  size_t ports = 0;
  for (const session::Lease::Source& source : lease->sources) {
    require(source.first.number > 0 && source.first <= source.last, "a range of ports is one");
    ports += source.last.number - source.first.number + 1U;
  }
  for (const session::Lease::Target& target : lease->targets)
    require(target.endpoint.port.number > 0 && target.path_mtu >= 576, "a target can be reached");
  require(lease->sources.size() <= 1024 && lease->targets.size() <= 1024, "a lease is bounded");
  if (ports > 2000) return;
  session::SourcePorts pool(1);
  pool.lease(lease->sources);
  pool.lease(lease->sources);  // as when something else in it changes
  std::set<net::Endpoint> seen;
  for (const net::Family family : {net::Family::ipv4, net::Family::ipv6})
    while (const auto number = pool.take(family))
      require(seen.insert(pool.endpoint(*number)).second, "no port is given out twice");
}

void fuzz_headers(Input& input) {
  const auto bytes = input.rest();
  size_t total = 0;
  const bool whole = uplink::for_each_header(as_text(bytes), [&](const net::Packet& packet) {
    require(packet.source.address.family() == packet.destination.address.family(),
            "both addresses are of one family");
    total += packet.header_length;
  });
  require(whole ? total == bytes.size() : total < bytes.size(), "a batch is read to its end");
  total = 0;
  uplink::for_each_reply(as_text(bytes), [&](const net::Packet& packet) {
    require(!packet.cut(), "a reply is whole");
    total += packet.header_length + packet.payload_length;
  });
  require(total <= bytes.size(), "and is of the batch");
}

}  // namespace
}  // namespace trafficmirror::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trafficmirror::fuzz;
  spdlog::set_level(spdlog::level::off);
  Input input({data, size});
  switch (input.u8() % 4) {
    case 0:
      fuzz_lease(input);
      break;
    case 1:
      fuzz_headers(input);
      break;
    default:
      Intercept(input).run();
  }
  return 0;
}
