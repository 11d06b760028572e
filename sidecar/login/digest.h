// The digests that logins are made of.
#pragma once

#include <string>
#include <string_view>

namespace trafficmirror::login {

std::string md5_in_hex(std::string_view text);
std::string sha1(std::string_view text);
std::string sha256(std::string_view text);
std::string hmac_sha256(std::string_view key, std::string_view text);
// Of two of one length.
std::string exclusive_or(std::string_view one, std::string_view other);

}  // namespace trafficmirror::login
