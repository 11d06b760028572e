#include "program/http.h"

#include <array>
#include <atomic>
#include <chrono>

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program/metrics.h"
#include "program/start_error.h"

namespace trafficmirror::program {
namespace {

int connect_to(net::Port port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port.number);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

// The whole response, status line and headers included.
std::string get(net::Port port, const std::string& path) {
  const int fd = connect_to(port);
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string response;
  std::array<char, 4096> buffer;
  for (ssize_t size = 0; (size = read(fd, buffer.data(), buffer.size())) > 0;)
    response.append(buffer.data(), static_cast<size_t>(size));
  close(fd);
  return response;
}

HttpServer::Handlers ready_without_metrics() {
  return {.not_ready = [] { return std::nullopt; },
          .metrics = [] { return std::vector<prometheus::MetricFamily>(); }};
}

TEST(HttpServer, AnswersProbes) {
  std::atomic<bool> ready = false;
  auto handlers = ready_without_metrics();
  handlers.not_ready = [&]() -> std::optional<std::string> {
    if (ready) return std::nullopt;
    return "the stream to 10.0.0.7:7443 is down";
  };
  const HttpServer server({"127.0.0.1", {0}}, handlers);
  ASSERT_NE(server.port().number, 0);

  const std::string health = get(server.port(), "/healthz");
  EXPECT_EQ(health.rfind("HTTP/1.1 200", 0), 0) << health;
  EXPECT_NE(health.find("\r\n\r\nok\n"), std::string::npos) << health;

  const std::string waiting = get(server.port(), "/readyz");
  EXPECT_EQ(waiting.rfind("HTTP/1.1 503", 0), 0) << waiting;
  EXPECT_NE(waiting.find("\r\n\r\nthe stream to 10.0.0.7:7443 is down\n"), std::string::npos);

  ready = true;
  const std::string after = get(server.port(), "/readyz");
  EXPECT_EQ(after.rfind("HTTP/1.1 200", 0), 0) << after;
  EXPECT_NE(after.find("\r\n\r\nready\n"), std::string::npos) << after;

  EXPECT_EQ(get(server.port(), "/else").rfind("HTTP/1.1 404", 0), 0);
}

TEST(HttpServer, ServesMetricsAsPrometheusReadsThem) {
  auto handlers = ready_without_metrics();
  handlers.metrics = [] {
    return std::vector{counter("shed_total", "Sessions not mirrored.",
                               {{3, {{"reason", "limit"}}}, {4, {{"reason", "a \"quote\""}}}}),
                       gauge("sessions_active", "Open sessions.", 12),
                       histogram("lag_seconds", "Lags.", std::array{0.001, 1.0},
                                 std::array<uint64_t, 3>{2, 0, 5}, 12.5)};
  };
  const HttpServer server({"127.0.0.1", {0}}, handlers);
  const std::string response = get(server.port(), "/metrics");
  for (const char* part :
       {"Content-Type: text/plain; version=0.0.4", "# HELP shed_total Sessions not mirrored.\n",
        "# TYPE shed_total counter\n", "shed_total{reason=\"limit\"} 3\n",
        "shed_total{reason=\"a \\\"quote\\\"\"} 4\n", "# TYPE sessions_active gauge\n",
        "sessions_active 12\n", "# TYPE lag_seconds histogram\n", "lag_seconds_count 7\n",
        "lag_seconds_sum 12.5\n", "lag_seconds_bucket{le=\"0.001\"} 2\n",
        "lag_seconds_bucket{le=\"1\"} 2\n", "lag_seconds_bucket{le=\"+Inf\"} 7\n"})
    EXPECT_NE(response.find(part), std::string::npos) << part << " is not in\n" << response;
}

TEST(HttpServer, ATakenPortIsAStartError) {
  const HttpServer first({"127.0.0.1", {0}}, ready_without_metrics());
  try {
    const HttpServer second({"127.0.0.1", first.port()}, ready_without_metrics());
    FAIL() << "bound port " << first.port().number << " twice";
  } catch (const StartError& error) {
    EXPECT_EQ(error.what(), "--http 127.0.0.1:" + std::to_string(first.port().number) +
                                " is taken: choose another port");
  }
}

TEST(HttpServer, AnAddressOfAnotherHostIsAStartError) {
  try {
    const HttpServer server({"192.0.2.1", {9464}}, ready_without_metrics());
    FAIL();
  } catch (const StartError& error) {
    EXPECT_STREQ(
        error.what(),
        "--http 192.0.2.1:9464 is no address of this host: choose one, or 0.0.0.0 for all");
  }
}

TEST(HttpServer, BindsIpv6ForBothFamilies) {
  const int fd = socket(AF_INET6, SOCK_STREAM, 0);
  if (fd < 0) GTEST_SKIP() << "this host has no IPv6";
  close(fd);
  const HttpServer server({"::", {0}}, ready_without_metrics());
  EXPECT_EQ(get(server.port(), "/healthz").rfind("HTTP/1.1 200", 0), 0);
}

TEST(HttpServer, StopsAlthoughAClientSaysNothing) {
  auto server =
      std::make_unique<HttpServer>(net::HostPort{"127.0.0.1", {0}}, ready_without_metrics());
  const int silent = connect_to(server->port());
  const auto begin = std::chrono::steady_clock::now();
  server.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  close(silent);
}

}  // namespace
}  // namespace trafficmirror::program
