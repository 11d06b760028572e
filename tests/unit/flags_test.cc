#include "program/flags.h"

#include <array>
#include <cstdio>
#include <fstream>
#include <variant>

#include <CLI/App.hpp>
#include <gtest/gtest.h>

#include "program/limits.h"

namespace trafficmirror::program {
namespace {

// A file of its own for each test, gone with this object.
class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text)
      : path_(testing::TempDir() + "flags_test_" +
              testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml") {
    std::ofstream(path_) << text;
  }
  ~ConfigFile() { std::remove(path_.c_str()); }
  ConfigFile(const ConfigFile&) = delete;
  ConfigFile& operator=(const ConfigFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Parsed {
  std::optional<int> exit_code;
  std::string out;
  std::string error;
  CommonOptions common{.http = {"127.0.0.1", {19464}}};
  net::HostPort intercept;
  std::vector<net::ProductionPort> ports;
  std::chrono::milliseconds idle_timeout = std::chrono::seconds(60);
  uint64_t memory_limit = 64 << 20;
  int count = 1;
  bool dry = false;
};

// With `file`, its path is given as --config in front of the arguments.
Parsed parse(std::vector<std::string> arguments, const ConfigFile* file = nullptr) {
  Parsed parsed;
  CLI::App app("Copies live TCP traffic.", "trafficmirror-sidecar");
  add_host_port(app, "--intercept", parsed.intercept, "where the intercept listens")->required();
  add_ports(app, "--port", parsed.ports, "production port");
  add_duration(app, "--idle-timeout", parsed.idle_timeout, "when a quiet session ends");
  add_size(app, "--memory-limit", parsed.memory_limit, "what the engine may hold");
  app.add_option("--count", parsed.count, "an option of CLI11's own");
  app.add_flag("--dry", parsed.dry, "a flag of CLI11's own");
  add_common_flags(app, parsed.common);
  app.footer("Example:\n  trafficmirror-sidecar --port 8080 --intercept 10.0.0.7:7443");

  if (file != nullptr) arguments.insert(arguments.begin(), {"--config", file->path()});
  std::vector<const char*> argv{"ignored"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  parsed.exit_code = parse_flags(app, static_cast<int>(argv.size()), argv.data());
  parsed.out = testing::internal::GetCapturedStdout();
  parsed.error = testing::internal::GetCapturedStderr();
  return parsed;
}

const std::vector<std::string> required = {"--intercept", "10.0.0.7:7443"};

std::vector<std::string> with_required(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), required.begin(), required.end());
  return arguments;
}

TEST(Flags, FillInTheirVariables) {
  const Parsed parsed =
      parse({"--intercept", "[fd00::7]:7443", "--port", "80", "--port=8080", "--idle-timeout", "5m",
             "--memory-limit", "1Gi", "--http", "0.0.0.0:9464", "--log-format", "json",
             "--log-level=debug", "--count", "3", "--dry"});
  EXPECT_FALSE(parsed.exit_code) << parsed.error;
  EXPECT_EQ(to_text(parsed.intercept), "[fd00::7]:7443");
  EXPECT_EQ(parsed.ports, (std::vector<net::ProductionPort>{{80}, {8080}}));
  EXPECT_EQ(parsed.idle_timeout, std::chrono::minutes(5));
  EXPECT_EQ(parsed.memory_limit, 1ULL << 30);
  EXPECT_EQ(to_text(parsed.common.http), "0.0.0.0:9464");
  EXPECT_EQ(parsed.common.log_format, "json");
  EXPECT_EQ(parsed.common.log_level, "debug");
  EXPECT_EQ(parsed.count, 3);
  EXPECT_TRUE(parsed.dry);
}

TEST(Flags, LeaveTheDefaultsWhereTheyAreNotGiven) {
  const Parsed parsed = parse(required);
  EXPECT_FALSE(parsed.exit_code) << parsed.error;
  EXPECT_TRUE(parsed.ports.empty());
  EXPECT_EQ(parsed.idle_timeout, std::chrono::seconds(60));
  EXPECT_EQ(parsed.memory_limit, 64ULL << 20);
  EXPECT_EQ(to_text(parsed.common.http), "127.0.0.1:19464");
  EXPECT_EQ(parsed.common.log_format, "text");
}

TEST(Flags, AreKeysOfTheFile) {
  const ConfigFile file(
      "# a comment\n"
      "intercept: 10.0.0.7:7443\n"
      "port: [80, 8080]\n"
      "idle-timeout: 500ms\n"
      "memory-limit: 4096\n"
      "log-format: json\n"
      "count: 7\n"
      "dry: true\n");
  const Parsed parsed = parse({}, &file);
  EXPECT_FALSE(parsed.exit_code) << parsed.error;
  EXPECT_EQ(to_text(parsed.intercept), "10.0.0.7:7443");
  EXPECT_EQ(parsed.ports, (std::vector<net::ProductionPort>{{80}, {8080}}));
  EXPECT_EQ(parsed.idle_timeout, std::chrono::milliseconds(500));
  EXPECT_EQ(parsed.memory_limit, 4096);
  EXPECT_EQ(parsed.common.log_format, "json");
  EXPECT_EQ(parsed.count, 7);
  EXPECT_TRUE(parsed.dry);
}

TEST(Flags, WinOverTheFile) {
  const ConfigFile file("port: [80, 81]\nidle-timeout: 1s\nlog-level: error\ncount: 7\n");
  const Parsed parsed = parse(with_required({"--port", "8080", "--idle-timeout", "2h"}), &file);
  EXPECT_FALSE(parsed.exit_code) << parsed.error;
  EXPECT_EQ(parsed.ports, (std::vector<net::ProductionPort>{{8080}}));
  EXPECT_EQ(parsed.idle_timeout, std::chrono::hours(2));
  EXPECT_EQ(parsed.common.log_level, "error");
  EXPECT_EQ(parsed.count, 7);
}

TEST(Flags, AnEmptyFileSaysNothing) {
  for (const char* text : {"", "# nothing yet\n", "---\n"}) {
    const ConfigFile file(text);
    EXPECT_FALSE(parse(required, &file).exit_code) << text;
  }
}

TEST(Flags, AMistakeIsOneLineThatSaysWhatToDo) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "--intercept is required; see --help"},
      {with_required({"--frobnicate"}), "--frobnicate is not known; see --help"},
      {with_required({"--frobnicate", "3"}), "--frobnicate is not known; see --help"},
      {with_required({"--frobnicate=3"}), "--frobnicate is not known; see --help"},
      {with_required({"-x"}), "-x is not known; see --help"},
      {with_required({"8080"}), "8080 belongs to no flag; see --help"},
      {with_required({""}), "an argument belongs to no flag; see --help"},
      {with_required({"--port", "80", "81"}), "81 belongs to no flag; see --help"},
      {with_required({"--port"}), "--port needs a value; see --help"},
      {with_required({"--port", "--dry"}), "--port needs a value; see --help"},
      {with_required({"--count"}), "--count needs a value; see --help"},
      {with_required({"--http"}), "--http needs a value; see --help"},
      {with_required({"--http", "a:1", "--http", "b:1"}), "--http is given twice; give it once"},
      {with_required({"--port", "http"}),
       "--port http: is no port; write a number from 1 to 65535, or one like 53/udp"},
      {with_required({"--port", "65536"}),
       "--port 65536: is no port; write a number from 1 to 65535, or one like 53/udp"},
      {with_required({"--port", "53/sctp"}),
       "--port 53/sctp: is no port; write a number from 1 to 65535, or one like 53/udp"},
      {with_required({"--port", "x/udp"}),
       "--port x/udp: is no port; write a number from 1 to 65535, or one like 53/udp"},
      {{"--intercept", "10.0.0.7"},
       "--intercept 10.0.0.7: is no host and port; write it like 10.0.0.7:80 or [::1]:80"},
      {with_required({"--idle-timeout", "60"}),
       "--idle-timeout 60: is no duration; write it like 500ms, 60s, 5m or 2h"},
      {with_required({"--memory-limit", "64MB"}),
       "--memory-limit 64MB: is no size; write it like 64Mi, 64M or a number of bytes"},
      {with_required({"--log-format", "xml"}), "--log-format xml: choose one of text|json"},
      {with_required({"--log-level", "loud"}),
       "--log-level loud: choose one of trace|debug|info|warning|error"},
      {with_required({"--count", "many"}), "--count many is not a value it takes; see --help"},
      {with_required({"--config", "/nowhere.yaml"}),
       "--config /nowhere.yaml was not readable (missing?)"},
      {with_required({"--config", "/"}), "--config / was not readable (missing?)"},
  };
  for (const auto& [arguments, message] : cases) {
    const Parsed parsed = parse(arguments);
    EXPECT_EQ(parsed.exit_code, 2) << message;
    EXPECT_EQ(parsed.error, "trafficmirror-sidecar: " + message + "\n");
    EXPECT_EQ(parsed.out, "");
  }
}

TEST(Flags, AMistakeInTheFileNamesFileKeyAndLine) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"port: 80\nfrobnicate: 1\n", " line 2: frobnicate is not known; see --help"},
      {"--port: 80\n", " line 1: --port is not known; see --help"},
      {"\n\nport: [80, http]\n",
       " line 3: port http: is no port; write a number from 1 to 65535, or one like 53/udp"},
      {"idle-timeout: 60\n",
       " line 1: idle-timeout 60: is no duration; write it like 500ms, 60s, 5m or 2h"},
      {"log-level: loud\n",
       " line 1: log-level loud: choose one of trace|debug|info|warning|error"},
      {"count: many\n", " line 1: count many is not a value it takes; see --help"},
      {"count: [1, 2]\n", " line 1: count takes one value, not a list"},
      {"count:\n", " line 1: count has no value"},
      {"port: []\ncount: []\n", " line 2: count has no value"},
      {"port: {a: 1}\n", " line 1: port takes a value, not a map"},
      {"port: [[80]]\n", " line 1: port takes a list of plain values"},
      {"count: 1\ncount: 2\n", " line 2: count is there twice"},
      {"config: other.yaml\n", " line 1: config can only be given as a flag"},
      {"help: true\n", " line 1: help can only be given as a flag"},
      {"- port\n", " line 1: this has to be a map of flags to values"},
      {"port\n", " line 1: this has to be a map of flags to values"},
      {"port: 80\n  count: [1\n", " line 2: illegal map value"},
  };
  for (const auto& [text, message] : cases) {
    const ConfigFile file(text);
    const Parsed parsed = parse(required, &file);
    EXPECT_EQ(parsed.exit_code, 2) << message;
    EXPECT_EQ(parsed.error, "trafficmirror-sidecar: --config " + file.path() + message + "\n");
  }
}

TEST(Flags, AnEmptyListIsAsIfItWasNotThere) {
  const ConfigFile file("port: []\n");
  const Parsed parsed = parse(required, &file);
  EXPECT_FALSE(parsed.exit_code);
  EXPECT_TRUE(parsed.ports.empty());
}

TEST(Flags, AFileIsReadAgain) {
  const ConfigFile file("port: 80\n");
  ChangingFile changing(file.path());
  EXPECT_TRUE(changing.changed()) << "it is new to whoever asks first";
  EXPECT_FALSE(changing.changed());
  const auto read = [&](std::vector<net::ProductionPort>& ports) {
    CLI::App app("", "again");
    CommonOptions common;
    add_ports(app, "--port", ports, "production port");
    add_common_flags(app, common);
    const std::array<const char*, 3> argv = {"", "--config", file.path().c_str()};
    auto wrong = parse_flags_again(app, static_cast<int>(argv.size()), argv.data());
    EXPECT_EQ(config_file(app), file.path());
    return wrong;
  };
  std::ofstream(file.path()) << "port: [81, 82]\n";
  EXPECT_TRUE(changing.changed());
  std::vector<net::ProductionPort> ports;
  EXPECT_EQ(read(ports), std::nullopt);
  EXPECT_EQ(ports.size(), 2U);
  std::ofstream(file.path()) << "port: 0\n";
  EXPECT_TRUE(changing.changed());
  EXPECT_EQ(read(ports),
            "--config " + file.path() +
                " line 1: port 0: is no port; write a number from 1 to 65535, or one like 53/udp");
  std::remove(file.path().c_str());
  EXPECT_TRUE(changing.changed()) << "it can't be read any more";
  EXPECT_FALSE(changing.changed());
  ChangingFile never_there(file.path());
  EXPECT_TRUE(never_there.changed()) << "whoever asks first has to learn of it";
  EXPECT_FALSE(never_there.changed());
}

TEST(Flags, ThoseThatDifferAreNamed) {
  const auto of = [](const std::string& text) {
    const ConfigFile file(text);
    std::vector<net::ProductionPort> ports;
    std::chrono::milliseconds timeout{1};
    bool dry = false;
    CLI::App app("", "again");
    CommonOptions common;
    add_ports(app, "--port", ports, "production port");
    add_duration(app, "--idle-timeout", timeout, "when a quiet session ends");
    app.add_flag("--dry", dry, "a flag of CLI11's own");
    add_common_flags(app, common);
    const std::array<const char*, 5> argv = {"", "--config", file.path().c_str(), "--log-level",
                                             "error"};
    EXPECT_EQ(parse_flags_again(app, static_cast<int>(argv.size()), argv.data()), std::nullopt);
    return given(app);
  };
  const Given before = of("port: [80, 81]\nidle-timeout: 1s\n");
  EXPECT_EQ(differences(before, of("idle-timeout: 1s\nport: [80, 81]\n"), {}), "");
  EXPECT_EQ(differences(before, of("idle-timeout: 2s\nport: [80]\n"), {}), "idle-timeout, port");
  EXPECT_EQ(differences(before, of("idle-timeout: 2s\nport: [80]\n"), {"port", "percent"}),
            "idle-timeout");
  EXPECT_EQ(differences(before, of("dry: true\nport: [80, 81]\n"), {}), "dry, idle-timeout");
  EXPECT_EQ(differences(before, of("port: [80, 81]\nidle-timeout: 1s\nlog-level: info\n"), {}), "")
      << "the flag wins";
}

TEST(Limits, WhatChangesIsSaid) {
  const auto filter = [](const char* expression) {
    return std::get<FlowFilter>(FlowFilter::compile(expression));
  };
  const Limits all{.percent = 12.5,
                   .max_sessions = 3,
                   .memory = 1 << 20,
                   .turns = Turns::eager,
                   .max_lag = std::chrono::seconds(2),
                   .over_lag = OverLag::catch_up,
                   .max_rate = 5,
                   .filter = filter("port 80"),
                   .copies = 2};
  EXPECT_EQ(changes(all, all), "");
  EXPECT_EQ(changes({}, all),
            "percent 12.5, filter port 80, copies 2, max-sessions 3, max-rate 5, "
            "memory-limit 1048576, turns eager, max-lag 2000ms, over-lag catch-up");
  EXPECT_EQ(changes(all, {}),
            "percent not given, filter not given, copies not given, max-sessions not given, "
            "max-rate not given, memory-limit not given, turns not given, max-lag not given, "
            "over-lag not given");
  Limits other = all;
  other.filter = filter("port 81");
  EXPECT_EQ(changes(all, other), "filter port 81");
  // Each is a flag, and there is no other.
  CLI::App app("", "program");
  Limits read;
  add_limit_flags(app, read);
  const auto names = limit_names();
  EXPECT_EQ(app.get_options().size(), names.size() + 1) << "and --help";
  for (const std::string& name : names) EXPECT_NE(app.get_option_no_throw("--" + name), nullptr);
}

TEST(Limits, AreReadAndRefused) {
  const auto read = [](std::vector<const char*> arguments) -> std::variant<Limits, std::string> {
    CLI::App app("", "program");
    Limits limits;
    add_limit_flags(app, limits);
    arguments.insert(arguments.begin(), "");
    const auto wrong = parse_flags_again(app, static_cast<int>(arguments.size()), arguments.data());
    if (wrong) return *wrong;
    return limits;
  };
  using Read = std::variant<Limits, std::string>;
  EXPECT_EQ(read({}), Read(Limits{}));
  EXPECT_EQ(read({"--percent", "0.1", "--max-sessions", "1", "--memory-limit", "1Mi"}),
            Read(Limits{0.1, 1, 1 << 20}));
  EXPECT_EQ(read({"--percent", "100"}), Read(Limits{100.0, {}, 0}));
  for (const char* wrong : {"0", "0.09", "100.1", "-5", "nan", "inf", "ten", "5%", ""})
    EXPECT_EQ(read({"--percent", wrong}),
              Read("--percent " + std::string(wrong) +
                   ": is no percentage; write a number from 0.1 to 100"));
  for (const char* wrong : {"0", "-1", "1.5", "4294967296", "many"})
    EXPECT_EQ(read({"--max-sessions", wrong}), Read("--max-sessions " + std::string(wrong) +
                                                    ": is no count; write a number from 1 on"));
  EXPECT_EQ(read({"--memory-limit", "1023Ki"}),
            Read("--memory-limit 1023Ki: is too small; write 1Mi or more"));
  EXPECT_EQ(read({"--turns", "eager", "--max-lag", "500ms", "--over-lag", "catch-up"}),
            Read(Limits{.percent = {},
                        .max_sessions = {},
                        .turns = Turns::eager,
                        .max_lag = std::chrono::milliseconds(500),
                        .over_lag = OverLag::catch_up}));
  EXPECT_EQ(read({"--max-rate", "1"}),
            Read(Limits{.percent = {}, .max_sessions = {}, .max_rate = 1}));
  for (const char* wrong : {"0", "-1", "1.5", "4294967296", "10/s"})
    EXPECT_EQ(read({"--max-rate", wrong}),
              Read("--max-rate " + std::string(wrong) + ": is no count; write a number from 1 on"));
  EXPECT_EQ(read({"--copies", "1000"}),
            Read(Limits{.percent = {}, .max_sessions = {}, .copies = 1000}));
  for (const char* wrong : {"0", "1001", "two"})
    EXPECT_EQ(read({"--copies", wrong}),
              Read("--copies " + std::string(wrong) +
                   ": is no number of copies; write a number from 1 to 1000"));
  EXPECT_EQ(std::get<Limits>(read({"--filter", "port 80"})).filter->expression(), "port 80");
  EXPECT_EQ(
      read({"--filter", "prot 80"}),
      Read("--filter prot 80: is no pcap filter: can't parse filter expression: syntax error"));
  EXPECT_EQ(read({"--turns", "later"}), Read("--turns later: is none of wait|eager|off"));
  EXPECT_EQ(read({"--over-lag", "catch up"}),
            Read("--over-lag catch up: is none of shed|catch-up"));
  EXPECT_EQ(read({"--max-lag", "0s"}),
            Read("--max-lag 0s: is no duration; write it like 500ms, 60s, 5m or 2h"));
}

TEST(Limits, OneGoesBeforeTheOther) {
  const Limits own{50.0, 10, 1 << 20};
  EXPECT_EQ(Limits{}.over(own), own);
  EXPECT_EQ((Limits{1.0, {}, 0}.over(own)), (Limits{1.0, 10, 1 << 20}));
  EXPECT_EQ((Limits{{}, 5, 2 << 20}.over(own)), (Limits{50.0, 5, 2 << 20}));
  const Limits paced{.percent = {},
                     .max_sessions = {},
                     .turns = Turns::off,
                     .max_lag = std::chrono::seconds(1),
                     .over_lag = OverLag::catch_up,
                     .max_rate = 7,
                     .filter = std::get<FlowFilter>(FlowFilter::compile("port 7")),
                     .copies = 2};
  EXPECT_EQ(Limits{}.over(paced), paced);
  const Limits otherwise{.percent = {},
                         .max_sessions = {},
                         .turns = Turns::wait,
                         .max_lag = std::chrono::seconds(2),
                         .over_lag = OverLag::shed,
                         .max_rate = 8,
                         .filter = std::get<FlowFilter>(FlowFilter::compile("port 8")),
                         .copies = 3};
  EXPECT_EQ(otherwise.over(paced), otherwise);
}

TEST(Flags, HelpTeachesAndComesBeforeMistakes) {
  const ConfigFile broken("frobnicate: 1\n");
  const Parsed parsed = parse({"--help"}, &broken);
  EXPECT_EQ(parsed.exit_code, 0);
  EXPECT_EQ(parsed.error, "");
  for (const char* part :
       {"Usage: trafficmirror-sidecar", "--idle-timeout DURATION", "(default 1m)", "(default 64Mi)",
        "(default 127.0.0.1:19464)", "(required)", "(may be repeated)",
        "Watching it:", "--config FILE", "Example:\n  trafficmirror-sidecar --port 8080"})
    EXPECT_NE(parsed.out.find(part), std::string::npos) << part << " is not in\n" << parsed.out;
}

TEST(Flags, VersionNamesTheProgram) {
  const Parsed parsed = parse({"--version"});
  EXPECT_EQ(parsed.exit_code, 0);
  EXPECT_EQ(parsed.out.rfind("trafficmirror-sidecar 0.", 0), 0) << parsed.out;
}

TEST(Duration, IsANumberWithAUnit) {
  using std::chrono::milliseconds;
  EXPECT_EQ(parse_duration("500ms"), milliseconds(500));
  EXPECT_EQ(parse_duration("60s"), milliseconds(60'000));
  EXPECT_EQ(parse_duration("5m"), milliseconds(300'000));
  EXPECT_EQ(parse_duration("2h"), milliseconds(7'200'000));
  EXPECT_EQ(parse_duration("87600h"), std::chrono::hours(87600)) << "ten years";
  for (const char* text :
       {"", "60", "s", "0s", "-1s", "1.5s", "1 s", "1d", "1s ", "1m30s", "87601h",
        "9223372036854775807ms", "9223372036854775807h", "99999999999999999999s"})
    EXPECT_FALSE(parse_duration(text)) << text;
}

TEST(Size, IsANumberOfBytesWithADecimalOrBinaryUnit) {
  EXPECT_EQ(parse_size("4096"), 4096);
  EXPECT_EQ(parse_size("64Mi"), 64ULL << 20);
  EXPECT_EQ(parse_size("64M"), 64'000'000);
  EXPECT_EQ(parse_size("1Gi"), 1ULL << 30);
  EXPECT_EQ(parse_size("8Ki"), 8192);
  EXPECT_EQ(parse_size("2Ti"), 2ULL << 40);
  for (const char* text : {"", "0", "Mi", "-1", "1.5Gi", "64MB", "64 Mi", "64mi", "9999999999Gi"})
    EXPECT_FALSE(parse_size(text)) << text;
}

}  // namespace
}  // namespace trafficmirror::program
