#include "operator/certificates.h"

#include <algorithm>
#include <ctime>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

namespace trafficmirror::controller {
namespace {

template <auto release>
struct Release {
  template <typename Object>
  void operator()(Object* object) const {
    release(object);
  }
};
using Memory = std::unique_ptr<BIO, Release<BIO_free_all>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Release<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Release<X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Release<X509_EXTENSION_free>>;
using GeneralNames = std::unique_ptr<GENERAL_NAMES, Release<GENERAL_NAMES_free>>;
using Number = std::unique_ptr<BIGNUM, Release<BN_free>>;
using Store = std::unique_ptr<X509_STORE, Release<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Release<X509_STORE_CTX_free>>;

// 20 bytes at most, and positive (RFC 5280).
constexpr int serial_bits = 159;

// For what only fails where memory or random numbers have run out.
void require(bool done, const char* what) {
  if (done) return;
  ERR_clear_error();
  throw std::runtime_error(std::string("OpenSSL can't ") + what);
}

Memory reader_of(const std::string& pem) {
  return Memory(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// Null at the end, and where the next is damaged.
Certificate next_certificate(BIO* reader) {
  Certificate certificate(PEM_read_bio_X509(reader, nullptr, nullptr, nullptr));
  ERR_clear_error();
  return certificate;
}

Certificate first_certificate(const std::string& pem) {
  return next_certificate(reader_of(pem).get());
}

PrivateKey read_key(const std::string& pem) {
  // OpenSSL would ask for it at the terminal.
  pem_password_cb* const no_password = [](char*, int, int, void*) { return 0; };
  PrivateKey key(PEM_read_bio_PrivateKey(reader_of(pem).get(), nullptr, no_password, nullptr));
  ERR_clear_error();
  return key;
}

template <typename Write>
std::string written(Write&& write) {
  const Memory out(BIO_new(BIO_s_mem()));
  require(out != nullptr && write(out.get()) == 1, "write PEM");
  char* bytes = nullptr;
  const long length = BIO_get_mem_data(out.get(), &bytes);
  return {bytes, static_cast<size_t>(length)};
}

std::string to_pem(X509* certificate) {
  return written([&](BIO* out) { return PEM_write_bio_X509(out, certificate); });
}

KeyPair to_pem(X509* certificate, EVP_PKEY* key) {
  return {to_pem(certificate), written([&](BIO* out) {
            return PEM_write_bio_PrivateKey(out, key, nullptr, nullptr, 0, nullptr, nullptr);
          })};
}

// Certificates end at the latest in this second (RFC 5280).
constexpr std::time_t last_second = 253402300799;

void set_time(ASN1_TIME* time, WallTime to) {
  const std::time_t seconds = std::min(std::chrono::system_clock::to_time_t(to), last_second);
  require(ASN1_TIME_set(time, seconds) != nullptr, "write a time");
}

WallTime to_wall_time(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return {};
  return std::chrono::system_clock::from_time_t(::timegm(&parts));
}

void set_random_serial(X509* certificate) {
  const Number serial(BN_new());
  require(serial != nullptr &&
              BN_rand(serial.get(), serial_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
              BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate)) != nullptr,
          "make a serial number");
}

// `value` in the words of OpenSSL's configuration; never anything that came from outside.
void add_extension(X509* certificate, X509V3_CTX& context, int kind, const char* value) {
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, kind, value));
  require(extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1,
          "add an extension");
}

void add_name(GENERAL_NAMES* names, int type, const std::string& text) {
  std::unique_ptr<GENERAL_NAME, Release<GENERAL_NAME_free>> name(GENERAL_NAME_new());
  std::unique_ptr<ASN1_IA5STRING, Release<ASN1_IA5STRING_free>> value(ASN1_IA5STRING_new());
  require(name != nullptr && value != nullptr &&
              ASN1_STRING_set(value.get(), text.data(), static_cast<int>(text.size())) == 1,
          "write a name");
  GENERAL_NAME_set0_value(name.get(), type, value.release());
  require(sk_GENERAL_NAME_push(names, name.get()) > 0, "write a name");
  static_cast<void>(name.release());  // it is the list's now
}

void add_names(X509* certificate, const Names& names) {
  const GeneralNames all(sk_GENERAL_NAME_new_null());
  require(all != nullptr, "write a name");
  for (const std::string& name : names.dns) add_name(all.get(), GEN_DNS, name);
  for (const std::string& name : names.uris) add_name(all.get(), GEN_URI, name);
  require(X509_add1_ext_i2d(certificate, NID_subject_alt_name, all.get(), 0, 0) == 1,
          "add its names");
}

Names names_of(X509* certificate) {
  Names names;
  const GeneralNames all(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  ERR_clear_error();
  for (int i = 0; all && i < sk_GENERAL_NAME_num(all.get()); ++i) {
    int type = 0;
    const void* const value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(all.get(), i), &type);
    if (type != GEN_DNS && type != GEN_URI) continue;
    const auto* const text = static_cast<const ASN1_IA5STRING*>(value);
    (type == GEN_DNS ? names.dns : names.uris)
        .emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                      static_cast<size_t>(ASN1_STRING_length(text)));
  }
  return names;
}

// All but what makes it a CA or a leaf, and the signature.
Certificate new_certificate(const std::string& common_name, const Validity& validity,
                            EVP_PKEY* key) {
  Certificate made(X509_new());
  require(made != nullptr && X509_set_version(made.get(), X509_VERSION_3) == 1 &&
              X509_set_pubkey(made.get(), key) == 1,
          "make a certificate");
  set_random_serial(made.get());
  set_time(X509_getm_notBefore(made.get()), validity.from);
  set_time(X509_getm_notAfter(made.get()), validity.until);
  require(X509_NAME_add_entry_by_txt(X509_get_subject_name(made.get()), "CN", MBSTRING_UTF8,
                                     reinterpret_cast<const unsigned char*>(common_name.data()),
                                     static_cast<int>(common_name.size()), -1, 0) == 1,
          "write the certificate's common name");
  return made;
}

PrivateKey new_key() {
  PrivateKey key(EVP_EC_gen("P-256"));
  require(key != nullptr, "make a key");
  return key;
}

X509V3_CTX extension_context(X509* issuer, X509* subject) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, subject, nullptr, nullptr, 0);
  return context;
}

std::string identity(const kube::Key& mirror, const char* side) {
  return "spiffe://trafficmirror.dev/ns/" + mirror.namespace_ + "/mirror/" + mirror.name + "/" +
         side;
}

}  // namespace

std::string sidecar_identity(const kube::Key& mirror) {
  return identity(mirror, "sidecar");
}

std::string intercept_identity(const kube::Key& mirror) {
  return identity(mirror, "intercept");
}

KeyPair make_ca(const std::string& common_name, Validity validity) {
  const PrivateKey key = new_key();
  const Certificate made = new_certificate(common_name, validity, key.get());
  require(X509_set_issuer_name(made.get(), X509_get_subject_name(made.get())) == 1,
          "name the issuer");
  X509V3_CTX context = extension_context(made.get(), made.get());
  add_extension(made.get(), context, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
  add_extension(made.get(), context, NID_key_usage, "critical,keyCertSign,cRLSign");
  // A CA and its successor have one name: this and the leaves' identifier tell them apart.
  add_extension(made.get(), context, NID_subject_key_identifier, "hash");
  require(X509_sign(made.get(), key.get(), EVP_sha256()) > 0, "sign");
  return to_pem(made.get(), key.get());
}

KeyPair make_leaf(const KeyPair& ca, const Names& names, Validity validity) {
  const Certificate issuer = first_certificate(ca.certificate);
  const PrivateKey signer = read_key(ca.key);
  if (!issuer || !signer || X509_check_ca(issuer.get()) != 1 ||
      X509_check_private_key(issuer.get(), signer.get()) != 1) {
    ERR_clear_error();
    throw std::runtime_error("a certificate can't be signed: the CA is none, or its key another's");
  }
  validity.until = std::min(validity.until, to_wall_time(X509_get0_notAfter(issuer.get())));
  const PrivateKey key = new_key();
  const Certificate made = new_certificate("trafficmirror", validity, key.get());
  require(X509_set_issuer_name(made.get(), X509_get_subject_name(issuer.get())) == 1,
          "name the issuer");
  X509V3_CTX context = extension_context(issuer.get(), made.get());
  add_extension(made.get(), context, NID_basic_constraints, "critical,CA:FALSE");
  add_extension(made.get(), context, NID_key_usage, "critical,digitalSignature");
  add_extension(made.get(), context, NID_ext_key_usage, "serverAuth,clientAuth");
  add_extension(made.get(), context, NID_authority_key_identifier, "keyid:always");
  add_names(made.get(), names);
  require(X509_sign(made.get(), signer.get(), EVP_sha256()) > 0, "sign");
  return to_pem(made.get(), key.get());
}

std::optional<CertificateContent> read_certificate(const std::string& pem) {
  const Certificate certificate = first_certificate(pem);
  if (!certificate) return std::nullopt;
  return CertificateContent{{to_wall_time(X509_get0_notBefore(certificate.get())),
                             to_wall_time(X509_get0_notAfter(certificate.get()))},
                            names_of(certificate.get()),
                            X509_check_ca(certificate.get()) == 1};
}

bool is_signed_by(const std::string& certificate, const std::string& ca, WallTime now) {
  const Certificate leaf = first_certificate(certificate);
  const Certificate issuer = first_certificate(ca);
  if (!leaf || !issuer) return false;
  const Store store(X509_STORE_new());
  const StoreContext context(X509_STORE_CTX_new());
  require(store != nullptr && context != nullptr &&
              X509_STORE_add_cert(store.get(), issuer.get()) == 1 &&
              X509_STORE_CTX_init(context.get(), store.get(), leaf.get(), nullptr) == 1,
          "set up a verification");
  X509_STORE_CTX_set_time(context.get(), 0, std::chrono::system_clock::to_time_t(now));
  const bool verified = X509_verify_cert(context.get()) == 1;
  ERR_clear_error();
  return verified;
}

bool key_fits(const KeyPair& pair) {
  const Certificate certificate = first_certificate(pair.certificate);
  const PrivateKey key = read_key(pair.key);
  const bool fits = certificate && key && X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  return fits;
}

std::vector<std::string> split_certificates(const std::string& pem) {
  std::vector<std::string> certificates;
  const Memory reader = reader_of(pem);
  while (const Certificate certificate = next_certificate(reader.get()))
    certificates.push_back(to_pem(certificate.get()));
  return certificates;
}

}  // namespace trafficmirror::controller
