#include "program/tls.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include <CLI/App.hpp>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <spdlog/spdlog.h>

#include "program/flags.h"
#include "program/start_error.h"

namespace trafficmirror::program {
namespace {

constexpr const char* certificate_variable = "TRAFFICMIRROR_TLS_CERTIFICATE";
constexpr const char* key_variable = "TRAFFICMIRROR_TLS_KEY";
constexpr const char* ca_variable = "TRAFFICMIRROR_TLS_CA";

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename Type>
using Owned = std::unique_ptr<Type, Free>;

Owned<BIO> reader_of(const std::string& pem) {
  return Owned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// The first of one or more certificates.
Owned<X509> read_certificates(const std::string& name, const std::string& pem) {
  const Owned<BIO> reader = reader_of(pem);
  Owned<X509> first;
  ERR_clear_error();
  while (Owned<X509> next{PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)})
    if (!first) first = std::move(next);
  // It ends where no further one begins. Any other end is within one.
  const bool whole = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!first) throw StartError(name + " holds no certificate in PEM");
  if (!whole) throw StartError(name + " holds a certificate that is damaged, behind a whole one");
  return first;
}

Owned<EVP_PKEY> read_key(const std::string& name, const std::string& pem) {
  const Owned<BIO> reader = reader_of(pem);
  // OpenSSL would ask for it at the terminal.
  pem_password_cb* const no_password = [](char*, int, int, void*) { return 0; };
  Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(reader.get(), nullptr, no_password, nullptr));
  ERR_clear_error();
  if (!key) throw StartError(name + " holds no private key in PEM, or one with a passphrase");
  return key;
}

std::string to_text(const ASN1_TIME* time) {
  const Owned<BIO> writer(BIO_new(BIO_s_mem()));
  ASN1_TIME_print_ex(writer.get(), time, ASN1_DTFLGS_ISO8601);
  std::array<char, 64> text{};
  const int length = BIO_read(writer.get(), text.data(), static_cast<int>(text.size()));
  return {text.data(), static_cast<size_t>(std::max(length, 0))};
}

std::string text_of(const TlsSource& source) {
  if (source.path.empty()) return source.text;
  errno = 0;
  std::ostringstream read;
  read << std::ifstream(source.path).rdbuf();
  if (errno != 0) throw StartError(source.name + " can't be read: " + std::strerror(errno));
  return read.str();
}

TlsSource file_or_variable(const char* flag, const char* variable, const std::string& path) {
  if (!path.empty()) return TlsSource::file(flag, path);
  const char* const text = std::getenv(variable);
  if (text == nullptr || *text == '\0')
    throw StartError(std::string(flag) + " is missing, and " + variable +
                     " is not set: TLS needs a certificate, its key and a CA");
  return {variable, "", text};
}

}  // namespace

void add_tls_flags(CLI::App& app, TlsOptions& options) {
  const char* const group = "TLS on the stream (all of these, or none)";
  const auto add = [&](const std::string& name, const std::string& form, std::string& value,
                       const std::string& help) {
    add_name(app, name, form, value, help)->group(group);
  };
  const auto or_from = [](const char* variable) {
    return std::string("; or the PEM itself in the environment: ") + variable;
  };
  add("--tls-certificate", "FILE", options.certificate,
      "PEM file with this side's certificate, and those between it and its CA" +
          or_from(certificate_variable));
  add("--tls-key", "FILE", options.key,
      "PEM file with the certificate's private key" + or_from(key_variable));
  add("--tls-ca", "FILE", options.ca,
      "PEM file with the CAs that may have signed the other side's certificate" +
          or_from(ca_variable));
  add("--tls-peer", "NAME", options.peer,
      "DNS or URI name that the other side's certificate has to carry; the address that is dialled "
      "does not matter");
}

TlsSource TlsSource::file(const char* flag, const std::string& path) {
  return {std::string(flag) + " " + path, path, ""};
}

TlsMaterial TlsSources::read() const {
  TlsMaterial material{text_of(certificate), text_of(key), text_of(ca)};
  if (material.certificate.size() + material.key.size() + material.ca.size() >
      max_tls_material_bytes)
    throw StartError(certificate.name + ", " + key.name + " and " + ca.name +
                     " are more than 1 MiB together: take out the CAs that are not needed");
  const Owned<X509> first_certificate = read_certificates(certificate.name, material.certificate);
  const Owned<EVP_PKEY> private_key = read_key(key.name, material.key);
  if (X509_check_private_key(first_certificate.get(), private_key.get()) != 1) {
    ERR_clear_error();
    throw StartError(key.name + " is not the key of the certificate in " + certificate.name);
  }
  const ASN1_TIME* const first = X509_get0_notBefore(first_certificate.get());
  const ASN1_TIME* const last = X509_get0_notAfter(first_certificate.get());
  if (X509_cmp_current_time(last) < 0)
    throw StartError(certificate.name + " has expired: it was valid until " + to_text(last));
  if (X509_cmp_current_time(first) > 0)
    throw StartError(certificate.name + " is not valid before " + to_text(first));
  read_certificates(ca.name, material.ca);
  return material;
}

Tls::Tls(const TlsOptions& options)
    : sources_{file_or_variable("--tls-certificate", certificate_variable, options.certificate),
               file_or_variable("--tls-key", key_variable, options.key),
               file_or_variable("--tls-ca", ca_variable, options.ca)},
      peer_(options.peer) {
  if (peer_.empty())
    throw StartError("--tls-peer is missing: name whom the other side's certificate has to be of");
  material_ = std::make_shared<const TlsMaterial>(sources_.read());
}

std::shared_ptr<const TlsMaterial> Tls::material() {
  const std::lock_guard lock(mutex_);
  if (replaced_) return material_;
  try {
    TlsMaterial fresh = sources_.read();
    if (fresh != *material_) {
      material_ = std::make_shared<const TlsMaterial>(std::move(fresh));
      spdlog::info("TLS: what {}, {} and {} hold now is in use", sources_.certificate.name,
                   sources_.key.name, sources_.ca.name);
    }
  } catch (const StartError& error) {
    if (const auto held = log_.allow(LogLimit::Clock::now()))
      spdlog::warn("TLS: {}; what was read before is still in use{}", error.what(), *held);
  }
  return material_;
}

bool Tls::from_environment() const {
  return sources_.certificate.path.empty() && sources_.key.path.empty() && sources_.ca.path.empty();
}

void Tls::replace(TlsMaterial sent) {
  if (!from_environment()) return;
  const std::lock_guard lock(mutex_);
  if (sent == *material_) return;
  const TlsSources sources{{"the certificate that was sent", "", std::move(sent.certificate)},
                           {"the key that was sent", "", std::move(sent.key)},
                           {"the CA that was sent", "", std::move(sent.ca)}};
  try {
    material_ = std::make_shared<const TlsMaterial>(sources.read());
    replaced_ = true;
    ++replacements_.taken;
    spdlog::info("TLS: a certificate, its key and CAs were sent, and are in use from now on");
  } catch (const StartError& error) {
    ++replacements_.refused;
    if (const auto held = replacement_log_.allow(LogLimit::Clock::now()))
      spdlog::warn("TLS: {}; what was there before is still in use{}", error.what(), *held);
  }
}

Tls::Replacements Tls::replacements() const {
  const std::lock_guard lock(mutex_);
  return replacements_;
}

std::shared_ptr<Tls> load_tls(const TlsOptions& options) {
  const auto is_set = [](const char* variable) {
    const char* const text = std::getenv(variable);
    return text != nullptr && *text != '\0';
  };
  const bool wanted = !options.certificate.empty() || !options.key.empty() || !options.ca.empty() ||
                      !options.peer.empty() || is_set(certificate_variable) ||
                      is_set(key_variable) || is_set(ca_variable);
  return wanted ? std::make_shared<Tls>(options) : nullptr;
}

}  // namespace trafficmirror::program
