// SCRAM-SHA-256 (RFC 5802, RFC 7677) of a client, without channel binding.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace trafficmirror::login {

// What is made of a password, a salt and thousands of rounds. A server has one salt for each user,
// so the last one of each is kept: it would cost a millisecond for every login.
class ScramKeys {
 public:
  // More would hold up everything else.
  static constexpr uint32_t most_iterations = 100'000;

  const std::string& salted_password(const std::string& password, const std::string& salt,
                                     uint32_t iterations);

 private:
  struct Entry {
    std::string salt;
    uint32_t iterations = 0;
    std::string salted;
  };
  std::map<std::string, Entry> of_password_;
};

// 18 random bytes in base64.
std::string scram_nonce();

class Scram {
 public:
  // An empty user where the server knows it already. `nonce` is printable, without a comma.
  Scram(const std::string& user, std::string nonce);

  std::string client_first() const { return "n,," + first_; }
  // The answer to the server's first message, or what is wrong with that. A password of other
  // characters than ASCII is taken as it stands (RFC 4013 changes few).
  std::variant<std::string, const char*> client_final(std::string_view server_first,
                                                      const std::string& password,
                                                      ScramKeys& keys) const;

 private:
  std::string nonce_;
  std::string first_;  // client-first-message-bare
};

}  // namespace trafficmirror::login
