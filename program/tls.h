// Mutual TLS on the stream: the flags of both programs, and the certificates behind them.
//
//   program::TlsOptions tls_options;
//   program::add_tls_flags(app, tls_options);
//   …
//   const std::shared_ptr<program::Tls> tls = program::load_tls(tls_options);
//   if (!tls) spdlog::warn(program::plain_text_warning);
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "program/log.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
}  // namespace CLI

namespace trafficmirror::program {

struct TlsOptions {
  // Paths of PEM files. An empty one gives way to TRAFFICMIRROR_TLS_CERTIFICATE, _KEY or _CA of the
  // environment, which hold the PEM itself.
  std::string certificate;
  std::string key;
  std::string ca;
  // The name that the other side's certificate has to carry.
  std::string peer;
};

// --tls-certificate, --tls-key, --tls-ca and --tls-peer.
void add_tls_flags(CLI::App& app, TlsOptions& options);

// In PEM; the key is the certificate's, and the certificate was valid when it was read.
struct TlsMaterial {
  std::string certificate;  // and behind it those between it and its CA
  std::string key;
  std::string ca;  // each of these is trusted

  bool operator==(const TlsMaterial&) const = default;
};

// Any thread may use it.
class Tls {
 public:
  // Throws StartError unless all of it is there and fits.
  explicit Tls(const TlsOptions& options);

  // Reads anew, so that whatever changed is in the next handshake. What does not fit, such as files
  // that are just being replaced, is logged, and that which was read before is kept. Never null.
  std::shared_ptr<const TlsMaterial> material();

  // A DNS or URI name, to be compared as it stands.
  const std::string& peer() const { return peer_; }

 private:
  struct Source {
    std::string name;  // for messages
    std::string path;  // empty: `text` is it
    std::string text;

    std::string read() const;
  };

  static Source source(const char* flag, const char* variable, const std::string& path);
  TlsMaterial read() const;

  const Source certificate_;
  const Source key_;
  const Source ca_;
  const std::string peer_;

  std::mutex mutex_;
  std::shared_ptr<const TlsMaterial> material_;
  LogLimit log_;
};

// Null where none of it is given: the stream is plain text. Throws StartError where a part is
// missing or wrong.
std::shared_ptr<Tls> load_tls(const TlsOptions& options);

inline constexpr const char* plain_text_warning =
    "the stream is plain text, and whoever reaches it is trusted: in a network that is not yours "
    "alone, give --tls-certificate, --tls-key, --tls-ca and --tls-peer";

}  // namespace trafficmirror::program
