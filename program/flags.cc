#include "program/flags.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <limits>
#include <memory>
#include <set>
#include <sstream>
#include <tuple>
#include <utility>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <sys/stat.h>

#include "program/start_error.h"
#include "program/yaml_config.h"

namespace trafficmirror::program {
namespace {

struct Unit {
  std::string_view name;
  uint64_t factor;
};

// A number and the unit right behind it; nothing where it is 0 or more than `most`.
std::optional<uint64_t> parse_with_unit(std::string_view text, std::span<const Unit> units,
                                        uint64_t most) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number == 0) return std::nullopt;
  const std::string_view name = text.substr(static_cast<size_t>(end - text.data()));
  const auto unit =
      std::find_if(units.begin(), units.end(), [&](const Unit& u) { return u.name == name; });
  if (unit == units.end() || number > most / unit->factor) return std::nullopt;
  return number * unit->factor;
}

constexpr auto duration_units =
    std::to_array<Unit>({{"ms", 1}, {"s", 1000}, {"m", 60'000}, {"h", 3'600'000}});
constexpr auto size_units = std::to_array<Unit>({{"", 1},
                                                 {"Ti", 1ULL << 40},
                                                 {"Gi", 1ULL << 30},
                                                 {"Mi", 1ULL << 20},
                                                 {"Ki", 1ULL << 10},
                                                 {"T", 1'000'000'000'000},
                                                 {"G", 1'000'000'000},
                                                 {"M", 1'000'000},
                                                 {"K", 1000},
                                                 {"k", 1000}});

// The largest unit that divides it, as a person would write it.
std::string with_unit(uint64_t value, std::span<const Unit> units) {
  const Unit* best = nullptr;
  for (const Unit& unit : units)
    if (value % unit.factor == 0 && (best == nullptr || unit.factor > best->factor)) best = &unit;
  return best == nullptr ? std::to_string(value)
                         : std::to_string(value / best->factor) + std::string(best->name);
}

// CLI11's own writes the default between the flag and its help, where it reads like part of it.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(30); }

  std::string make_usage(const CLI::App* app, std::string /*name*/) const override {
    return "Usage: " + app->get_name() + " --flag value ...\n\n";
  }
  std::string make_group(std::string group, bool /*positional*/,
                         std::vector<const CLI::Option*> options) const override {
    std::string text = group + ":\n";
    for (const CLI::Option* option : options) text += make_option(option, false);
    return text;
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0 || option->get_type_name().empty()) return "";
    return " " + option->get_type_name();
  }
  std::string make_option_desc(const CLI::Option* option) const override {
    std::string text = option->get_description();
    if (option->get_required()) text += " (required)";
    if (option->get_expected_max() > 1) text += " (may be repeated)";
    if (!option->get_default_str().empty()) text += " (default " + option->get_default_str() + ")";
    return text;
  }
};

// An error of CLI11 in words that begin with the flag and end with what to do.
std::string describe(const CLI::ParseError& error) {
  std::string text = error.what();
  if (error.get_name() == "ValidationError") return text;  // add_text wrote it, or CLI11 the choice
  if (error.get_name() == "ConversionError") {
    // "Could not convert: --flag = text"
    constexpr std::string_view prefix = "Could not convert: ";
    if (text.compare(0, prefix.size(), prefix) == 0) text.erase(0, prefix.size());
    if (const size_t equals = text.find(" = "); equals != std::string::npos)
      text.replace(equals, 3, " ");
    return text + " is not a value it takes; see --help";
  }
  if (error.get_name() == "ArgumentMismatch") {
    // "--flag: 1 required TEXT missing", "--flag: At Most 1 required but received 2"
    const std::string flag = text.substr(0, text.find(':'));
    if (text.find("missing") != std::string::npos) return flag + " needs a value; see --help";
    if (text.find("At Most 1") != std::string::npos) return flag + " is given twice; give it once";
  }
  return text + "; see --help";
}

std::string describe_unknown(const std::vector<std::string>& arguments) {
  const auto flag = std::find_if(arguments.begin(), arguments.end(),
                                 [](const std::string& text) { return text.starts_with('-'); });
  if (flag != arguments.end())
    return flag->substr(0, flag->find('=')) + " is not known; see --help";
  const bool nothing_to_name = arguments.empty() || arguments.front().empty();
  return (nothing_to_name ? "an argument" : arguments.front()) + " belongs to no flag; see --help";
}

CLI::Option* finish(CLI::Option* option, const std::string& form, const std::string& default_text) {
  option->type_name(form);
  if (!default_text.empty()) option->default_str(default_text);
  return option;
}

// What is wrong, if anything. --help and --version leave it as a CLI::Success.
std::optional<std::string> parse(CLI::App& app, int argc, const char* const* argv) {
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::Success&) {
    throw;
  } catch (const CLI::ExtrasError&) {
    return describe_unknown(app.remaining(true));  // of subcommands, too
  } catch (const CLI::FileError& error) {
    return std::string("--config ") + error.what();
  } catch (const CLI::ParseError& error) {
    return describe(error);
  }
}

void take(const std::string& name, const Accept& accept, const std::string& text) {
  const auto wrong = accept(text);
  if (!wrong) return;
  // "--port --config x": CLI11 takes the next flag for the value.
  if (text.starts_with("--")) throw CLI::ValidationError(name + " needs a value; see --help");
  throw CLI::ValidationError(name + " " + text + ": " + *wrong);
}

constexpr const char* observing = "Watching it";

void add_log_flags(CLI::App& app, CommonOptions& options) {
  const auto add_choice = [&](const std::string& name, std::string& value, const std::string& help,
                              const std::vector<std::string>& choices) {
    const std::string all = CLI::detail::join(choices, "|");
    add_text(app, name, all, value, help,
             [&value, choices, all](const std::string& text) -> std::optional<std::string> {
               if (std::find(choices.begin(), choices.end(), text) == choices.end())
                 return "choose one of " + all;
               value = text;
               return std::nullopt;
             })
        ->group(observing);
  };
  add_choice("--log-format", options.log_format, "form of the log lines on stderr",
             {"text", "json"});
  add_choice("--log-level", options.log_level, "least weight of a line that is logged",
             {"trace", "debug", "info", "warning", "error"});
}

}  // namespace

std::optional<std::chrono::milliseconds> parse_duration(std::string_view text) {
  const auto value = parse_with_unit(text, duration_units, longest_duration.count());
  if (!value) return std::nullopt;
  return std::chrono::milliseconds(*value);
}

std::optional<uint64_t> parse_size(std::string_view text) {
  return parse_with_unit(text, size_units, std::numeric_limits<int64_t>::max());
}

std::string to_text(const net::HostPort& value) {
  if (value.host.empty()) return "";
  const bool literal_ipv6 = value.host.find(':') != std::string::npos;
  return (literal_ipv6 ? "[" + value.host + "]" : value.host) + ":" +
         std::to_string(value.port.number);
}

CLI::Option* add_text(CLI::App& app, const std::string& name, const std::string& form,
                      const std::string& default_text, const std::string& help, Accept accept) {
  return finish(
      app.add_option_function<std::string>(
          name,
          [name, accept = std::move(accept)](const std::string& text) { take(name, accept, text); },
          help),
      form, default_text);
}

CLI::Option* add_name(CLI::App& app, const std::string& name, const std::string& form,
                      std::string& value, const std::string& help) {
  return add_text(app, name, form, value, help,
                  [&value](const std::string& text) -> std::optional<std::string> {
                    if (text.empty()) return "is empty";
                    value = text;
                    return std::nullopt;
                  });
}

CLI::Option* add_repeated_text(CLI::App& app, const std::string& name, const std::string& form,
                               const std::string& help, Accept accept) {
  CLI::Option* option = app.add_option_function<std::vector<std::string>>(
      name,
      [name, accept = std::move(accept)](const std::vector<std::string>& texts) {
        for (const std::string& text : texts) take(name, accept, text);
      },
      help);
  option->allow_extra_args(false);  // each value has its own flag
  return finish(option, form, "");
}

CLI::Option* add_duration(CLI::App& app, const std::string& name, std::chrono::milliseconds& value,
                          const std::string& help) {
  const auto count = static_cast<uint64_t>(value.count());
  return add_text(app, name, "DURATION", count == 0 ? "" : with_unit(count, duration_units), help,
                  [&value](const std::string& text) -> std::optional<std::string> {
                    const auto parsed = parse_duration(text);
                    if (!parsed) return "is no duration; write it like 500ms, 60s, 5m or 2h";
                    value = *parsed;
                    return std::nullopt;
                  });
}

CLI::Option* add_size(CLI::App& app, const std::string& name, uint64_t& bytes,
                      const std::string& help, uint64_t least) {
  return add_text(app, name, "SIZE", bytes == 0 ? "" : with_unit(bytes, size_units), help,
                  [&bytes, least](const std::string& text) -> std::optional<std::string> {
                    const auto parsed = parse_size(text);
                    if (!parsed) return "is no size; write it like 64Mi, 64M or a number of bytes";
                    if (*parsed < least)
                      return "is too small; write " + with_unit(least, size_units) + " or more";
                    bytes = *parsed;
                    return std::nullopt;
                  });
}

CLI::Option* add_host_port(CLI::App& app, const std::string& name, net::HostPort& value,
                           const std::string& help) {
  return add_text(app, name, "HOST:PORT", to_text(value), help,
                  [&value](const std::string& text) -> std::optional<std::string> {
                    auto parsed = net::HostPort::parse(text);
                    if (!parsed)
                      return "is no host and port; write it like 10.0.0.7:80 or [::1]:80";
                    value = std::move(*parsed);
                    return std::nullopt;
                  });
}

CLI::Option* add_ports(CLI::App& app, const std::string& name,
                       std::vector<net::ProductionPort>& ports, const std::string& help) {
  return add_repeated_text(
      app, name, "PORT", help, [&ports](const std::string& text) -> std::optional<std::string> {
        const auto port = net::ProductionPort::parse(text);
        if (!port) return "is no port; write a number from 1 to 65535, or one like 53/udp";
        ports.push_back(*port);
        return std::nullopt;
      });
}

CommonOptions log_options(int argc, const char* const* argv) {
  CommonOptions options;
  CLI::App app;
  app.allow_extras();
  app.set_help_flag();
  add_log_flags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Error&) {  // what was read before it counts
  }
  return options;
}

void add_common_flags(CLI::App& app, CommonOptions& options) {
  app.formatter(std::make_shared<HelpFormatter>());

  add_host_port(app, "--http", options.http, "where /healthz, /readyz and /metrics are served")
      ->group(observing);
  add_log_flags(app, options);

  const char* const general = "General";
  app.set_config("--config", "",
                 "YAML file with any of these flags as keys, without the dashes; a flag given here "
                 "wins")
      ->type_name("FILE")
      ->group(general);
  read_config_as_yaml(app, describe);
  app.set_help_flag("-h,--help", "print this and exit")->group(general);
  app.set_version_flag("--version", app.get_name() + " " + TRAFFICMIRROR_VERSION,
                       "print the version and exit")
      ->group(general);
}

std::optional<int> parse_flags(CLI::App& app, int argc, const char* const* argv) {
  try {
    const auto wrong = parse(app, argc, argv);
    return wrong ? std::optional(refuse_to_start(app.get_name(), *wrong)) : std::nullopt;
  } catch (const CLI::Success& success) {  // --help and --version
    return app.exit(success);
  }
}

std::string config_file(const CLI::App& app) {
  const CLI::Option* option = app.get_config_ptr();
  const std::string path = option->empty() ? "" : option->as<std::string>();
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) ? path : "";
}

std::optional<std::string> parse_flags_again(CLI::App& app, int argc, const char* const* argv) {
  return parse(app, argc, argv);
}

Given given(const CLI::App& app) {
  Given all;
  for (const CLI::Option* option : app.get_options())
    if (!option->empty() && !option->get_lnames().empty())
      all[option->get_lnames().front()] = option->results();
  return all;
}

std::string differences(const Given& one, const Given& other,
                        const std::vector<std::string>& followed) {
  std::set<std::string> names;
  for (const auto& [these, those] : {std::tie(one, other), std::tie(other, one)}) {
    for (const auto& [name, texts] : these) {
      const auto found = those.find(name);
      if (found == those.end() || found->second != texts) names.insert(name);
    }
  }
  for (const std::string& name : followed) names.erase(name);
  return CLI::detail::join(names, ", ");
}

bool ChangingFile::changed() {
  std::ifstream file(path_);
  std::ostringstream text;
  text << file.rdbuf();
  std::optional<std::string> now;
  if (file) now = text.str();
  if (asked_ && last_ == now) return false;
  asked_ = true;
  last_ = std::move(now);
  return true;
}

}  // namespace trafficmirror::program
