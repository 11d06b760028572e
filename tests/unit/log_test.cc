#include "program/log.h"

#include <algorithm>
#include <cctype>

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

// With each digit as a 0.
std::string shape(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; }, '0');
  return text;
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
  EXPECT_EQ(shape(object["time"]), "0000-00-00T00:00:00.000Z");
}

TEST(Log, TextLinesAreForPeople) {
  const std::string line = logged({}, [] { spdlog::info("capturing on {}", "eth0"); });
  EXPECT_EQ(shape(line), "0000-00-00T00:00:00.000Z info capturing on eth0\n");
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
