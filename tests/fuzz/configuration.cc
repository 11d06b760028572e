// What an operator writes: the YAML file, the command line and the forms that flags take. A mistake
// is one line and exit code 2; what is accepted means the same when it is written again.
#include <iostream>
#include <sstream>
#include <vector>

#include <CLI/CLI.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include "intercept/kernel_state.h"
#include "intercept/options.h"
#include "net/address.h"
#include "program/flags.h"
#include "sidecar/session/time.h"
#include "tests/fuzz/fuzz.h"

namespace trafficmirror::fuzz {
namespace {

// A file in memory, used again for each input.
class File {
 public:
  File() : descriptor_(::memfd_create("configuration", 0)) {}
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  std::string fill(std::string_view text) const {
    require(::ftruncate(descriptor_, 0) == 0 && ::pwrite(descriptor_, text.data(), text.size(),
                                                         0) == static_cast<ssize_t>(text.size()),
            "a file in memory can be written");
    return "/proc/self/fd/" + std::to_string(descriptor_);
  }

 private:
  int descriptor_;
};

// What is written to the stream while this is there.
class Captured {
 public:
  explicit Captured(std::ostream& stream) : stream_(stream), before_(stream.rdbuf(text_.rdbuf())) {}
  ~Captured() { stream_.rdbuf(before_); }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::ostream& stream_;
  std::streambuf* before_;
};

void parse_program(const std::vector<std::string>& arguments) {
  program::CommonOptions common{.http = {"127.0.0.1", {19464}}};
  net::HostPort intercept;
  std::vector<net::ProductionPort> ports;
  std::chrono::milliseconds timeout = std::chrono::seconds(60);
  uint64_t memory = 64 << 20;
  intercept::PortRange source_ports;
  std::string interface;
  bool dry = false;
  CLI::App app("Copies live TCP traffic.", "program");
  program::add_host_port(app, "--intercept", intercept, "where the intercept listens");
  program::add_ports(app, "--port", ports, "production port");
  program::add_duration(app, "--idle-timeout", timeout, "when a quiet session ends");
  program::add_size(app, "--memory-limit", memory, "what the engine may hold");
  program::add_text(
      app, "--source-ports", "FIRST-LAST", "10000-32767", "ports of sessions",
      [&](const std::string& text) { return intercept::accept_source_ports(text, source_ports); });
  app.add_option("--interface", interface, "interface to copy from");
  app.add_flag("--dry", dry, "a flag of CLI11's own");
  program::add_common_flags(app, common);

  std::vector<const char*> argv{"program"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  const Captured out(std::cout);
  const Captured error(std::cerr);
  const auto exit_code = program::parse_flags(app, static_cast<int>(argv.size()), argv.data());
  if (!exit_code) {
    for (const net::ProductionPort port : ports) require(port.number != 0, "a port is not 0");
    require(timeout.count() > 0 && memory > 0, "timeouts and sizes are more than nothing");
    require(error.text().empty(), "what is right is not complained about");
    return;
  }
  require(*exit_code == 0 || *exit_code == 2, "the exit code is 0 or 2");
  if (*exit_code == 0) return;
  const std::string text = error.text();
  require(text.starts_with("program: ") && text.find('\n') == text.size() - 1,
          "a mistake is one line");
}

void fuzz_file(Input& input) {
  static const File file;
  parse_program({"--config", file.fill(as_text(input.rest()))});
}

void fuzz_command_line(Input& input) {
  std::vector<std::string> arguments;
  std::string text(as_text(input.rest()));
  std::istringstream lines(text);
  for (std::string line; arguments.size() < 20 && std::getline(lines, line);) {
    // Another file than the one above is none of this test's.
    if (line.find("config") == std::string::npos) arguments.emplace_back(line.c_str());
  }
  parse_program(arguments);
}

void fuzz_forms(const std::string& text) {
  if (const auto duration = program::parse_duration(text)) {
    require(duration->count() > 0, "a duration is more than nothing");
    // As the engine adds it to a time.
    require(session::Time(std::chrono::hours(24 * 365 * 100)) + session::Duration(*duration) >
                session::Time(),
            "a duration can be counted in microseconds");
  }
  if (const auto size = program::parse_size(text))
    require(*size > 0, "a size is more than nothing");
  if (const auto split = net::HostPort::parse(text)) {
    require(!split->host.empty() && split->port.number != 0, "both parts are there");
    const auto again = net::HostPort::parse(program::to_text(*split));
    require(again && again->host == split->host && again->port == split->port,
            "a host and port is written as it is read");
    require(split->host.find('\0') == std::string::npos, "a host is text");
  }
  if (const auto endpoint = net::Endpoint::parse(text)) {
    require(net::Endpoint::parse(endpoint->to_string()) == endpoint,
            "an endpoint is written as it is read");
    require(text.find('\0') == std::string::npos, "an endpoint is text");
  }
}

void fuzz_intercept_forms(const std::string& text) {
  intercept::PortRange range;
  if (!intercept::accept_source_ports(text, range))
    require(range.first >= 1024 && range.first < range.last, "a range is at least two ports");

  // Only where no name has to be looked up.
  const size_t equals = text.find('=');
  const auto to = equals == std::string::npos
                      ? std::nullopt
                      : net::HostPort::parse(std::string_view(text).substr(equals + 1));
  if (!to || net::IpAddress::parse(to->host)) {
    std::vector<intercept::Target> targets;
    if (!intercept::accept_target(text, targets)) {
      require(targets.size() == 1 && targets[0].production_port != 0 &&
                  targets[0].endpoint.port.number != 0,
              "a target has both ports");
      require(targets[0].endpoint.address == *net::IpAddress::parse(to->host),
              "a target is the address that stands there");
      require(intercept::accept_target(text, targets).has_value(), "a target is there once");
    }
  }

  const std::vector<bool> ports = intercept::parse_port_list(text);
  require(ports.size() == 0x10000, "there are 65536 ports");
  require(intercept::parse_port_list(intercept::format_port_list(ports)) == ports,
          "a list of ports is written as it is read");
}

}  // namespace
}  // namespace trafficmirror::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trafficmirror::fuzz;
  Input input({data, size});
  switch (input.u8() % 4) {
    case 0:
      fuzz_file(input);
      break;
    case 1:
      fuzz_command_line(input);
      break;
    case 2:
      fuzz_forms(std::string(as_text(input.rest())));
      break;
    default:
      fuzz_intercept_forms(std::string(as_text(input.rest())));
  }
  return 0;
}
