// An API server of our own in the test's process, as far as operator/kube needs one, that can be
// told to misbehave. It checks no schema and knows no kinds: any resource may be written.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "operator/kube/config.h"
#include "operator/kube/object.h"

namespace trafficmirror::kube {

class KubeServer {
 public:
  struct Request {
    std::string method;
    std::string path;  // without the query
    std::string query;
    std::string body;
    std::string content_type;
    std::string token;
    bool watch = false;
  };

  // What happens to requests instead of an answer, or before it.
  struct Fault {
    // Which requests; all where it is empty.
    std::function<bool(const Request&)> matches{};
    int times = 1;  // how many of them; -1: all that come
    // Answered instead; 0: the request is served.
    int status = 0;
    std::string reason{};
    std::string retry_after{};
    std::string body{};  // instead of a Status
    // The answer waits until release(), or until the server's end.
    bool hold = false;
    // The answer comes a byte at a time, and never to its end.
    bool trickle = false;
    // Of a watch: it is cut at once; it says this line before it ends.
    bool cut = false;
    std::string line{};
  };

  enum class Security { plain, tls };
  explicit KubeServer(Security security = Security::plain);
  ~KubeServer();
  KubeServer(const KubeServer&) = delete;
  KubeServer& operator=(const KubeServer&) = delete;

  // For a client of this server; with TLS, of a client certificate of its authority.
  Config config() const;

  // As if another client had written. put() makes the object or replaces it.
  Json put(const Resource& resource, const Json& object);
  void remove(const Resource& resource, const Key& key);
  Json object(const Resource& resource, const Key& key) const;  // null where there is none

  // Answers GET of that path as it is.
  void serve(const std::string& path, const Json& answer);
  // No request is served without it, from now on. "" for any.
  void require_token(const std::string& token);

  void inject(Fault fault);
  void clear_faults();
  // Lets held answers go.
  void release();
  // Forgets all changes so far: watches and continue tokens of before are gone (410).
  void compact();
  // Ends every watch in the midst of its chunk.
  void cut_watches();

  std::vector<Request> requests() const;
  size_t count(const std::function<bool(const Request&)>& matches) const;
  // Waits until so many requests have come that match; false after ten seconds.
  bool wait_for(const std::function<bool(const Request&)>& matches, size_t count) const;
  // Watches that are open at this moment. Waits in the same way.
  bool wait_for_watches(size_t count) const;
  // Requests that are held at this moment. Waits in the same way.
  bool wait_for_held(size_t count) const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

// Ready-made matches.
inline bool is_watch(const KubeServer::Request& request) {
  return request.watch;
}
inline bool is_list(const KubeServer::Request& request) {
  return request.method == "GET" && !request.watch;
}
inline std::function<bool(const KubeServer::Request&)> has_method(const std::string& method) {
  return [method](const KubeServer::Request& request) { return request.method == method; };
}

}  // namespace trafficmirror::kube
