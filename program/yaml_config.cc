#include "program/yaml_config.h"

#include <istream>
#include <memory>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <yaml-cpp/yaml.h>

namespace trafficmirror::program {
namespace {

// CLI11 lets --help and mistakes on the command line come before a FileError, so every mistake in
// the file is one.
[[noreturn]] void fail(const std::string& file, const YAML::Mark& mark,
                       const std::string& message) {
  const std::string line = mark.is_null() ? "" : " line " + std::to_string(mark.line + 1);
  throw CLI::FileError(file + line + ": " + message);
}

class YamlConfig : public CLI::Config {
 public:
  YamlConfig(CLI::App& app, std::string (*describe)(const CLI::ParseError&))
      : app_(app), describe_(describe) {}

  std::string to_config(const CLI::App* /*app*/, bool /*defaults*/, bool /*descriptions*/,
                        std::string /*prefix*/) const override {
    return "";
  }

  // Gives the values to their flags here, and not back to CLI11, because only here is it known on
  // which line a wrong one stands.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const auto file = app_.get_config_ptr()->as<std::string>();
    try {
      const YAML::Node root = YAML::Load(input);
      if (root.IsNull()) return {};
      if (!root.IsMap()) fail(file, root.Mark(), "this has to be a map of flags to values");
      std::set<std::string> seen;
      for (const auto& entry : root) {
        if (!entry.first.IsScalar())
          fail(file, entry.first.Mark(), "a key has to be a flag's name");
        const std::string& key = entry.first.Scalar();
        if (!seen.insert(key).second) fail(file, entry.first.Mark(), key + " is there twice");
        read_entry(file, key, entry.first.Mark(), entry.second);
      }
    } catch (const YAML::Exception& error) {
      fail(file, error.mark, error.msg);
    }
    return {};
  }

 private:
  void read_entry(const std::string& file, const std::string& key, const YAML::Mark& mark,
                  const YAML::Node& value) const {
    CLI::Option* option = app_.get_option_no_throw("--" + key);
    if (option == nullptr) fail(file, mark, key + " is not known; see --help");
    if (!option->get_configurable()) fail(file, mark, key + " can only be given as a flag");
    const std::vector<std::string> texts = read_texts(file, key, mark, value, *option);
    if (!option->empty()) return;  // it was given as a flag, which wins
    if (texts.empty()) return;     // an empty list: as if it was not there
    try {
      const bool takes_no_value = option->get_expected_min() == 0;
      for (const std::string& text : texts)
        option->add_result(takes_no_value ? option->get_flag_value(key, text) : text);
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      const std::string description = describe_(error);
      constexpr std::string_view dashes = "--";
      fail(file, value.Mark(),
           description.substr(0, dashes.size()) == dashes ? description.substr(dashes.size())
                                                          : description);
    }
  }

  static std::vector<std::string> read_texts(const std::string& file, const std::string& key,
                                             const YAML::Mark& mark, const YAML::Node& value,
                                             const CLI::Option& option) {
    if (value.IsScalar()) return {value.Scalar()};
    const bool takes_list = option.get_expected_max() > 1;
    if (!value.IsSequence() || (value.size() == 0 && !takes_list))
      fail(file, mark, key + (value.IsMap() ? " takes a value, not a map" : " has no value"));
    if (!takes_list) fail(file, mark, key + " takes one value, not a list");
    std::vector<std::string> texts;
    for (const YAML::Node& item : value) {
      if (!item.IsScalar()) fail(file, item.Mark(), key + " takes a list of plain values");
      texts.push_back(item.Scalar());
    }
    return texts;
  }

  CLI::App& app_;
  std::string (*describe_)(const CLI::ParseError&);
};

}  // namespace

void read_config_as_yaml(CLI::App& app, std::string (*describe)(const CLI::ParseError&)) {
  app.config_formatter(std::make_shared<YamlConfig>(app, describe));
}

}  // namespace trafficmirror::program
