// Certificates made for a test, in PEM.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "program/tls.h"

namespace trafficmirror::tests {

// A certificate and its key, signed by another or by itself.
class Certificate {
 public:
  struct Form {
    std::string name;
    std::string alternative_names{};  // such as "DNS:one,URI:spiffe://two"
    bool ca = false;
    long begins = -3600;  // seconds from now
    long ends = 3600;
  };

  explicit Certificate(const Form& form, const Certificate* issuer = nullptr)
      : key_(EVP_EC_gen("P-256"), EVP_PKEY_free), certificate_(X509_new(), X509_free) {
    static long serial = 0;
    X509* const made = certificate_.get();
    X509_set_version(made, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(made), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made), form.begins);
    X509_gmtime_adj(X509_getm_notAfter(made), form.ends);
    X509_set_pubkey(made, key_.get());
    X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(form.name.c_str()), -1, -1,
                               0);
    const Certificate& signer = issuer == nullptr ? *this : *issuer;
    X509_set_issuer_name(made, X509_get_subject_name(signer.certificate_.get()));
    add_extension(NID_basic_constraints, form.ca ? "critical,CA:TRUE" : "critical,CA:FALSE");
    if (!form.alternative_names.empty())
      add_extension(NID_subject_alt_name, form.alternative_names);
    if (X509_sign(made, signer.key_.get(), EVP_sha256()) == 0)
      throw std::runtime_error("a certificate can't be signed");
  }

  std::string certificate() const {
    return written([&](BIO* out) { return PEM_write_bio_X509(out, certificate_.get()); });
  }
  std::string key() const {
    return written([&](BIO* out) {
      return PEM_write_bio_PrivateKey(out, key_.get(), nullptr, nullptr, 0, nullptr, nullptr);
    });
  }

 private:
  void add_extension(int kind, const std::string& value) {
    const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> extension(
        X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str()), X509_EXTENSION_free);
    if (!extension) throw std::runtime_error("an extension of a certificate is wrong: " + value);
    X509_add_ext(certificate_.get(), extension.get(), -1);
  }

  template <typename Write>
  static std::string written(Write&& write) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> out(BIO_new(BIO_s_mem()), BIO_free);
    write(out.get());
    char* bytes = nullptr;
    const long length = BIO_get_mem_data(out.get(), &bytes);
    return {bytes, static_cast<size_t>(length)};
  }

  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key_;
  std::unique_ptr<X509, decltype(&X509_free)> certificate_;
};

// A certificate, its key and CAs in files, gone with this object.
class CertificateFiles {
 public:
  CertificateFiles(const Certificate& certificate, const std::string& cas) {
    std::string name = testing::TempDir() + "trafficmirror-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no directory for files");
    directory_ = name;
    write(certificate, cas);
  }
  ~CertificateFiles() { std::filesystem::remove_all(directory_); }
  CertificateFiles(const CertificateFiles&) = delete;
  CertificateFiles& operator=(const CertificateFiles&) = delete;

  void write(const Certificate& certificate, const std::string& cas) const {
    write_certificate(certificate);
    write_text("tls.key", certificate.key());
    write_text("ca.crt", cas);
  }
  void write_certificate(const Certificate& certificate) const {
    write_text("tls.crt", certificate.certificate());
  }
  void write_text(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
  }

  std::string path(const std::string& name) const { return directory_ / name; }
  program::TlsOptions options(const std::string& peer) const {
    return {path("tls.crt"), path("tls.key"), path("ca.crt"), peer};
  }
  std::shared_ptr<program::Tls> tls(const std::string& peer) const {
    return program::load_tls(options(peer));
  }

 private:
  std::filesystem::path directory_;
};

}  // namespace trafficmirror::tests
