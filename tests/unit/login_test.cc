// Conversations of the modules that log in, as servers of Debian's have them, and known answers.
#include <initializer_list>

#include <gtest/gtest.h>

#include "sidecar/login/digest.h"
#include "sidecar/login/mysql.h"
#include "sidecar/login/postgresql.h"

namespace trafficmirror::login {
namespace {

using session::CloseReason;
using namespace std::string_literals;

// A zero and what follows it are part of a literal with its length alone.
template <size_t size>
std::string text(const char (&literal)[size]) {
  return {literal, size - 1};
}

std::string hex(std::string_view bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  for (const char each : bytes) {
    out += digits[static_cast<unsigned char>(each) >> 4];
    out += digits[static_cast<unsigned char>(each) & 15];
  }
  return out;
}

// The two sides of a login; what a module leaves comes again with what is behind it.
template <typename Module>
class Conversation : public testing::Test {
 protected:
  void client(const std::string& said) {
    of_client += said;
    of_client.erase(0, module().client_said(bytes(of_client)));
  }
  // Returns what is sent to the shadow then.
  std::string shadow(const std::string& said) {
    of_shadow += said;
    of_shadow.erase(0, module().shadow_said(bytes(of_shadow)));
    return module().take_messages();
  }
  void expect_failure(CloseReason reason, const std::string& why) {
    ASSERT_TRUE(module().failure().has_value());
    EXPECT_EQ(module().failure()->reason, reason);
    EXPECT_EQ(module().failure()->why, why);
  }
  static std::span<const uint8_t> bytes(const std::string& said) {
    return {reinterpret_cast<const uint8_t*>(said.data()), said.size()};
  }
  virtual Module& module() = 0;

  Credentials known;
  std::string of_client;
  std::string of_shadow;
};

// ---- SCRAM

TEST(Scram, AnswersAsInRfc7677) {
  ScramKeys keys;
  const Scram scram("user", "rOprNGfwEbeRWgbNEkqO");
  EXPECT_EQ(scram.client_first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
  const auto answer = scram.client_final(
      "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
      "pencil", keys);
  ASSERT_TRUE(std::holds_alternative<std::string>(answer)) << std::get<const char*>(answer);
  EXPECT_EQ(std::get<std::string>(answer),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
}

TEST(Scram, AsksForWhatItsServerMayNotSay) {
  ScramKeys keys;
  const Scram scram("", "abc");
  const auto wrong = [&](const char* server_first) {
    const auto answer = scram.client_final(server_first, "pencil", keys);
    return std::holds_alternative<const char*>(answer) ? std::get<const char*>(answer) : "";
  };
  const std::string unclear = "its first message of SCRAM is not understood";
  EXPECT_EQ(wrong("r=abcd,s=AAAA,i=1"), ""s);
  EXPECT_EQ(wrong("r=abcd,s=AAAA,i=1,x=later"), ""s);
  EXPECT_EQ(wrong("r=other,s=AAAA,i=1"), "its nonce of SCRAM does not begin with the client's"s);
  EXPECT_EQ(wrong("r=abcd,s=AAAA,i=100001"), "it asks for more than 100000 iterations of SCRAM"s);
  for (const char* message :
       {"", "r=abcd", "r=abcd,s=AAAA", "r=abcd,s=AAA,i=1", "r=abcd,s=AAAA,i=", "r=abcd,s=AAAA,i=0",
        "r=abcd,s=AAAA,i=-1", "r=abcd,s=AAAA,i=1x", "r=abcd,s=AAAA,i=99999999999", "e=no"})
    EXPECT_EQ(wrong(message), unclear) << message;
}

TEST(Scram, KeepsAKeyForAsLongAsTheSaltIsTheSame) {
  ScramKeys keys;
  const std::string first = keys.salted_password("pencil", "salt", 4096);
  EXPECT_EQ(keys.salted_password("pencil", "salt", 4096), first);
  EXPECT_NE(keys.salted_password("pencil", "other", 4096), first);
  EXPECT_NE(keys.salted_password("pencil", "salt", 4097), first);
  EXPECT_NE(keys.salted_password("pen", "salt", 4096), first);
  EXPECT_EQ(keys.salted_password("pencil", "salt", 4096), first);
}

// ---- PostgreSQL

std::string number(size_t value) {
  std::string four;
  for (int shift = 24; shift >= 0; shift -= 8) four += static_cast<char>(value >> shift);
  return four;
}

std::string message(const std::string& type, const std::string& body) {
  return type + number(4 + body.size()) + body;
}

std::string startup() {
  return message("", number(3 << 16) + text("user\0app\0database\0shop\0\0"));
}

std::string request(size_t kind, const std::string& what = "") {
  return message("R", number(kind) + what);
}

const std::string ready = message("S", text("server_version\0"
                                            "15.18\0")) +
                          message("K", number(4711) + number(815)) + message("Z", "I");

class PostgresqlLogin : public Conversation<Postgresql> {
 protected:
  PostgresqlLogin() { known.set(Protocol::postgresql, "app", "pencil"); }
  Postgresql& module() override { return its; }
  // The client says who it is, and the shadow gets it.
  void start() {
    client(startup());
    EXPECT_EQ(its.take_messages(), startup());
    EXPECT_TRUE(its.asked());
  }

  ScramKeys keys;
  Postgresql its{known, keys, "rOprNGfwEbeRWgbNEkqO"};
};

TEST_F(PostgresqlLogin, ProvesThePasswordByScram) {
  start();
  EXPECT_EQ(shadow(request(10, text("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))),
            message("p", text("SCRAM-SHA-256\0") + number(28) + "n,,n=,r=rOprNGfwEbeRWgbNEkqO"));
  const std::string final =
      shadow(request(11, "r=rOprNGfwEbeRWgbNEkqOxyz,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
  const std::string expected = "c=biws,r=rOprNGfwEbeRWgbNEkqOxyz,p=";
  EXPECT_EQ(final.substr(0, 5 + expected.size()),
            "p" + number(4 + expected.size() + 44) + expected);
  EXPECT_EQ(shadow(request(12, "v=whatever") + request(0)), "");
  EXPECT_FALSE(its.let_in());
  EXPECT_EQ(shadow(ready), "");
  EXPECT_TRUE(its.let_in());
  EXPECT_FALSE(its.failure());
}

TEST_F(PostgresqlLogin, ProvesThePasswordByMd5) {
  start();
  Credentials().password(Protocol::postgresql, "user");
  known.set(Protocol::postgresql, "app", "pencil");
  const std::string digest = md5_in_hex(md5_in_hex("pencilapp") + "\1\2\3\4");
  EXPECT_EQ(shadow(request(5, "\1\2\3\4")), message("p", "md5" + digest + '\0'));
  shadow(request(0) + ready);
  EXPECT_TRUE(its.let_in());
}

TEST_F(PostgresqlLogin, SaysThePasswordWhereItIsAskedForIt) {
  start();
  EXPECT_EQ(shadow(request(3)), message("p", text("pencil\0")));
}

TEST_F(PostgresqlLogin, SaysNothingWhereItIsTrusted) {
  start();
  EXPECT_EQ(shadow(request(0) + ready), "");
  EXPECT_TRUE(its.let_in());
}

TEST_F(PostgresqlLogin, IsReadByteByByte) {
  for (const char each : startup()) client({each});
  EXPECT_EQ(its.take_messages(), startup());
  std::string sent;
  for (const char each : request(3) + request(0) + ready) sent += shadow({each});
  EXPECT_EQ(sent, message("p", text("pencil\0")));
  EXPECT_TRUE(its.let_in());
}

TEST_F(PostgresqlLogin, OfTheClientsGoesAsFarAsItsPasswords) {
  const std::string query = message("Q", text("select 1\0"));
  client(message("", number(80877103)) + message("", number(80877104)));
  EXPECT_EQ(its.take_messages(), "") << "whether to encrypt is settled";
  start();
  client(message("p", "SCRAM") + message("p", "final").substr(0, 7));
  EXPECT_FALSE(its.client_is_over());
  client(message("p", "final").substr(7) + query);
  EXPECT_TRUE(its.client_is_over());
  EXPECT_EQ(of_client, query);
  EXPECT_EQ(its.take_messages(), "");
}

TEST_F(PostgresqlLogin, IsNoneWhereAQueryIsCanceled) {
  const std::string cancel = message("", number(80877102) + number(4711) + number(815));
  client(cancel);
  EXPECT_TRUE(its.client_is_over() && its.let_in() && !its.asked());
  EXPECT_EQ(of_client, cancel);
}

TEST_F(PostgresqlLogin, FailsWhereItIsEncrypted) {
  client(message("", number(80877103)));
  client("\x16\x03\x01");
  expect_failure(CloseReason::login_encrypted, "production's client speaks TLS");
}

TEST_F(PostgresqlLogin, FailsWhereTheClientSpeaksAnotherProtocol) {
  client("GET / HTTP/1.1\r\n");
  expect_failure(CloseReason::login_unsupported, "production's client does not speak PostgreSQL");
}

TEST_F(PostgresqlLogin, FailsWhereTheStartupPacketIsTooLong) {
  client(number(10'001) + number(3 << 16));
  expect_failure(CloseReason::login_unsupported, "production's client does not speak PostgreSQL");
}

TEST_F(PostgresqlLogin, FailsWhereTheShadowSaysNo) {
  start();
  shadow(request(3));
  shadow(message("E", text("SFATAL\0C28P01\0Mpassword authentication failed\0\0")));
  expect_failure(CloseReason::login_rejected, "password authentication failed (28P01)");
}

TEST_F(PostgresqlLogin, FailsWithoutCredentials) {
  client(message("", number(3 << 16) + text("user\0other\0\0")));
  its.take_messages();
  EXPECT_EQ(shadow(request(10, text("SCRAM-SHA-256\0\0"))), "");
  expect_failure(
      CloseReason::no_credentials,
      "it asks for a password of user other: name it in --credentials, under postgresql");
}

TEST_F(PostgresqlLogin, FailsWhereItIsAskedForGssapi) {
  start();
  shadow(request(7));
  expect_failure(CloseReason::login_unsupported,
                 "it asks user app for authentication 7, which is none of SCRAM-SHA-256, md5, "
                 "password and trust");
}

TEST_F(PostgresqlLogin, FailsWhereOnlyChannelBindingIsOffered) {
  start();
  shadow(request(10, text("SCRAM-SHA-256-PLUS\0\0")));
  expect_failure(CloseReason::login_unsupported,
                 "it offers no SCRAM-SHA-256 without channel binding");
}

TEST_F(PostgresqlLogin, FailsWhereTheShadowSpeaksAnotherProtocol) {
  start();
  shadow("HTTP/1.1 400 Bad Request\r\n");
  expect_failure(CloseReason::login_unsupported, "it does not speak PostgreSQL");
}

// ---- MySQL and MariaDB

const std::string nonce = "ABCDEFGHIJKLMNOPQRST";
constexpr uint32_t usual = 1 << 3 | 1 << 9 | 1 << 15 | 1 << 19 | 1 << 20 | 1 << 21;

TEST(MysqlProofs, AreKnownAnswers) {
  EXPECT_EQ(hex(mysql_native_password("secret", nonce)),
            "28441590674285e7d03cae7af237504797f70e91");
  EXPECT_EQ(hex(caching_sha2_password("secret", nonce)),
            "d721e183c1f036a196c1389201b8d53f38064a16f1d0923683ab886763152d75");
  EXPECT_EQ(mysql_native_password("", nonce), "");
}

std::string low_first(size_t value, size_t bytes) {
  std::string out;
  for (size_t i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

std::string packet(size_t number, const std::string& body) {
  return low_first(body.size(), 3) + low_first(number, 1) + body;
}

std::string greeting(const std::string& plugin, uint32_t capabilities = 0xffffffff) {
  return packet(0, text("\x0a"
                        "10.11.19-MariaDB\0") +
                       low_first(42, 4) + nonce.substr(0, 8) + text("\0") +
                       low_first(capabilities, 2) + "\x2d" + low_first(2, 2) +
                       low_first(capabilities >> 16, 2) + low_first(21, 1) + std::string(10, '\0') +
                       nonce.substr(8) + text("\0") + plugin + text("\0"));
}

std::string response(uint32_t capabilities, const std::string& proof, const std::string& plugin) {
  return packet(1, low_first(capabilities, 4) + low_first(1 << 24, 4) + "\x2d" +
                       std::string(23, '\0') + text("app\0") + low_first(proof.size(), 1) + proof +
                       text("shop\0") + plugin + text("\0") + "attributes");
}

class MysqlLogin : public Conversation<Mysql> {
 protected:
  MysqlLogin() { known.set(Protocol::mysql, "app", "secret"); }
  Mysql& module() override { return its; }
  // The client has proved a password of production's.
  void client_responds(uint32_t capabilities = usual) {
    client(response(capabilities, std::string(20, 'p'), "mysql_native_password"));
  }
  static std::string native_proof() { return mysql_native_password("secret", nonce); }

  Mysql its{known};
};

const std::string ok = text("\0\0\0\2\0\0\0");

TEST_F(MysqlLogin, ProvesThePasswordWhicheverSideSpeaksFirst) {
  client_responds();
  EXPECT_TRUE(its.asked());
  EXPECT_EQ(its.take_messages(), "");
  EXPECT_EQ(shadow(greeting("mysql_native_password")),
            response(usual, native_proof(), "mysql_native_password"));
  shadow(packet(2, ok));
  EXPECT_TRUE(its.let_in());
}

TEST_F(MysqlLogin, ProvesThePasswordOnceTheClientHasSaidWhoItIs) {
  EXPECT_EQ(shadow(greeting("mysql_native_password")), "");
  EXPECT_FALSE(its.asked());
  client_responds();
  EXPECT_EQ(its.take_messages(), response(usual, native_proof(), "mysql_native_password"));
}

TEST_F(MysqlLogin, ProvesThePasswordByCachingSha2) {
  client_responds();
  EXPECT_EQ(shadow(greeting("caching_sha2_password")),
            response(usual, caching_sha2_password("secret", nonce), "caching_sha2_password"));
  EXPECT_EQ(shadow(packet(2, "\1\3")), "");
  EXPECT_FALSE(its.let_in());
  shadow(packet(3, ok));
  EXPECT_TRUE(its.let_in());
}

TEST_F(MysqlLogin, FailsWhereCachingSha2HasNotCached) {
  client_responds();
  shadow(greeting("caching_sha2_password"));
  shadow(packet(2, "\1\4"));
  expect_failure(CloseReason::login_unsupported,
                 "it asks user app for more than a proof of the password by "
                 "caching_sha2_password: caching_sha2_password needs a login over TLS once before");
}

TEST_F(MysqlLogin, ProvesThePasswordAnewWhereTheUserHasAnotherWay) {
  client_responds();
  EXPECT_EQ(shadow(greeting("client_ed25519")),
            response(usual, native_proof(), "mysql_native_password"));
  const std::string other = "abcdefghijklmnopqrst";
  EXPECT_EQ(shadow(packet(2, text("\xfe"
                                  "caching_sha2_password\0") +
                                 other + text("\0"))),
            packet(3, caching_sha2_password("secret", other)));
  EXPECT_EQ(shadow(packet(4, text("\xfe"
                                  "mysql_native_password\0") +
                                 other + text("\0"))),
            packet(5, mysql_native_password("secret", other)));
  shadow(packet(6, text("\xfe"
                        "client_ed25519\0") +
                       other));
  expect_failure(CloseReason::login_unsupported,
                 "it asks user app for client_ed25519, which is none of mysql_native_password and "
                 "caching_sha2_password");
}

TEST_F(MysqlLogin, IsReadByteByByte) {
  std::string sent;
  for (const char each : greeting("mysql_native_password")) sent += shadow({each});
  for (const char each : response(usual, std::string(20, 'p'), "mysql_native_password"))
    client({each});
  EXPECT_EQ(its.take_messages(), response(usual, native_proof(), "mysql_native_password"));
  for (const char each : packet(2, ok)) sent += shadow({each});
  EXPECT_EQ(sent, "");
  EXPECT_TRUE(its.let_in());
}

TEST_F(MysqlLogin, OfTheClientsGoesAsFarAsItsNumbersGoOn) {
  const std::string query = packet(0, "\3select 1");
  client_responds();
  client(packet(3, std::string(20, 'p')) + packet(5, "").substr(0, 2));
  EXPECT_FALSE(its.client_is_over());
  client(packet(5, "").substr(2) + query.substr(0, 3));
  EXPECT_FALSE(its.client_is_over());
  client(query.substr(3));
  EXPECT_TRUE(its.client_is_over());
  EXPECT_EQ(of_client, query);
}

TEST_F(MysqlLogin, FailsWhereTheShadowSaysNo) {
  client_responds();
  shadow(greeting("mysql_native_password"));
  shadow(packet(2, "\xff" + low_first(1045, 2) + "#28000Access denied"));
  expect_failure(CloseReason::login_rejected, "Access denied (1045)");
}

TEST_F(MysqlLogin, FailsWhereTheShadowHasNoRoom) {
  shadow(packet(0, "\xff" + low_first(1040, 2) + "Too many connections"));
  expect_failure(CloseReason::login_rejected, "Too many connections (1040)");
}

TEST_F(MysqlLogin, FailsWithoutCredentialsWhereTheyAreNeeded) {
  const Credentials none;
  Mysql unknown(none);
  const std::string said = response(usual, std::string(20, 'p'), "mysql_native_password");
  unknown.client_said(bytes(said));
  unknown.shadow_said(bytes(greeting("mysql_native_password")));
  EXPECT_EQ(unknown.take_messages(), response(usual, "", "mysql_native_password"));
  const std::string denied = packet(2, "\xff" + low_first(1045, 2) + "#28000Access denied");
  unknown.shadow_said(bytes(denied));
  ASSERT_TRUE(unknown.failure());
  EXPECT_EQ(unknown.failure()->reason, CloseReason::no_credentials);
}

TEST_F(MysqlLogin, FailsWhereItIsEncrypted) {
  client(packet(1, low_first(usual | 1 << 11, 4) + std::string(28, '\0')));
  expect_failure(CloseReason::login_encrypted, "production's client speaks TLS");
}

TEST_F(MysqlLogin, FailsWhereTheClientCompresses) {
  client_responds(usual | 1 << 5);
  expect_failure(CloseReason::login_unsupported, "production's client compresses what it says");
}

TEST_F(MysqlLogin, FailsWhereQueriesHaveAttributesThatTheShadowDoesNotKnow) {
  client_responds(usual | 1 << 27);
  shadow(greeting("mysql_native_password", usual));
  expect_failure(
      CloseReason::login_unsupported,
      "production's client sends attributes with its queries, which it does not understand");
}

TEST_F(MysqlLogin, FailsWhereTheShadowSpeaksAnotherProtocol) {
  shadow("HTTP/1.1 400 Bad Request\r\n");
  expect_failure(CloseReason::login_unsupported, "it does not speak MySQL");
}

}  // namespace
}  // namespace trafficmirror::login
