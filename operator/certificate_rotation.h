// When certificates are replaced. Pure but for the random numbers in new keys: what a Secret holds
// and the time go in, what it has to hold comes out. The caller writes it where that is something
// else, and asks again at `look_again`, or earlier.
//
//   Secret of the CA                        Secret of a leaf
//     tls.crt, tls.key    signs leaves        tls.crt, tls.key    the leaf
//     ca.crt              trusted CAs         ca.crt              the same, to check others by
//     next.crt, next.key  signs leaves later
//
// When a third of a CA's life is left, its successor is made, and only trusted at first. It signs
// when everybody has had the time to hear of it; that is not asked for, but waited for. The CA
// before stays trusted until it has expired.
#pragma once

#include <chrono>
#include <string>

#include "operator/certificates.h"
#include "operator/kube/secret.h"

namespace trafficmirror::controller {

struct CertificateLifetimes {
  std::chrono::seconds ca = std::chrono::hours(24 * 3650);
  std::chrono::seconds leaf = std::chrono::hours(24 * 30);
  // From when a new CA is trusted to when it signs. Kubelets take a minute or two to bring a Secret
  // to its files, and an operator that was down may take longer.
  std::chrono::seconds distribution = std::chrono::hours(24);
  // New certificates are valid from so long ago, for clocks that are behind.
  std::chrono::seconds backdating = std::chrono::minutes(5);
};

struct RotatedSecret {
  kube::SecretData data;
  WallTime look_again;  // nothing changes before that, unless somebody writes the Secret
};

// `current` may be anything, also nothing: what can't be used is replaced at once.
RotatedSecret rotate_ca(const kube::SecretData& current, WallTime now,
                        const CertificateLifetimes& lifetimes);

// A leaf of exactly `names`, signed by the CA in `ca`, which is what rotate_ca made. It is replaced
// when a third of its life is left, or where any of this does not hold. Other keys of `current`
// are left out.
RotatedSecret rotate_leaf(const kube::SecretData& current, const kube::SecretData& ca,
                          const Names& names, WallTime now, const CertificateLifetimes& lifetimes);

}  // namespace trafficmirror::controller
