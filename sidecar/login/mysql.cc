#include "sidecar/login/mysql.h"

#include <algorithm>

#include "sidecar/login/digest.h"

namespace trafficmirror::login {
namespace {

using session::CloseReason;

// A packet: three bytes of length, lowest first, its number, and its body.
constexpr size_t header_bytes = 4;
constexpr size_t longest_packet = 64 << 10;

enum Capability : uint32_t {
  connect_with_database = 1 << 3,
  compress = 1 << 5,
  protocol_41 = 1 << 9,
  tls = 1 << 11,
  secure_connection = 1 << 15,
  plugin_auth = 1 << 19,
  plugin_auth_any_length = 1 << 21,
  zstd_compression = 1 << 26,
  query_attributes = 1 << 27,
};

constexpr size_t bytes_before_user = 32;
constexpr size_t nonce_bytes = 20;
constexpr std::string_view native = "mysql_native_password";
constexpr std::string_view caching = "caching_sha2_password";
constexpr const char* no_mysql = "it does not speak MySQL";

uint32_t number_at(std::string_view text, size_t offset, size_t bytes) {
  uint32_t number = 0;
  for (size_t i = 0; i < bytes; ++i)
    number |= uint32_t{static_cast<uint8_t>(text[offset + i])} << (8 * i);
  return number;
}

// So many bytes, or all there are.
std::string_view take(std::string_view& text, size_t bytes) {
  const std::string_view taken = text.substr(0, bytes);
  text.remove_prefix(taken.size());
  return taken;
}

// Up to the zero at its end, which is taken too.
std::string_view take_string(std::string_view& text) {
  const std::string_view string = take(text, text.find('\0'));
  take(text, 1);
  return string;
}

struct Packet {
  uint8_t number;
  std::string_view body;
};

// Nothing where it is not whole.
std::optional<Packet> packet_at(std::span<const uint8_t> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() < header_bytes) return std::nullopt;
  const uint32_t length = number_at(text, 0, 3);
  if (text.size() < header_bytes + length) return std::nullopt;
  return Packet{static_cast<uint8_t>(text[3]), text.substr(header_bytes, length)};
}

bool too_long(std::span<const uint8_t> bytes) {
  return bytes.size() >= header_bytes &&
         uint32_t{bytes[0]} + (uint32_t{bytes[1]} << 8) + (uint32_t{bytes[2]} << 16) >
             longest_packet;
}

}  // namespace

std::string mysql_native_password(const std::string& password, std::string_view nonce) {
  if (password.empty()) return "";
  const std::string once = sha1(password);
  return exclusive_or(once, sha1(std::string(nonce) + sha1(once)));
}

std::string caching_sha2_password(const std::string& password, std::string_view nonce) {
  if (password.empty()) return "";
  const std::string once = sha256(password);
  return exclusive_or(once, sha256(sha256(once) + std::string(nonce)));
}

// ---- the client

size_t Mysql::client_said(std::span<const uint8_t> bytes) {
  size_t taken = 0;
  while (!failure()) {
    const auto rest = bytes.subspan(taken);
    // A command's packets begin at 0.
    if (response_ && rest.size() >= header_bytes && rest[3] == 0) {
      set_client_is_over();
      break;
    }
    if (too_long(rest)) {
      fail(CloseReason::login_unsupported, "production's client does not speak MySQL");
      break;
    }
    const auto packet = packet_at(rest);
    if (!packet) break;
    taken += header_bytes + packet->body.size();
    if (response_) continue;  // more of what only production's server asked for
    take_response(packet->body);
    if (response_ && greeting_) respond();
  }
  return taken;
}

void Mysql::take_response(std::string_view body) {
  const uint32_t capabilities = body.size() < 4 ? 0 : number_at(body, 0, 4);
  if (body.size() < bytes_before_user || (capabilities & protocol_41) == 0) {
    fail(CloseReason::login_unsupported, "production's client does not speak MySQL 4.1");
    return;
  }
  if ((capabilities & tls) != 0) {
    fail(CloseReason::login_encrypted, "production's client speaks TLS");
    return;
  }
  if ((capabilities & (compress | zstd_compression)) != 0) {
    fail(CloseReason::login_unsupported, "production's client compresses what it says");
    return;
  }
  Response response;
  response.capabilities = capabilities;
  response.before_user = take(body, bytes_before_user);
  response.user = take_string(body);
  if ((capabilities & (plugin_auth_any_length | secure_connection)) == 0) {
    take_string(body);
  } else {
    // Longer than 250 bytes, where the length takes more than one, is no answer to a nonce.
    const std::string_view length = take(body, 1);
    take(body, length.empty() ? 0 : static_cast<uint8_t>(length[0]));
  }
  if ((capabilities & connect_with_database) != 0) response.database = take_string(body);
  if ((capabilities & plugin_auth) != 0) take_string(body);
  response.behind_plugin = body;
  password_ = known_.password(Protocol::mysql, response.user);
  response_ = std::move(response);
  set_asked();
}

// ---- the shadow

size_t Mysql::shadow_said(std::span<const uint8_t> bytes) {
  size_t taken = 0;
  while (!let_in() && !failure()) {
    const auto rest = bytes.subspan(taken);
    if (too_long(rest)) {
      fail(CloseReason::login_unsupported, no_mysql);
      break;
    }
    const auto packet = packet_at(rest);
    if (!packet) break;
    taken += header_bytes + packet->body.size();
    if (!greeting_) {
      take_greeting(packet->number, packet->body);
      if (response_ && greeting_) respond();
    } else if (responded_) {
      take_answer(packet->number, packet->body);
    } else {
      fail(CloseReason::login_unsupported, no_mysql);
    }
  }
  return taken;
}

void Mysql::take_greeting(uint8_t number, std::string_view body) {
  constexpr std::string_view version_10 = "\x0a";
  constexpr size_t first_of_nonce = 8;
  if (body.starts_with('\xff')) {
    reject(body);
    return;
  }
  Greeting greeting;
  greeting.number = number;
  const bool known = take(body, 1) == version_10;
  take_string(body);  // of the server's version
  take(body, 4);      // the connection's number
  greeting.nonce = take(body, first_of_nonce);
  take(body, 1);
  // Capabilities in two halves, with character set and status between, the nonce's length, and ten
  // bytes of which the last four are MariaDB's further capabilities.
  const std::string_view fixed = take(body, 18);
  if (!known || fixed.size() < 18) {
    fail(CloseReason::login_unsupported, no_mysql);
    return;
  }
  greeting.capabilities = number_at(fixed, 0, 2) | number_at(fixed, 5, 2) << 16;
  const auto length = static_cast<uint8_t>(fixed[7]);
  greeting.nonce += take(body, std::max<size_t>(13, length > 8 ? length - 8 : 0));
  greeting.nonce.resize(nonce_bytes);
  greeting.plugin = take_string(body);
  greeting_ = std::move(greeting);
}

void Mysql::respond() {
  responded_ = true;
  if ((response_->capabilities & ~greeting_->capabilities & query_attributes) != 0) {
    fail(CloseReason::login_unsupported,
         "production's client sends attributes with its queries, which it does not understand");
    return;
  }
  // What it does not know it asks for anew.
  auto proven = proof(greeting_->plugin, greeting_->nonce);
  plugin_ = proven ? greeting_->plugin : native;
  if (!proven) proven = proof(native, greeting_->nonce);
  const uint32_t capabilities = response_->capabilities;
  std::string body = response_->before_user + response_->user + '\0';
  if ((capabilities & (plugin_auth_any_length | secure_connection)) == 0)
    body += *proven + '\0';
  else
    body += static_cast<char>(proven->size()) + *proven;
  if ((capabilities & connect_with_database) != 0) body += response_->database + '\0';
  if ((capabilities & plugin_auth) != 0) body += plugin_ + '\0';
  send_packet(greeting_->number + 1, body + response_->behind_plugin);
}

void Mysql::take_answer(uint8_t number, std::string_view body) {
  constexpr std::string_view cached = "\x01\x03";
  const char kind = body.empty() ? '\x01' : body.front();
  if (kind == '\x00') {
    set_let_in();
  } else if (kind == '\xff') {
    reject(body);
  } else if (kind == '\xfe') {
    switch_plugin(number, body.substr(1));
  } else if (kind != '\x01') {
    fail(CloseReason::login_unsupported, no_mysql);
  } else if (plugin_ != caching || body != cached) {
    fail(CloseReason::login_unsupported,
         "it asks user " + response_->user + " for more than a proof of the password by " +
             plugin_ + ": caching_sha2_password needs a login over TLS once before");
  }
}

void Mysql::switch_plugin(uint8_t number, std::string_view request) {
  plugin_ = take_string(request);
  const auto proven = proof(plugin_, take(request, nonce_bytes));
  if (proven)
    send_packet(number + 1, *proven);
  else
    fail(CloseReason::login_unsupported,
         "it asks user " + response_->user + " for " + plugin_ +
             ", which is none of mysql_native_password and caching_sha2_password");
}

// Nothing for another plugin. Who has no password proves none, and may be let in.
std::optional<std::string> Mysql::proof(std::string_view plugin, std::string_view nonce) const {
  const std::string password = password_ == nullptr ? "" : *password_;
  if (plugin == native) return mysql_native_password(password, nonce);
  if (plugin != caching) return std::nullopt;
  // Nothing would ask for the public key.
  return password.empty() ? std::string(1, '\0') : caching_sha2_password(password, nonce);
}

void Mysql::send_packet(uint8_t number, std::string_view body) {
  std::string header;
  for (size_t i = 0; i < 3; ++i) header += static_cast<char>(body.size() >> (8 * i));
  send(header + static_cast<char>(number));
  send(body);
}

// An ERR packet: its code, the SQL state behind a '#', and the text.
void Mysql::reject(std::string_view error) {
  constexpr uint32_t access_denied = 1045;
  take(error, 1);
  const uint32_t code = error.size() < 2 ? 0 : number_at(error, 0, 2);
  take(error, 2);
  if (error.starts_with('#')) take(error, 6);
  if (code == access_denied && response_ && password_ == nullptr)
    fail(CloseReason::no_credentials, "it asks for a password of user " + response_->user +
                                          ": name it in --credentials, under mysql");
  else
    fail(CloseReason::login_rejected, std::string(error) + " (" + std::to_string(code) + ")");
}

}  // namespace trafficmirror::login
