#include "tests/kube_server/tls.h"

#include <memory>
#include <stdexcept>

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

namespace trafficmirror::kube {
namespace {

struct Free {
  void operator()(X509* object) const { X509_free(object); }
  void operator()(EVP_PKEY* object) const { EVP_PKEY_free(object); }
  void operator()(BIO* object) const { BIO_free_all(object); }
};
template <class Object>
using Owned = std::unique_ptr<Object, Free>;

void check(bool good) {
  if (!good) throw std::runtime_error("OpenSSL cannot make a certificate");
}

std::string text_of(BIO* memory) {
  char* data = nullptr;
  const auto size = BIO_get_mem_data(memory, &data);
  return {data, static_cast<size_t>(size)};
}

void add_extension(X509* certificate, X509* issuer, int which, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, which, value.c_str());
  check(extension != nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

Identity make(const Identity* authority, const std::string& name,
              const std::string& alternative_names) {
  static int serial = 0;
  const Owned<EVP_PKEY> key(EVP_EC_gen("P-256"));
  const Owned<X509> certificate(X509_new());
  check(key && certificate);
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key.get());
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);

  Owned<X509> issuer;
  Owned<EVP_PKEY> issuer_key;
  if (authority != nullptr) {
    const Owned<BIO> pem(BIO_new_mem_buf(authority->certificate.data(),
                                         static_cast<int>(authority->certificate.size())));
    issuer.reset(PEM_read_bio_X509(pem.get(), nullptr, nullptr, nullptr));
    const Owned<BIO> key_pem(
        BIO_new_mem_buf(authority->key.data(), static_cast<int>(authority->key.size())));
    issuer_key.reset(PEM_read_bio_PrivateKey(key_pem.get(), nullptr, nullptr, nullptr));
    check(issuer && issuer_key);
  }
  X509* issued_by = issuer ? issuer.get() : certificate.get();
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(issued_by));
  add_extension(certificate.get(), issued_by, NID_basic_constraints,
                authority == nullptr ? "critical,CA:TRUE" : "critical,CA:FALSE");
  if (!alternative_names.empty())
    add_extension(certificate.get(), issued_by, NID_subject_alt_name, alternative_names);
  check(X509_sign(certificate.get(), issuer_key ? issuer_key.get() : key.get(), EVP_sha256()) > 0);

  const Owned<BIO> certificate_out(BIO_new(BIO_s_mem()));
  const Owned<BIO> key_out(BIO_new(BIO_s_mem()));
  check(PEM_write_bio_X509(certificate_out.get(), certificate.get()) == 1);
  check(PEM_write_bio_PrivateKey(key_out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) ==
        1);
  return {text_of(certificate_out.get()), text_of(key_out.get())};
}

}  // namespace

Identity make_authority(const std::string& name) {
  return make(nullptr, name, "");
}

Identity make_leaf(const Identity& authority, const std::string& name,
                   const std::string& alternative_names) {
  return make(&authority, name, alternative_names);
}

}  // namespace trafficmirror::kube
