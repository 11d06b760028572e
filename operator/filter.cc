#include "operator/filter.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <variant>

#include "net/address.h"
#include "program/flow_filter.h"

namespace trafficmirror::controller {
namespace {

// All that says something of a connection; whatever else libpcap knows is about other packets.
constexpr std::array<std::string_view, 15> words = {"and",  "or",        "not",   "src", "dst",
                                                    "host", "net",       "mask",  "ip",  "ip6",
                                                    "port", "portrange", "proto", "tcp", "udp"};

bool is_number(std::string_view text) {
  const bool hexadecimal = text.starts_with("0x");
  if (hexadecimal) text.remove_prefix(2);
  return !text.empty() &&
         text.find_first_not_of(hexadecimal ? "0123456789abcdefABCDEF" : "0123456789") ==
             std::string_view::npos;
}

// Two numbers with a dash between them.
bool is_range(std::string_view text) {
  const size_t dash = text.find('-');
  return dash != std::string_view::npos && is_number(text.substr(0, dash)) &&
         is_number(text.substr(dash + 1));
}

// An IPv4 network may be written by its first numbers: 10.1.
bool is_network(std::string_view text) {
  for (int parts = 1; parts <= 4; ++parts) {
    const size_t dot = text.find('.');
    if (!is_number(text.substr(0, dot))) return false;
    if (dot == std::string_view::npos) return true;
    text.remove_prefix(dot + 1);
  }
  return false;
}

}  // namespace

std::optional<std::string> problem_of_filter(const std::string& expression) {
  // What libpcap takes for one word, or less than that; with a backslash, a protocol's name.
  constexpr std::string_view of_words =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-\\";
  std::string_view rest = expression, before;
  while (true) {
    rest.remove_prefix(std::min(rest.find_first_of(of_words), rest.size()));
    if (rest.empty()) break;
    const std::string_view word = rest.substr(0, rest.find_first_not_of(of_words));
    rest.remove_prefix(word.size());
    const bool known = std::find(words.begin(), words.end(), word) != words.end() ||
                       is_number(word) || is_network(word) || net::IpAddress::parse(word) ||
                       (before == "portrange" && is_range(word));
    if (!known) {
      std::string all;
      for (const std::string_view each : words)
        all += (all.empty() ? "" : ", ") + std::string(each);
      return "has \"" + std::string(word) + "\": there may be addresses, numbers and the words " +
             all + ", but no names that would have to be looked up";
    }
    before = word;
  }
  auto compiled = program::FlowFilter::compile(expression);
  if (auto* problem = std::get_if<std::string>(&compiled)) return std::move(*problem);
  return std::nullopt;
}

}  // namespace trafficmirror::controller
