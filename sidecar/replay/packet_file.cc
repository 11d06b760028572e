#include "sidecar/replay/packet_file.h"

#include <algorithm>
#include <array>
#include <limits>

#include <pcap/pcap.h>

#include "program/start_error.h"
#include "sidecar/capture/link_layer.h"

namespace trafficmirror::replay {
namespace {

// libpcap says so of any stream whose reading failed.
std::string reason(const Input& input, const char* libpcap_says) {
  return input.problem().empty() ? libpcap_says : input.problem();
}

// pcapng has room for times far from any that a clock shows.
std::chrono::nanoseconds time_of(const timeval& time) {
  using std::chrono::nanoseconds;
  using std::chrono::seconds;
  return seconds(std::clamp<int64_t>(time.tv_sec, 0, std::numeric_limits<uint32_t>::max())) +
         nanoseconds(std::clamp<int64_t>(time.tv_usec, 0, 999'999'999));
}

}  // namespace

void PacketFile::Close::operator()(pcap* file) const {
  pcap_close(file);
}

PacketFile::PacketFile(const std::string& path, int stop_descriptor)
    : path_(path), input_(path, stop_descriptor) {
  std::array<char, PCAP_ERRBUF_SIZE> error{};
  auto stream = input_.stream();
  file_.reset(pcap_fopen_offline_with_tstamp_precision(stream.get(), PCAP_TSTAMP_PRECISION_NANO,
                                                       error.data()));
  if (!file_)
    throw program::StartError("--pcap " + path_ +
                              " can't be read: " + reason(input_, error.data()) +
                              "; it takes pcap and pcapng, also packed by gzip or zstd");
  (void)stream.release();  // it closes it
  link_type_ = pcap_datalink(file_.get());
  if (capture::is_known_link_type(link_type_)) return;
  const char* const name = pcap_datalink_val_to_name(link_type_);
  throw program::StartError("--pcap " + path_ + " can't be replayed: its link type is " +
                            (name ? name : std::to_string(link_type_)) +
                            "; it takes Ethernet, Linux cooked, loopback and raw IP");
}

std::optional<capture::CapturedPacket> PacketFile::next() {
  if (!problem_.empty()) return std::nullopt;
  pcap_pkthdr* header = nullptr;
  const u_char* bytes = nullptr;
  const int result = pcap_next_ex(file_.get(), &header, &bytes);
  if (result == PCAP_ERROR_BREAK) return std::nullopt;  // the end of the file
  if (result != 1) {
    problem_ = path_ + " can't be read on behind packet " + std::to_string(packets_) + ": " +
               reason(input_, pcap_geterr(file_.get()));
    return std::nullopt;
  }
  ++packets_;
  const std::span<const uint8_t> frame(bytes, header->caplen);
  const size_t begin = capture::network_offset(link_type_, frame).value_or(frame.size());
  capture::CapturedPacket packet;
  packet.bytes = frame.subspan(begin);
  packet.wire_length = std::max<size_t>(header->len, frame.size()) - begin;
  packet.time = time_of(header->ts);
  return packet;
}

}  // namespace trafficmirror::replay
