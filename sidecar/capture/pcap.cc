// The capture through libpcap, for kernels and interfaces where the ring of our own does not do.
#include <algorithm>
#include <cerrno>
#include <limits>

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <pcap/pcap.h>
#include <sys/socket.h>

#include "sidecar/capture/capture.h"
#include "sidecar/capture/filter.h"
#include "sidecar/capture/interfaces.h"
#include "sidecar/capture/link_layer.h"

namespace trafficmirror::capture {
namespace {

constexpr int snap_length = 262144;  // the most libpcap takes
constexpr int timeout_milliseconds = 1;
// The packets of one read(): about what a ring holds.
constexpr int packets_a_read = 16384;
// An EtherType that no packet has (IEEE Std 802 local experimental 2): what libpcap is bound to
// until the filter is attached.
constexpr int silent_protocol = 0x88b6;

class PcapCapture : public Capture {
 public:
  explicit PcapCapture(const CaptureOptions& options)
      : interface_(options.interface), ports_(options.ports), udp_ports_(options.udp_ports) {
    const int index = interface_index(interface_);
    std::array<char, PCAP_ERRBUF_SIZE> error{};
    pcap_.reset(pcap_create(interface_.c_str(), error.data()));
    if (pcap_ == nullptr) throw failure(error.data());
    pcap_set_snaplen(pcap_.get(), snap_length);
    pcap_set_buffer_size(pcap_.get(), static_cast<int>(std::min<uint64_t>(
                                          options.ring_bytes, std::numeric_limits<int>::max())));
    pcap_set_timeout(pcap_.get(), timeout_milliseconds);
    pcap_set_protocol_linux(pcap_.get(), silent_protocol);
    if (pcap_set_tstamp_precision(pcap_.get(), PCAP_TSTAMP_PRECISION_NANO) == 0)
      time_unit_ = std::chrono::nanoseconds(1);
    const int status = pcap_activate(pcap_.get());
    if (status == PCAP_ERROR_PERM_DENIED) throw open_error(interface_, "pcap_activate", EPERM);
    if (status < 0)
      throw failure(std::string(pcap_statustostr(status)) + " (" + last_error() + ")");
    if (pcap_setnonblock(pcap_.get(), 1, error.data()) != 0) throw failure(error.data());
    link_type_ = pcap_datalink(pcap_.get());
    if (!is_known_link_type(link_type_))
      throw failure("its link type is not known; use --capture ring");

    // By the socket and not by pcap_setfilter(), because libpcap would take a program that it can't
    // check for itself, and run it a second time in user space.
    const int socket = descriptor();
    if (const int number = attach(RequestCopy::whole); number != 0)
      throw open_error(interface_, "SO_ATTACH_FILTER", number);
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = index;
    if (bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      throw open_error(interface_, "bind", errno);
  }

  int descriptor() const override { return pcap_get_selectable_fd(pcap_.get()); }

  bool read(PacketReceiver& receiver) override {
    receiver_ = &receiver;
    return pcap_dispatch(pcap_.get(), packets_a_read, on_packet, reinterpret_cast<u_char*>(this)) >=
           0;
  }

  bool copy_requests(RequestCopy copy) override { return attach(copy) == 0; }

  CaptureCounters counters() override {
    pcap_stat now{};
    if (pcap_stats(pcap_.get(), &now) == 0) {
      // libpcap adds up in 32 bits, which may wrap; the difference is right all the same.
      counters_.drops += static_cast<uint32_t>(now.ps_drop - last_drops_);
      last_drops_ = now.ps_drop;
    }
    return counters_;
  }

 private:
  // 0, or the error number.
  int attach(RequestCopy copy) const {
    return attach_filter(descriptor(), {.ports = ports_,
                                        .udp_ports = udp_ports_,
                                        .network_offset = SKF_NET_OFF,
                                        .loopback_index = static_cast<int>(if_nametoindex("lo")),
                                        .headers_only = copy == RequestCopy::headers});
  }

  static void on_packet(u_char* user, const pcap_pkthdr* header, const u_char* bytes) {
    reinterpret_cast<PcapCapture*>(user)->hand_over(*header, {bytes, header->caplen});
  }

  void hand_over(const pcap_pkthdr& header, std::span<const uint8_t> bytes) {
    const auto begin = network_offset(link_type_, bytes);
    if (!begin) return;
    CapturedPacket packet;
    packet.bytes = bytes.subspan(*begin);
    packet.wire_length = header.len - *begin;
    packet.time = std::chrono::seconds(header.ts.tv_sec) + header.ts.tv_usec * time_unit_;
    ++counters_.packets;
    receiver_->on_captured(packet);
  }

  std::string last_error() const { return pcap_geterr(pcap_.get()); }
  program::StartError failure(const std::string& reason) const {
    return program::StartError("capturing on --interface " + interface_ + " failed: " + reason);
  }

  struct Close {
    void operator()(pcap_t* pcap) const { pcap_close(pcap); }
  };

  const std::string interface_;
  const std::vector<net::Port> ports_;
  const std::vector<net::Port> udp_ports_;
  std::unique_ptr<pcap_t, Close> pcap_;
  int link_type_ = 0;
  std::chrono::nanoseconds time_unit_ = std::chrono::microseconds(1);
  uint32_t last_drops_ = 0;
  PacketReceiver* receiver_ = nullptr;
  CaptureCounters counters_;
};

}  // namespace

std::unique_ptr<Capture> open_pcap_capture(const CaptureOptions& options) {
  return std::make_unique<PcapCapture>(options);
}

}  // namespace trafficmirror::capture
