// Sockets of the test itself: TCP connections between two of them, and UDP.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/address.h"

namespace trafficmirror::testing_network {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }

  explicit SocketAddress(const net::Endpoint& endpoint) {
    const auto bytes = endpoint.address.bytes();
    if (endpoint.address.family() == net::Family::ipv4) {
      auto& address = reinterpret_cast<sockaddr_in&>(storage);
      address.sin_family = AF_INET;
      address.sin_port = htons(endpoint.port.number);
      std::memcpy(&address.sin_addr, bytes.data(), bytes.size());
      size = sizeof address;
    } else {
      auto& address = reinterpret_cast<sockaddr_in6&>(storage);
      address.sin6_family = AF_INET6;
      address.sin6_port = htons(endpoint.port.number);
      std::memcpy(&address.sin6_addr, bytes.data(), bytes.size());
      size = sizeof address;
    }
  }
};

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {
    if (descriptor < 0) throw std::runtime_error(std::string("socket: ") + std::strerror(errno));
  }
  Socket(Socket&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
  Socket& operator=(Socket&&) = delete;
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }

  int descriptor() const { return descriptor_; }

  void send_all(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t size = send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (size < 0) throw std::runtime_error(std::string("send: ") + std::strerror(errno));
      bytes.remove_prefix(static_cast<size_t>(size));
    }
  }
  std::string receive(size_t count) const {
    std::string bytes(count, '\0');
    const ssize_t size = recv(descriptor_, bytes.data(), count, MSG_WAITALL);
    if (size != static_cast<ssize_t>(count)) throw std::runtime_error("the connection ended early");
    return bytes;
  }

  // In the namespace of this thread.
  static Socket listening(net::Endpoint at) {
    SocketAddress address(at);
    Socket socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    setsockopt(socket.descriptor(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(socket.descriptor(), address.get(), address.size) != 0 ||
        listen(socket.descriptor(), 16) != 0)
      throw std::runtime_error("listen " + at.to_string() + ": " + std::strerror(errno));
    return socket;
  }
  static Socket connected(net::Endpoint to, bool with_extension_header = false) {
    SocketAddress address(to);
    Socket socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // Destination options with nothing in them but padding (RFC 8200 section 4.6).
    constexpr unsigned char padding[8] = {0, 0, 1, 4, 0, 0, 0, 0};
    if (with_extension_header &&
        setsockopt(socket.descriptor(), IPPROTO_IPV6, IPV6_DSTOPTS, padding, sizeof padding) != 0)
      throw std::runtime_error(std::string("IPV6_DSTOPTS: ") + std::strerror(errno));
    if (connect(socket.descriptor(), address.get(), address.size) != 0)
      throw std::runtime_error("connect " + to.to_string() + ": " + std::strerror(errno));
    return socket;
  }
  // Of UDP; port 0: any.
  static Socket of_datagrams(net::Endpoint at) {
    SocketAddress address(at);
    Socket socket(::socket(address.storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (bind(socket.descriptor(), address.get(), address.size) != 0)
      throw std::runtime_error("bind " + at.to_string() + ": " + std::strerror(errno));
    return socket;
  }
  void send_to(net::Endpoint to, std::string_view bytes) const {
    SocketAddress address(to);
    if (sendto(descriptor_, bytes.data(), bytes.size(), 0, address.get(), address.size) < 0)
      throw std::runtime_error("sendto " + to.to_string() + ": " + std::strerror(errno));
  }
  Socket accepted() const { return Socket(accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC)); }

  net::Endpoint local() const {
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
    getsockname(descriptor_, reinterpret_cast<sockaddr*>(&storage), &size);
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    const auto bytes = [](const auto& address) {
      return std::span(reinterpret_cast<const uint8_t*>(&address), sizeof address);
    };
    if (storage.ss_family == AF_INET)
      return {*net::IpAddress::from_bytes(bytes(v4.sin_addr)), {ntohs(v4.sin_port)}};
    return {*net::IpAddress::from_bytes(bytes(v6.sin6_addr)), {ntohs(v6.sin6_port)}};
  }

 private:
  int descriptor_;
};

}  // namespace trafficmirror::testing_network
