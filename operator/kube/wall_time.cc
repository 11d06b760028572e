#include "operator/kube/wall_time.h"

#include <array>
#include <cstdio>
#include <ctime>
#include <string_view>

namespace trafficmirror::kube {
namespace {

std::string seconds_of(std::chrono::system_clock::time_point time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  return text.data();
}

}  // namespace

std::string to_text(std::chrono::system_clock::time_point time) {
  return seconds_of(time) + "Z";
}

std::string to_text_with_microseconds(std::chrono::system_clock::time_point time) {
  const auto whole = std::chrono::floor<std::chrono::seconds>(time);
  const auto rest = std::chrono::floor<std::chrono::microseconds>(time - whole);
  const std::string digits = std::to_string(1'000'000 + rest.count()).substr(1);
  return seconds_of(whole) + "." + digits + "Z";
}

std::optional<std::chrono::system_clock::time_point> time_of(const std::string& text) {
  std::tm parts{};
  const char* rest = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (!rest) return std::nullopt;
  std::chrono::microseconds fraction{0};
  if (*rest == '.') {
    std::chrono::microseconds unit{1'000'000};
    for (++rest; *rest >= '0' && *rest <= '9'; ++rest) fraction += (unit /= 10) * (*rest - '0');
  }
  if (std::string_view(rest) != "Z") return std::nullopt;
  return std::chrono::system_clock::from_time_t(timegm(&parts)) + fraction;
}

}  // namespace trafficmirror::kube
