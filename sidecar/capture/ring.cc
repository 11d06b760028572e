// The capture of our own: an AF_PACKET socket whose packets the kernel writes into memory that we
// share with it, a ring of blocks of many packets each (TPACKET_V3), so that reading takes no
// system call and no copy.
#include <algorithm>
#include <cerrno>
#include <utility>

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sidecar/capture/capture.h"
#include "sidecar/capture/filter.h"
#include "sidecar/capture/interfaces.h"

namespace trafficmirror::capture {
namespace {

// A block goes to us when it is full or a millisecond after its first packet, however little is in
// it by then. So the number of blocks bounds, in milliseconds, how long a thin stream of packets
// may go unread, and they are as small as can be: each must be able to hold the largest
// super-packet of 64 KiB, and the kernel allocates powers of two.
constexpr uint32_t block_size = 128U << 10;
constexpr uint32_t block_timeout_milliseconds = 1;
constexpr uint64_t min_blocks = 8;
constexpr uint64_t max_blocks = 16384;

class RingCapture : public Capture {
 public:
  explicit RingCapture(const CaptureOptions& options)
      : interface_(options.interface), ports_(options.ports), udp_ports_(options.udp_ports) {
    const int index = interface_index(interface_);
    try {
      open(index, options.ring_bytes);
    } catch (...) {
      release();
      throw;
    }
  }

  ~RingCapture() override { release(); }
  RingCapture(const RingCapture&) = delete;
  RingCapture& operator=(const RingCapture&) = delete;

  int descriptor() const override { return socket_; }

  bool read(PacketReceiver& receiver) override {
    for (uint32_t pass = 0; pass < block_count_; ++pass) {
      auto* const block = reinterpret_cast<tpacket_block_desc*>(
          ring_ + static_cast<size_t>(next_block_) * block_size);
      uint32_t& status = block->hdr.bh1.block_status;
      // Looking for an error costs a system call, so it waits for an idle moment: poll() keeps
      // reporting it until then.
      if ((__atomic_load_n(&status, __ATOMIC_ACQUIRE) & TP_STATUS_USER) == 0)
        return pass > 0 || !failed();
      read_block(*block, receiver);
      __atomic_store_n(&status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
      next_block_ = next_block_ + 1 == block_count_ ? 0 : next_block_ + 1;
    }
    return true;
  }

  bool copy_requests(RequestCopy copy) override { return attach(copy) == 0; }

  CaptureCounters counters() override {
    tpacket_stats_v3 since_last_time{};
    socklen_t size = sizeof since_last_time;
    if (getsockopt(socket_, SOL_PACKET, PACKET_STATISTICS, &since_last_time, &size) == 0)
      counters_.drops += since_last_time.tp_drops;
    return counters_;
  }

 private:
  // 0, or the error number.
  int attach(RequestCopy copy) const {
    return attach_filter(socket_, {.ports = ports_,
                                   .udp_ports = udp_ports_,
                                   .network_offset = 0,
                                   .loopback_index = static_cast<int>(if_nametoindex("lo")),
                                   .headers_only = copy == RequestCopy::headers});
  }

  void open(int index, uint64_t ring_bytes) {
    // Of protocol 0 it receives nothing until it is bound to one, so that nothing enters the ring
    // that the filter has not seen.
    socket_ = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(socket_ >= 0, "socket");
    const int version = TPACKET_V3;
    check(setsockopt(socket_, SOL_PACKET, PACKET_VERSION, &version, sizeof version) == 0,
          "TPACKET_V3");

    block_count_ =
        static_cast<uint32_t>(std::clamp(ring_bytes / block_size, min_blocks, max_blocks));
    tpacket_req3 request{};
    request.tp_block_size = block_size;
    request.tp_block_nr = block_count_;
    request.tp_frame_size = 2048;  // packets take what they need; only its multiples are checked
    request.tp_frame_nr = block_size / request.tp_frame_size * block_count_;
    request.tp_retire_blk_tov = block_timeout_milliseconds;
    check(setsockopt(socket_, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) == 0,
          "PACKET_RX_RING");
    void* const memory =
        mmap(nullptr, ring_length(), PROT_READ | PROT_WRITE, MAP_SHARED, socket_, 0);
    check(memory != MAP_FAILED, "mmap");
    ring_ = static_cast<uint8_t*>(memory);

    errno = attach(RequestCopy::whole);
    check(errno == 0, "SO_ATTACH_FILTER");
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = index;
    check(bind(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "bind");
  }

  void check(bool good, const char* step) const {
    if (!good) throw open_error(interface_, step, errno);
  }

  void release() {
    if (ring_ != nullptr) munmap(ring_, ring_length());
    if (socket_ >= 0) close(socket_);
  }

  size_t ring_length() const { return static_cast<size_t>(block_count_) * block_size; }

  void read_block(const tpacket_block_desc& block, PacketReceiver& receiver) {
    const uint32_t packets = block.hdr.bh1.num_pkts;
    const auto* at = reinterpret_cast<const uint8_t*>(&block) + block.hdr.bh1.offset_to_first_pkt;
    for (uint32_t i = 0; i < packets; ++i) {
      const auto& header = *reinterpret_cast<const tpacket3_hdr*>(at);
      CapturedPacket packet;
      packet.bytes = {at + header.tp_net, header.tp_snaplen};
      packet.wire_length = header.tp_len;
      packet.checksum_vouched =
          (header.tp_status & (TP_STATUS_CSUMNOTREADY | TP_STATUS_CSUM_VALID)) != 0;
      packet.time = std::chrono::seconds(header.tp_sec) + std::chrono::nanoseconds(header.tp_nsec);
      receiver.on_captured(packet);
      at += header.tp_next_offset;
    }
    counters_.packets += packets;
  }

  // ENETDOWN, when the interface is gone or went down.
  bool failed() const {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(socket_, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0;
  }

  const std::string interface_;
  const std::vector<net::Port> ports_;
  const std::vector<net::Port> udp_ports_;
  int socket_ = -1;
  uint8_t* ring_ = nullptr;
  uint32_t block_count_ = 0;
  uint32_t next_block_ = 0;
  CaptureCounters counters_;
};

}  // namespace

std::unique_ptr<Capture> open_ring_capture(const CaptureOptions& options) {
  return std::make_unique<RingCapture>(options);
}

}  // namespace trafficmirror::capture
