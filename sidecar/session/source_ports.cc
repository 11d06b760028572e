#include "sidecar/session/source_ports.h"

#include <algorithm>
#include <utility>

#include "net/client_address.h"

namespace trafficmirror::session {

void SourcePorts::lease(const std::vector<Lease::Source>& sources) {
  size_t leased = 0;
  for (const Lease::Source& source : sources)
    if (source.first <= source.last) leased += source.last.number - source.first.number + 1U;
  slots_.reserve(std::min(leased, max_ports));
  struct Added {
    uint32_t begin;
    uint32_t end;
    net::Family family;
  };
  std::vector<Added> added;
  uint32_t longest = 0;
  for (const Lease::Source& source : sources) {
    const auto begin = static_cast<uint32_t>(slots_.size());
    for (uint32_t port = source.first.number;
         port <= source.last.number && slots_.size() < max_ports; ++port)
      add({source.address, net::Port{static_cast<uint16_t>(port)}});
    const auto end = static_cast<uint32_t>(slots_.size());
    added.push_back({begin, end, source.address.family()});
    longest = std::max(longest, end - begin);
  }
  for (uint32_t i = 0; i < longest; ++i)
    for (const auto& [begin, end, family] : added)
      if (begin + i < end) push_free(Number{begin + i}, family);
}

void SourcePorts::add(const net::Endpoint& endpoint) {
  if (contains(endpoint)) return;
  const bool continues = !ranges_.empty() && ranges_.back().address == endpoint.address &&
                         ranges_.back().last.number + 1U == endpoint.port.number;
  if (continues) {
    ranges_.back().last = endpoint.port;
  } else {
    ranges_by_first_[endpoint] = ranges_.size();
    ranges_.push_back(
        {endpoint.address, endpoint.port, endpoint.port, static_cast<uint32_t>(slots_.size())});
  }
  add_slot();
}

void SourcePorts::clear() {
  ranges_.clear();
  ranges_by_first_.clear();
  slots_.clear();
  ipv4_ = ipv6_ = Queue();
  of_clients_ = false;
  numbers_.clear();
  ends_.clear();
  unused_.clear();
}

void SourcePorts::add_slot() {
  slots_.push_back({nullptr, net::SequenceNumber(static_cast<uint32_t>(random_())), none});
}

size_t SourcePorts::HashOfEnds::operator()(const Ends& ends) const {
  return std::hash<net::FlowKey>()({ends.client, ends.target});
}

bool SourcePorts::has_free(const Ends& ends) const {
  if (!of_clients_) return has_free(ends.target.address.family());
  if (ends.client.address.family() != ends.target.address.family() ||
      !net::may_be_client(ends.client.address))
    return false;
  const auto known = numbers_.find(ends);
  return known == numbers_.end() ? numbers_.size() < max_ports : !slots_[known->second].user;
}

std::optional<SourcePorts::Number> SourcePorts::take(const Ends& ends) {
  if (!of_clients_) return take(ends.target.address.family());
  if (!has_free(ends)) return std::nullopt;
  const auto [found, is_new] = numbers_.try_emplace(ends, static_cast<uint32_t>(slots_.size()));
  if (!is_new) return Number{found->second};
  if (const auto number = take_unused()) {
    numbers_.erase(ends_[*number]);
    ends_[*number] = ends;
    found->second = *number;
    return Number{*number};
  }
  add_slot();
  ends_.push_back(ends);
  return Number{found->second};
}

// A number whose client is no longer to be remembered.
std::optional<uint32_t> SourcePorts::take_unused() {
  while (unused_.size() > most_remembered) {
    const uint32_t oldest = unused_.front();
    unused_.pop_front();
    slots_[oldest].next_free = none;
    if (!slots_[oldest].user) return oldest;
  }
  return std::nullopt;
}

std::optional<SourcePorts::Number> SourcePorts::take(net::Family family) {
  Queue& free = queue(family);
  if (free.head == none) return std::nullopt;
  const Number number{free.head};
  free.head = std::exchange(slot(number).next_free, none);
  if (free.head == none) free.tail = none;
  --free.size;
  return number;
}

void SourcePorts::give_back(Number number, net::SequenceNumber next_initial_sequence) {
  slot(number).user = nullptr;
  slot(number).initial_sequence = next_initial_sequence;
  if (of_clients_) {
    const auto index = static_cast<uint32_t>(number);
    if (std::exchange(slot(number).next_free, index) == none) unused_.push_back(index);
    return;
  }
  push_free(number, endpoint(number).address.family());
}

void SourcePorts::push_free(Number number, net::Family family) {
  Queue& free = queue(family);
  const auto index = static_cast<uint32_t>(number);
  (free.tail == none ? free.head : slots_[free.tail].next_free) = index;
  free.tail = index;
  ++free.size;
}

net::Endpoint SourcePorts::endpoint(Number number) const {
  const auto index = static_cast<uint32_t>(number);
  if (of_clients_) return ends_[index].client;
  const auto range =
      std::upper_bound(ranges_.begin(), ranges_.end(), index,
                       [](uint32_t value, const Range& r) { return value < r.first_slot; }) -
      1;
  return {range->address,
          net::Port{static_cast<uint16_t>(range->first.number + (index - range->first_slot))}};
}

std::optional<SourcePorts::Number> SourcePorts::find(const net::Endpoint& endpoint) const {
  const auto behind = ranges_by_first_.upper_bound(endpoint);
  if (behind == ranges_by_first_.begin()) return std::nullopt;
  const Range& range = ranges_[std::prev(behind)->second];
  if (range.address != endpoint.address || endpoint.port > range.last) return std::nullopt;
  return Number{range.first_slot + (endpoint.port.number - range.first.number)};
}

SessionEntry* SourcePorts::user(const net::Endpoint& endpoint, const net::Endpoint& target) const {
  if (of_clients_) {
    const auto known = numbers_.find({endpoint, target});
    return known == numbers_.end() ? nullptr : slots_[known->second].user;
  }
  const auto number = find(endpoint);
  return number ? slots_[static_cast<uint32_t>(*number)].user : nullptr;
}

}  // namespace trafficmirror::session
