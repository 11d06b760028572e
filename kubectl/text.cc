#include "kubectl/text.h"

#include <algorithm>

namespace trafficmirror::kubectl {

using kube::Json;

std::string with_commas(int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && digits[i - 1] != '-') text += ',';
    text += digits[i];
  }
  return text;
}

std::string age_of(std::chrono::seconds length) {
  const int64_t seconds = std::max<int64_t>(length.count(), 0);
  constexpr int64_t minute = 60, hour = 3600, day = 86400;
  if (seconds < 2 * minute) return std::to_string(seconds) + "s";
  if (seconds < 2 * hour) return std::to_string(seconds / minute) + "m";
  if (seconds < 2 * day) return std::to_string(seconds / hour) + "h";
  return std::to_string(seconds / day) + "d";
}

std::string counted(size_t count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

std::string list_of(const std::vector<std::string>& names) {
  constexpr size_t most = 3;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), most); ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text;
}

std::string selector_text(const Json& selector) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ",") + part; };
  if (selector.contains("matchLabels"))
    for (const auto& [key, value] : selector["matchLabels"].items())
      add(key + "=" + value.get<std::string>());
  if (selector.contains("matchExpressions"))
    for (const Json& requirement : selector["matchExpressions"]) {
      const std::string key = requirement.value("key", ""), op = requirement.value("operator", "");
      std::string values;
      for (const Json& value : requirement.value("values", Json::array()))
        values += (values.empty() ? "" : ",") + value.get<std::string>();
      if (op == "Exists")
        add(key);
      else if (op == "DoesNotExist")
        add("!" + key);
      else
        add(key + (op == "In" ? " in (" : " notin (") + values + ")");
    }
  return text.empty() ? "any" : text;
}

std::string table_of(const std::vector<std::vector<std::string>>& rows,
                     const std::string& indentation) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t i = 0; i + 1 < row.size(); ++i) {
      if (widths.size() <= i) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  std::string text;
  for (const auto& row : rows) {
    text += indentation;
    for (size_t i = 0; i < row.size(); ++i) {
      text += row[i];
      if (i + 1 < row.size()) text += std::string(widths[i] - row[i].size() + 2, ' ');
    }
    text += '\n';
  }
  return text;
}

}  // namespace trafficmirror::kubectl
