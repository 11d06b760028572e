#include "intercept/lease.h"

#include <algorithm>
#include <map>

namespace trafficmirror::intercept {

LeaseBook::LeaseBook(PortRange ports, const std::vector<Target>& targets,
                     const std::array<Addresses, 2>& pool)
    : ports_(ports),
      addresses_(pool),
      address_count_(static_cast<uint16_t>(std::max({pool[0].size(), pool[1].size(), size_t{1}}))) {
  const uint32_t blocks = (ports.size() + block_size - 1) / block_size * address_count_;
  owner_of_block_.assign(blocks, no_stream);
  for (uint32_t block = 0; block < blocks; ++block)
    free_blocks_.push_back(static_cast<uint16_t>(block));
  for (auto& of_family : connections_) of_family.resize(blocks);
  set_targets(targets);
}

void LeaseBook::set_targets(const std::vector<Target>& targets) {
  std::vector<Target> added = targets;
  for (Place& place : targets_) place.gone = std::erase(added, place.target) == 0;
  if (added.empty()) return;
  std::vector<uint16_t> free = free_places();
  for (const Target& target : added) {
    if (free.empty()) {
      targets_.push_back({target});
    } else {
      targets_[free.back()] = {target};
      free.pop_back();
    }
  }
}

// Those of targets that are gone and have nothing open. Nothing refers to them any more.
std::vector<uint16_t> LeaseBook::free_places() {
  std::vector<bool> in_use;
  for (const Place& place : targets_) in_use.push_back(!place.gone);
  for (auto& of_family : connections_) {
    for (auto& of_block : of_family) {
      for (Connection& connection : of_block) {
        if (!connection.known() || !targets_[connection.target()].gone) continue;
        if (connection.open())
          in_use[connection.target()] = true;
        else
          connection = Connection();
      }
    }
  }
  std::vector<uint16_t> free;
  for (size_t i = 0; i < in_use.size(); ++i)
    if (!in_use[i]) free.push_back(static_cast<uint16_t>(i));
  return free;
}

void LeaseBook::set_own_address(net::Family family, net::IpAddress address) {
  addresses_[static_cast<size_t>(family)] = {address};
}

std::optional<net::IpAddress> LeaseBook::own_address(net::Family family) const {
  return block_address(0, family);
}

std::optional<net::IpAddress> LeaseBook::block_address(uint16_t block, net::Family family) const {
  const Addresses& addresses = addresses_[static_cast<size_t>(family)];
  const size_t index = block % address_count_;
  return index < addresses.size() ? std::optional(addresses[index]) : std::nullopt;
}

PortRange LeaseBook::block_range(uint16_t block) const {
  const uint32_t first = ports_.first + block / address_count_ * block_size;
  return {static_cast<uint16_t>(first),
          static_cast<uint16_t>(std::min<uint32_t>(first + block_size - 1, ports_.last))};
}

std::optional<LeaseBook::Slot> LeaseBook::find_slot(const net::Endpoint& source) const {
  const Addresses& addresses = addresses_[static_cast<size_t>(source.address.family())];
  const auto address = std::lower_bound(addresses.begin(), addresses.end(), source.address);
  if (address == addresses.end() || *address != source.address ||
      !ports_.contains(source.port.number))
    return std::nullopt;
  const uint32_t offset = source.port.number - ports_.first;
  const size_t block = size_t{offset / block_size} * address_count_ +
                       static_cast<size_t>(address - addresses.begin());
  return Slot{static_cast<uint16_t>(block), static_cast<uint16_t>(offset % block_size)};
}

uint32_t LeaseBook::take_blocks(StreamId stream, size_t count) {
  uint32_t added = 0;
  for (; count > 0 && !free_blocks_.empty(); --count) {
    const uint16_t block = free_blocks_.front();
    free_blocks_.pop_front();
    owner_of_block_[block] = stream;
    streams_[stream].blocks.push_back(block);
    for (auto& of_family : connections_) of_family[block].resize(block_size);
    added += block_range(block).size();
  }
  return added;
}

std::optional<StreamId> LeaseBook::open(std::span<const net::ProductionPort> production_ports,
                                        Sender sender, std::span<const uint16_t> reply_ports) {
  if (free_blocks_.empty()) return std::nullopt;
  auto slot = std::find_if(streams_.begin(), streams_.end(),
                           [](const Stream& stream) { return !stream.active; });
  if (slot == streams_.end()) slot = streams_.emplace(slot);
  slot->active = true;
  slot->sender = sender;
  slot->production_ports.assign(production_ports.begin(), production_ports.end());
  slot->reply_ports = {reply_ports.begin(), reply_ports.end()};
  const auto stream = static_cast<StreamId>(slot - streams_.begin());
  take_blocks(stream, blocks_at_first * std::min<size_t>(address_count_, most_addresses_at_first));
  return stream;
}

uint32_t LeaseBook::extend(StreamId stream) {
  return take_blocks(stream, streams_[stream].blocks.size());
}

std::optional<std::vector<SourceRange>> LeaseBook::sources(StreamId stream) const {
  std::vector<SourceRange> ranges;
  for (const net::Family family : {net::Family::ipv4, net::Family::ipv6}) {
    std::map<net::IpAddress, size_t> last_of_address;
    for (const uint16_t block : streams_[stream].blocks) {
      const auto address = block_address(block, family);
      if (!address) continue;
      const PortRange ports = block_range(block);
      const auto [last, is_first] = last_of_address.try_emplace(*address, ranges.size());
      if (!is_first && ranges[last->second].ports.last + 1U == ports.first) {
        ranges[last->second].ports.last = ports.last;
      } else {
        last->second = ranges.size();
        ranges.push_back({*address, ports});
      }
    }
  }
  return ranges;
}

uint32_t LeaseBook::reset_sessions(StreamId stream, std::string& resets) {
  uint32_t sessions = 0;
  for (const uint16_t block : streams_[stream].blocks) {
    for (const net::Family family : {net::Family::ipv4, net::Family::ipv6}) {
      auto port = block_range(block).first;
      for (Connection& connection : connections(family, block)) {
        if (connection.open()) {
          const net::Endpoint source{*block_address(block, family), net::Port{port}};
          for (const net::SequenceNumber sequence : connection.reset_sequences())
            append_reset(resets, source, targets_[connection.target()].target.endpoint, sequence);
          ++sessions;
        }
        connection = Connection();
        ++port;
      }
    }
  }
  return sessions;
}

uint32_t LeaseBook::close(StreamId stream, std::string& resets) {
  const uint32_t sessions = reset_sessions(stream, resets);
  for (const uint16_t block : streams_[stream].blocks) {
    owner_of_block_[block] = no_stream;
    free_blocks_.push_back(block);
  }
  streams_[stream] = Stream();
  return sessions;
}

std::optional<uint16_t> LeaseBook::find_target(const Stream& stream, const net::Endpoint& endpoint,
                                               net::Protocol protocol) const {
  for (size_t i = 0; i < targets_.size(); ++i) {
    const auto& [target, gone] = targets_[i];
    if (!gone && target.endpoint == endpoint && target.protocol == protocol &&
        std::find(stream.production_ports.begin(), stream.production_ports.end(),
                  target.production()) != stream.production_ports.end())
      return static_cast<uint16_t>(i);
  }
  return std::nullopt;
}

std::optional<Refusal> LeaseBook::send(StreamId stream, const net::Packet& packet) {
  const net::Family family = packet.source.address.family();
  if (packet.ip_header_length != net::ip_header_length(family)) return Refusal::ip_options;
  const auto slot = find_slot(packet.source);
  if (!slot || owner_of_block_[slot->block] != stream) return Refusal::source;

  const auto find = [&] {
    return find_target(streams_[stream], packet.destination, packet.protocol);
  };
  if (packet.protocol == net::Protocol::udp)
    return find() ? std::nullopt : std::optional(Refusal::target);
  Connection& connection = connections(family, slot->block)[slot->index];
  if (connection.known() && targets_[connection.target()].target.endpoint == packet.destination) {
    connection.sent(connection.target(), packet);
    return std::nullopt;
  }
  const auto target = find();
  if (!target) return Refusal::target;
  connection.sent(*target, packet);
  return std::nullopt;
}

LeaseBook::Arrived LeaseBook::arrive(const net::Packet& packet) {
  const auto slot = find_slot(packet.destination);
  if (!slot) return {Arrival::foreign};
  const StreamId owner = owner_of_block_[slot->block];
  if (packet.protocol == net::Protocol::udp) {
    const bool of_target = owner != no_stream &&
                           find_target(streams_[owner], packet.source, packet.protocol).has_value();
    return {of_target ? Arrival::session : Arrival::foreign, owner};
  }
  auto& of_block = connections(packet.destination.address.family(), slot->block);
  if (of_block.empty()) return {Arrival::closed_port};
  Connection& connection = of_block[slot->index];
  const bool known =
      connection.known() && targets_[connection.target()].target.endpoint == packet.source;
  if (!known || packet.tcp.flags.syn) {
    if (const auto target = answers_unseen_syn(owner, packet)) {
      // Of one that is refused there is nothing to remember.
      if (packet.tcp.flags.syn) connection.accepted(*target, packet);
      return {Arrival::session, owner};
    }
  }
  if (!known) return {Arrival::closed_port};
  connection.received(packet);
  const bool whole = is_reply_port(streams_[owner], targets_[connection.target()].target) &&
                     connection.within_first(first_reply_bytes, packet);
  return {Arrival::session, owner, whole};
}

// Of which target; nothing where it is another packet, or SYNs of the stream would have passed.
std::optional<uint16_t> LeaseBook::answers_unseen_syn(StreamId stream,
                                                      const net::Packet& packet) const {
  const net::TcpFlags& flags = packet.tcp.flags;
  if (stream == no_stream || streams_[stream].sender != Sender::sidecar) return std::nullopt;
  if (!flags.ack || (!flags.syn && !flags.rst)) return std::nullopt;
  return find_target(streams_[stream], packet.source, packet.protocol);
}

bool LeaseBook::is_reply_port(const Stream& stream, const Target& target) {
  return target.protocol == net::Protocol::tcp &&
         stream.reply_ports.contains(target.production_port);
}

std::vector<uint16_t> LeaseBook::whole_from() const {
  std::set<uint16_t> ports;
  for (const Place& place : targets_)
    if (std::any_of(streams_.begin(), streams_.end(),
                    [&](const Stream& stream) { return is_reply_port(stream, place.target); }))
      ports.insert(place.target.endpoint.port.number);
  return {ports.begin(), ports.end()};
}

uint32_t LeaseBook::free_ports() const {
  uint32_t ports = 0;
  for (const uint16_t block : free_blocks_) ports += block_range(block).size();
  return ports;
}

uint32_t LeaseBook::leased_ports() const {
  return ports_.size() * address_count_ - free_ports();
}

}  // namespace trafficmirror::intercept
