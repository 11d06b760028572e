// Base64 (RFC 4648, with padding), which is how JSON holds bytes.
#pragma once

#include <optional>
#include <string>

namespace trafficmirror::kube {

std::string encode_base64(const std::string& bytes);
// Line breaks and blanks do not matter. Nothing where `text` is no base64.
std::optional<std::string> decode_base64(std::string text);

}  // namespace trafficmirror::kube
