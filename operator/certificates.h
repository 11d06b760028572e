// Certificates of the operator's own making: a CA, and leaves for both ends of the stream and for
// the webhook. All of them are EC P-256, in PEM. The time is passed in. Any thread may call these.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "operator/kube/object.h"

namespace trafficmirror::controller {

using WallTime = std::chrono::system_clock::time_point;

// Whom a leaf is of.
struct Names {
  std::vector<std::string> dns{};
  std::vector<std::string> uris{};

  bool operator==(const Names&) const = default;
};

// Who the two ends of a mirror's stream are: the URI in the certificate, and the other side's
// --tls-peer.
std::string sidecar_identity(const kube::Key& mirror);
std::string intercept_identity(const kube::Key& mirror);

struct KeyPair {
  std::string certificate;
  std::string key;

  bool operator==(const KeyPair&) const = default;
};

// To the second, which is as exactly as certificates know it.
struct Validity {
  WallTime from;
  WallTime until;
};

// Both throw std::runtime_error where OpenSSL can't, for want of memory or random numbers; the
// latter also where `ca` is no CA with its key. A leaf can be either end of a connection, and never
// outlives its CA.
KeyPair make_ca(const std::string& common_name, Validity validity);
KeyPair make_leaf(const KeyPair& ca, const Names& names, Validity validity);

// What the first certificate in `pem` says; nothing where there is none.
struct CertificateContent {
  Validity validity;
  Names names;
  bool ca = false;
};
std::optional<CertificateContent> read_certificate(const std::string& pem);

// Whether the first certificate is signed by `ca`, and both are valid at that time.
bool is_signed_by(const std::string& certificate, const std::string& ca, WallTime now);
bool key_fits(const KeyPair& pair);

// The certificates in `pem`, each in PEM of its own, up to the first that can't be read.
std::vector<std::string> split_certificates(const std::string& pem);

}  // namespace trafficmirror::controller
