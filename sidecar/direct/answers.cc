#include "sidecar/direct/answers.h"

namespace trafficmirror::direct {

void Answers::sent(const net::Endpoint& target, const net::TcpHeader& header, uint32_t length) {
  if (!header.flags.syn && length == 0) return;
  Waiting& waiting = waiting_[target];
  (header.flags.syn ? waiting.for_syn : waiting.for_data).waits = true;
}

void Answers::received(const net::Packet& packet) {
  if (packet.protocol != net::Protocol::tcp) return;
  const auto found = waiting_.find(packet.source);
  if (found == waiting_.end()) return;
  found->second.for_syn = {};
  if (!packet.tcp.flags.syn) found->second.for_data = {};
}

std::vector<net::Endpoint> Answers::missing(Clock::time_point now) {
  std::vector<net::Endpoint> targets;
  for (auto& [target, waiting] : waiting_) {
    bool missing = false;
    for (Wait* wait : {&waiting.for_syn, &waiting.for_data}) {
      if (!wait->waits) continue;
      if (!wait->since) wait->since = now;
      if (now - *wait->since < patience) continue;
      missing = true;
      *wait = {};  // until something is sent again
    }
    if (missing) targets.push_back(target);
  }
  return targets;
}

}  // namespace trafficmirror::direct
