// One HTTP connection to the API server. Only client.cc needs it; it keeps cpp-httplib and OpenSSL
// to itself.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "operator/kube/config.h"

namespace trafficmirror::kube {

struct HttpRequest {
  std::string method;
  std::string path;  // with the query, both encoded
  std::string content_type{};
  std::string body{};
  std::string token{};
};

struct HttpAnswer {
  int status = 0;
  std::string body;  // empty where `stream` took it
  std::string retry_after;
};

// Connects when it is used first, and again when the connection was closed. For one thread at a
// time, except for cut().
class Connection {
 public:
  // Throws program::StartError where the certificates or the key can't be used.
  explicit Connection(const Config& config);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Takes a piece of the body of an answer with status 200; false ends the request as a failure.
  using Stream = std::function<bool(const char* data, size_t size)>;
  // `silence` bounds each wait: to connect, to write, to read more. Nothing where there was no
  // whole answer; then failure() says why.
  std::optional<HttpAnswer> send(const HttpRequest& request, std::chrono::milliseconds silence,
                                 const Stream& stream = nullptr);
  const std::string& failure() const;

  // Makes the request at hand fail, whatever it waits for; and all later ones.
  void cut();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace trafficmirror::kube
