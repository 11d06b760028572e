#include "intercept/sidecar_identity.h"

#include <utility>

#include <CLI/App.hpp>

#include "program/flags.h"
#include "program/start_error.h"

namespace trafficmirror::intercept {
namespace {

constexpr const char* certificate_flag = "--sidecar-tls-certificate";
constexpr const char* key_flag = "--sidecar-tls-key";

}  // namespace

void add_sidecar_identity_flags(CLI::App& app, SidecarIdentityOptions& options) {
  const auto add = [&](const char* name, std::string& value, const std::string& help) {
    program::add_name(app, name, "FILE", value, help)
        ->group("TLS of sidecars that have theirs in the environment (both of these, or none)");
  };
  add(certificate_flag, options.certificate,
      "PEM file with the certificate that they are sent, and again when it changes; with the CAs "
      "of --tls-ca");
  add(key_flag, options.key, "PEM file with the certificate's private key");
}

SidecarIdentity::SidecarIdentity(const SidecarIdentityOptions& options, const program::Tls& own)
    : sources_{program::TlsSource::file(certificate_flag, options.certificate),
               program::TlsSource::file(key_flag, options.key), own.sources().ca},
      material_(std::make_shared<const program::TlsMaterial>(sources_.read())) {}

std::optional<std::variant<SidecarIdentity::Material, std::string>> SidecarIdentity::look_again() {
  try {
    program::TlsMaterial now = sources_.read();
    wrong_.clear();
    if (now == *material_) return std::nullopt;
    material_ = std::make_shared<const program::TlsMaterial>(std::move(now));
    return material_;
  } catch (const program::StartError& error) {
    if (wrong_ == error.what()) return std::nullopt;
    wrong_ = error.what();
    return wrong_;
  }
}

std::shared_ptr<SidecarIdentity> load_sidecar_identity(const SidecarIdentityOptions& options,
                                                       const program::Tls* own) {
  if (options.certificate.empty() && options.key.empty()) return nullptr;
  for (const auto& [flag, path] :
       {std::pair(certificate_flag, options.certificate), {key_flag, options.key}}) {
    if (path.empty())
      throw program::StartError(std::string(flag) +
                                " is missing: sidecars need a certificate and its key");
  }
  if (own == nullptr)
    throw program::StartError(std::string(certificate_flag) +
                              " needs TLS on the stream: give --tls-certificate, --tls-key, "
                              "--tls-ca and --tls-peer too");
  return std::make_shared<SidecarIdentity>(options, *own);
}

}  // namespace trafficmirror::intercept
