#include "operator/kube/client.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "operator/kube/connection.h"

namespace trafficmirror::kube {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* json_type = "application/json";

std::string encode(std::string_view text) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
        c == '_' || c == '.' || c == '~') {
      out += c;
    } else {
      out += '%';
      out += digits[byte >> 4];
      out += digits[byte & 15];
    }
  }
  return out;
}

// A path with its query.
class Url {
 public:
  Url(const Resource& resource, const std::string& namespace_, const std::string& name = "",
      const std::string& subresource = "")
      : text_(resource.group.empty() ? "/api/" : "/apis/") {
    text_ += resource.group_version();
    if (resource.namespaced && !namespace_.empty()) text_ += "/namespaces/" + encode(namespace_);
    text_ += "/" + resource.plural;
    if (!name.empty()) text_ += "/" + encode(name);
    if (!subresource.empty()) text_ += "/" + subresource;
  }

  // Left out where `value` is empty.
  Url& add(std::string_view name, std::string_view value) {
    if (value.empty()) return *this;
    text_ += std::exchange(separator_, '&');
    text_ += name;
    text_ += '=';
    text_ += encode(value);
    return *this;
  }
  Url& add(const Selection& selection) {
    return add("labelSelector", selection.labels).add("fieldSelector", selection.fields);
  }
  Url& add_write(const std::string& field_manager, const CallOptions& call) {
    return add("fieldManager", field_manager).add("dryRun", call.dry_run ? "All" : "");
  }

  const std::string& text() const { return text_; }

 private:
  std::string text_;
  char separator_ = '?';
};

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

ErrorKind kind_of(int status, const std::string& reason) {
  switch (status) {
    case 401:
      return ErrorKind::unauthorized;
    case 403:
      return ErrorKind::forbidden;
    case 404:
      return ErrorKind::not_found;
    case 409:
      return reason == "AlreadyExists" ? ErrorKind::already_exists : ErrorKind::conflict;
    case 410:
      return ErrorKind::gone;
    case 400:
    case 415:
    case 422:
      return ErrorKind::invalid;
    case 429:
      return ErrorKind::too_many_requests;
    default:
      return status >= 500 ? ErrorKind::server : ErrorKind::other;
  }
}

// `status` is a Kubernetes Status, or anything else.
Error error_of(int code, const Json& status, const std::string& body) {
  Error error{.status = code};
  error.reason = text_at(status, "/reason");
  error.message = text_at(status, "/message");
  error.kind = kind_of(code, error.reason);
  if (error.message.empty()) {
    constexpr size_t longest = 200;
    error.message =
        "HTTP " + std::to_string(code) + " " + body.substr(0, std::min(body.find('\n'), longest));
  }
  return error;
}

std::optional<std::chrono::seconds> parse_seconds(const std::string& text) {
  int seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds < 0) return std::nullopt;
  return std::chrono::seconds(seconds);
}

Error error_of(const HttpAnswer& answer) {
  Error error = error_of(answer.status, Json::parse(answer.body, nullptr, false), answer.body);
  error.retry_after = parse_seconds(answer.retry_after);
  return error;
}

std::optional<WatchEvent::Type> type_of(const std::string& text) {
  if (text == "ADDED") return WatchEvent::Type::added;
  if (text == "MODIFIED") return WatchEvent::Type::modified;
  if (text == "DELETED") return WatchEvent::Type::deleted;
  if (text == "BOOKMARK") return WatchEvent::Type::bookmark;
  return std::nullopt;
}

// Cuts connections whose time is over. cpp-httplib itself bounds only each wait, so that a server
// that says a byte now and then could hold a request for as long as it likes.
class Deadlines {
 public:
  // While it lives, the connection has that long.
  class Guard {
   public:
    Guard(Deadlines& deadlines, Clock::time_point at, Connection& connection)
        : deadlines_(deadlines) {
      const std::lock_guard lock(deadlines_.mutex_);
      entry_ = deadlines_.entries_.emplace(at, Entry{&connection});
      deadlines_.changed_.notify_one();
    }
    ~Guard() {
      const std::lock_guard lock(deadlines_.mutex_);
      deadlines_.entries_.erase(entry_);
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    bool over() const {
      const std::lock_guard lock(deadlines_.mutex_);
      return entry_->second.over;
    }

   private:
    friend class Deadlines;
    struct Entry {
      Connection* connection;
      bool over = false;
    };
    Deadlines& deadlines_;
    std::multimap<Clock::time_point, Entry>::iterator entry_;
  };

 private:
  void run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested()) {
      const auto next = std::find_if(entries_.begin(), entries_.end(),
                                     [](const auto& entry) { return !entry.second.over; });
      if (next == entries_.end()) {
        changed_.wait(lock);
      } else if (const auto at = next->first; at > Clock::now()) {
        changed_.wait_until(lock, at);
      } else {
        next->second.over = true;
        next->second.connection->cut();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, Guard::Entry> entries_;
  // Last, so that it ends before what it uses does.
  std::jthread thread_{[this](const std::stop_token& stop) {
    const std::stop_callback wake(stop, [this] {
      const std::lock_guard lock(mutex_);
      changed_.notify_one();
    });
    run(stop);
  }};
};

}  // namespace

class Client::Implementation {
 public:
  Implementation(Config config, std::string field_manager)
      : config_(std::move(config)), field_manager_(std::move(field_manager)) {
    idle_.push_back(std::make_unique<Connection>(config_));
  }

  const Config& config() const { return config_; }
  const std::string& field_manager() const { return field_manager_; }

  // `url` is without the server's own prefix.
  Result<Json> call(const std::string& method, const std::string& url, const CallOptions& options,
                    const std::string& content_type = "", std::string body = "") {
    auto answer = send({.method = method,
                        .path = config_.path + url,
                        .content_type = content_type,
                        .body = std::move(body)},
                       options.timeout, Clock::now() + options.timeout, options.stop, nullptr);
    if (!answer) return answer.error();
    if (answer->status < 200 || answer->status > 299) return error_of(*answer);
    Json json = Json::parse(answer->body, nullptr, false);
    if (json.is_discarded()) return no_sense(answer->status, url);
    return json;
  }

  std::optional<Error> watch(const std::string& url, const WatchOptions& options,
                             const std::function<void(WatchEvent)>& handle) {
    std::string rest;  // a line that is not whole yet
    std::optional<Error> error;
    const auto take_line = [&](std::string_view line) {
      if (error || line.empty()) return;
      Json event = Json::parse(line, nullptr, false);
      const std::string type_name = text_at(event, "/type");
      if (type_name == "ERROR") {
        const Json& status = event["object"];
        const int code = status.value("code", 500);
        error = error_of(code, status, "");
        return;
      }
      const auto type = type_of(type_name);
      if (!type || !event.contains("object")) {
        error = no_sense(200, url);
        return;
      }
      handle({*type, std::move(event["object"])});
    };
    const auto take = [&](const char* data, size_t size) {
      std::string_view more(data, size);
      for (size_t end = 0; (end = more.find('\n')) != std::string_view::npos;) {
        if (rest.empty()) {
          take_line(more.substr(0, end));
        } else {
          rest += more.substr(0, end);
          take_line(rest);
          rest.clear();
        }
        more.remove_prefix(end + 1);
      }
      rest += more;
      return !error;
    };
    const auto answer = send({.method = "GET", .path = config_.path + url}, options.silence,
                             std::nullopt, options.stop, take);
    if (error) return error;
    if (!answer) return answer.error();
    if (answer->status != 200) return error_of(*answer);
    return std::nullopt;
  }

 private:
  Error no_sense(int status, const std::string& url) const {
    return {.kind = ErrorKind::network,
            .status = status,
            .message = "what " + config_.host + " answered to " + url + " is not Kubernetes' JSON"};
  }

  Result<HttpAnswer> send(HttpRequest request, std::chrono::milliseconds silence,
                          std::optional<Clock::time_point> deadline, const std::stop_token& stop,
                          const Connection::Stream& stream) {
    const Error stopped{.kind = ErrorKind::stopped, .message = "stopped"};
    if (stop.stop_requested()) return stopped;
    request.token = config_.token;
    if (!config_.token_file.empty()) {
      std::ifstream file(config_.token_file);
      request.token.assign(std::istreambuf_iterator<char>(file), {});
      std::erase_if(request.token, [](char c) { return c == '\n' || c == '\r' || c == ' '; });
      if (request.token.empty())
        return Error{.kind = ErrorKind::unauthorized,
                     .message = "the token cannot be read: " + config_.token_file.string() +
                                " is missing or empty"};
    }

    const auto begin = Clock::now();
    auto connection = take_connection();
    std::optional<HttpAnswer> answer;
    bool over = false;
    {
      const std::stop_callback cut(stop, [&] { connection->cut(); });
      std::optional<Deadlines::Guard> guard;
      if (deadline) guard.emplace(deadlines_, *deadline, *connection);
      answer = connection->send(request, silence, stream);
      over = guard && guard->over();
    }
    // One that was cut, even behind its answer, is of no more use.
    if (answer) {
      if (!over && !stop.stop_requested()) give_back(std::move(connection));
      return *std::move(answer);
    }
    if (stop.stop_requested()) return stopped;
    over = over || Clock::now() - begin >= silence;
    return Error{.kind = over ? ErrorKind::timeout : ErrorKind::network,
                 .message = config_.host + ":" + std::to_string(config_.port) + " " +
                            (over ? "did not answer in time" : connection->failure())};
  }

  std::unique_ptr<Connection> take_connection() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto connection = std::move(idle_.back());
        idle_.pop_back();
        return connection;
      }
    }
    return std::make_unique<Connection>(config_);
  }

  void give_back(std::unique_ptr<Connection> connection) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(connection));
  }

  const Config config_;
  const std::string field_manager_;
  Deadlines deadlines_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Connection>> idle_;
};

Client::Client(Config config, std::string field_manager)
    : implementation_(
          std::make_unique<Implementation>(std::move(config), std::move(field_manager))) {}

Client::~Client() = default;

const Config& Client::config() const {
  return implementation_->config();
}

const std::string& Client::field_manager() const {
  return implementation_->field_manager();
}

Result<Json> Client::get(const Resource& resource, const Key& key, const CallOptions& call) {
  return implementation_->call("GET", Url(resource, key.namespace_, key.name).text(), call);
}

Result<Json> Client::list(const Resource& resource, const std::string& namespace_,
                          const ListOptions& options, const CallOptions& call) {
  Url url(resource, namespace_);
  url.add(options.selection).add("continue", options.continue_token);
  if (options.limit > 0) url.add("limit", std::to_string(options.limit));
  auto page = implementation_->call("GET", url.text(), call);
  if (!page) return page;
  Json& items = (*page)["items"];
  if (!items.is_array()) items = Json::array();  // null, where there are none
  // The server leaves out in each what stands at the list.
  constexpr std::string_view list_suffix = "List";
  std::string kind = text_at(*page, "/kind");
  if (kind.ends_with(list_suffix)) kind.resize(kind.size() - list_suffix.size());
  for (Json& item : items) {
    item["kind"] = kind;
    item["apiVersion"] = resource.group_version();
  }
  return page;
}

Result<Json> Client::create(const Resource& resource, const Json& object, const CallOptions& call) {
  Url url(resource, key_of(object).namespace_);
  url.add_write(field_manager(), call);
  return implementation_->call("POST", url.text(), call, json_type, dump(object));
}

Result<Json> Client::apply(const Resource& resource, const Json& object,
                           const ApplyOptions& options, const CallOptions& call) {
  const Key key = key_of(object);
  Url url(resource, key.namespace_, key.name, options.subresource);
  url.add_write(field_manager(), call).add("force", options.force ? "true" : "");
  // JSON is YAML, too.
  return implementation_->call("PATCH", url.text(), call, "application/apply-patch+yaml",
                               dump(object));
}

Result<Json> Client::update(const Resource& resource, const Json& object,
                            const std::string& subresource, const CallOptions& call) {
  const Key key = key_of(object);
  Url url(resource, key.namespace_, key.name, subresource);
  url.add_write(field_manager(), call);
  return implementation_->call("PUT", url.text(), call, json_type, dump(object));
}

Result<Json> Client::patch(const Resource& resource, const Key& key, const Json& patch,
                           PatchType type, const std::string& subresource,
                           const CallOptions& call) {
  Url url(resource, key.namespace_, key.name, subresource);
  url.add_write(field_manager(), call);
  return implementation_->call("PATCH", url.text(), call,
                               type == PatchType::merge ? "application/merge-patch+json"
                                                        : "application/strategic-merge-patch+json",
                               dump(patch));
}

Result<Json> Client::patch_status(const Resource& resource, const Key& key, const Json& status,
                                  const CallOptions& call) {
  return patch(resource, key, {{"status", status}}, PatchType::merge, "status", call);
}

Result<Json> Client::remove(const Resource& resource, const Key& key, const DeleteOptions& options,
                            const CallOptions& call) {
  Json body = {
      {"kind", "DeleteOptions"}, {"apiVersion", "v1"}, {"propagationPolicy", options.propagation}};
  if (!options.uid.empty()) body["preconditions"]["uid"] = options.uid;
  if (!options.resource_version.empty())
    body["preconditions"]["resourceVersion"] = options.resource_version;
  Url url(resource, key.namespace_, key.name);
  url.add("dryRun", call.dry_run ? "All" : "");
  return implementation_->call("DELETE", url.text(), call, json_type, dump(body));
}

std::optional<Error> Client::watch(const Resource& resource, const std::string& namespace_,
                                   const WatchOptions& options,
                                   const std::function<void(WatchEvent)>& handle) {
  Url url(resource, namespace_);
  url.add("watch", "true")
      .add("allowWatchBookmarks", "true")
      .add("resourceVersion", options.resource_version)
      .add("timeoutSeconds", std::to_string(options.timeout.count()))
      .add(options.selection);
  return implementation_->watch(url.text(), options, handle);
}

Result<Json> Client::get_path(const std::string& path, const CallOptions& call) {
  return implementation_->call("GET", path, call);
}

}  // namespace trafficmirror::kube
