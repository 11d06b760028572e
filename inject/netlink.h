// Questions and orders to the kernel over netlink (RFC 3549).
#pragma once

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include <libmnl/libmnl.h>
#include <sys/socket.h>

#include "net/address.h"

namespace trafficmirror::inject::netlink {

// One message to one part of the kernel, of which `answer` is called with each reply.
class Question {
 public:
  // `flags` beside NLM_F_REQUEST and NLM_F_ACK.
  Question(uint16_t type, const void* body, size_t body_size, uint16_t flags = 0)
      : header_(mnl_nlmsg_put_header(buffer_.data())) {
    header_->nlmsg_type = type;
    header_->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    std::memcpy(mnl_nlmsg_put_extra_header(header_, body_size), body, body_size);
  }

  void put(uint16_t attribute, const net::IpAddress& address) {
    mnl_attr_put(header_, attribute, address.bytes().size(), address.bytes().data());
  }
  void put(uint16_t attribute, uint32_t value) { mnl_attr_put_u32(header_, attribute, value); }
  // For attributes of other forms.
  nlmsghdr* header() { return header_; }

  // Once. False: errno says why not.
  template <typename Answer>
  bool ask(int protocol, Answer&& answer) {
    const std::unique_ptr<mnl_socket, int (*)(mnl_socket*)> netlink(mnl_socket_open(protocol),
                                                                    mnl_socket_close);
    if (!netlink || mnl_socket_bind(netlink.get(), 0, MNL_SOCKET_AUTOPID) != 0 ||
        mnl_socket_sendto(netlink.get(), header_, header_->nlmsg_len) < 0)
      return false;
    const auto on_reply = [](const nlmsghdr* reply, void* data) {
      (*static_cast<std::remove_reference_t<Answer>*>(data))(reply);
      return MNL_CB_OK;
    };
    for (;;) {
      const ssize_t size = mnl_socket_recvfrom(netlink.get(), buffer_.data(), buffer_.size());
      if (size < 0) return false;
      const int result = mnl_cb_run(buffer_.data(), static_cast<size_t>(size), 0,
                                    mnl_socket_get_portid(netlink.get()), on_reply, &answer);
      if (result != MNL_CB_OK) return result == MNL_CB_STOP;
    }
  }
  // An order, which has no reply.
  bool ask(int protocol) {
    return ask(protocol, [](const nlmsghdr*) {});
  }

 private:
  alignas(nlmsghdr) std::array<char, 8192> buffer_{};
  nlmsghdr* header_;
};

inline uint8_t family_of(net::Family family) {
  return family == net::Family::ipv4 ? AF_INET : AF_INET6;
}

template <typename Body, typename OnAttribute>
const Body* parse(const nlmsghdr* reply, OnAttribute&& on_attribute) {
  if (mnl_nlmsg_get_payload_len(reply) < sizeof(Body)) return nullptr;
  const auto call = [](const nlattr* attribute, void* data) {
    (*static_cast<std::remove_reference_t<OnAttribute>*>(data))(attribute);
    return MNL_CB_OK;
  };
  mnl_attr_parse(reply, sizeof(Body), call, &on_attribute);
  return static_cast<const Body*>(mnl_nlmsg_get_payload(reply));
}

}  // namespace trafficmirror::inject::netlink
