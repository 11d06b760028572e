// operator/kube/ is a small client of the Kubernetes API: where the server is (config), requests
// and watches (client), what the server can do (discovery), caches that follow it (informer), a
// queue of keys to work on (work_queue), one leader among several programs (leader_election) and
// Events (events). Objects are JSON; it knows nothing of TrafficMirror.
//
// This header: what a request comes back with. Nothing here throws once the program has started.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace trafficmirror::kube {

// What the caller can do about it is what tells them apart.
enum class ErrorKind {
  network,            // no answer, or none that makes sense
  timeout,            // the request's time was over
  stopped,            // the caller's stop token asked for it
  unauthorized,       // 401: the token or certificate is not (or no longer) accepted
  forbidden,          // 403: RBAC, or an admission policy
  not_found,          // 404
  conflict,           // 409: somebody changed the object meanwhile, or owns a field
  already_exists,     // 409, of create
  gone,               // 410: the resource version or the continue token is too old
  invalid,            // 400, 415, 422: it will not be accepted as it is
  too_many_requests,  // 429: later, see retry_after
  server,             // 5xx: later, see retry_after
  other,
};

struct Error {
  ErrorKind kind = ErrorKind::other;
  int status = 0;         // HTTP's; 0 where there was no answer
  std::string reason{};   // the server's CamelCase word, such as "Conflict"; may be empty
  std::string message{};  // one line for people
  // How long the server asked to be left alone.
  std::optional<std::chrono::seconds> retry_after{};
};

template <class Value>
class [[nodiscard]] Result {
 public:
  Result(Value value) : content_(std::move(value)) {}  // NOLINT: meant to convert
  Result(Error error) : content_(std::move(error)) {}  // NOLINT: meant to convert

  explicit operator bool() const { return std::holds_alternative<Value>(content_); }
  // Only where there is a value, or only where there is none.
  Value& value() & { return *std::get_if<Value>(&content_); }
  const Value& value() const& { return *std::get_if<Value>(&content_); }
  Value&& value() && { return std::move(*std::get_if<Value>(&content_)); }
  const Error& error() const { return *std::get_if<Error>(&content_); }

  Value& operator*() & { return value(); }
  const Value& operator*() const& { return value(); }
  Value&& operator*() && { return std::move(*this).value(); }
  Value* operator->() { return &value(); }
  const Value* operator->() const { return &value(); }

 private:
  std::variant<Value, Error> content_;
};

}  // namespace trafficmirror::kube
