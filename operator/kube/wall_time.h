// The time of day as it stands in objects.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace trafficmirror::kube {

// RFC 3339, UTC: "2026-01-31T23:59:59Z", and with microseconds "2026-01-31T23:59:59.000001Z".
std::string to_text(std::chrono::system_clock::time_point time);
std::string to_text_with_microseconds(std::chrono::system_clock::time_point time);

// Either of these forms again, with any fraction of a second; nothing where `text` is another.
std::optional<std::chrono::system_clock::time_point> time_of(const std::string& text);

}  // namespace trafficmirror::kube
