// Mutual TLS on the stream: the flags of both programs, and the certificates behind them.
//
//   program::TlsOptions tls_options;
//   program::add_tls_flags(app, tls_options);
//   …
//   const std::shared_ptr<program::Tls> tls = program::load_tls(tls_options);
//   if (!tls) spdlog::warn(program::plain_text_warning);
#pragma once

#include <cstddef>
#include <cstdint>
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

// All three parts together; far less than a message of the stream may hold.
inline constexpr size_t max_tls_material_bytes = 1 << 20;

// Where the PEM of a part is.
struct TlsSource {
  std::string name;  // for messages
  std::string path;  // empty: `text` is it
  std::string text;

  static TlsSource file(const char* flag, const std::string& path);
};

struct TlsSources {
  TlsSource certificate;
  TlsSource key;
  TlsSource ca;

  // Throws StartError unless all of it is there and fits.
  TlsMaterial read() const;
};

// Any thread may use it.
class Tls {
 public:
  // Throws StartError unless all of it is there and fits.
  explicit Tls(const TlsOptions& options);

  // Reads anew, so that whatever changed is in the next handshake. What does not fit, such as files
  // that are just being replaced, is logged, and that which was read before is kept. Never null.
  std::shared_ptr<const TlsMaterial> material();

  // Whether all of it came from the environment, which does not change while a program runs; then
  // the other side may send what is to be used next.
  bool from_environment() const;
  // Takes over what the other side sent, for the next handshakes, if it holds up as well as what
  // the program starts with has to. Otherwise that is logged, and what was there before is kept; so
  // it is unless from_environment().
  void replace(TlsMaterial sent);
  struct Replacements {
    uint64_t taken = 0;
    uint64_t refused = 0;
  };
  Replacements replacements() const;

  const TlsSources& sources() const { return sources_; }
  // A DNS or URI name, to be compared as it stands.
  const std::string& peer() const { return peer_; }

 private:
  const TlsSources sources_;
  const std::string peer_;

  mutable std::mutex mutex_;
  std::shared_ptr<const TlsMaterial> material_;
  bool replaced_ = false;  // by replace(): the sources are of no more use
  Replacements replacements_;
  LogLimit log_;
  LogLimit replacement_log_;
};

// Null where none of it is given: the stream is plain text. Throws StartError where a part is
// missing or wrong.
std::shared_ptr<Tls> load_tls(const TlsOptions& options);

inline constexpr const char* plain_text_warning =
    "the stream is plain text, and whoever reaches it is trusted: in a network that is not yours "
    "alone, give --tls-certificate, --tls-key, --tls-ca and --tls-peer";

}  // namespace trafficmirror::program
