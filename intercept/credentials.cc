#include "intercept/credentials.h"

#include <mutex>
#include <utility>

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/server_credentials.h>

namespace trafficmirror::intercept {
namespace {

// grpc::SslServerCredentials keeps its certificates for ever; the C interface asks for them at each
// handshake.
class ReloadingCredentials final : public grpc::ServerCredentials {
 public:
  explicit ReloadingCredentials(std::shared_ptr<program::Tls> tls)
      : tls_(std::move(tls)),
        credentials_(::grpc_ssl_server_credentials_create_with_options(
            ::grpc_ssl_server_credentials_create_options_using_config_fetcher(
                GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, fetch, this))) {}
  ~ReloadingCredentials() override { ::grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>& /*processor*/) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return ::grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  static grpc_ssl_certificate_config_reload_status fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<ReloadingCredentials*>(self)->fetch(*config);
  }

  grpc_ssl_certificate_config_reload_status fetch(grpc_ssl_server_certificate_config*& config) {
    const std::lock_guard lock(mutex_);
    auto material = tls_->material();
    if (material == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    given_ = std::move(material);
    const grpc_ssl_pem_key_cert_pair pair{given_->key.c_str(), given_->certificate.c_str()};
    config = ::grpc_ssl_server_certificate_config_create(given_->ca.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const std::shared_ptr<program::Tls> tls_;
  grpc_server_credentials* const credentials_;
  std::mutex mutex_;
  std::shared_ptr<const program::TlsMaterial> given_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> server_credentials(std::shared_ptr<program::Tls> tls) {
  if (!tls) return grpc::InsecureServerCredentials();
  return std::make_shared<ReloadingCredentials>(std::move(tls));
}

std::optional<std::string> other_identity(const grpc::AuthContext& client,
                                          const std::string& wanted) {
  std::string carried;
  for (const char* property : {GRPC_PEER_DNS_PROPERTY_NAME, GRPC_PEER_URI_PROPERTY_NAME}) {
    for (const grpc::string_ref& name : client.FindPropertyValues(property)) {
      if (name == wanted) return std::nullopt;
      carried += (carried.empty() ? "" : ", ") + std::string(name.data(), name.size());
    }
  }
  return carried.empty() ? "nobody" : carried;
}

std::optional<FailedHandshake> failed_handshake(std::string_view message) {
  if (!message.starts_with("Handshaking failed: ")) return std::nullopt;
  const auto says = [&](const char* text) { return message.find(text) != std::string_view::npos; };
  // The words of OpenSSL.
  if (says("peer did not return a certificate"))
    return FailedHandshake{StreamRefusal::handshake, "it has no certificate"};
  if (says("certificate verify failed"))
    return FailedHandshake{StreamRefusal::handshake,
                           "its certificate has expired, or no CA of --tls-ca has signed it"};
  if (says("wrong version number") || says("http request"))
    return FailedHandshake{StreamRefusal::handshake, "it does not speak TLS"};
  if (says("unsupported protocol"))
    return FailedHandshake{StreamRefusal::handshake, "it speaks no TLS from 1.2 on"};
  if (says("SSL routines::"))
    return FailedHandshake{StreamRefusal::handshake, std::string(message)};
  return FailedHandshake{StreamRefusal::hung_up,
                         "the other side hung up; if it is a sidecar, its log says why"};
}

}  // namespace trafficmirror::intercept
