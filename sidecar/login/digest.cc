#include "sidecar/login/digest.h"

#include <array>

#include <openssl/evp.h>
#include <openssl/hmac.h>

namespace trafficmirror::login {
namespace {

// Empty where the library does not offer it; then no shadow lets anybody in.
std::string digest(const EVP_MD* kind, std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned length = 0;
  if (EVP_Digest(text.data(), text.size(), out.data(), &length, kind, nullptr) != 1) return {};
  return {reinterpret_cast<const char*>(out.data()), length};
}

}  // namespace

std::string md5_in_hex(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string hex;
  for (const char each : digest(EVP_md5(), text)) {
    hex += digits[static_cast<unsigned char>(each) >> 4];
    hex += digits[static_cast<unsigned char>(each) & 15];
  }
  return hex;
}

std::string sha1(std::string_view text) {
  return digest(EVP_sha1(), text);
}

std::string sha256(std::string_view text) {
  return digest(EVP_sha256(), text);
}

std::string hmac_sha256(std::string_view key, std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned length = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), out.data(), &length);
  return {reinterpret_cast<const char*>(out.data()), length};
}

std::string exclusive_or(std::string_view one, std::string_view other) {
  std::string out(one);
  for (size_t i = 0; i < out.size() && i < other.size(); ++i)
    out[i] = static_cast<char>(out[i] ^ other[i]);
  return out;
}

}  // namespace trafficmirror::login
