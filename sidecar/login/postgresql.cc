#include "sidecar/login/postgresql.h"

#include "net/bytes.h"
#include "sidecar/login/digest.h"

namespace trafficmirror::login {
namespace {

using session::CloseReason;

// The codes that stand where a startup packet has its version.
constexpr uint32_t cancel_request = 80877102;
constexpr uint32_t tls_request = 80877103;
constexpr uint32_t gss_request = 80877104;
constexpr uint16_t protocol = 3;

constexpr uint32_t longest_startup = 10'000;  // as for the server
constexpr uint32_t longest_message = 64 << 10;

constexpr size_t length_bytes = 4;
constexpr size_t type_bytes = 1;
constexpr uint8_t tls_handshake = 22;  // RFC 8446 section 5.1

std::string_view as_text(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

uint32_t number_at_front(std::string_view text) {
  return net::load32(reinterpret_cast<const uint8_t*>(text.data()));
}

// Up to the zero at its end, which is taken too.
std::string_view take_string(std::string_view& text) {
  const std::string_view string = text.substr(0, text.find('\0'));
  text.remove_prefix(std::min(text.size(), string.size() + 1));
  return string;
}

std::string number(size_t value) {
  std::string bytes(4, '\0');
  net::store32(reinterpret_cast<uint8_t*>(bytes.data()), static_cast<uint32_t>(value));
  return bytes;
}

// The code and the text of an ErrorResponse.
std::string describe_error(std::string_view fields) {
  std::string code, text;
  while (!fields.empty() && fields.front() != '\0') {
    const char type = fields.front();
    fields.remove_prefix(1);
    const std::string_view value = take_string(fields);
    if (type == 'C') code = value;
    if (type == 'M') text = value;
  }
  return text + " (" + code + ")";
}

}  // namespace

// ---- the client

size_t Postgresql::client_said(std::span<const uint8_t> bytes) {
  size_t taken = 0;
  while (!client_is_over() && !failure()) {
    const auto rest = bytes.subspan(taken);
    const size_t length = asked() ? take_password(rest) : take_startup(rest);
    if (length == 0) break;
    taken += length;
  }
  return taken;
}

size_t Postgresql::take_startup(std::span<const uint8_t> bytes) {
  if (!bytes.empty() && bytes[0] == tls_handshake) {
    fail(CloseReason::login_encrypted, "production's client speaks TLS");
    return 0;
  }
  if (bytes.size() < 2 * length_bytes) return 0;
  const uint32_t length = net::load32(bytes.data());
  const uint32_t code = net::load32(bytes.data() + length_bytes);
  if (code == cancel_request) {
    // To whom it is addressed only production knows; the shadow takes it for one to nobody.
    set_client_is_over();
    set_let_in();
    return 0;
  }
  if (length == 2 * length_bytes && (code == tls_request || code == gss_request)) {
    encryption_refused_ = true;
    return length;
  }
  if (code >> 16 != protocol || length < 2 * length_bytes || length > longest_startup) {
    if (encryption_refused_)
      fail(CloseReason::login_encrypted, "production's client speaks GSSAPI encryption");
    else
      fail(CloseReason::login_unsupported, "production's client does not speak PostgreSQL");
    return 0;
  }
  if (bytes.size() < length) return 0;
  std::string_view parameters = as_text(bytes.first(length)).substr(2 * length_bytes);
  while (!parameters.empty() && parameters.front() != '\0') {
    const std::string_view name = take_string(parameters);
    const std::string_view value = take_string(parameters);
    if (name == "user") user_ = value;
  }
  send(as_text(bytes.first(length)));
  set_asked();
  return length;
}

size_t Postgresql::take_password(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return 0;
  if (bytes[0] != 'p') {
    set_client_is_over();
    return 0;
  }
  if (bytes.size() < type_bytes + length_bytes) return 0;
  const uint32_t length = net::load32(&bytes[type_bytes]);
  if (length < length_bytes || length > longest_message) {
    fail(CloseReason::login_unsupported, "production's client sends no password");
    return 0;
  }
  return bytes.size() < type_bytes + length ? 0 : type_bytes + length;
}

// ---- the shadow

size_t Postgresql::shadow_said(std::span<const uint8_t> bytes) {
  size_t taken = 0;
  while (asked() && !let_in() && !failure()) {
    const auto rest = bytes.subspan(taken);
    if (rest.size() < type_bytes + length_bytes) break;
    const uint32_t length = net::load32(&rest[type_bytes]);
    if (length < length_bytes || length > longest_message) {
      fail(CloseReason::login_unsupported, "it does not speak PostgreSQL");
      break;
    }
    if (rest.size() < type_bytes + length) break;
    taken += type_bytes + length;
    const std::string_view body =
        as_text(rest.subspan(type_bytes + length_bytes, length - length_bytes));
    switch (rest[0]) {
      case 'R':
        take_request(body);
        break;
      case 'E':
        fail(CloseReason::login_rejected, describe_error(body));
        break;
      case 'Z':
        set_let_in();
        break;
      case 'S':  // what it is set to, its cancel key, notices, a lower version: for nobody here
      case 'K':
      case 'N':
      case 'v':
        break;
      default:
        fail(CloseReason::login_unsupported, "it does not speak PostgreSQL");
    }
  }
  return taken;
}

// The authentication requests, by their numbers.
void Postgresql::take_request(std::string_view body) {
  enum Request : uint32_t {
    ok = 0,
    clear_text = 3,
    md5 = 5,
    sasl = 10,
    sasl_continue = 11,
    sasl_final = 12
  };
  constexpr size_t md5_salt_bytes = 4;
  const uint32_t request = body.size() < 4 ? UINT32_MAX : number_at_front(body);
  body.remove_prefix(std::min<size_t>(body.size(), 4));
  switch (request) {
    case ok:
    case sasl_final:  // whether it knows the password too is of no interest
      break;
    case clear_text:
      if (const std::string* its = password()) send_password(*its + '\0');
      break;
    case md5:
      if (body.size() != md5_salt_bytes)
        fail(CloseReason::login_unsupported, "it does not speak PostgreSQL");
      else if (const std::string* its = password())
        send_password("md5" + md5_in_hex(md5_in_hex(*its + user_) + std::string(body)) + '\0');
      break;
    case sasl:
      begin_sasl(body);
      break;
    case sasl_continue:
      go_on_with_sasl(body);
      break;
    default:
      fail(CloseReason::login_unsupported,
           "it asks user " + user_ + " for authentication " + std::to_string(request) +
               ", which is none of SCRAM-SHA-256, md5, password and trust");
  }
}

void Postgresql::begin_sasl(std::string_view mechanisms) {
  constexpr std::string_view ours = "SCRAM-SHA-256";
  while (!mechanisms.empty() && mechanisms.front() != '\0') {
    if (take_string(mechanisms) != ours) continue;
    if (password() == nullptr) return;
    // The server goes by the user of the startup packet.
    scram_.emplace("", nonce_);
    const std::string first = scram_->client_first();
    send_password(std::string(ours) + '\0' + number(first.size()) + first);
    return;
  }
  fail(CloseReason::login_unsupported, "it offers no SCRAM-SHA-256 without channel binding");
}

void Postgresql::go_on_with_sasl(std::string_view server_first) {
  const std::string* const its = password();
  if (!scram_ || its == nullptr) {
    fail(CloseReason::login_unsupported, "it does not speak PostgreSQL");
    return;
  }
  const auto answer = scram_->client_final(server_first, *its, keys_);
  if (const auto* wrong = std::get_if<const char*>(&answer))
    fail(CloseReason::login_unsupported, *wrong);
  else
    send_password(std::get<std::string>(answer));
}

const std::string* Postgresql::password() {
  const std::string* const its = known_.password(Protocol::postgresql, user_);
  if (its == nullptr)
    fail(CloseReason::no_credentials, "it asks for a password of user " + user_ +
                                          ": name it in --credentials, under postgresql");
  return its;
}

void Postgresql::send_password(std::string_view body) {
  send("p" + number(length_bytes + body.size()));
  send(body);
}

}  // namespace trafficmirror::login
