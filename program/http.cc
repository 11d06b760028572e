#include "program/http.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <sstream>
#include <thread>
#include <utility>

#include <httplib.h>
#include <prometheus/text_serializer.h>

#include "program/flags.h"
#include "program/start_error.h"

namespace trafficmirror::program {

class HttpServer::Implementation {
 public:
  Implementation(const net::HostPort& address, Handlers handlers) : handlers_(std::move(handlers)) {
    configure();
    bind(address);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // stop() does nothing before it listens.
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  ~Implementation() {
    server_.stop();
    thread_.join();
  }
  Implementation(const Implementation&) = delete;
  Implementation& operator=(const Implementation&) = delete;

  net::Port port() const { return port_; }

 private:
  void configure() {
    server_.new_task_queue = [] { return new httplib::ThreadPool(2); };
    // One request a connection: they come seconds apart, and an idle connection would hold one of
    // the two threads, and hold up the destructor.
    server_.set_keep_alive_max_count(1);
    server_.set_keep_alive_timeout(1);
    server_.set_read_timeout(1);
    server_.set_write_timeout(1);
    server_.set_payload_max_length(0);
    // httplib would also set SO_REUSEPORT, and share a taken port.
    server_.set_socket_options([](int socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    });
    server_.Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server_.Get("/readyz", [this](const httplib::Request&, httplib::Response& response) {
      const auto reason = handlers_.not_ready();
      if (reason) response.status = 503;
      response.set_content(reason.value_or("ready") + "\n", "text/plain");
    });
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      std::ostringstream out;
      prometheus::TextSerializer().Serialize(out, handlers_.metrics());
      response.set_content(out.str(), "text/plain; version=0.0.4; charset=utf-8");
    });
    if (!handlers_.status) return;
    server_.Get("/status", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(handlers_.status() + "\n", "application/json");
    });
  }

  void bind(const net::HostPort& address) {
    errno = 0;
    int port = address.port.number;
    const bool bound = port != 0 ? server_.bind_to_port(address.host, port)
                                 : (port = server_.bind_to_any_port(address.host)) > 0;
    if (!bound) {
      const std::string flag = "--http " + to_text(address);
      if (errno == EADDRINUSE) throw StartError(flag + " is taken: choose another port");
      if (errno == EACCES) throw StartError(flag + " is not allowed: choose a port over 1023");
      if (errno == EADDRNOTAVAIL)
        throw StartError(flag + " is no address of this host: choose one, or 0.0.0.0 for all");
      throw StartError(flag + " cannot be bound" +
                       (errno == 0 ? "" : std::string(" (") + std::strerror(errno) + ")") +
                       ": choose an address of this host");
    }
    port_ = {static_cast<uint16_t>(port)};
  }

  Handlers handlers_;
  httplib::Server server_;
  net::Port port_;
  std::thread thread_;
};

HttpServer::HttpServer(const net::HostPort& address, Handlers handlers)
    : implementation_(std::make_unique<Implementation>(address, std::move(handlers))) {}

HttpServer::~HttpServer() = default;

net::Port HttpServer::port() const {
  return implementation_->port();
}

}  // namespace trafficmirror::program
