#include "sidecar/login/scram.h"

#include <array>
#include <charconv>
#include <vector>

#include <openssl/evp.h>
#include <openssl/rand.h>

#include "sidecar/login/digest.h"

namespace trafficmirror::login {
namespace {

std::string to_base64(std::string_view bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int length = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                                     reinterpret_cast<const unsigned char*>(bytes.data()),
                                     static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(length));
  return text;
}

std::optional<std::string> from_base64(std::string_view text) {
  std::string bytes(text.size() / 4 * 3 + 1, '\0');
  const int length = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                                     reinterpret_cast<const unsigned char*>(text.data()),
                                     static_cast<int>(text.size()));
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  if (length < static_cast<int>(padding)) return std::nullopt;
  bytes.resize(static_cast<size_t>(length) - padding);
  return bytes;
}

// "r=..." of "r=...,s=...,i=...", in that order (RFC 5802 section 7).
std::optional<std::string_view> take_attribute(std::string_view& message, std::string_view name) {
  if (!message.starts_with(name)) return std::nullopt;
  const std::string_view value = message.substr(name.size(), message.find(',') == message.npos
                                                                 ? message.npos
                                                                 : message.find(',') - name.size());
  message.remove_prefix(std::min(message.size(), name.size() + value.size() + 1));
  return value;
}

}  // namespace

const std::string& ScramKeys::salted_password(const std::string& password, const std::string& salt,
                                              uint32_t iterations) {
  Entry& entry = of_password_[password];
  if (entry.salt == salt && entry.iterations == iterations) return entry.salted;
  entry = {salt, iterations, std::string(32, '\0')};
  PKCS5_PBKDF2_HMAC(password.data(), static_cast<int>(password.size()),
                    reinterpret_cast<const unsigned char*>(salt.data()),
                    static_cast<int>(salt.size()), static_cast<int>(iterations), EVP_sha256(),
                    static_cast<int>(entry.salted.size()),
                    reinterpret_cast<unsigned char*>(entry.salted.data()));
  return entry.salted;
}

std::string scram_nonce() {
  std::array<unsigned char, 18> bytes{};
  RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
  return to_base64({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Scram::Scram(const std::string& user, std::string nonce)
    : nonce_(std::move(nonce)), first_("n=" + user + ",r=" + nonce_) {}

std::variant<std::string, const char*> Scram::client_final(std::string_view server_first,
                                                           const std::string& password,
                                                           ScramKeys& keys) const {
  std::string_view rest = server_first;
  const auto nonce = take_attribute(rest, "r=");
  const auto salt_text = take_attribute(rest, "s=");
  const auto count = take_attribute(rest, "i=");
  if (!nonce || !salt_text || !count) return "its first message of SCRAM is not understood";
  if (!nonce->starts_with(nonce_)) return "its nonce of SCRAM does not begin with the client's";
  const auto salt = from_base64(*salt_text);
  uint32_t iterations = 0;
  const auto [end, error] =
      std::from_chars(count->data(), count->data() + count->size(), iterations);
  if (!salt || error != std::errc() || end != count->data() + count->size() || iterations == 0)
    return "its first message of SCRAM is not understood";
  if (iterations > ScramKeys::most_iterations)
    return "it asks for more than 100000 iterations of SCRAM";

  // RFC 5802 section 3.
  const std::string& salted = keys.salted_password(password, *salt, iterations);
  const std::string client_key = hmac_sha256(salted, "Client Key");
  std::string final = "c=biws,r=" + std::string(*nonce);
  const std::string authentication = first_ + "," + std::string(server_first) + "," + final;
  const std::string signature = hmac_sha256(sha256(client_key), authentication);
  return final + ",p=" + to_base64(exclusive_or(client_key, signature));
}

}  // namespace trafficmirror::login
