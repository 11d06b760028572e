#include "sidecar/capture/link_layer.h"

#include <linux/if_ether.h>
#include <pcap/pcap.h>

#include "net/bytes.h"

namespace trafficmirror::capture {
namespace {

struct LinkLayer {
  size_t header_length;
  std::optional<size_t> type_at;  // of the EtherType; there is none where only IP can follow
};

std::optional<LinkLayer> link_layer(int link_type) {
  switch (link_type) {
    case DLT_EN10MB:
      return LinkLayer{14, 12};
    case DLT_LINUX_SLL:
      return LinkLayer{16, 14};
    case DLT_LINUX_SLL2:
      return LinkLayer{20, 0};
    case DLT_NULL:
    case DLT_LOOP:
      return LinkLayer{4, std::nullopt};
    case DLT_RAW:
    case DLT_IPV4:
    case DLT_IPV6:
      return LinkLayer{0, std::nullopt};
    default:
      return std::nullopt;
  }
}

}  // namespace

bool is_known_link_type(int link_type) {
  return link_layer(link_type).has_value();
}

std::optional<size_t> network_offset(int link_type, std::span<const uint8_t> frame) {
  const auto link = link_layer(link_type);
  if (!link || frame.size() <= link->header_length) return std::nullopt;
  size_t begin = link->header_length;
  if (link->type_at) {
    uint16_t type = net::load16(&frame[*link->type_at]);
    // Each tag is two bytes of its own, and the type of what follows.
    for (; type == ETH_P_8021Q || type == ETH_P_8021AD; begin += 4) {
      if (frame.size() < begin + 4) return std::nullopt;
      type = net::load16(&frame[begin + 2]);
    }
    if (type != ETH_P_IP && type != ETH_P_IPV6) return std::nullopt;
  }
  return begin < frame.size() ? std::optional(begin) : std::nullopt;
}

}  // namespace trafficmirror::capture
