// The simulated client's TCP towards the shadow: an active opener that sends client bytes and
// throws away what it receives, of which it sees the headers alone.
//
// RFC 9293 throughout, with RFC 5681 and 6582 (congestion control and recovery), 6298
// (retransmission timeout), 2018 and 6675 (SACK), 7323 (window scale, timestamps) and 5961 (blind
// attacks).
//
// process() takes in a segment and changes state; dispatch() puts out whatever is due, which may be
// nothing. A caller may process many segments before it dispatches: their acknowledgments merge.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <variant>

#include "net/packet.h"
#include "sidecar/session/byte_queue.h"
#include "sidecar/session/range_set.h"
#include "sidecar/session/retransmission_timeout.h"
#include "sidecar/session/segment.h"
#include "sidecar/session/time.h"

namespace trafficmirror::session {

class Connection {
 public:
  // What the SYN offers: the production client's options made fit for the path.
  struct Options {
    net::SequenceNumber initial_sequence;
    net::Family family = net::Family::ipv4;  // of the path
    uint16_t maximum_segment_size = 1460;    // fits the path; what we announce and the most we send
    bool window_scale = true;
    bool sack = true;
    bool timestamps = true;
    Duration give_up = std::chrono::seconds(60);  // without progress on what is outstanding
  };

  // RFC 9293 section 3.3.2. `ended` is CLOSED; ending() says why. TIME-WAIT lasts only until the
  // last ACK is sent: a FIN that the shadow sends again is answered as for a closed port, by a RST
  // it no longer minds.
  enum class State : uint8_t {
    syn_sent,
    established,
    fin_wait_1,
    fin_wait_2,
    close_wait,
    closing,
    last_ack,
    time_wait,
    ended,
  };
  enum class Ending : uint8_t {
    finished,  // both sides sent FIN and had it acknowledged
    refused,   // RST in answer to SYN
    reset,     // RST later
    stalled,   // nothing that was outstanding was acknowledged for give_up
    aborted,   // by abort()
  };

  Connection(const Options& options, Time now);

  // -- what the application, which is the captured client, does
  void append(std::span<const uint8_t> bytes) { queue_.append(bytes); }
  // Bytes before `limit` may be sent; it never moves back.
  void allow(ClientOffset limit) { allowed_ = limit; }
  // FIN once everything is sent. Nothing may be appended later.
  void close() { closing_ = true; }
  // RST at the next dispatch.
  void abort() { abort_ = true; }

  // -- the shadow's segments
  void process(Time now, const net::Packet& packet);

  // Puts out all that is due now.
  void dispatch(Time now, const Outlet& out);
  // When dispatch() has something to do though nothing happened.
  Time deadline() const;

  // The path MTU has changed; segments sent from now on fit.
  void set_maximum_segment_size(uint16_t size);

  State state() const { return state_; }
  bool ended() const { return state_ == State::ended; }
  Ending ending() const { return ending_; }  // meaningful once ended

  // End of the client bytes given so far, and how far the shadow has acknowledged them.
  ClientOffset end() const { return queue_.end(); }
  ClientOffset acknowledged() const { return std::min(unacknowledged_, queue_.end()); }
  // How far they were sent, and when something of them or a SYN was sent last.
  ClientOffset sent() const { return std::min(highest_sent_, queue_.end()); }
  Time last_sent_at() const { return last_sent_at_; }
  // Bytes of the shadow's answers received in order, when the last of them came and whether they
  // end where the shadow set PSH.
  uint64_t received() const { return received_.value(); }
  Time last_received_at() const { return last_received_at_; }
  net::SequenceNumber shadow_first() const { return shadow_initial_ + 1; }  // once it has answered
  bool received_to_push() const { return received_ == pushed_; }
  bool shadow_finished() const { return shadow_fin_received_; }
  // The last time anything moved on: bytes acknowledged or received, or a state entered.
  Time last_progress() const { return last_progress_; }
  Duration give_up() const { return options_.give_up; }
  Duration smoothed_round_trip() const { return timeout_.smoothed_round_trip(); }

  uint32_t retransmits() const { return retransmits_; }  // so far; wraps
  size_t allocated() const { return queue_.allocated(); }
  // For the next connection from the same port: a sequence number the shadow must take for a new
  // one (RFC 6191).
  net::SequenceNumber next_initial_sequence() const;
  // Hands over the bytes not yet allowed, for a connection that takes this one's place.
  ByteQueue take_unsent();
  void put_unsent(ByteQueue queue) { queue_ = std::move(queue); }

 private:
  // Retransmission and zero-window probing exclude each other (RFC 9293 section 3.8.6.1).
  struct Stopped {};
  struct Retransmit {
    Time at;
  };
  struct Probe {
    Time at;
  };
  using Timer = std::variant<Stopped, Retransmit, Probe>;
  // Loss recovery: from the detection of a loss until all that was outstanding then is
  // acknowledged.
  struct Recovery {
    ClientOffset until;
    ClientOffset retransmitted;  // HighRxt of RFC 6675: holes before it were filled again
    bool first = true;           // the first retransmission goes out whatever the window says
  };
  // The one segment whose round trip is being measured, if there is one.
  class Timing {
   public:
    bool running() const { return sent_at_ != never; }
    void start(ClientOffset end, Time now) {
      end_ = end;
      sent_at_ = now;
    }
    void cancel() { sent_at_ = never; }
    ClientOffset end() const { return end_; }
    Time sent_at() const { return sent_at_; }

   private:
    ClientOffset end_;
    Time sent_at_ = never;
  };

  void process_syn_sent(Time now, const net::Packet& packet);
  void process_synchronized(Time now, const net::Packet& packet);
  bool sequence_acceptable(const net::Packet& packet) const;
  // False where the segment has to be dropped.
  bool process_acknowledgment(Time now, const net::Packet& packet);
  void acknowledge(Time now, ClientOffset offset);
  void detect_loss();
  void process_payload(Time now, const net::Packet& packet);
  void process_fin(Time now);
  void update_segment_size();
  void enter_recovery();
  void end(Ending ending);

  void on_timer(Time now, const Outlet& out);
  void send_data(Time now, const Outlet& out);
  // Fills one hole, if there is one and the window allows.
  bool retransmit_in_recovery(Time now, const Outlet& out);
  // Sends the bytes from `offset` on, FIN included where it is its turn; zero-length without FIN is
  // not sent.
  void send_range(Time now, ClientOffset offset, uint32_t length, const Outlet& out);
  void send_syn(Time now, const Outlet& out);
  void send_acknowledgment(Time now, const Outlet& out);
  void send_reset(Time now, net::SequenceNumber sequence, bool acknowledge, const Outlet& out);
  void arm_retransmit(Time now) { timer_ = Retransmit{now + timeout_.value()}; }
  // Whatever is sent acknowledges all that was received.
  net::TcpHeader acknowledging_header(Time now);

  net::SequenceNumber wire(ClientOffset offset) const {
    return options_.initial_sequence + 1 + static_cast<uint32_t>(offset.value());
  }
  net::SequenceNumber next_expected() const {
    return shadow_initial_ + 1 + static_cast<uint32_t>(received_.value()) +
           (shadow_fin_received_ ? 1 : 0);
  }
  // FIN takes the place behind the last byte.
  ClientOffset stream_end() const { return queue_.end() + (closing_ ? 1 : 0); }
  ClientOffset sendable_end() const {
    return closing_ && allowed_ == queue_.end() ? stream_end() : allowed_;
  }
  uint64_t in_flight() const { return next_ - unacknowledged_; }
  uint32_t initial_window() const;
  void open_congestion_window(uint64_t bytes);
  uint32_t half_of_flight() const;
  // Bytes believed to be under way during recovery (RFC 6675 section 4, SetPipe).
  uint64_t pipe() const;
  ClientOffset window_end() const { return unacknowledged_ + send_window_; }

  Options options_;

  // Within each part the wide members come first: there may be a hundred thousand of these.
  //
  // Send side. SND.UNA, SND.NXT, and the highest SND.NXT has been: after a timeout SND.NXT goes
  // back.
  ByteQueue queue_;
  ClientOffset allowed_;
  ClientOffset unacknowledged_;
  ClientOffset next_;
  ClientOffset highest_sent_;
  ClientOffset recover_;  // RFC 6582: no fast retransmit before this is acknowledged
  RangeSet<ClientOffset> sacked_;
  std::unique_ptr<Recovery> recovery_;  // null unless a loss is being made good
  Timing timing_;
  Timer timer_;
  Time last_sent_at_;
  RetransmissionTimeout timeout_;
  uint32_t congestion_window_ = 0;
  uint32_t slow_start_threshold_ = UINT32_MAX;
  uint32_t send_window_ = 0;
  uint32_t largest_send_window_ = 0;
  net::SequenceNumber window_update_sequence_;        // SND.WL1
  net::SequenceNumber window_update_acknowledgment_;  // SND.WL2
  uint32_t segment_size_ = 0;  // most payload a segment carries, options taken off
  uint32_t peer_maximum_segment_size_ = 0;
  uint32_t retransmits_ = 0;

  // Receive side.
  uint32_t unacknowledged_received_ = 0;
  ShadowOffset received_;
  RangeSet<ShadowOffset> out_of_order_;
  ShadowOffset pushed_;      // end of the furthest segment with PSH
  ShadowOffset shadow_end_;  // where its stream ends, if shadow_fin_seen_
  Time last_received_at_;
  Time last_progress_;
  Time acknowledgment_due_ = never;
  net::SequenceNumber shadow_initial_;
  net::SequenceNumber last_acknowledged_;  // Last.ACK.sent
  uint32_t recent_timestamp_ = 0;          // TS.Recent

  std::optional<net::SequenceNumber> reset_due_;
  State state_ = State::syn_sent;
  Ending ending_ = Ending::finished;
  bool closing_ = false;
  bool abort_ = false;
  bool syn_due_ = true;
  bool burst_cut_ = false;  // more may go out, and did not at the last dispatch
  bool sack_agreed_ = false;
  bool timestamps_agreed_ = false;
  bool window_scale_agreed_ = false;
  bool shadow_fin_seen_ = false;      // perhaps ahead of bytes before it
  bool shadow_fin_received_ = false;  // in order
  uint8_t send_scale_ = 0;
  uint8_t duplicate_acknowledgments_ = 0;
  uint8_t half_open_resets_ = 0;  // SYNs sent again at once after resetting what stood in their way
};

}  // namespace trafficmirror::session
