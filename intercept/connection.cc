#include "intercept/connection.h"

namespace trafficmirror::intercept {

void Connection::sent(uint16_t target, const net::Packet& packet) {
  const net::SequenceNumber end = packet.tcp.sequence + packet.sequence_length();
  if (packet.tcp.flags.syn) {
    *this = Connection();
    target_ = target;
    syn_sent_ = true;
    sent_end_ = end;
    acknowledged_ = packet.tcp.sequence;
    return;
  }
  if (!syn_sent_ || target != target_) return;
  if (packet.tcp.flags.rst) {
    rst_sent_ = true;
    return;
  }
  if (end > sent_end_) sent_end_ = end;
  if (packet.tcp.flags.fin) fin_sent_ = true;
  // The sidecar goes on, so it did not accept the shadow's RST.
  rst_received_ = false;
}

void Connection::accepted(uint16_t target, const net::Packet& syn_ack) {
  *this = Connection();
  target_ = target;
  syn_sent_ = true;
  sent_elsewhere_ = true;
  sent_end_ = acknowledged_ = syn_ack.tcp.acknowledgment;
}

void Connection::received(const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  // All that is known of what was sent is what the shadow says it has.
  if (sent_elsewhere_ && tcp.flags.ack) sent_end_ = acknowledged_ = tcp.acknowledgment;
  // A challenge of an older connection's may acknowledge what this one never sent.
  if (tcp.flags.ack && tcp.acknowledgment > acknowledged_ && tcp.acknowledgment <= sent_end_)
    acknowledged_ = tcp.acknowledgment;
  if (tcp.flags.fin) fin_received_ = true;
  if (tcp.flags.rst) rst_received_ = true;
  if (first_known_) return;
  first_known_ = true;
  first_ = tcp.sequence + tcp.flags.syn;
}

bool Connection::within_first(uint32_t bytes, const net::Packet& packet) const {
  return first_known_ && packet.tcp.sequence + packet.sequence_length() <= first_ + bytes;
}

Connection::ResetSequences Connection::reset_sequences() const {
  ResetSequences sequences;
  sequences.push_back(sent_end_);
  if (acknowledged_ != sent_end_) sequences.push_back(acknowledged_);
  return sequences;
}

void append_reset(std::string& out, const net::Endpoint& source, const net::Endpoint& destination,
                  net::SequenceNumber sequence) {
  net::TcpHeader tcp;
  tcp.sequence = sequence;
  tcp.flags.rst = true;
  net::append_packet(out, source, destination, tcp, 0, [](uint8_t*) {});
}

bool append_closed_port_answer(std::string& out, const net::Packet& packet) {
  if (packet.tcp.flags.rst) return false;
  if (packet.tcp.flags.ack) {
    append_reset(out, packet.destination, packet.source, packet.tcp.acknowledgment);
    return true;
  }
  net::TcpHeader tcp;
  tcp.acknowledgment = packet.tcp.sequence + packet.sequence_length();
  tcp.flags = {.rst = true, .ack = true};
  net::append_packet(out, packet.destination, packet.source, tcp, 0, [](uint8_t*) {});
  return true;
}

}  // namespace trafficmirror::intercept
