#include "program/log.h"

#include <regex>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

namespace trafficmirror::program {
namespace {

// What `log` writes to stderr with these options.
std::string logged(const CommonOptions& options, void (*log)()) {
  testing::internal::CaptureStderr();
  set_up_logging(options, "trafficmirror-sidecar");
  log();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, JsonLinesHoldAnyMessage) {
  CommonOptions options;
  options.log_format = "json";
  const std::string line =
      logged(options, [] { spdlog::warn("a \"quote\", a \\, a\nline and \xff"); });
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  const auto object = nlohmann::json::parse(line);
  EXPECT_EQ(object.size(), 3);
  EXPECT_EQ(object["level"], "warning");
  EXPECT_EQ(object["message"], "a \"quote\", a \\, a\nline and \xef\xbf\xbd");
  EXPECT_TRUE(std::regex_match(object["time"].get<std::string>(),
                               std::regex(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)")))
      << line;
}

TEST(Log, TextLinesAreForPeople) {
  const std::string line = logged({}, [] { spdlog::info("capturing on {}", "eth0"); });
  EXPECT_TRUE(std::regex_match(
      line, std::regex(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info capturing on eth0\n)")))
      << line;
}

TEST(Log, LevelHoldsLighterLinesBack) {
  CommonOptions options;
  options.log_level = "warning";
  const std::string lines = logged(options, [] {
    spdlog::info("light");
    spdlog::warn("heavy");
  });
  EXPECT_EQ(lines.find("light"), std::string::npos);
  EXPECT_NE(lines.find("heavy"), std::string::npos);
}

TEST(LogLimit, LetsOneThroughInEachIntervalAndCountsTheOthers) {
  LogLimit limit(std::chrono::seconds(10));
  const LogLimit::Clock::time_point start{};
  EXPECT_EQ(limit.allow(start), "");
  EXPECT_FALSE(limit.allow(start + std::chrono::seconds(1)));
  EXPECT_FALSE(limit.allow(start + std::chrono::milliseconds(9999)));
  EXPECT_EQ(limit.allow(start + std::chrono::seconds(10)), " (and 2 times before)");
  EXPECT_FALSE(limit.allow(start + std::chrono::seconds(11)));
  EXPECT_EQ(limit.allow(start + std::chrono::seconds(20)), " (and 1 time before)");
  EXPECT_EQ(limit.allow(start + std::chrono::seconds(30)), "");
}

}  // namespace
}  // namespace trafficmirror::program
