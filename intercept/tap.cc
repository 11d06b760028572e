#include "intercept/tap.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "net/packet.h"
#include "program/start_error.h"

namespace trafficmirror::intercept {
namespace {

constexpr size_t frame_bytes = 256;
constexpr size_t block_bytes = 64 << 10;
constexpr size_t ring_bytes = 8 << 20;  // 32,768 packets: a third of a second at 100,000/s
constexpr size_t frame_count = ring_bytes / frame_bytes;
// The longest headers there are without IPv6 extension headers, which the filter lets not through.
constexpr uint32_t snap_length = 128;
static_assert(snap_length >= net::max_header_length);
static_assert(TPACKET_ALIGN(TPACKET2_HDRLEN) + 16 + snap_length <= frame_bytes);

constexpr size_t packets_a_batch = 512;
constexpr std::chrono::microseconds wake_up_interval{250};

[[noreturn]] void fail(const std::string& what) {
  throw program::StartError(what + ": " + std::strerror(errno));
}

// A ring's frame holds this much of a packet that is wanted whole only where it is short.
constexpr uint32_t whole_length = net::max_header_length + first_reply_bytes;
// While packets wait in the socket's queue for the ring to be read; beyond it they are there cut.
constexpr int queue_bytes = 8 << 20;
// Each is an instruction of the filter, whose jumps are short; where there are more, every port is
// copied from.
constexpr size_t most_ports = 64;

// Loads are relative to the network header, whatever the link layer is.
bool attach_filter(int socket, const Tap::Filter& filter, std::vector<uint16_t> whole_from) {
  constexpr uint32_t network = static_cast<uint32_t>(SKF_NET_OFF);
  constexpr uint32_t packet_type = static_cast<uint32_t>(SKF_AD_OFF + SKF_AD_PKTTYPE);
  const uint32_t port = filter.of_source ? 0 : 2;
  const auto is_for_us =
      filter.any_link_address
          ? sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1)
          : sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_HOST, 1, 0);
  constexpr uint32_t protocol = static_cast<uint32_t>(SKF_AD_OFF + SKF_AD_PROTOCOL);
  const bool from_all = whole_from.size() > most_ports;
  if (from_all) whole_from.clear();
  const auto sources = static_cast<uint8_t>(whole_from.size());
  std::vector<sock_filter> code = {
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, packet_type),
      is_for_us,
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_ABS, protocol),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 8, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 0, 13),
      // IPv4: TCP or UDP, not behind the first fragment; its header says how long it is.
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, network + 9),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 1, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 10),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_ABS, network + 6),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, 8, 0),
      sock_filter BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, network),
      sock_filter BPF_STMT(BPF_JMP | BPF_JA, 4),
      // IPv6
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, network + 6),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 1, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 3),
      sock_filter BPF_STMT(BPF_LDX | BPF_IMM, net::ipv6_header_length),
      // Where the header of TCP or UDP begins is known: the port that it is for, or from.
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_IND, network + port),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, filter.ports.first, 1, 0),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, filter.ports.last, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0),
      // And that from which it comes.
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_IND, network),
  };
  for (uint8_t i = 0; i < sources; ++i)
    code.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, whole_from[i], static_cast<uint8_t>(sources - i), 0));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, from_all ? UINT32_MAX : snap_length));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, UINT32_MAX));
  const sock_fprog program = {static_cast<unsigned short>(code.size()), code.data()};
  return ::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

}  // namespace

Tap::Tap(std::string interface, const Filter& filter, Counters& counters)
    : interface_(std::move(interface)), filter_(filter), counters_(counters) {
  // Protocol 0: no packet before bind(), when filter and ring stand.
  socket_ = program::Descriptor(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  stop_ = program::Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!socket_ || !stop_) fail("no packet socket can be opened");
  if (!attach_filter(socket_.get(), filter, {})) fail("the tap's filter was not accepted");
  const int version = TPACKET_V2;
  tpacket_req request{};
  request.tp_block_size = block_bytes;
  request.tp_block_nr = ring_bytes / block_bytes;
  request.tp_frame_size = frame_bytes;
  request.tp_frame_nr = frame_count;
  const int on = 1;
  if (::setsockopt(socket_.get(), SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0 ||
      ::setsockopt(socket_.get(), SOL_PACKET, PACKET_COPY_THRESH, &on, sizeof on) != 0 ||
      ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &queue_bytes, sizeof queue_bytes) !=
          0 ||
      ::setsockopt(socket_.get(), SOL_PACKET, PACKET_RX_RING, &request, sizeof request) != 0)
    fail("the tap's ring can't be made");
  void* ring = ::mmap(nullptr, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, socket_.get(), 0);
  if (ring == MAP_FAILED) fail("the tap's ring can't be mapped");
  ring_ = static_cast<uint8_t*>(ring);
  if (!rebind()) {
    const int error = errno;
    ::munmap(ring_, ring_bytes);
    errno = error;
    fail("--interface " + interface_ + " can't be read from");
  }
}

Tap::~Tap() {
  ::munmap(ring_, ring_bytes);
}

void Tap::set_filter(const Filter& filter) {
  const std::lock_guard lock(filter_mutex_);
  filter_ = filter;
  if (!attach_filter(socket_.get(), filter_, whole_from_))
    fail("the tap's filter was not accepted");
}

bool Tap::rebind() {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(::if_nametoindex(interface_.c_str()));
  return address.sll_ifindex != 0 &&
         ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

void Tap::copy_whole(const std::vector<uint16_t>& from) {
  // One that is not taken leaves the sidecar without what it waits for, which it says.
  const std::lock_guard lock(filter_mutex_);
  whole_from_ = from;
  attach_filter(socket_.get(), filter_, whole_from_);
}

void Tap::read_statistics() {
  tpacket_stats statistics{};
  socklen_t length = sizeof statistics;
  if (::getsockopt(socket_.get(), SOL_PACKET, PACKET_STATISTICS, &statistics, &length) == 0)
    add(counters_.tap_drops, statistics.tp_drops);
}

void Tap::stop() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof one);
}

size_t Tap::take_batch(const Handler& handler) {
  std::array<Headers, packets_a_batch> batch;
  const size_t first = next_frame_;
  size_t count = 0, whole = 0;
  const auto frame = [&](size_t index) {
    return reinterpret_cast<tpacket2_hdr*>(ring_ + index % frame_count * frame_bytes);
  };
  for (; count < batch.size(); ++count) {
    tpacket2_hdr* header = frame(first + count);
    const std::atomic_ref<uint32_t> status(header->tp_status);
    if ((status.load(std::memory_order_acquire) & TP_STATUS_USER) == 0) break;
    batch[count] = {reinterpret_cast<uint8_t*>(header) + header->tp_net, header->tp_snaplen};
    if ((header->tp_status & TP_STATUS_COPY) != 0) batch[count] = take_whole(whole++, batch[count]);
  }
  if (count == 0) return 0;
  handler(std::span<const Headers>(batch.data(), count));
  for (size_t i = 0; i < count; ++i) {
    const std::atomic_ref<uint32_t> status(frame(first + i)->tp_status);
    status.store(TP_STATUS_KERNEL, std::memory_order_release);
  }
  next_frame_ = (first + count) % frame_count;
  add(counters_.tap_packets, count);
  return count;
}

// The packet of the socket's queue that the ring has the beginning of, to be kept in that place
// until the batch is over. Those before it are of packets that were passed over, as when the socket
// had an error to tell first.
Tap::Headers Tap::take_whole(size_t number, Headers in_ring) {
  if (number == whole_.size()) whole_.emplace_back(whole_length);
  std::vector<uint8_t>& packet = whole_[number];
  for (int errors = 0; errors < 2;) {
    const ssize_t length = ::recv(socket_.get(), packet.data(), packet.size(), MSG_DONTWAIT);
    if (length < 0) {
      ++errors;
    } else if (const Headers found = Headers(packet).first(static_cast<size_t>(length));
               found.size() >= in_ring.size() &&
               std::equal(in_ring.begin(), in_ring.end(), found.begin())) {
      return found;
    }
  }
  return in_ring;
}

void Tap::run(const Handler& handler) {
  ::pthread_setname_np(::pthread_self(), "tap");
  ::prctl(PR_SET_TIMERSLACK, 1000);  // nanoseconds; 50,000 otherwise, a fifth of the interval
  std::array<pollfd, 2> waited = {pollfd{socket_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
  while (true) {
    if (::poll(waited.data(), waited.size(), -1) < 0) continue;
    if (waited[1].revents != 0) return;
    if ((waited[0].revents & POLLERR) != 0) {
      // The interface went down. The error goes away by being read; without a pause, an interface
      // that keeps failing would take a whole core.
      int error = 0;
      socklen_t length = sizeof error;
      ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const auto woken = std::chrono::steady_clock::now();
    // At most a ring full, so that stop() is heard whatever comes in.
    for (size_t taken = 0; taken < frame_count;) {
      const size_t count = take_batch(handler);
      taken += count;
      if (count < packets_a_batch) break;
    }
    std::this_thread::sleep_until(woken + wake_up_interval);
  }
}

}  // namespace trafficmirror::intercept
