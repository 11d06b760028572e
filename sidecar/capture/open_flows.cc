#include "sidecar/capture/open_flows.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <spdlog/spdlog.h>

namespace trafficmirror::capture {
namespace {

// Bits of the kernel's tcp_states.h.
constexpr uint32_t established = 1U << 1U;
constexpr uint32_t handshake = 1U << 3U;  // SYN_RECV
constexpr uint32_t closed = 1U << 7U;
constexpr uint32_t close_wait = 1U << 8U;
constexpr uint32_t listening = 1U << 10U;

struct Dump {
  std::span<const net::Port> ports;
  std::vector<OpenFlow> flows{};
  bool any = false;
};

bool is_of_production(const inet_diag_msg& socket, const Dump& dump) {
  const net::Port port{ntohs(socket.id.idiag_sport)};
  return std::find(dump.ports.begin(), dump.ports.end(), port) != dump.ports.end();
}

net::IpAddress to_address(uint8_t family, const __be32 (&words)[4]) {
  const auto* const bytes = reinterpret_cast<const uint8_t*>(words);
  return family == AF_INET ? net::IpAddress::from_ipv4(std::span<const uint8_t, 4>(bytes, 4))
                           : net::IpAddress::from_ipv6(std::span<const uint8_t, 16>(bytes, 16));
}

// All of these are ages: less is later.
bool is_between_exchanges(const tcp_info& info) {
  return info.tcpi_bytes_received == 0 || info.tcpi_last_data_sent <= info.tcpi_last_data_recv;
}

// Something was sent after the last request: data, or what the client's bare acknowledgment that
// came after it is for.
bool is_certain(const tcp_info& info) {
  return info.tcpi_bytes_received == 0 || info.tcpi_last_data_sent < info.tcpi_last_data_recv ||
         info.tcpi_last_ack_recv < info.tcpi_last_data_recv;
}

int find_info(const nlattr* attribute, void* data) {
  if (mnl_attr_get_type(attribute) == INET_DIAG_INFO)
    *static_cast<const nlattr**>(data) = attribute;
  return MNL_CB_OK;
}

const inet_diag_msg* socket_of(const nlmsghdr* message) {
  return mnl_nlmsg_get_payload_len(message) < sizeof(inet_diag_msg)
             ? nullptr
             : static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(message));
}

int note_any(const nlmsghdr* message, void* data) {
  auto& dump = *static_cast<Dump*>(data);
  const inet_diag_msg* const socket = socket_of(message);
  if (socket != nullptr && is_of_production(*socket, dump)) dump.any = true;
  return MNL_CB_OK;
}

int note_flow_between_exchanges(const nlmsghdr* message, void* data) {
  auto& dump = *static_cast<Dump*>(data);
  const inet_diag_msg* const found = socket_of(message);
  if (found == nullptr || !is_of_production(*found, dump)) return MNL_CB_OK;
  const inet_diag_msg& socket = *found;
  if (socket.idiag_rqueue != 0 || socket.idiag_wqueue != 0) return MNL_CB_OK;

  const nlattr* info_attribute = nullptr;
  mnl_attr_parse(message, sizeof(inet_diag_msg), find_info, &info_attribute);
  if (info_attribute == nullptr) return MNL_CB_OK;
  tcp_info info{};  // the kernel's may be shorter or longer
  std::memcpy(&info, mnl_attr_get_payload(info_attribute),
              std::min<size_t>(sizeof info, mnl_attr_get_payload_len(info_attribute)));
  if (is_between_exchanges(info))
    dump.flows.push_back(
        {{{to_address(socket.idiag_family, socket.id.idiag_dst), {ntohs(socket.id.idiag_dport)}},
          {to_address(socket.idiag_family, socket.id.idiag_src), {ntohs(socket.id.idiag_sport)}}},
         is_certain(info)});
  return MNL_CB_OK;
}

// What to ask for, and who is told of each.
struct Question {
  uint8_t protocol;
  uint32_t states;
  uint8_t extensions;
  mnl_cb_t note;
};

// 0, or the error number.
int ask(mnl_socket* netlink, uint8_t family, const Question& question, Dump& dump) {
  alignas(nlmsghdr) std::array<char, 512> request{};
  nlmsghdr* const header = mnl_nlmsg_put_header(request.data());
  header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  auto* const body =
      static_cast<inet_diag_req_v2*>(mnl_nlmsg_put_extra_header(header, sizeof(inet_diag_req_v2)));
  body->sdiag_family = family;
  body->sdiag_protocol = question.protocol;
  body->idiag_ext = question.extensions;
  body->idiag_states = question.states;
  if (mnl_socket_sendto(netlink, header, header->nlmsg_len) < 0) return errno;

  const unsigned port = mnl_socket_get_portid(netlink);
  alignas(nlmsghdr) std::array<char, 32768> reply;
  for (;;) {
    const ssize_t size = mnl_socket_recvfrom(netlink, reply.data(), reply.size());
    if (size < 0) return errno;
    const int result =
        mnl_cb_run(reply.data(), static_cast<size_t>(size), 0, port, question.note, &dump);
    if (result < 0) return errno;
    if (result == MNL_CB_STOP) return 0;
  }
}

// Of both families; 0, or the error number.
int ask(const Question& question, Dump& dump) {
  const std::unique_ptr<mnl_socket, int (*)(mnl_socket*)> netlink(
      mnl_socket_open(NETLINK_SOCK_DIAG), mnl_socket_close);
  if (netlink == nullptr || mnl_socket_bind(netlink.get(), 0, MNL_SOCKET_AUTOPID) != 0)
    return errno;
  int error = 0;
  for (const uint8_t family : {uint8_t{AF_INET}, uint8_t{AF_INET6}})
    if (error == 0) error = ask(netlink.get(), family, question, dump);
  return error;
}

}  // namespace

std::vector<OpenFlow> flows_between_exchanges(std::span<const net::Port> ports) {
  Dump dump{ports};
  const int error = ask(
      {IPPROTO_TCP, established, 1U << (INET_DIAG_INFO - 1U), note_flow_between_exchanges}, dump);
  if (error == 0) return std::move(dump.flows);
  spdlog::warn(
      "open connections are adopted only after their next response: the kernel does not "
      "list them ({})",
      std::strerror(error));
  return {};
}

bool has_sockets(std::span<const net::Port> ports, std::span<const net::Port> udp_ports) {
  // Listeners first: they are few, and mostly there. A socket of UDP that is not connected is
  // closed, as the kernel calls it.
  for (const Question& question :
       {Question{IPPROTO_TCP, listening, 0, note_any}, Question{IPPROTO_UDP, closed, 0, note_any},
        Question{IPPROTO_TCP, established | handshake | close_wait, 0, note_any},
        Question{IPPROTO_UDP, established, 0, note_any}}) {
    Dump dump{question.protocol == IPPROTO_TCP ? ports : udp_ports};
    if (dump.ports.empty()) continue;
    const int error = ask(question, dump);
    if (error != 0)
      spdlog::warn(
          "whether production is still there can't be seen: the kernel does not list its "
          "sockets ({})",
          std::strerror(error));
    if (error != 0 || dump.any) return dump.any;
  }
  return false;
}

}  // namespace trafficmirror::capture
