// The file of --config, for CLI11.
#pragma once

#include <string>

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
class ParseError;
}  // namespace CLI

namespace trafficmirror::program {

// Makes `app` read the file that its config flag names as YAML. `describe` puts an error of a flag
// in words that begin with the flag.
void read_config_as_yaml(CLI::App& app, std::string (*describe)(const CLI::ParseError&));

}  // namespace trafficmirror::program
