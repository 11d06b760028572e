#include "operator/certificate_rotation.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace trafficmirror::controller {
namespace {

constexpr const char* certificate_key = "tls.crt";
constexpr const char* private_key = "tls.key";
constexpr const char* trusted_key = "ca.crt";
constexpr const char* next_certificate_key = "next.crt";
constexpr const char* next_private_key = "next.key";

std::string text_of(const kube::SecretData& data, const char* key) {
  const auto found = data.find(key);
  return found == data.end() ? "" : found->second;
}

bool covers(const Validity& validity, WallTime now) {
  return validity.from <= now && now < validity.until;
}

WallTime renewal(const Validity& validity) {
  return validity.until - (validity.until - validity.from) / 3;
}

struct Ca {
  KeyPair pair;
  Validity validity;
};

std::optional<Ca> usable_ca(KeyPair pair, WallTime now) {
  const auto content = read_certificate(pair.certificate);
  if (!content || !content->ca || !covers(content->validity, now) || !key_fits(pair))
    return std::nullopt;
  return Ca{std::move(pair), content->validity};
}

Ca new_ca(WallTime now, const CertificateLifetimes& lifetimes) {
  KeyPair made = make_ca("trafficmirror CA", {now - lifetimes.backdating, now + lifetimes.ca});
  const Validity validity = read_certificate(made.certificate)->validity;
  return {std::move(made), validity};
}

// Those that are to be trusted, and until when that stays so.
struct Bundle {
  std::string pem;
  WallTime until = WallTime::max();
};

Bundle bundle_of(const Ca& signer, const std::optional<Ca>& next, const std::string& before,
                 WallTime now) {
  std::vector<std::string> trusted;
  Bundle bundle;
  const auto add = [&](const std::string& pem) {
    for (std::string& certificate : split_certificates(pem)) {
      const auto content = read_certificate(certificate);
      if (!content->ca || content->validity.until <= now) continue;
      if (std::find(trusted.begin(), trusted.end(), certificate) != trusted.end()) continue;
      bundle.pem += certificate;
      bundle.until = std::min(bundle.until, content->validity.until);
      trusted.push_back(std::move(certificate));
    }
  };
  add(signer.pair.certificate);
  if (next) add(next->pair.certificate);
  add(before);
  return bundle;
}

}  // namespace

RotatedSecret rotate_ca(const kube::SecretData& current, WallTime now,
                        const CertificateLifetimes& lifetimes) {
  std::optional<Ca> signer =
      usable_ca({text_of(current, certificate_key), text_of(current, private_key)}, now);
  std::optional<Ca> next =
      usable_ca({text_of(current, next_certificate_key), text_of(current, next_private_key)}, now);
  const auto may_sign = [&](const Ca& ca) {
    return ca.validity.from + lifetimes.backdating + lifetimes.distribution;
  };

  if (next && (!signer || may_sign(*next) <= now)) signer = std::exchange(next, std::nullopt);
  if (!signer) signer = new_ca(now, lifetimes);
  if (!next && renewal(signer->validity) <= now) next = new_ca(now, lifetimes);

  const Bundle bundle = bundle_of(*signer, next, text_of(current, trusted_key), now);
  RotatedSecret rotated{{{certificate_key, signer->pair.certificate},
                         {private_key, signer->pair.key},
                         {trusted_key, bundle.pem}},
                        std::min(bundle.until, next ? may_sign(*next) : renewal(signer->validity))};
  if (next) {
    rotated.data[next_certificate_key] = next->pair.certificate;
    rotated.data[next_private_key] = next->pair.key;
  }
  return rotated;
}

RotatedSecret rotate_leaf(const kube::SecretData& current, const kube::SecretData& ca,
                          const Names& names, WallTime now, const CertificateLifetimes& lifetimes) {
  const KeyPair signer{text_of(ca, certificate_key), text_of(ca, private_key)};
  KeyPair leaf{text_of(current, certificate_key), text_of(current, private_key)};
  auto content = read_certificate(leaf.certificate);
  const bool keep = content && content->names == names && now < renewal(content->validity) &&
                    is_signed_by(leaf.certificate, signer.certificate, now) && key_fits(leaf);
  if (!keep) {
    leaf = make_leaf(signer, names, {now - lifetimes.backdating, now + lifetimes.leaf});
    content = read_certificate(leaf.certificate);
  }
  return {{{certificate_key, leaf.certificate},
           {private_key, leaf.key},
           {trusted_key, text_of(ca, trusted_key)}},
          renewal(content->validity)};
}

}  // namespace trafficmirror::controller
