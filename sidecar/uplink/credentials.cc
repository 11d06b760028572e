#include "sidecar/uplink/credentials.h"

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

namespace trafficmirror::uplink {
namespace {

using grpc::experimental::ExternalCertificateVerifier;
using grpc::experimental::TlsCustomVerificationCheckRequest;

// Called behind gRPC's own check that a CA has signed the certificate and that it is valid.
class NameVerifier final : public ExternalCertificateVerifier {
 public:
  explicit NameVerifier(std::string name) : name_(std::move(name)) {}
  ~NameVerifier() override = default;

  bool Verify(TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)> /*callback*/, grpc::Status* status) override {
    std::vector<grpc::string_ref> names = request->dns_names();
    const std::vector<grpc::string_ref> uri_names = request->uri_names();
    names.insert(names.end(), uri_names.begin(), uri_names.end());
    if (std::find(names.begin(), names.end(), name_) == names.end()) {
      std::string carried;
      for (const grpc::string_ref& name : names)
        carried += (carried.empty() ? "" : ", ") + std::string(name.data(), name.size());
      *status = {grpc::StatusCode::UNAUTHENTICATED, "the intercept's certificate is not that of " +
                                                        name_ + " (--tls-peer) but of " +
                                                        (carried.empty() ? "nobody" : carried)};
    }
    return true;  // done
  }
  void Cancel(TlsCustomVerificationCheckRequest* /*request*/) override {}

 private:
  const std::string name_;
};

}  // namespace

std::shared_ptr<grpc::ChannelCredentials> channel_credentials(program::Tls* tls) {
  if (tls == nullptr) return grpc::InsecureChannelCredentials();
  const auto material = tls->material();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<grpc::experimental::StaticDataCertificateProvider>(
          material->ca, std::vector<grpc::experimental::IdentityKeyCertPair>{
                            {material->key, material->certificate}}));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(ExternalCertificateVerifier::Create<NameVerifier>(tls->peer()));
  // The name counts, not the host that was dialled.
  options.set_check_call_host(false);
  return grpc::experimental::TlsCredentials(options);
}

std::string explain_failure(const std::string& message, bool with_tls) {
  const auto says = [&](const char* text) { return message.find(text) != std::string::npos; };
  if (!says("failed to connect")) return message;
  constexpr std::string_view of_verifier = "Custom verification check failed with error: ";
  if (const size_t at = message.find(of_verifier); at != std::string::npos) {
    const size_t text = message.find(": ", at + of_verifier.size());  // behind the status
    return message.substr(text + 2);
  }
  if (says("certificate verify failed"))
    return "the intercept's certificate has expired, or no CA of --tls-ca has signed it";
  if (says("wrong version number")) return "the intercept does not speak TLS";
  // TLS 1.3 refuses a client's certificate when the client has done its part already.
  if (says("Socket closed") || says("Connection reset"))
    return message + (with_tls ? "; if it refused this sidecar's certificate, its log says why"
                               : "; does it want TLS?");
  return message;
}

}  // namespace trafficmirror::uplink
