// The certificate and key that the sidecars are to use next, for those that can't read them where
// they run.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "program/tls.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
}  // namespace CLI

namespace trafficmirror::intercept {

struct SidecarIdentityOptions {
  std::string certificate;  // paths of PEM files
  std::string key;
};

// --sidecar-tls-certificate and --sidecar-tls-key.
void add_sidecar_identity_flags(CLI::App& app, SidecarIdentityOptions& options);

// Files that may change at any time. For one thread.
class SidecarIdentity {
 public:
  using Material = std::shared_ptr<const program::TlsMaterial>;

  // With the CAs of the intercept's own. Throws StartError unless it fits together.
  SidecarIdentity(const SidecarIdentityOptions& options, const program::Tls& own);

  // Never null.
  const Material& material() const { return material_; }
  // Nothing where the files hold what they held before. Otherwise what is in use from now on, or
  // what is wrong, in one line; then material() stays.
  std::optional<std::variant<Material, std::string>> look_again();

 private:
  const program::TlsSources sources_;
  Material material_;
  std::string wrong_;  // with what the files held last; empty: nothing
};

// Null where neither is given. Throws StartError where one is, or where there is no TLS.
std::shared_ptr<SidecarIdentity> load_sidecar_identity(const SidecarIdentityOptions& options,
                                                       const program::Tls* own);

}  // namespace trafficmirror::intercept
