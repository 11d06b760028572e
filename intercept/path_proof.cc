#include "intercept/path_proof.h"

namespace trafficmirror::intercept {
namespace {

constexpr int attempts_until_lost = 2;

}  // namespace

PathProof::PathProof(net::Endpoint target, uint16_t source_port, uint32_t initial_sequence,
                     net::Protocol protocol)
    : target_(target),
      protocol_(protocol),
      source_port_(source_port),
      sequence_(initial_sequence),
      proving_(protocol == net::Protocol::tcp) {}

void PathProof::set_path(const std::variant<Path, std::string>& path) {
  if (const auto* reason = std::get_if<std::string>(&path)) {
    no_path_ = *reason;
    if (path_) again();
    path_.reset();
  } else {
    path_ = std::get<Path>(path);
  }
  if (protocol_ == net::Protocol::udp) proven_ = path_.has_value();
}

void PathProof::again() {
  if (proving_ || protocol_ == net::Protocol::udp) return;
  proving_ = true;
  real_address_answered_ = false;
  unanswered_ = 0;
  last_.reset();
  // A new connection, not a SYN that the target may take for an old one sent twice.
  sequence_ = sequence_ + 0x10000;
}

void PathProof::tick(Clock::time_point now, std::string& out) {
  if (!proving_ || (last_ && now - *last_ < interval)) return;
  last_ = now;
  if (unanswered_ >= attempts_until_lost) proven_ = false;
  ++unanswered_;
  if (!path_) return;
  append_syn(path_->own_address, out);
  if (path_->real_address && unanswered_ > attempts_until_lost)
    append_syn(*path_->real_address, out);
}

void PathProof::append_syn(const net::IpAddress& from, std::string& out) const {
  net::TcpHeader tcp;
  tcp.sequence = sequence_;
  tcp.flags.syn = true;
  tcp.window = 0xffff;
  net::append_packet(out, {from, net::Port{source_port_}}, target_, tcp, 0, [](uint8_t*) {});
}

bool PathProof::take(const net::Packet& packet, std::string& out) {
  if (packet.source != target_) return false;
  const net::TcpFlags& flags = packet.tcp.flags;
  if (proving_ && flags.ack && packet.tcp.acknowledgment == sequence_ + 1 &&
      (flags.syn || flags.rst)) {
    const bool own = path_ && packet.destination.address == path_->own_address;
    real_address_answered_ = !own;
    if (own) {
      proven_ = true;
      proving_ = false;
      refused_ = flags.rst;
    }
  }
  if (!flags.rst && flags.ack) {
    net::TcpHeader tcp;
    tcp.sequence = packet.tcp.acknowledgment;
    tcp.flags.rst = true;
    net::append_packet(out, packet.destination, packet.source, tcp, 0, [](uint8_t*) {});
  }
  return true;
}

std::string PathProof::why_not() const {
  if (!path_) {
    return "no way to " + target_.to_string() + ": " +
           (no_path_.empty() ? "not looked up yet" : no_path_);
  }
  if (!path_->obstacle.empty())
    return "no answer from " + target_.to_string() + ": " + path_->obstacle;
  if (real_address_answered_) {
    const std::string forged = path_->own_address.to_string();
    const std::string own = path_->real_address->to_string();
    return target_.to_string() + " answers " + own + " and not " + forged +
           ", whose answers have to come here: on its host, is there a route for client addresses "
           "via " +
           own +
           ", and is rp_filter 0 or 2, or 1 with that route on the interface that "
           "this host's packets come in through? Or does the network drop forged sources?";
  }
  return "no answer from " + target_.to_string() +
         ": is it running, and does its network let it answer " + path_->own_address.to_string() +
         "?";
}

}  // namespace trafficmirror::intercept
