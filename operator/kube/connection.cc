#include "operator/kube/connection.h"

#include <array>
#include <mutex>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <httplib.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

using program::StartError;

template <class Object, void (*release)(Object*)>
struct Release {
  void operator()(Object* object) const { release(object); }
};
using Certificate = std::unique_ptr<X509, Release<X509, X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Release<EVP_PKEY, EVP_PKEY_free>>;
using Memory = std::unique_ptr<BIO, Release<BIO, BIO_free_all>>;

Memory memory(const std::string& text) {
  return Memory(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::vector<Certificate> read_certificates(const std::string& pem, const std::string& what) {
  std::vector<Certificate> certificates;
  const Memory text = memory(pem);
  while (X509* certificate = PEM_read_bio_X509(text.get(), nullptr, nullptr, nullptr))
    certificates.emplace_back(certificate);
  ERR_clear_error();  // the one that says that there are no more
  if (certificates.empty()) throw StartError(what + " holds no certificate in PEM form");
  return certificates;
}

// What a name resolves to, as text; the name itself where it does not.
std::string resolve(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return host;
  std::array<char, NI_MAXHOST> text{};
  const int failed = getnameinfo(found->ai_addr, found->ai_addrlen, text.data(), text.size(),
                                 nullptr, 0, NI_NUMERICHOST);
  freeaddrinfo(found);
  return failed != 0 ? host : text.data();
}

}  // namespace

class Connection::Implementation {
 public:
  explicit Implementation(const Config& config) : config_(config) {
    if (config.tls) {
      const bool renamed = !config.tls_server_name.empty();
      auto client = std::make_unique<httplib::SSLClient>(
          renamed ? config.tls_server_name : config.host, config.port);
      set_up_tls(*client);
      http_ = std::move(client);
    } else {
      http_ = std::make_unique<httplib::ClientImpl>(config.host, config.port);
    }
    http_->set_keep_alive(true);
    http_->set_tcp_nodelay(true);
    http_->set_url_encode(false);  // it is already
    http_->set_socket_options([this](int descriptor) { adopt(descriptor); });
  }

  ~Implementation() {
    http_.reset();
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  std::optional<HttpAnswer> send(const HttpRequest& request, std::chrono::milliseconds silence,
                                 const Stream& stream) {
    // Another name than the host's is what the certificate is checked against.
    if (!config_.tls_server_name.empty())
      http_->set_hostname_addr_map({{config_.tls_server_name, resolve(config_.host)}});
    http_->set_connection_timeout(silence);
    http_->set_read_timeout(silence);
    http_->set_write_timeout(silence);

    httplib::Request http_request;
    http_request.method = request.method;
    http_request.path = request.path;
    http_request.headers = {{"Accept", "application/json"}, {"User-Agent", "trafficmirror"}};
    if (!request.content_type.empty())
      http_request.headers.emplace("Content-Type", request.content_type);
    if (!request.token.empty())
      http_request.headers.emplace("Authorization", "Bearer " + request.token);
    http_request.body = request.body;

    HttpAnswer answer;
    http_request.response_handler = [&](const httplib::Response& response) {
      answer.status = response.status;
      answer.retry_after = response.get_header_value("Retry-After");
      return true;
    };
    http_request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
      if (stream && answer.status == 200) return stream(data, size);
      answer.body.append(data, size);
      return true;
    };
    httplib::Response response;
    httplib::Error error = httplib::Error::Success;
    if (http_->send(http_request, response, error)) {
      answer.status = response.status;
      return answer;
    }
    failure_ = describe(error);
    return std::nullopt;
  }

  const std::string& failure() const { return failure_; }

  void cut() {
    const std::lock_guard lock(mutex_);
    cut_ = true;
    if (descriptor_ >= 0) ::shutdown(descriptor_, SHUT_RDWR);
  }

 private:
  void set_up_tls(httplib::SSLClient& client) const {
    SSL_CTX* context = client.ssl_context();
    client.enable_server_certificate_verification(config_.verify);
    if (!config_.certificate_authority.empty()) {
      // Without a path, cpp-httplib adds all that the system trusts. No file is ever under this.
      client.set_ca_cert_path("", "/dev/null");
      X509_STORE* store = SSL_CTX_get_cert_store(context);
      for (const auto& authority :
           read_certificates(config_.certificate_authority, "certificate-authority"))
        X509_STORE_add_cert(store, authority.get());
    }
    if (config_.client_certificate.empty()) return;
    const auto chain = read_certificates(config_.client_certificate, "client-certificate");
    const Memory key_text = memory(config_.client_key);
    const PrivateKey key(PEM_read_bio_PrivateKey(key_text.get(), nullptr, nullptr, nullptr));
    if (!key) throw StartError("client-key holds no private key in PEM form");
    if (SSL_CTX_use_certificate(context, chain.front().get()) != 1 ||
        SSL_CTX_use_PrivateKey(context, key.get()) != 1)
      throw StartError("client-key is not the key of client-certificate");
    for (size_t i = 1; i < chain.size(); ++i) SSL_CTX_add1_chain_cert(context, chain[i].get());
  }

  // A new socket of cpp-httplib's, not connected yet. It is duplicated, so that cut() never meets
  // the number of a descriptor that was closed and is another's by now.
  void adopt(int socket) {
    const int on = 1;
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    // A quiet watch whose server vanished is found out within half a minute.
    const int idle_seconds = 15;
    const int interval_seconds = 5;
    const int probes = 3;
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof idle_seconds);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_seconds, sizeof interval_seconds);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);

    const std::lock_guard lock(mutex_);
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (cut_) ::shutdown(socket, SHUT_RDWR);
  }

  std::string describe(httplib::Error error) const {
    switch (error) {
      case httplib::Error::Connection:
        return "cannot connect";
      case httplib::Error::ConnectionTimeout:
        return "does not answer";
      case httplib::Error::Read:
        return "ended the connection or does not answer";
      case httplib::Error::Write:
        return "does not take the request";
      case httplib::Error::SSLConnection:
        return "the TLS handshake failed";
      case httplib::Error::SSLServerVerification:
        return "its certificate is not for this name, or of another authority";
      default:
        return httplib::to_string(error);
    }
  }

  const Config& config_;
  std::unique_ptr<httplib::ClientImpl> http_;
  std::string failure_;

  std::mutex mutex_;
  int descriptor_ = -1;
  bool cut_ = false;
};

Connection::Connection(const Config& config)
    : implementation_(std::make_unique<Implementation>(config)) {}

Connection::~Connection() = default;

std::optional<HttpAnswer> Connection::send(const HttpRequest& request,
                                           std::chrono::milliseconds silence,
                                           const Stream& stream) {
  return implementation_->send(request, silence, stream);
}

const std::string& Connection::failure() const {
  return implementation_->failure();
}

void Connection::cut() {
  implementation_->cut();
}

}  // namespace trafficmirror::kube
