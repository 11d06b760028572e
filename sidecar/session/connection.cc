#include "sidecar/session/connection.h"

#include <algorithm>
#include <limits>

namespace trafficmirror::session {
namespace {

// What is received is thrown away at once, so the window never closes. It bounds what a shadow
// sends before it hears from us, which the tap has to hold.
constexpr uint32_t receive_window = 1 << 20;
constexpr uint8_t receive_scale = 7;
constexpr uint16_t syn_window = 65535;

constexpr Duration delayed_acknowledgment = std::chrono::milliseconds(40);  // RFC 5681 section 4.2
constexpr uint8_t duplicate_threshold = 3;                                  // RFC 5681 section 3.2
constexpr uint8_t max_half_open_resets = 3;
constexpr uint32_t timestamps_length = 12;
// Whatever the shadow announces; at 0 nothing would ever be sent. Kernels use 48 too.
constexpr uint32_t least_mss = 48;

// The most that goes out at once: a wide window opened in one go would be more than the stream to
// the intercept holds. What is left follows at the next dispatch, which is due at once.
constexpr uint64_t max_burst = 768 << 10;

// RFC 7323 section 5.4: the timestamp clock, here in milliseconds.
uint32_t timestamp(Time now) {
  return static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count());
}

}  // namespace

Connection::Connection(const Options& options, Time now)
    : options_(options), last_sent_at_(now), last_progress_(now) {}

// ---- what comes in
// ---------------------------------------------------------------------------------------------

void Connection::process(Time now, const net::Packet& packet) {
  if (state_ == State::ended) return;
  if (state_ == State::syn_sent)
    process_syn_sent(now, packet);
  else
    process_synchronized(now, packet);
}

// RFC 9293 section 3.10.7.3.
void Connection::process_syn_sent(Time now, const net::Packet& packet) {
  const net::TcpFlags& flags = packet.tcp.flags;
  if (flags.ack && packet.tcp.acknowledgment != wire(ClientOffset(0))) {
    if (flags.rst) return;
    // A half-open connection of an earlier session stands in our way (section 3.5.1): reset it, and
    // since its end makes room for ours, do not wait for the timeout.
    reset_due_ = packet.tcp.acknowledgment;
    if (half_open_resets_ < max_half_open_resets) {
      ++half_open_resets_;
      syn_due_ = true;
    }
    return;
  }
  if (flags.rst) {
    if (flags.ack) end(Ending::refused);
    return;
  }
  if (!flags.syn || !flags.ack) return;  // a listener never opens from its side

  const net::TcpOptions& options = packet.tcp.options;
  shadow_initial_ = packet.tcp.sequence;
  timestamps_agreed_ = options_.timestamps && options.timestamps.has_value();
  sack_agreed_ = options_.sack && options.sack_permitted;
  window_scale_agreed_ = options_.window_scale && options.window_scale.has_value();
  if (timestamps_agreed_) recent_timestamp_ = options.timestamps->value;
  if (window_scale_agreed_) send_scale_ = *options.window_scale;
  // RFC 9293 section 3.7.1: the default where the option is missing.
  const bool ipv4 = options_.family == net::Family::ipv4;
  peer_maximum_segment_size_ = options.maximum_segment_size.value_or(ipv4 ? 536 : 1220);
  update_segment_size();
  congestion_window_ = initial_window();
  send_window_ = largest_send_window_ = packet.tcp.window;  // never scaled in a SYN
  window_update_sequence_ = packet.tcp.sequence;
  window_update_acknowledgment_ = packet.tcp.acknowledgment;
  last_acknowledged_ = next_expected();

  if (timing_.running()) timeout_.measured(now - timing_.sent_at());
  timing_.cancel();
  timeout_.reset_backoff();
  timer_ = Stopped{};
  state_ = State::established;
  acknowledgment_due_ = now;
  last_progress_ = now;
}

// RFC 9293 section 3.10.7.4, in its order.
void Connection::process_synchronized(Time now, const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  if (timestamps_agreed_ && !tcp.flags.rst) {  // RFC 7323 sections 3.2 and 5.3, PAWS
    if (!tcp.options.timestamps) return;
    if (static_cast<int32_t>(tcp.options.timestamps->value - recent_timestamp_) < 0) {
      acknowledgment_due_ = now;
      return;
    }
  }
  if (!sequence_acceptable(packet)) {
    if (!tcp.flags.rst) acknowledgment_due_ = now;
    return;
  }
  if (tcp.flags.rst) {
    // RFC 5961 section 3.2: only the exact number counts; any other in the window is challenged.
    // Behind all bytes and both FINs it only says that the shadow has forgotten the connection.
    if (tcp.sequence == next_expected())
      end(state_ == State::last_ack && unacknowledged_ >= queue_.end() ? Ending::finished
                                                                       : Ending::reset);
    else
      acknowledgment_due_ = now;
    return;
  }
  if (tcp.flags.syn) {  // RFC 5961 section 4.2
    acknowledgment_due_ = now;
    return;
  }
  if (!tcp.flags.ack) return;
  if (timestamps_agreed_ && tcp.sequence <= last_acknowledged_)  // RFC 7323 section 4.3
    recent_timestamp_ = tcp.options.timestamps->value;
  if (!process_acknowledgment(now, packet)) return;
  if (state_ == State::established || state_ == State::fin_wait_1 || state_ == State::fin_wait_2)
    process_payload(now, packet);
}

// RFC 9293 section 3.4: some part of it lies in the window. The window is never zero.
bool Connection::sequence_acceptable(const net::Packet& packet) const {
  const int32_t begin = packet.tcp.sequence - next_expected();
  const int64_t end = int64_t{begin} + packet.sequence_length();
  if (packet.sequence_length() == 0) return begin >= 0 && begin < int32_t{receive_window};
  return begin < int32_t{receive_window} && end > 0;
}

bool Connection::process_acknowledgment(Time now, const net::Packet& packet) {
  const net::TcpHeader& tcp = packet.tcp;
  const int32_t advance = tcp.acknowledgment - wire(unacknowledged_);
  const auto outstanding = static_cast<int64_t>(highest_sent_ - unacknowledged_);
  // RFC 5961 section 5.2: beyond what was sent, or older than any window, it is no honest
  // acknowledgment.
  if (advance > outstanding || -int64_t{advance} > int64_t{largest_send_window_}) {
    acknowledgment_due_ = now;
    return false;
  }
  if (advance < 0) return true;  // an old one; its payload may be new

  if (sack_agreed_) {
    for (const net::SackBlock& block : tcp.options.sack_blocks.get()) {
      const int32_t begin = block.begin - wire(unacknowledged_);
      const int32_t end = block.end - wire(unacknowledged_);
      if (begin > advance && end > begin && end <= outstanding)
        sacked_.insert(unacknowledged_ + begin, unacknowledged_ + end);
    }
  }
  const uint32_t window = uint32_t{tcp.window} << send_scale_;
  const bool window_changed = window != send_window_;
  // RFC 9293 section 3.10.7.4 goes by the segment's own place, but one that is sent again keeps its
  // place: what acknowledges more than all before is the newest in any case.
  if (advance > 0 || window_update_sequence_ < tcp.sequence ||
      (window_update_sequence_ == tcp.sequence &&
       window_update_acknowledgment_ <= tcp.acknowledgment)) {
    send_window_ = window;
    largest_send_window_ = std::max(largest_send_window_, window);
    window_update_sequence_ = std::max(window_update_sequence_, tcp.sequence);
    window_update_acknowledgment_ = tcp.acknowledgment;
    if (window_changed && window > 0 && std::holds_alternative<Probe>(timer_)) {
      timer_ = Stopped{};
      timeout_.reset_backoff();
    }
  }
  if (advance > 0) {
    acknowledge(now, unacknowledged_ + static_cast<uint64_t>(advance));
  } else if (outstanding > 0) {
    // RFC 5681 section 2: what makes an acknowledgment a duplicate. The answer to a probe is none.
    if (packet.sequence_length() == 0 && !window_changed &&
        !std::holds_alternative<Probe>(timer_)) {
      duplicate_acknowledgments_ =
          static_cast<uint8_t>(std::min(duplicate_acknowledgments_ + 1, 255));
      if (recovery_ && !sack_agreed_) open_congestion_window(segment_size_);
    }
    detect_loss();
  }
  return state_ != State::ended;
}

void Connection::acknowledge(Time now, ClientOffset offset) {
  const uint64_t bytes = offset - unacknowledged_;
  unacknowledged_ = offset;
  next_ = std::max(next_, offset);
  queue_.release(std::min(offset, queue_.end()));
  sacked_.remove_before(offset);
  if (timing_.running() && offset >= timing_.end()) {
    timeout_.measured(now - timing_.sent_at());
    timing_.cancel();
  }
  timeout_.reset_backoff();
  duplicate_acknowledgments_ = 0;
  last_progress_ = now;

  if (recovery_ && offset >= recovery_->until) {
    congestion_window_ = slow_start_threshold_;
    recovery_.reset();
  } else if (recovery_ && !sack_agreed_) {
    // RFC 6582 section 3.2: a partial acknowledgment shows the next hole.
    congestion_window_ -= static_cast<uint32_t>(std::min<uint64_t>(congestion_window_, bytes));
    open_congestion_window(segment_size_);
    recovery_->first = true;
  } else if (recovery_) {
    recovery_->retransmitted = std::max(recovery_->retransmitted, offset);
  } else if (congestion_window_ < slow_start_threshold_) {
    open_congestion_window(bytes);
  } else {
    open_congestion_window(std::max<uint64_t>(1, segment_size_ * bytes / congestion_window_));
  }

  if (unacknowledged_ == highest_sent_)
    timer_ = Stopped{};
  else
    arm_retransmit(now);

  if (closing_ && offset == stream_end()) {  // our FIN is acknowledged
    if (state_ == State::fin_wait_1)
      state_ = State::fin_wait_2;
    else if (state_ == State::closing)
      state_ = State::time_wait;
    else if (state_ == State::last_ack)
      end(Ending::finished);
  }
}

void Connection::detect_loss() {
  if (recovery_ || unacknowledged_ < recover_) return;
  const bool lost =
      duplicate_acknowledgments_ >= duplicate_threshold ||
      sacked_.size_before(highest_sent_) >= uint64_t{duplicate_threshold} * segment_size_;
  if (lost) enter_recovery();
}

void Connection::enter_recovery() {
  slow_start_threshold_ = half_of_flight();
  congestion_window_ = slow_start_threshold_;
  if (!sack_agreed_) open_congestion_window(uint64_t{duplicate_threshold} * segment_size_);
  recovery_ = std::make_unique<Recovery>(Recovery{highest_sent_, unacknowledged_});
  timing_.cancel();
}

// RFC 9293 section 3.10.7.4, seventh: the bytes count as received, whatever they are.
void Connection::process_payload(Time now, const net::Packet& packet) {
  const ShadowOffset before = received_;
  const int32_t begin = packet.tcp.sequence - next_expected();
  const int64_t end = int64_t{begin} + packet.payload_length;
  if (packet.payload_length > 0 && end > 0) {
    const bool had_gap = !out_of_order_.empty();
    const ShadowOffset upto = before + static_cast<uint64_t>(end);
    if (begin <= 0) {
      received_ = upto;
      out_of_order_.remove_before(received_);
      if (!out_of_order_.empty() && out_of_order_.ranges().front().begin == received_) {
        received_ = out_of_order_.ranges().front().end;
        out_of_order_.remove_before(received_);
      }
    } else {
      out_of_order_.insert(before + static_cast<uint64_t>(begin), upto);
    }
    last_received_at_ = now;
    last_progress_ = now;
    // By its place, as segments with PSH may come before others that go before them.
    if (packet.tcp.flags.psh) pushed_ = std::max(pushed_, upto);
    unacknowledged_received_ += packet.payload_length;
    // RFC 5681 section 4.2: at once when a gap shows or closes, and for every second full segment.
    if (had_gap || !out_of_order_.empty() || unacknowledged_received_ >= 2 * segment_size_)
      acknowledgment_due_ = now;
    else
      acknowledgment_due_ = std::min(acknowledgment_due_, now + delayed_acknowledgment);
  }
  if (packet.tcp.flags.fin) {
    shadow_fin_seen_ = true;
    shadow_end_ = before + static_cast<uint64_t>(std::max<int64_t>(end, 0));
  }
  if (shadow_fin_seen_ && received_ >= shadow_end_) process_fin(now);
}

void Connection::process_fin(Time now) {
  shadow_fin_received_ = true;
  acknowledgment_due_ = now;
  last_progress_ = now;
  if (state_ == State::established)
    state_ = State::close_wait;
  else if (state_ == State::fin_wait_1)
    state_ = State::closing;
  else if (state_ == State::fin_wait_2)
    state_ = State::time_wait;
}

void Connection::end(Ending ending) {
  state_ = State::ended;
  ending_ = ending;
  timer_ = Stopped{};
  acknowledgment_due_ = never;
}

// ---- what goes out
// ---------------------------------------------------------------------------------------------

void Connection::dispatch(Time now, const Outlet& out) {
  if (state_ == State::ended) return;
  if (abort_) {
    // Before the SYN has gone out there is nothing to reset.
    if (!(state_ == State::syn_sent && std::holds_alternative<Stopped>(timer_)))
      send_reset(now, wire(highest_sent_), state_ != State::syn_sent, out);
    end(Ending::aborted);
    return;
  }
  if (reset_due_) {
    send_reset(now, *reset_due_, false, out);
    reset_due_.reset();
  }
  on_timer(now, out);
  if (state_ == State::ended) return;
  if (state_ == State::syn_sent) {
    if (syn_due_) send_syn(now, out);
    return;
  }
  send_data(now, out);
  if (acknowledgment_due_ <= now) send_acknowledgment(now, out);
  if (state_ == State::time_wait) end(Ending::finished);
}

Time Connection::deadline() const {
  Time at = burst_cut_ ? last_sent_at_ : acknowledgment_due_;
  if (const auto* retransmit = std::get_if<Retransmit>(&timer_)) at = std::min(at, retransmit->at);
  if (const auto* probe = std::get_if<Probe>(&timer_)) at = std::min(at, probe->at);
  return at;
}

void Connection::on_timer(Time now, const Outlet& out) {
  const auto* retransmit = std::get_if<Retransmit>(&timer_);
  const auto* probe = std::get_if<Probe>(&timer_);
  if (!(retransmit && retransmit->at <= now) && !(probe && probe->at <= now)) return;
  if (now - last_progress_ >= options_.give_up) {  // RFC 9293 section 3.8.3, R2
    send_reset(now, wire(highest_sent_), state_ != State::syn_sent, out);
    end(Ending::stalled);
    return;
  }
  if (state_ == State::syn_sent) {
    timeout_.back_off();
    syn_due_ = true;
    return;
  }
  timing_.cancel();
  if (probe) {
    // RFC 9293 section 3.8.6.1: at least one byte, so that the answer tells the window; and the
    // override of section 3.8.6.2.1 where a part of a segment would fit.
    const uint64_t room = window_end() > unacknowledged_ ? window_end() - unacknowledged_ : 0;
    const uint64_t data = std::min(allowed_, queue_.end()) - unacknowledged_;
    send_range(now, unacknowledged_,
               static_cast<uint32_t>(
                   std::min({std::max<uint64_t>(room, 1), data, uint64_t{segment_size_}})),
               out);
    next_ = unacknowledged_;
    timing_.cancel();
    timeout_.back_off();
    timer_ = Probe{now + timeout_.value()};
    return;
  }
  // RFC 6298 section 5, RFC 5681 section 3.1: everything outstanding counts as lost. What was
  // acknowledged selectively is forgotten, since the shadow may have thrown it away (RFC 2018
  // section 8).
  if (unacknowledged_ >= recover_) slow_start_threshold_ = half_of_flight();
  congestion_window_ = segment_size_;
  recover_ = highest_sent_;
  next_ = unacknowledged_;
  sacked_.clear();
  recovery_.reset();
  duplicate_acknowledgments_ = 0;
  timeout_.back_off();
  timer_ = Stopped{};  // sending arms it anew
}

void Connection::send_data(Time now, const Outlet& out) {
  if (in_flight() == 0 && now - last_sent_at_ > timeout_.value())  // RFC 5681 section 4.1
    congestion_window_ = std::min(congestion_window_, initial_window());
  while (recovery_ && retransmit_in_recovery(now, out)) {
  }
  const ClientOffset data_end = std::min(allowed_, queue_.end());
  uint64_t burst = 0;
  burst_cut_ = false;
  while (next_ < sendable_end()) {
    uint64_t data = data_end > next_ ? data_end - next_ : 0;
    if (next_ < highest_sent_) {  // after a timeout: pass over what has arrived meanwhile
      const auto gap = sacked_.next_gap(next_, highest_sent_);
      if (gap.begin > next_) {
        next_ = gap.begin;
        continue;
      }
      if (gap.end < highest_sent_) data = std::min(data, gap.end - gap.begin);
    }
    const uint64_t length = std::min<uint64_t>(data, segment_size_);
    const uint64_t flight = recovery_ && sack_agreed_ ? pipe() : in_flight();
    if (flight > 0 && flight + length > congestion_window_) break;
    if (burst >= max_burst) {
      burst_cut_ = true;
      break;
    }
    burst += length;
    const uint64_t room = window_end() > next_ ? window_end() - next_ : 0;
    if (length > room) {
      // RFC 9293 section 3.8.6.2.1, silly windows: a part of a segment only where it is half of the
      // largest window.
      if (room == 0 || room < largest_send_window_ / 2) break;
      send_range(now, next_, static_cast<uint32_t>(room), out);
      continue;
    }
    send_range(now, next_, static_cast<uint32_t>(length), out);
  }
  if (next_ == unacknowledged_ && next_ < sendable_end() &&
      std::holds_alternative<Stopped>(timer_)) {
    timer_ = Probe{now + timeout_.value()};
    last_progress_ = now;
  }
}

bool Connection::retransmit_in_recovery(Time now, const Outlet& out) {
  ClientOffset begin = unacknowledged_;
  ClientOffset end = highest_sent_;
  if (sack_agreed_ && !sacked_.empty()) {  // RFC 6675 section 4, NextSeg rule 1
    const auto gap = sacked_.next_gap(std::max(recovery_->retransmitted, unacknowledged_),
                                      sacked_.ranges().back().end);
    begin = gap.begin;
    end = gap.end;
    if (begin == end) return false;
    if (!recovery_->first && pipe() + segment_size_ > congestion_window_) return false;
  } else if (!recovery_->first) {
    return false;
  }
  const ClientOffset data_end = std::min(end, queue_.end());
  const auto length = static_cast<uint32_t>(
      std::min<uint64_t>(data_end > begin ? data_end - begin : 0, segment_size_));
  send_range(now, begin, length, out);
  if (recovery_->first) arm_retransmit(now);
  recovery_->first = false;
  recovery_->retransmitted = std::max(recovery_->retransmitted, begin + std::max(length, 1U));
  return true;
}

uint64_t Connection::pipe() const {
  if (sacked_.empty()) return in_flight();
  // Holes that were not filled again are lost and so not in the pipe; filled ones are.
  const ClientOffset highest_sacked = sacked_.ranges().back().end;
  const ClientOffset filled = std::min(recovery_->retransmitted, highest_sacked);
  const uint64_t refilled =
      filled > unacknowledged_ ? filled - unacknowledged_ - sacked_.size_before(filled) : 0;
  return (highest_sent_ - highest_sacked) + refilled;
}

void Connection::send_range(Time now, ClientOffset offset, uint32_t length, const Outlet& out) {
  const ClientOffset end = offset + length;
  Segment segment;
  segment.header = acknowledging_header(now);
  segment.header.sequence = wire(offset);
  segment.header.flags.psh = length > 0 && end == std::min(allowed_, queue_.end());
  segment.queue = &queue_;
  segment.payload = offset;
  segment.length = length;
  const bool fin = closing_ && allowed_ == queue_.end() && end == queue_.end();
  segment.header.flags.fin = fin;
  out.send(segment);

  if (highest_sent_ == unacknowledged_) last_progress_ = now;  // waiting begins only now
  const ClientOffset sent_to = end + (fin ? 1 : 0);
  if (offset < highest_sent_)
    ++retransmits_;
  else if (!timing_.running())
    timing_.start(sent_to, now);
  next_ = std::max(next_, sent_to);
  highest_sent_ = std::max(highest_sent_, sent_to);
  last_sent_at_ = now;
  if (!std::holds_alternative<Retransmit>(timer_)) arm_retransmit(now);
  if (fin && state_ == State::established) state_ = State::fin_wait_1;
  if (fin && state_ == State::close_wait) state_ = State::last_ack;
}

void Connection::send_syn(Time now, const Outlet& out) {
  Segment segment;
  segment.header.sequence = options_.initial_sequence;
  segment.header.flags.syn = true;
  segment.header.window = syn_window;
  segment.header.options.maximum_segment_size = options_.maximum_segment_size;
  segment.header.options.sack_permitted = options_.sack;
  if (options_.window_scale) segment.header.options.window_scale = receive_scale;
  if (options_.timestamps)
    segment.header.options.timestamps = net::TcpTimestamps{timestamp(now), 0};
  out.send(segment);
  // Karn's algorithm: only a SYN sent once tells the round trip.
  const bool first = std::holds_alternative<Stopped>(timer_);
  timing_.cancel();
  if (first)
    timing_.start(ClientOffset(0), now);
  else
    ++retransmits_;
  syn_due_ = false;
  last_sent_at_ = now;
  arm_retransmit(now);
}

void Connection::send_acknowledgment(Time now, const Outlet& out) {
  Segment segment;
  segment.header = acknowledging_header(now);
  segment.header.sequence = wire(next_);
  // RFC 2018 section 4. The order of the blocks only hastens what they tell; a handful tells all.
  if (sack_agreed_) {
    const size_t most = timestamps_agreed_ ? 3 : 4;
    for (const auto& range : out_of_order_.ranges()) {
      if (segment.header.options.sack_blocks.get().size() == most) break;
      const net::SequenceNumber first = shadow_initial_ + 1;
      segment.header.options.sack_blocks.push_back(
          {first + static_cast<uint32_t>(range.begin.value()),
           first + static_cast<uint32_t>(range.end.value())});
    }
  }
  out.send(segment);
}

void Connection::send_reset(Time now, net::SequenceNumber sequence, bool acknowledge,
                            const Outlet& out) {
  Segment segment;
  if (acknowledge) segment.header = acknowledging_header(now);
  segment.header.flags.rst = true;
  segment.header.sequence = sequence;
  out.send(segment);
}

net::TcpHeader Connection::acknowledging_header(Time now) {
  net::TcpHeader header;
  header.flags.ack = true;
  header.acknowledgment = next_expected();
  header.window = window_scale_agreed_ ? receive_window >> receive_scale : syn_window;
  if (timestamps_agreed_)
    header.options.timestamps = net::TcpTimestamps{timestamp(now), recent_timestamp_};
  acknowledgment_due_ = never;
  unacknowledged_received_ = 0;
  last_acknowledged_ = header.acknowledgment;
  return header;
}

// ---- the rest
// --------------------------------------------------------------------------------------------------

void Connection::set_maximum_segment_size(uint16_t size) {
  options_.maximum_segment_size = size;
  if (state_ != State::syn_sent) update_segment_size();
}

void Connection::update_segment_size() {
  segment_size_ = std::max(
      std::min<uint32_t>(options_.maximum_segment_size, peer_maximum_segment_size_), least_mss);
  // RFC 6691: the announced size is without options, those that every segment carries come off.
  if (timestamps_agreed_) segment_size_ -= std::min(timestamps_length, segment_size_ / 2);
}

void Connection::open_congestion_window(uint64_t bytes) {
  congestion_window_ = static_cast<uint32_t>(
      std::min<uint64_t>(congestion_window_ + bytes, std::numeric_limits<uint32_t>::max()));
}

// RFC 5681 section 3.1, equation 4.
uint32_t Connection::half_of_flight() const {
  return static_cast<uint32_t>(
      std::max<uint64_t>((highest_sent_ - unacknowledged_) / 2, uint64_t{2} * segment_size_));
}

uint32_t Connection::initial_window() const {  // RFC 6928
  return std::min(10 * segment_size_, std::max(2 * segment_size_, 14600U));
}

net::SequenceNumber Connection::next_initial_sequence() const {
  return wire(highest_sent_) + 0x10000;
}

ByteQueue Connection::take_unsent() {
  queue_.release(allowed_);
  queue_.rebase();
  return std::move(queue_);
}

}  // namespace trafficmirror::session
