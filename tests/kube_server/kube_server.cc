#include "tests/kube_server/kube_server.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include <httplib.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include "tests/kube_server/tls.h"

namespace trafficmirror::kube {
namespace {

// "/apis/apps/v1/namespaces/shop/deployments/checkout/status" and the like.
struct Target {
  Resource resource;
  Key key;
  std::string subresource;
};

std::optional<Target> parse_path(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t begin = 1; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  size_t at = 0;
  const auto next = [&] { return at < parts.size() ? parts[at++] : std::string(); };
  Target target;
  const std::string root = next();
  if (root == "apis")
    target.resource.group = next();
  else if (root != "api")
    return std::nullopt;
  target.resource.version = next();
  target.resource.plural = next();
  if (target.resource.plural == "namespaces" && parts.size() > at + 1 &&
      parts[at + 1] != "status" && parts[at + 1] != "finalize") {
    target.key.namespace_ = next();
    target.resource.plural = next();
  }
  target.key.name = next();
  target.subresource = next();
  if (target.resource.plural.empty()) return std::nullopt;
  return target;
}

// By resource; objects of all namespaces are together.
std::string collection_of(const Resource& resource) {
  return resource.group_version() + "/" + resource.plural;
}

// Only "a=b" and "a!=b", with commas between them.
bool selected(const Json& object, const std::string& labels, const std::string& fields) {
  const auto holds = [](const std::string& terms, const auto& value_of) {
    for (size_t begin = 0; begin < terms.size();) {
      const size_t end = std::min(terms.find(',', begin), terms.size());
      const std::string term = terms.substr(begin, end - begin);
      begin = end + 1;
      const size_t sign = term.find('=');
      const bool unequal = sign > 0 && term[sign - 1] == '!';
      const bool equal =
          value_of(term.substr(0, unequal ? sign - 1 : sign)) == term.substr(sign + 1);
      if (equal == unequal) return false;
    }
    return true;
  };
  return holds(labels,
               [&](const std::string& label) {
                 const Json::json_pointer pointer("/metadata/labels");
                 return object.contains(pointer) ? object[pointer].value(label, "") : "";
               }) &&
         holds(fields, [&](std::string field) {
           std::replace(field.begin(), field.end(), '.', '/');
           return text_at(object, ("/" + field).c_str());
         });
}

}  // namespace

class KubeServer::Implementation {
 public:
  explicit Implementation(Security security) {
    if (security == Security::tls) {
      authority_ = make_authority("test authority");
      client_ = make_leaf(authority_, "operator", "");
      server_ = std::make_unique<httplib::SSLServer>(
          [this](SSL_CTX& context) { return set_up_tls(context); });
    } else {
      server_ = std::make_unique<httplib::Server>();
    }
    // Every watch, and every connection kept open, holds a thread.
    server_->new_task_queue = [] { return new httplib::ThreadPool(24); };
    server_->set_keep_alive_max_count(1000);
    server_->set_tcp_nodelay(true);
    const auto handle = [this](const httplib::Request& request, httplib::Response& response) {
      answer(request, response);
    };
    const char* everything = ".*";
    server_->Get(everything, handle);
    server_->Post(everything, handle);
    server_->Put(everything, handle);
    server_->Patch(everything, handle);
    server_->Delete(everything, handle);
    port_ = server_->bind_to_any_port("127.0.0.1");
    if (port_ <= 0) throw std::runtime_error("no free port");
    thread_ = std::thread([this] { server_->listen_after_bind(); });
    // stop() before the loop runs would be lost.
    while (!server_->is_running()) std::this_thread::yield();
  }

  ~Implementation() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      changed_.notify_all();
    }
    server_->stop();
    thread_.join();
  }

  Config config() const {
    Config config;
    config.tls = !authority_.certificate.empty();
    config.host = "127.0.0.1";
    config.port = static_cast<uint16_t>(port_);
    config.certificate_authority = authority_.certificate;
    config.client_certificate = client_.certificate;
    config.client_key = client_.key;
    return config;
  }

  Json put(const Resource& resource, Json object) {
    const std::lock_guard lock(mutex_);
    return store(collection_of(resource), std::move(object));
  }

  void remove(const Resource& resource, const Key& key) {
    const std::lock_guard lock(mutex_);
    erase(collection_of(resource), key);
  }

  Json object(const Resource& resource, const Key& key) const {
    const std::lock_guard lock(mutex_);
    const auto collection = objects_.find(collection_of(resource));
    if (collection == objects_.end()) return {};
    const auto found = collection->second.find(key);
    return found == collection->second.end() ? Json() : found->second;
  }

  void serve(const std::string& path, const Json& answer) {
    const std::lock_guard lock(mutex_);
    documents_[path] = answer;
  }
  void require_token(const std::string& token) {
    const std::lock_guard lock(mutex_);
    token_ = token;
  }
  void inject(Fault fault) {
    const std::lock_guard lock(mutex_);
    faults_.push_back(std::move(fault));
  }
  void clear_faults() {
    const std::lock_guard lock(mutex_);
    faults_.clear();
  }
  void release() {
    const std::lock_guard lock(mutex_);
    ++releases_;
    changed_.notify_all();
  }
  void compact() {
    const std::lock_guard lock(mutex_);
    changes_.clear();
    oldest_ = ++version_;
  }
  void cut_watches() {
    const std::lock_guard lock(mutex_);
    ++cuts_;
    changed_.notify_all();
  }

  std::vector<Request> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  template <class Condition>
  bool wait(const Condition& condition) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), condition);
  }
  size_t count_locked(const std::function<bool(const Request&)>& matches) const {
    return static_cast<size_t>(std::count_if(requests_.begin(), requests_.end(), matches));
  }
  bool wait_for(const std::function<bool(const Request&)>& matches, size_t count) const {
    return wait([&] { return count_locked(matches) >= count; });
  }
  bool wait_for_watches(size_t count) const {
    return wait([&] { return watches_ == count; });
  }
  bool wait_for_held(size_t count) const {
    return wait([&] { return held_ == count; });
  }

 private:
  struct Change {
    uint64_t version;
    std::string collection;
    std::string type;
    Json object;
  };

  bool set_up_tls(SSL_CTX& context) {
    const Identity server = make_leaf(authority_, "server", "IP:127.0.0.1,DNS:kubernetes");
    const auto memory = [](const std::string& text) {
      return BIO_new_mem_buf(text.data(), static_cast<int>(text.size()));
    };
    const auto use_certificate = [&](const std::string& pem, const auto& use) {
      BIO* text = memory(pem);
      X509* certificate = PEM_read_bio_X509(text, nullptr, nullptr, nullptr);
      use(certificate);
      X509_free(certificate);
      BIO_free_all(text);
    };
    use_certificate(server.certificate, [&](X509* one) { SSL_CTX_use_certificate(&context, one); });
    use_certificate(authority_.certificate,
                    [&](X509* one) { X509_STORE_add_cert(SSL_CTX_get_cert_store(&context), one); });
    BIO* text = memory(server.key);
    EVP_PKEY* key = PEM_read_bio_PrivateKey(text, nullptr, nullptr, nullptr);
    SSL_CTX_use_PrivateKey(&context, key);
    EVP_PKEY_free(key);
    BIO_free_all(text);
    SSL_CTX_set_verify(&context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    return true;
  }

  // Everything below is called with the lock held, unless it says otherwise.

  Json store(const std::string& collection, Json object) {
    auto& objects = objects_[collection];
    const Key key = key_of(object);
    const bool is_new = !objects.contains(key);
    object["metadata"]["resourceVersion"] = std::to_string(++version_);
    if (is_new && !object["metadata"].contains("uid"))
      object["metadata"]["uid"] = "uid-" + std::to_string(version_);
    objects[key] = object;
    changes_.push_back({version_, collection, is_new ? "ADDED" : "MODIFIED", object});
    changed_.notify_all();
    return object;
  }

  Json erase(const std::string& collection, const Key& key) {
    auto& objects = objects_[collection];
    const auto found = objects.find(key);
    if (found == objects.end()) return {};
    Json object = found->second;
    objects.erase(found);
    object["metadata"]["resourceVersion"] = std::to_string(++version_);
    changes_.push_back({version_, collection, "DELETED", object});
    changed_.notify_all();
    return object;
  }

  static void send(httplib::Response& response, int status, const Json& body) {
    response.status = status;
    response.set_content(body.dump(), "application/json");
  }
  static void fail(httplib::Response& response, int status, const std::string& reason,
                   const std::string& message) {
    send(response, status,
         {{"kind", "Status"}, {"code", status}, {"reason", reason}, {"message", message}});
  }

  std::optional<Fault> take_fault(const Request& request) {
    for (auto fault = faults_.begin(); fault != faults_.end(); ++fault) {
      if (fault->times == 0 || (fault->matches && !fault->matches(request))) continue;
      if (fault->times > 0) --fault->times;
      return *fault;
    }
    return std::nullopt;
  }

  // Takes the lock itself.
  void answer(const httplib::Request& http, httplib::Response& response) {
    std::unique_lock lock(mutex_);
    Request request{
        .method = http.method,
        .path = http.path,
        .query = http.target.substr(std::min(http.target.find('?'), http.target.size())),
        .body = http.body,
        .content_type = http.get_header_value("Content-Type"),
        .token = http.get_header_value("Authorization"),
        .watch = http.get_param_value("watch") == "true"};
    requests_.push_back(request);
    changed_.notify_all();
    const auto fault = take_fault(request);
    if (fault && fault->hold) {
      const uint64_t before = releases_;
      ++held_;
      changed_.wait(lock, [&] { return ending_ || releases_ != before; });
      --held_;
    }
    if (fault && fault->trickle) {
      response.set_chunked_content_provider(
          "application/json", [this](size_t, httplib::DataSink& sink) {
            std::unique_lock trickle_lock(mutex_);
            changed_.wait_for(trickle_lock, std::chrono::milliseconds(5));
            if (ending_) return false;
            trickle_lock.unlock();
            return sink.write(" ", 1);
          });
      return;
    }
    if (fault && fault->status != 0) {
      if (!fault->retry_after.empty()) response.set_header("Retry-After", fault->retry_after);
      fail(response, fault->status, fault->reason, "injected");
      if (!fault->body.empty()) response.set_content(fault->body, "text/plain");
      return;
    }
    if (!token_.empty() && request.token != "Bearer " + token_)
      return fail(response, 401, "Unauthorized", "Unauthorized");
    if (const auto document = documents_.find(http.path); document != documents_.end())
      return send(response, 200, document->second);
    const auto target = parse_path(http.path);
    if (!target) return fail(response, 404, "NotFound", "the server has no such path");
    if (request.watch) return watch(http, response, *target, fault);
    if (http.method == "GET" && target->key.name.empty()) return list(http, response, *target);
    serve_object(http, response, *target);
  }

  void list(const httplib::Request& http, httplib::Response& response, const Target& target) {
    const std::string limit_text = http.get_param_value("limit");
    const size_t limit = limit_text.empty() ? SIZE_MAX : std::stoul(limit_text);
    // A token is the version of the first page, and the key behind which the next one begins.
    std::string token = http.get_param_value("continue");
    uint64_t version = version_;
    Key after;
    if (!token.empty()) {
      version = std::stoull(token);
      if (version < oldest_)
        return fail(response, 410, "Expired", "The provided continue parameter is too old");
      const size_t first = token.find(' ');
      const size_t second = token.find(' ', first + 1);
      after = {token.substr(first + 1, second - first - 1), token.substr(second + 1)};
      token.clear();
    }
    Json items = Json::array();
    for (const auto& [key, object] : objects_[collection_of(target.resource)]) {
      if (key <= after && !after.name.empty()) continue;
      if (!target.key.namespace_.empty() && key.namespace_ != target.key.namespace_) continue;
      if (!selected(object, http.get_param_value("labelSelector"),
                    http.get_param_value("fieldSelector")))
        continue;
      if (items.size() == limit) {
        const Key last = key_of(items.back());
        token = std::to_string(version) + " " + last.namespace_ + " " + last.name;
        break;
      }
      Json item = object;
      item.erase("kind");
      item.erase("apiVersion");
      items.push_back(std::move(item));
    }
    Json metadata = {{"resourceVersion", std::to_string(version)}};
    if (!token.empty()) metadata["continue"] = token;
    send(response, 200, {{"kind", "ThingList"}, {"metadata", metadata}, {"items", items}});
  }

  void serve_object(const httplib::Request& http, httplib::Response& response,
                    const Target& target) {
    const std::string collection = collection_of(target.resource);
    auto& objects = objects_[collection];
    Json body = Json::parse(http.body, nullptr, false);
    if (http.method != "GET" && body.is_discarded())
      return fail(response, 400, "BadRequest", "the body is no JSON");
    Key key = target.key;
    if (http.method == "POST" && key.name.empty()) {
      if (key_of(body).name.empty() && body["metadata"].contains("generateName"))
        body["metadata"]["name"] =
            text_at(body, "/metadata/generateName") + std::to_string(version_ + 1);
      body["metadata"]["namespace"] = key.namespace_;
      key.name = key_of(body).name;
      if (objects.contains(key))
        return fail(response, 409, "AlreadyExists", key.name + " already exists");
      return send(response, 201, store(collection, std::move(body)));
    }
    const auto found = objects.find(key);
    const std::string type = http.get_header_value("Content-Type");
    if (http.method == "PATCH" && type == "application/apply-patch+yaml") {
      if (http.get_param_value("fieldManager").empty())
        return fail(response, 422, "Invalid", "fieldManager is required");
      Json object = found == objects.end() ? Json::object() : found->second;
      object.merge_patch(body);
      return send(response, found == objects.end() ? 201 : 200, store(collection, object));
    }
    if (found == objects.end()) return fail(response, 404, "NotFound", key.name + " not found");
    const Json& current = found->second;
    if (http.method == "GET") return send(response, 200, current);
    if (http.method == "DELETE") {
      const auto differs = [&](const char* wanted, const char* actual) {
        const std::string value = text_at(body, wanted);
        return !value.empty() && value != text_at(current, actual);
      };
      if (differs("/preconditions/uid", "/metadata/uid") ||
          differs("/preconditions/resourceVersion", "/metadata/resourceVersion"))
        return fail(response, 409, "Conflict", "the precondition does not hold");
      erase(collection, key);
      return send(response, 200, {{"kind", "Status"}, {"status", "Success"}});
    }
    const std::string wanted_version = text_at(body, "/metadata/resourceVersion");
    if (!wanted_version.empty() && wanted_version != text_at(current, "/metadata/resourceVersion"))
      return fail(response, 409, "Conflict", "the object has been modified");
    Json object = body;
    if (http.method == "PATCH") {
      object = current;
      object.merge_patch(body);
    } else {
      object["metadata"]["uid"] = current["metadata"]["uid"];
    }
    // Of a subresource, only what it is about is written.
    if (target.subresource == "status") {
      Json whole = current;
      whole["status"] = object["status"];
      object = std::move(whole);
    }
    send(response, 200, store(collection, std::move(object)));
  }

  void watch(const httplib::Request& http, httplib::Response& response, const Target& target,
             const std::optional<Fault>& fault) {
    const std::string collection = collection_of(target.resource);
    const std::string labels = http.get_param_value("labelSelector");
    const std::string fields = http.get_param_value("fieldSelector");
    uint64_t at = std::stoull(http.get_param_value("resourceVersion"));
    const auto end = std::chrono::steady_clock::now() +
                     std::chrono::seconds(std::stoi(http.get_param_value("timeoutSeconds")));
    const bool gone = at < oldest_;
    const uint64_t cuts = cuts_;
    const bool cut = fault && fault->cut;
    const std::string line = fault ? fault->line : "";
    ++watches_;
    changed_.notify_all();
    response.set_chunked_content_provider(
        "application/json",
        [=, this, namespace_ = target.key.namespace_](size_t,
                                                      httplib::DataSink& sink) mutable -> bool {
          if (cut) return false;
          if (!line.empty()) {
            sink.write(line.data(), line.size());
            sink.done();
            return true;
          }
          if (gone) {
            const std::string error = Json{{"type", "ERROR"},
                                           {"object",
                                            {{"kind", "Status"},
                                             {"code", 410},
                                             {"reason", "Expired"},
                                             {"message", "too old resource version"}}}}
                                          .dump() +
                                      "\n";
            sink.write(error.data(), error.size());
            sink.done();
            return true;
          }
          std::unique_lock lock(mutex_);
          // Woken now and then to see whether the client is still there.
          changed_.wait_for(lock, std::chrono::milliseconds(20), [&] {
            return ending_ || cuts_ != cuts || (!changes_.empty() && changes_.back().version > at);
          });
          if (ending_) return false;
          std::string text;
          for (const Change& change : changes_) {
            if (change.version <= at || change.collection != collection) continue;
            if (!namespace_.empty() && key_of(change.object).namespace_ != namespace_) continue;
            if (!selected(change.object, labels, fields)) continue;
            text += Json{{"type", change.type}, {"object", change.object}}.dump() + "\n";
          }
          // What is of no interest to this watch moves it on with a bookmark.
          if (text.empty() && version_ > at)
            text = Json{{"type", "BOOKMARK"},
                        {"object", {{"metadata", {{"resourceVersion", std::to_string(version_)}}}}}}
                       .dump() +
                   "\n";
          at = version_;
          if (cuts_ != cuts) {
            lock.unlock();
            const std::string half = text.empty() ? "{\"type\":" : text.substr(0, text.size() / 2);
            sink.write(half.data(), half.size());
            return false;
          }
          lock.unlock();
          if (!text.empty() && !sink.write(text.data(), text.size())) return false;
          if (!sink.is_writable()) return false;
          if (std::chrono::steady_clock::now() >= end) sink.done();
          return true;
        },
        [this](bool) {
          const std::lock_guard lock(mutex_);
          --watches_;
          changed_.notify_all();
        });
  }

  Identity authority_;
  Identity client_;
  std::unique_ptr<httplib::Server> server_;
  std::thread thread_;
  int port_ = 0;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<std::string, std::map<Key, Json>> objects_;
  std::vector<Change> changes_;
  uint64_t version_ = 1;
  uint64_t oldest_ = 0;
  std::map<std::string, Json> documents_;
  std::string token_;
  std::vector<Fault> faults_;
  std::vector<Request> requests_;
  uint64_t releases_ = 0;
  uint64_t cuts_ = 0;
  size_t watches_ = 0;
  size_t held_ = 0;
  bool ending_ = false;
};

KubeServer::KubeServer(Security security)
    : implementation_(std::make_unique<Implementation>(security)) {}
KubeServer::~KubeServer() = default;

Config KubeServer::config() const {
  return implementation_->config();
}
Json KubeServer::put(const Resource& resource, const Json& object) {
  return implementation_->put(resource, object);
}
void KubeServer::remove(const Resource& resource, const Key& key) {
  implementation_->remove(resource, key);
}
Json KubeServer::object(const Resource& resource, const Key& key) const {
  return implementation_->object(resource, key);
}
void KubeServer::serve(const std::string& path, const Json& answer) {
  implementation_->serve(path, answer);
}
void KubeServer::require_token(const std::string& token) {
  implementation_->require_token(token);
}
void KubeServer::inject(Fault fault) {
  implementation_->inject(std::move(fault));
}
void KubeServer::clear_faults() {
  implementation_->clear_faults();
}
void KubeServer::release() {
  implementation_->release();
}
void KubeServer::compact() {
  implementation_->compact();
}
void KubeServer::cut_watches() {
  implementation_->cut_watches();
}
std::vector<KubeServer::Request> KubeServer::requests() const {
  return implementation_->requests();
}
size_t KubeServer::count(const std::function<bool(const Request&)>& matches) const {
  const auto all = requests();
  return static_cast<size_t>(std::count_if(all.begin(), all.end(), matches));
}
bool KubeServer::wait_for(const std::function<bool(const Request&)>& matches, size_t count) const {
  return implementation_->wait_for(matches, count);
}
bool KubeServer::wait_for_watches(size_t count) const {
  return implementation_->wait_for_watches(count);
}
bool KubeServer::wait_for_held(size_t count) const {
  return implementation_->wait_for_held(count);
}

}  // namespace trafficmirror::kube
