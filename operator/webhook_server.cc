#include "operator/webhook_server.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include <httplib.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <spdlog/spdlog.h>

#include "program/flags.h"
#include "program/metrics.h"
#include "program/start_error.h"

namespace trafficmirror::controller {
namespace {

// etcd takes objects of 1.5 MiB; an AdmissionReview holds one, and little else.
constexpr size_t largest_request = size_t{8} << 20;
constexpr size_t threads = 8;
// For each read and write, so that a connection that says nothing does not keep a thread.
constexpr time_t patience_s = 2;

template <auto free>
struct Free {
  template <typename T>
  void operator()(T* pointer) const {
    free(pointer);
  }
};
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;

void free_chain(STACK_OF(X509) * chain) {
  sk_X509_pop_free(chain, X509_free);
}

// What OpenSSL makes of a KeyPair.
struct Identity {
  Certificate certificate;
  PrivateKey key;
  // Those between the certificate and its CA.
  std::unique_ptr<STACK_OF(X509), Free<free_chain>> chain{sk_X509_new_null()};
};

Bio open(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

int no_passphrase(char*, int, int, void*) {
  return -1;
}

// Null where it is no certificate with its key.
std::shared_ptr<const Identity> read_identity(const KeyPair& pair) {
  auto identity = std::make_shared<Identity>();
  const Bio key = open(pair.key);
  identity->key.reset(PEM_read_bio_PrivateKey(key.get(), nullptr, no_passphrase, nullptr));
  const Bio certificates = open(pair.certificate);
  identity->certificate.reset(
      PEM_read_bio_X509(certificates.get(), nullptr, no_passphrase, nullptr));
  if (identity->certificate)
    while (X509* next = PEM_read_bio_X509(certificates.get(), nullptr, no_passphrase, nullptr))
      sk_X509_push(identity->chain.get(), next);
  const bool fits = identity->certificate && identity->key &&
                    X509_check_private_key(identity->certificate.get(), identity->key.get()) == 1;
  ERR_clear_error();
  return fits ? identity : nullptr;
}

constexpr const char* no_identity = "it is no certificate in PEM with the private key of it";

}  // namespace

std::string webhook_dns_name(const kube::Key& service) {
  return service.name + "." + service.namespace_ + ".svc";
}

class WebhookServer::Implementation {
 public:
  Implementation(const net::HostPort& address, InjectionsFor injections_for)
      : injections_for_(std::move(injections_for)),
        server_([this](SSL_CTX& context) { return set_up_tls(context); }) {
    if (!server_.is_valid()) throw program::StartError("OpenSSL can't be set up for the webhook");
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

  std::optional<std::string> use(const KeyPair& pair) {
    auto identity = read_identity(pair);
    if (!identity) return no_identity;
    const std::lock_guard lock(identity_mutex_);
    identity_ = std::move(identity);
    return std::nullopt;
  }

  std::vector<prometheus::MetricFamily> metrics() const {
    return {program::counter("trafficmirror_operator_webhook_requests_total",
                             "pods that the API server asked about, by what became of it",
                             {{injected_.load(), {{"result", "injected"}}},
                              {untouched_.load(), {{"result", "untouched"}}},
                              {problems_.load(), {{"result", "problem"}}}}),
            program::counter("trafficmirror_operator_webhook_injections_total",
                             "sidecars given to pods", injections_.load())};
  }

 private:
  // Each handshake takes the certificate of its time.
  bool set_up_tls(SSL_CTX& context) {
    SSL_CTX_set_min_proto_version(&context, TLS1_2_VERSION);
    SSL_CTX_set_options(&context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_cert_cb(
        &context,
        [](SSL* connection, void* self) {
          return static_cast<Implementation*>(self)->show_certificate(connection) ? 1 : 0;
        },
        this);
    return true;
  }

  bool show_certificate(SSL* connection) {
    std::shared_ptr<const Identity> identity;
    {
      const std::lock_guard lock(identity_mutex_);
      identity = identity_;
    }
    if (!identity) return false;
    // It counts the references of its own.
    return SSL_use_cert_and_key(connection, identity->certificate.get(), identity->key.get(),
                                identity->chain.get(), 1) == 1;
  }

  void configure() {
    server_.new_task_queue = [] { return new httplib::ThreadPool(threads); };
    // One request a connection: an idle one would hold a thread, and hold up the destructor.
    server_.set_keep_alive_max_count(1);
    server_.set_keep_alive_timeout(patience_s);
    server_.set_read_timeout(patience_s);
    server_.set_write_timeout(patience_s);
    server_.set_payload_max_length(largest_request);
    // httplib would also set SO_REUSEPORT, and share a taken port.
    server_.set_socket_options([](int socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    });
    server_.Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server_.Post("/mutate", [this](const httplib::Request& request, httplib::Response& response) {
      answer(request.body, response);
    });
  }

  void answer(const std::string& request, httplib::Response& response) {
    const Review result = review(request, injections_for_);
    if (!result.problem.empty()) {
      ++problems_;
      spdlog::warn("webhook: pod {}: {}", result.pod.empty() ? "(unknown)" : result.pod,
                   result.problem);
    } else {
      ++(result.injected.empty() ? untouched_ : injected_);
    }
    injections_ += result.injected.size();
    for (const std::string& name : result.injected)
      spdlog::info("webhook: pod {} gets {}", result.pod, name);
    if (result.answer) {
      response.set_content(*result.answer, "application/json");
    } else {
      response.status = 400;
      response.set_content(result.problem + "\n", "text/plain");
    }
  }

  void bind(const net::HostPort& address) {
    errno = 0;
    int port = address.port.number;
    const bool bound = port != 0 ? server_.bind_to_port(address.host, port)
                                 : (port = server_.bind_to_any_port(address.host)) > 0;
    if (!bound) {
      const int error = errno;
      const std::string flag = "--webhook-listen " + program::to_text(address);
      if (error == EADDRINUSE) throw program::StartError(flag + " is taken: choose another port");
      throw program::StartError(flag + " cannot be bound" +
                                (error == 0 ? "" : std::string(" (") + std::strerror(error) + ")") +
                                ": choose an address of this host");
    }
    port_ = {static_cast<uint16_t>(port)};
  }

  const InjectionsFor injections_for_;
  std::mutex identity_mutex_;
  std::shared_ptr<const Identity> identity_;
  std::atomic<uint64_t> injected_{0}, untouched_{0}, problems_{0}, injections_{0};
  httplib::SSLServer server_;
  net::Port port_;
  std::thread thread_;
};

WebhookServer::WebhookServer(const net::HostPort& address, InjectionsFor injections_for)
    : implementation_(std::make_unique<Implementation>(address, std::move(injections_for))) {}

WebhookServer::~WebhookServer() = default;

net::Port WebhookServer::port() const {
  return implementation_->port();
}

std::optional<std::string> WebhookServer::use(const KeyPair& identity) {
  return implementation_->use(identity);
}

std::vector<prometheus::MetricFamily> WebhookServer::metrics() const {
  return implementation_->metrics();
}

}  // namespace trafficmirror::controller
