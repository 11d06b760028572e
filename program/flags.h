// program/ holds what both programs have in common around their work: flags and the configuration
// file, one-line start errors, logs, the HTTP server for probes and metrics, and the stop signal.
//
// This header: flags. Each flag is also a key of the YAML file given with --config, without its
// dashes; where both are given, the flag wins. A mistake in either is one line that names the flag,
// or the file, line and key, and says what to do.
//
//   CLI::App app("Copies live TCP traffic to an intercept.", "trafficmirror-sidecar");
//   CommonOptions common{.http = {"127.0.0.1", {19464}}};
//   add_host_port(app, "--intercept", intercept, "where the intercept listens")->required();
//   add_common_flags(app, common);
//   app.footer("Example:\n  trafficmirror-sidecar --port 8080 --intercept 10.0.0.7:7443");
//   if (const auto exit_code = parse_flags(app, argc, argv)) return *exit_code;
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "net/address.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 chose the name
class App;
class Option;
}  // namespace CLI

namespace trafficmirror::program {

struct CommonOptions {
  net::HostPort http;
  std::string log_format = "text";  // or "json"
  std::string log_level = "info";   // trace, debug, info, warning or error
};

// All the functions below that take a variable fill it in while parse_flags runs, and it has to
// live that long. What it holds beforehand is the default that --help shows.

// --http, --log-format, --log-level, --config, --version and --help. The app's name is the
// program's.
void add_common_flags(CLI::App& app, CommonOptions& options);

// --log-format and --log-level alone, for a process that takes no other part of the command line
// and leaves what is wrong with it to the one that does.
CommonOptions log_options(int argc, const char* const* argv);

// Far from where times counted in microseconds overflow.
inline constexpr std::chrono::milliseconds longest_duration = std::chrono::hours(10 * 365 * 24);

// A length of time, longer than nothing and up to ten years: 500ms, 60s, 5m, 2h.
CLI::Option* add_duration(CLI::App& app, const std::string& name, std::chrono::milliseconds& value,
                          const std::string& help);

// A number of bytes, more than none: 4096, 64M (10^6), 64Mi (2^20), with K, M, G or T; not below
// `least`.
CLI::Option* add_size(CLI::App& app, const std::string& name, uint64_t& bytes,
                      const std::string& help, uint64_t least = 1);

// HOST:PORT; an empty host in `value` means that there is no default.
CLI::Option* add_host_port(CLI::App& app, const std::string& name, net::HostPort& value,
                           const std::string& help);

// Ports such as 8080 or 53/udp; the flag may be repeated, and its key takes one or a list.
CLI::Option* add_ports(CLI::App& app, const std::string& name,
                       std::vector<net::ProductionPort>& ports, const std::string& help);

// A flag of any other form, written `form` in --help. `accept` takes its text over, and returns
// what is wrong with it where it can't, to be read behind "--flag TEXT: ".
using Accept = std::function<std::optional<std::string>(const std::string& text)>;
CLI::Option* add_text(CLI::App& app, const std::string& name, const std::string& form,
                      const std::string& default_text, const std::string& help, Accept accept);
// A name, such as a file's: any text but an empty one, which is mostly a variable of a script that
// was not set.
CLI::Option* add_name(CLI::App& app, const std::string& name, const std::string& form,
                      std::string& value, const std::string& help);
// The same as add_text for a flag that may be repeated, as a list in the file; `accept` is called
// for each.
CLI::Option* add_repeated_text(CLI::App& app, const std::string& name, const std::string& form,
                               const std::string& help, Accept accept);

// Reads the command line and the file. Nothing: go on. Otherwise the program's exit code: 0 after
// --help or --version, 2 after a mistake, which stands in one line on stderr.
std::optional<int> parse_flags(CLI::App& app, int argc, const char* const* argv);

// The path given with --config; empty where there is none, or one that can't be read a second time,
// such as a pipe. For behind parse_flags.
std::string config_file(const CLI::App& app);

// Reads the same command line once more, into another app and other variables, since the file may
// hold something else now. Nothing, or what is wrong, in one line.
std::optional<std::string> parse_flags_again(CLI::App& app, int argc, const char* const* argv);

// What each flag was given on the command line or in the file, by its name without dashes.
using Given = std::map<std::string, std::vector<std::string>>;
Given given(const CLI::App& app);
// The flags that are given otherwise in one than in the other, but for those that are `followed`:
// "http, interface". Empty where there are none.
std::string differences(const Given& one, const Given& other,
                        const std::vector<std::string>& followed);

// A file that is asked now and then whether it holds something else. It counts as changed when it
// is asked for the first time, and when it can't be read any more.
class ChangingFile {
 public:
  explicit ChangingFile(std::string path) : path_(std::move(path)) {}
  bool changed();

 private:
  const std::string path_;
  bool asked_ = false;
  std::optional<std::string> last_;  // nothing where it could not be read
};

// The forms that the flags above take.
std::optional<std::chrono::milliseconds> parse_duration(std::string_view text);
std::optional<uint64_t> parse_size(std::string_view text);
// "10.0.0.7:80" or "[::1]:80"; "" for no host.
std::string to_text(const net::HostPort& value);

}  // namespace trafficmirror::program
