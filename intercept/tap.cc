#include "intercept/tap.h"

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

// Loads are relative to the network header, whatever the link layer is.
void attach_filter(int socket, PortRange ports) {
  constexpr uint32_t network = static_cast<uint32_t>(SKF_NET_OFF);
  constexpr uint32_t packet_type = static_cast<uint32_t>(SKF_AD_OFF + SKF_AD_PKTTYPE);
  constexpr uint32_t protocol = static_cast<uint32_t>(SKF_AD_OFF + SKF_AD_PROTOCOL);
  std::array code = {
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, packet_type),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_HOST, 0, 18),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_ABS, protocol),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 9, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 0, 15),
      // IPv4: TCP or UDP, not behind the first fragment; its header says how long it is.
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, network + 9),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 1, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 12),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_ABS, network + 6),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, 10, 0),
      sock_filter BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, network),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_IND, network + 2),
      sock_filter BPF_STMT(BPF_JMP | BPF_JA, 4),
      // IPv6
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, network + 6),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 1, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 4),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_ABS, network + net::ipv6_header_length + 2),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, ports.first, 0, 2),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, ports.last, 1, 0),
      sock_filter BPF_STMT(BPF_RET | BPF_K, snap_length),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0),
  };
  const sock_fprog program = {code.size(), code.data()};
  if (::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
    fail("the tap's filter was not accepted");
}

}  // namespace

Tap::Tap(std::string interface, PortRange ports, Counters& counters)
    : interface_(std::move(interface)), counters_(counters) {
  // Protocol 0: no packet before bind(), when filter and ring stand.
  socket_ = Descriptor(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  stop_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!socket_ || !stop_) fail("no packet socket can be opened");
  attach_filter(socket_.get(), ports);
  const int version = TPACKET_V2;
  tpacket_req request{};
  request.tp_block_size = block_bytes;
  request.tp_block_nr = ring_bytes / block_bytes;
  request.tp_frame_size = frame_bytes;
  request.tp_frame_nr = frame_count;
  if (::setsockopt(socket_.get(), SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0 ||
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

bool Tap::rebind() {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(::if_nametoindex(interface_.c_str()));
  return address.sll_ifindex != 0 &&
         ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
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
  size_t count = 0;
  const auto frame = [&](size_t index) {
    return reinterpret_cast<tpacket2_hdr*>(ring_ + index % frame_count * frame_bytes);
  };
  for (; count < batch.size(); ++count) {
    tpacket2_hdr* header = frame(first + count);
    const std::atomic_ref<uint32_t> status(header->tp_status);
    if ((status.load(std::memory_order_acquire) & TP_STATUS_USER) == 0) break;
    batch[count] = {reinterpret_cast<uint8_t*>(header) + header->tp_net, header->tp_snaplen};
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
