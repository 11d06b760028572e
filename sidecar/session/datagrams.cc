#include "sidecar/session/datagrams.h"

#include <algorithm>

namespace trafficmirror::session {

DatagramFlow* DatagramFlows::find(const FlowCopy& key) {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? nullptr : &*found->second.flow;
}

DatagramFlow* DatagramFlows::find(uint16_t stream, SourcePorts::Number source) {
  const auto found = by_source_.find(number(stream, source));
  return found == by_source_.end() ? nullptr : found->second;
}

DatagramFlow& DatagramFlows::add(DatagramFlow flow) {
  List& list = lists_[said_one_thing];
  DatagramFlow& added = list.emplace_back(std::move(flow));
  by_key_.emplace(added.key, Place{std::prev(list.end()), said_one_thing});
  by_source_.emplace(number(added.stream, added.source), &added);
  return added;
}

void DatagramFlows::sent(DatagramFlow& flow, Time production_time, Time now) {
  ++flow.sent;
  ++flow.unanswered;
  flow.last_seen = production_time;
  flow.last_sent = now;
  move(by_key_.find(flow.key)->second, flow.sent == 1 ? said_one_thing : said_more);
}

void DatagramFlows::remove(const DatagramFlow& flow) {
  by_source_.erase(number(flow.stream, flow.source));
  const auto place = by_key_.find(flow.key);
  const auto [its, kind] = place->second;
  by_key_.erase(place);
  lists_[kind].erase(its);
}

void DatagramFlows::end(Time deadline) {
  end_ = deadline;
  for (auto& [key, place] : by_key_) move(place, waiting_for_answer);
}

bool DatagramFlows::ending(const DatagramFlow& flow) const {
  return by_key_.find(flow.key)->second.kind == waiting_for_answer;
}

DatagramFlow* DatagramFlows::due(Time production_time, Time now) {
  for (const Kind kind : {said_one_thing, said_more}) {
    if (lists_[kind].empty()) continue;
    DatagramFlow& flow = lists_[kind].front();
    if (production_time - flow.last_seen >= silence(kind) &&
        now - flow.last_sent >= std::min(patience, silence(kind)))
      return &flow;
  }
  return next_by_now() <= now ? &lists_[waiting_for_answer].front() : nullptr;
}

Time DatagramFlows::next_by_production() const {
  Time next = never;
  for (const Kind kind : {said_one_thing, said_more})
    if (!lists_[kind].empty())
      next = std::min(next, lists_[kind].front().last_seen + silence(kind));
  return next;
}

const DatagramFlow* DatagramFlows::least_needed(Time production_time) const {
  const List& list = lists_[said_one_thing];
  if (list.empty()) return nullptr;
  const DatagramFlow& flow = list.front();
  return flow.unanswered == 0 || production_time - flow.last_seen >= patience ? &flow : nullptr;
}

Duration DatagramFlows::silence(Kind kind) const {
  return std::min(idle_timeout_,
                  kind == said_one_thing ? longest_silence_behind_first : longest_silence);
}

void DatagramFlows::move(Place& place, Kind to) {
  lists_[to].splice(lists_[to].end(), lists_[place.kind], place.flow);
  place.kind = to;
}

}  // namespace trafficmirror::session
