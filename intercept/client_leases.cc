#include "intercept/client_leases.h"

#include <algorithm>

#include "net/client_address.h"

namespace trafficmirror::intercept {

void ClientLeases::set_local_addresses(std::vector<net::IpAddress> addresses) {
  local_addresses_ = std::move(addresses);
}

void ClientLeases::set_own_address(net::Family family, net::IpAddress address) {
  own_addresses_[static_cast<size_t>(family)] = address;
}

std::optional<net::IpAddress> ClientLeases::own_address(net::Family family) const {
  return own_addresses_[static_cast<size_t>(family)];
}

std::optional<StreamId> ClientLeases::open(std::span<const net::ProductionPort> production_ports,
                                           Sender /*sender*/,
                                           std::span<const uint16_t> reply_ports) {
  auto slot = std::find_if(streams_.begin(), streams_.end(),
                           [](const Stream& stream) { return !stream.active; });
  if (slot == streams_.end()) slot = streams_.emplace(slot);
  slot->active = true;
  slot->production_ports.assign(production_ports.begin(), production_ports.end());
  slot->reply_ports = {reply_ports.begin(), reply_ports.end()};
  return static_cast<StreamId>(slot - streams_.begin());
}

uint32_t ClientLeases::close(StreamId stream, std::string& resets) {
  const uint32_t sessions = reset_sessions(stream, resets);
  streams_[stream] = Stream();
  return sessions;
}

uint32_t ClientLeases::reset_sessions(StreamId stream, std::string& resets) {
  uint32_t sessions = 0;
  std::erase_if(entries_, [&](const auto& each) {
    const auto& [ends, entry] = each;
    if (entry.stream != stream) return false;
    if (entry.connection.open()) {
      for (const net::SequenceNumber sequence : entry.connection.reset_sequences())
        append_reset(resets, ends.client, ends.server, sequence);
      ++sessions;
    }
    return true;
  });
  std::erase_if(ended_, [&](const net::FlowKey& ends) { return !entries_.contains(ends); });
  return sessions;
}

bool ClientLeases::may_be_source(const net::IpAddress& address) const {
  return net::may_be_client(address) && own_address(address.family()) != address &&
         std::find(local_addresses_.begin(), local_addresses_.end(), address) ==
             local_addresses_.end() &&
         std::none_of(targets_.begin(), targets_.end(),
                      [&](const Target& target) { return target.endpoint.address == address; });
}

bool ClientLeases::is_target(const Stream& stream, const net::Endpoint& endpoint) const {
  return std::any_of(targets_.begin(), targets_.end(), [&](const Target& target) {
    return target.endpoint == endpoint && target.protocol == net::Protocol::tcp &&
           std::find(stream.production_ports.begin(), stream.production_ports.end(),
                     target.production()) != stream.production_ports.end();
  });
}

bool ClientLeases::is_reply_port(const Stream& stream, const net::Endpoint& endpoint) const {
  return std::any_of(targets_.begin(), targets_.end(), [&](const Target& target) {
    return target.endpoint == endpoint && stream.reply_ports.contains(target.production_port);
  });
}

std::vector<uint16_t> ClientLeases::whole_from() const {
  std::set<uint16_t> ports;
  for (const Target& target : targets_)
    if (std::any_of(streams_.begin(), streams_.end(), [&](const Stream& stream) {
          return stream.reply_ports.contains(target.production_port);
        }))
      ports.insert(target.endpoint.port.number);
  return {ports.begin(), ports.end()};
}

std::optional<Refusal> ClientLeases::send(StreamId stream, const net::Packet& packet) {
  const net::Family family = packet.source.address.family();
  if (packet.ip_header_length != net::ip_header_length(family)) return Refusal::ip_options;
  if (packet.protocol != net::Protocol::tcp) return Refusal::target;
  const net::FlowKey ends{packet.source, packet.destination};
  auto found = entries_.find(ends);
  if (found == entries_.end() || found->second.stream != stream || packet.tcp.flags.syn) {
    // Nothing but a SYN begins one.
    if (!packet.tcp.flags.syn || !may_be_source(packet.source.address)) return Refusal::source;
    if (!is_target(streams_[stream], packet.destination)) return Refusal::target;
    if (found == entries_.end()) {
      if (entries_.size() >= most_connections) return Refusal::source;
      found = entries_.try_emplace(ends).first;
    } else if (found->second.stream != stream && found->second.connection.open()) {
      return Refusal::source;
    }
    found->second.stream = stream;
  }
  found->second.connection.sent(0, packet);
  note_end(ends, found->second);
  return std::nullopt;
}

Leases::Arrived ClientLeases::arrive(const net::Packet& packet) {
  if (packet.protocol != net::Protocol::tcp) return {Arrival::foreign};
  const bool from_target = std::any_of(targets_.begin(), targets_.end(), [&](const Target& target) {
    return target.endpoint == packet.source;
  });
  const net::FlowKey ends{packet.destination, packet.source};
  const auto found = entries_.find(ends);
  if (found == entries_.end() || !found->second.connection.known()) {
    const bool is_session = from_target && may_be_source(packet.destination.address);
    return {is_session ? Arrival::closed_port : Arrival::foreign};
  }
  Entry& entry = found->second;
  entry.connection.received(packet);
  note_end(ends, entry);
  const bool whole = is_reply_port(streams_[entry.stream], packet.source) &&
                     entry.connection.within_first(first_reply_bytes, packet);
  return {Arrival::session, entry.stream, whole};
}

void ClientLeases::note_end(const net::FlowKey& ends, Entry& entry) {
  if (entry.ended || entry.connection.open()) return;
  entry.ended = true;
  ended_.push_back(ends);
  if (ended_.size() <= most_ended) return;
  const auto oldest = entries_.find(ended_.front());
  ended_.pop_front();
  // It may have begun anew.
  if (oldest->second.connection.open())
    oldest->second.ended = false;
  else
    entries_.erase(oldest);
}

uint32_t ClientLeases::free_ports() const {
  return most_connections - leased_ports();
}

uint32_t ClientLeases::leased_ports() const {
  return static_cast<uint32_t>(entries_.size() - ended_.size());
}

}  // namespace trafficmirror::intercept
