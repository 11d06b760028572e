#include "operator/kube/yaml.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

#include <yaml-cpp/yaml.h>

#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

using program::StartError;

// An alias inside of what it names would have no end.
constexpr int deepest = 100;

template <typename Number>
bool parse_whole(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

Json scalar_of(const std::string& text) {
  // YAML 1.1, in the three ways to write each.
  constexpr std::array<std::pair<std::string_view, bool>, 6> booleans{{{"true", true},
                                                                       {"false", false},
                                                                       {"yes", true},
                                                                       {"no", false},
                                                                       {"on", true},
                                                                       {"off", false}}};
  const auto is = [&](std::string_view word) {
    std::string upper(word);
    std::transform(upper.begin(), upper.end(), upper.begin(),
                   [](char c) { return static_cast<char>(c - 'a' + 'A'); });
    return text == word || text == upper ||
           text == upper.substr(0, 1) + std::string(word.substr(1));
  };
  if (text.empty() || text == "~" || is("null")) return nullptr;
  for (const auto& [word, value] : booleans)
    if (is(word)) return value;
  int64_t whole = 0;
  if (parse_whole(text, whole)) return whole;
  double number = 0;
  // Not "inf" or "nan", which JSON has not.
  if (parse_whole(text, number) && std::isfinite(number)) return number;
  return text;
}

Json json_of(const YAML::Node& node, int depth) {
  if (depth > deepest)
    throw StartError("line " + std::to_string(node.Mark().line + 1) + ": this is nested too deep");
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      return nullptr;
    case YAML::NodeType::Scalar:
      return node.Tag() == "?" ? scalar_of(node.Scalar()) : Json(node.Scalar());
    case YAML::NodeType::Sequence: {
      Json list = Json::array();
      for (const YAML::Node& entry : node) list.push_back(json_of(entry, depth + 1));
      return list;
    }
    case YAML::NodeType::Map: {
      Json map = Json::object();
      for (const auto& entry : node) {
        if (!entry.first.IsScalar())
          throw StartError("line " + std::to_string(entry.first.Mark().line + 1) +
                           ": a key has to be a plain value");
        map[entry.first.Scalar()] = json_of(entry.second, depth + 1);
      }
      return map;
    }
  }
  return nullptr;
}

}  // namespace

Json json_of(const YAML::Node& node) {
  return json_of(node, 0);
}

std::vector<Json> parse_yaml(const std::string& text, const std::string& where) {
  std::vector<Json> documents;
  try {
    for (const YAML::Node& node : YAML::LoadAll(text))
      if (Json document = json_of(node); !document.is_null())
        documents.push_back(std::move(document));
  } catch (const YAML::Exception& error) {
    throw StartError(where + " line " + std::to_string(error.mark.line + 1) + ": " + error.msg);
  } catch (const StartError& error) {
    throw StartError(where + " " + error.what());
  }
  return documents;
}

}  // namespace trafficmirror::kube
