#include <array>
#include <cstdlib>
#include <fstream>
#include <thread>

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "operator/kube/client.h"
#include "operator/kube/discovery.h"
#include "program/start_error.h"
#include "tests/kube_server/kube_server.h"
#include "tests/kube_server/tls.h"

namespace trafficmirror::kube {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

const Resource pods{.group = "", .version = "v1", .plural = "pods"};
const Resource mirrors{
    .group = "trafficmirror.dev", .version = "v1alpha1", .plural = "trafficmirrors"};
const Resource nodes{.group = "", .version = "v1", .plural = "nodes", .namespaced = false};

Json pod(const std::string& name, const std::string& namespace_ = "shop") {
  return {{"apiVersion", "v1"},
          {"kind", "Pod"},
          {"metadata", {{"name", name}, {"namespace", namespace_}}}};
}

class KubeClient : public testing::Test {
 protected:
  // Fails a request of `method` once.
  Error fail_with(int status, const std::string& reason = "", const std::string& retry_after = "") {
    server_.inject({.status = status, .reason = reason, .retry_after = retry_after});
    const auto result = client_.get(pods, {"shop", "a"});
    EXPECT_FALSE(result);
    return result ? Error{} : result.error();
  }

  KubeServer server_;
  Client client_{server_.config(), "test-manager"};
};

TEST_F(KubeClient, WritesAndReadsObjects) {
  auto created = client_.create(pods, pod("a"));
  ASSERT_TRUE(created) << created.error().message;
  EXPECT_EQ(client_.create(pods, pod("a")).error().kind, ErrorKind::already_exists);

  (*created)["spec"]["nodeName"] = "one";
  ASSERT_TRUE(client_.update(pods, *created));
  // The version in `created` is old by now.
  EXPECT_EQ(client_.update(pods, *created).error().kind, ErrorKind::conflict);

  ASSERT_TRUE(client_.patch(pods, {"shop", "a"}, {{"metadata", {{"labels", {{"b", "c"}}}}}}));
  ASSERT_TRUE(client_.patch_status(pods, {"shop", "a"}, {{"phase", "Running"}}));
  const auto read = client_.get(pods, {"shop", "a"});
  ASSERT_TRUE(read);
  EXPECT_EQ(text_at(*read, "/spec/nodeName"), "one");
  EXPECT_EQ(text_at(*read, "/metadata/labels/b"), "c");
  EXPECT_EQ(text_at(*read, "/status/phase"), "Running");

  EXPECT_EQ(client_.remove(pods, {"shop", "a"}, {.uid = "another"}).error().kind,
            ErrorKind::conflict);
  EXPECT_EQ(client_.remove(pods, {"shop", "a"}, {.resource_version = "1"}).error().kind,
            ErrorKind::conflict);
  EXPECT_TRUE(client_.remove(pods, {"shop", "a"}, {.uid = text_at(*read, "/metadata/uid")}));
  EXPECT_EQ(client_.get(pods, {"shop", "a"}).error().kind, ErrorKind::not_found);
}

TEST_F(KubeClient, AsksAsTheServerExpects) {
  Json mirror = pod("m");
  ASSERT_TRUE(client_.apply(mirrors, mirror, {.force = true}));
  ASSERT_TRUE(client_.apply(mirrors, mirror, {.subresource = "status"}));
  ASSERT_TRUE(client_.patch(mirrors, {"shop", "m"}, Json::object(), PatchType::strategic));
  ASSERT_TRUE(client_.remove(mirrors, {"shop", "m"}, {.propagation = "Foreground"}));
  ASSERT_TRUE(client_.create(nodes, {{"metadata", {{"name", "n"}}}}));
  ASSERT_TRUE(client_.list(pods, "", {.selection = {"a=b,c!=d e", "spec.nodeName=n"}}));
  const auto asked = server_.requests();
  const std::string path = "/apis/trafficmirror.dev/v1alpha1/namespaces/shop/trafficmirrors/m";
  EXPECT_EQ(asked[0].method, "PATCH");
  EXPECT_EQ(asked[0].path, path);
  EXPECT_EQ(asked[0].query, "?fieldManager=test-manager&force=true");
  EXPECT_EQ(asked[0].content_type, "application/apply-patch+yaml");
  EXPECT_EQ(asked[1].path, path + "/status");
  EXPECT_EQ(asked[1].query, "?fieldManager=test-manager");
  EXPECT_EQ(asked[2].content_type, "application/strategic-merge-patch+json");
  EXPECT_EQ(text_at(Json::parse(asked[3].body), "/propagationPolicy"), "Foreground");
  EXPECT_EQ(asked[4].path, "/api/v1/nodes");
  EXPECT_EQ(asked[5].path, "/api/v1/pods");
  EXPECT_EQ(asked[5].query, "?labelSelector=a%3Db%2Cc%21%3Dd%20e&fieldSelector=spec.nodeName%3Dn");
}

TEST_F(KubeClient, ListsInPagesAndSaysWhatTheItemsAre) {
  for (const char* name : {"a", "b", "c"}) server_.put(pods, pod(name));
  const auto first = client_.list(pods, "shop", {.limit = 2});
  ASSERT_TRUE(first);
  EXPECT_EQ(first->at("items").size(), 2U);
  EXPECT_EQ(text_at(*first, "/items/0/apiVersion"), "v1");
  EXPECT_EQ(text_at(*first, "/items/0/kind"), "Thing");
  const std::string token = text_at(*first, "/metadata/continue");
  const auto second = client_.list(pods, "shop", {.limit = 2, .continue_token = token});
  ASSERT_TRUE(second);
  EXPECT_EQ(second->at("items").size(), 1U);
  server_.compact();
  EXPECT_EQ(client_.list(pods, "shop", {.continue_token = token}).error().kind, ErrorKind::gone);
}

TEST_F(KubeClient, TellsErrorsApart) {
  EXPECT_EQ(fail_with(401).kind, ErrorKind::unauthorized);
  EXPECT_EQ(fail_with(403).kind, ErrorKind::forbidden);
  EXPECT_EQ(fail_with(409, "Conflict").kind, ErrorKind::conflict);
  EXPECT_EQ(fail_with(409, "AlreadyExists").kind, ErrorKind::already_exists);
  EXPECT_EQ(fail_with(410, "Expired").kind, ErrorKind::gone);
  EXPECT_EQ(fail_with(422, "Invalid").kind, ErrorKind::invalid);
  EXPECT_EQ(fail_with(500).kind, ErrorKind::server);
  EXPECT_EQ(fail_with(503).kind, ErrorKind::server);
  EXPECT_EQ(fail_with(500).retry_after, std::nullopt);
  const Error busy = fail_with(429, "TooManyRequests", "7");
  EXPECT_EQ(busy.kind, ErrorKind::too_many_requests);
  EXPECT_EQ(busy.retry_after, 7s);
  EXPECT_EQ(busy.status, 429);
  EXPECT_EQ(busy.reason, "TooManyRequests");
  EXPECT_EQ(busy.message, "injected");
}

TEST_F(KubeClient, AnswersOfOthersAreErrors) {
  // What a proxy in between says.
  server_.inject({.status = 502, .body = "Bad Gateway\n<html>"});
  const auto gateway = client_.get(pods, {"shop", "a"});
  ASSERT_FALSE(gateway);
  EXPECT_EQ(gateway.error().kind, ErrorKind::server);
  EXPECT_EQ(gateway.error().message, "HTTP 502 Bad Gateway");
  server_.inject({.status = 200, .body = "<html>"});
  const auto portal = client_.get(pods, {"shop", "a"});
  ASSERT_FALSE(portal);
  EXPECT_EQ(portal.error().kind, ErrorKind::network);
}

TEST_F(KubeClient, AServerThatIsNotThereIsANetworkError) {
  // A port that is bound and does not listen is nobody else's.
  const int unused = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(unused, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(getsockname(unused, reinterpret_cast<sockaddr*>(&address), &size), 0);
  Config config = server_.config();
  config.port = ntohs(address.sin_port);
  Client client(config, "test");
  const auto result = client.get(pods, {"shop", "a"});
  close(unused);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::network);
  EXPECT_EQ(result.error().message, "127.0.0.1:" + std::to_string(config.port) + " cannot connect");
}

TEST_F(KubeClient, ASlowAnswerIsATimeout) {
  server_.inject({.hold = true});
  const auto begin = Clock::now();
  const auto result = client_.get(pods, {"shop", "a"}, {.timeout = 50ms});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::timeout);
  EXPECT_LT(Clock::now() - begin, 2s);
  // The connection that was given up is not used for what comes next.
  server_.put(pods, pod("a"));
  EXPECT_TRUE(client_.get(pods, {"shop", "a"}));
  server_.release();
}

TEST_F(KubeClient, AnAnswerThatTricklesIsATimeout) {
  server_.inject({.trickle = true});
  const auto result = client_.get(pods, {"shop", "a"}, {.timeout = 100ms});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::timeout);
}

TEST_F(KubeClient, StopsInTheMidstOfARequest) {
  server_.inject({.times = -1, .hold = true});
  std::stop_source stop;
  std::thread stopper([&] {
    server_.wait_for(is_list, 1);
    stop.request_stop();
  });
  const auto begin = Clock::now();
  const auto result = client_.get(pods, {"shop", "a"}, {.stop = stop.get_token()});
  stopper.join();
  EXPECT_LT(Clock::now() - begin, 5s) << "long before its timeout";
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::stopped);
  EXPECT_EQ(client_.get(pods, {"shop", "a"}, {.stop = stop.get_token()}).error().kind,
            ErrorKind::stopped);
  server_.release();
}

TEST_F(KubeClient, ReadsTheTokenAnewForEachRequest) {
  std::string file = testing::TempDir() + "kube-token-XXXXXX";
  close(mkstemp(file.data()));
  std::ofstream(file) << "first\n";
  Config config = server_.config();
  config.token_file = file;
  Client client(config, "test");
  server_.put(pods, pod("a"));
  server_.require_token("first");
  EXPECT_TRUE(client.get(pods, {"shop", "a"}));
  server_.require_token("second");
  EXPECT_EQ(client.get(pods, {"shop", "a"}).error().kind, ErrorKind::unauthorized);
  std::ofstream(file) << "second\n";
  EXPECT_TRUE(client.get(pods, {"shop", "a"}));
  unlink(file.c_str());
  EXPECT_EQ(client.get(pods, {"shop", "a"}).error().message,
            "the token cannot be read: " + file + " is missing or empty");
}

TEST_F(KubeClient, Watches) {
  const Json before = server_.put(pods, pod("before"));
  std::vector<std::string> seen;
  std::stop_source stop;
  server_.put(pods, pod("other", "elsewhere"));
  server_.put(pods, pod("a"));
  const auto error = client_.watch(
      pods, "shop",
      {.resource_version = text_at(before, "/metadata/resourceVersion"), .stop = stop.get_token()},
      [&](const WatchEvent& event) {
        if (event.type == WatchEvent::Type::bookmark) return;
        seen.push_back(std::to_string(static_cast<int>(event.type)) + key_of(event.object).name);
        if (seen.size() == 1) server_.put(pods, pod("a"));
        if (seen.size() == 2) server_.remove(pods, {"shop", "a"});
        if (seen.size() == 3) stop.request_stop();
      });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind, ErrorKind::stopped);
  EXPECT_EQ(seen, (std::vector<std::string>{"0a", "1a", "2a"}));
}

TEST_F(KubeClient, TellsHowAWatchEnded) {
  const auto watch = [&](const WatchOptions& options) {
    const auto error = client_.watch(pods, "", options, [](const WatchEvent&) {});
    return error ? error->kind : ErrorKind::other;
  };
  EXPECT_EQ(watch({.resource_version = "1", .timeout = 0s}), ErrorKind::other) << "in order";
  server_.inject({.cut = true});
  EXPECT_EQ(watch({.resource_version = "1"}), ErrorKind::network);
  server_.inject({.status = 429});
  EXPECT_EQ(watch({.resource_version = "1"}), ErrorKind::too_many_requests);
  server_.inject({.line = "{\"type\":\"NEWS\"}\n"});
  EXPECT_EQ(watch({.resource_version = "1"}), ErrorKind::network);
  // Nothing happens, and the server does not end it either.
  EXPECT_EQ(watch({.resource_version = "1", .silence = 50ms}), ErrorKind::timeout);
  server_.compact();
  EXPECT_EQ(watch({.resource_version = "1"}), ErrorKind::gone);
}

TEST_F(KubeClient, SpeaksToAnIpv6Host) {
  const int listener = socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  socklen_t size = sizeof address;
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0)
    GTEST_SKIP() << "this host has no IPv6";
  ASSERT_EQ(listen(listener, 1), 0);
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  std::string request;
  std::thread server([&] {
    const int peer = accept(listener, nullptr, nullptr);
    std::array<char, 4096> buffer;
    while (request.find("\r\n\r\n") == std::string::npos) {
      const ssize_t got = read(peer, buffer.data(), buffer.size());
      if (got <= 0) break;
      request.append(buffer.data(), static_cast<size_t>(got));
    }
    const std::string answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    EXPECT_EQ(write(peer, answer.data(), answer.size()), static_cast<ssize_t>(answer.size()));
    close(peer);
  });
  Config config;
  config.tls = false;
  config.host = "::1";
  config.port = ntohs(address.sin6_port);
  config.path = "/prefix";
  Client client(config, "test");
  EXPECT_TRUE(client.get(pods, {"shop", "a"}));
  server.join();
  close(listener);
  EXPECT_EQ(request.rfind("GET /prefix/api/v1/namespaces/shop/pods/a HTTP/1.1\r\n", 0), 0U);
  EXPECT_NE(request.find("Host: [::1]:" + std::to_string(config.port) + "\r\n"), std::string::npos)
      << request;
}

TEST(KubeClientTls, TrustsTheAuthorityAndShowsItsCertificate) {
  KubeServer server(KubeServer::Security::tls);
  server.put(pods, pod("a"));
  const auto ask = [&](const Config& config) {
    Client client(config, "test");
    const auto result = client.get(pods, {"shop", "a"});
    return result ? std::string("good") : result.error().message;
  };
  const Config config = server.config();
  const std::string server_name = "127.0.0.1:" + std::to_string(config.port) + " ";
  EXPECT_EQ(ask(config), "good");

  Config other = config;
  other.certificate_authority = make_authority("another").certificate;
  const std::string refused =
      server_name + "its certificate is not for this name, or of another authority";
  EXPECT_EQ(ask(other), refused);
  // Not even if the system trusts the server's authority.
  std::string file = testing::TempDir() + "kube-authority-XXXXXX";
  close(mkstemp(file.data()));
  std::ofstream(file) << config.certificate_authority;
  setenv("SSL_CERT_FILE", file.c_str(), 1);
  EXPECT_EQ(ask(other), refused);
  Config system = config;
  system.certificate_authority.clear();
  EXPECT_EQ(ask(system), "good");
  unsetenv("SSL_CERT_FILE");
  unlink(file.c_str());
  other.verify = false;
  EXPECT_EQ(ask(other), "good");

  Config named = config;
  named.tls_server_name = "kubernetes";
  named.host = "localhost";
  EXPECT_EQ(ask(named), "good");
  named.tls_server_name = "somebody";
  EXPECT_NE(ask(named).find("not for this name"), std::string::npos);

  Config stranger = config;
  stranger.client_certificate.clear();
  EXPECT_NE(ask(stranger), "good");
}

TEST(KubeClientTls, RefusesCertificatesThatAreNone) {
  const auto refusal = [](Config config) {
    try {
      config.host = "a";
      const Client client(std::move(config), "test");
    } catch (const program::StartError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const Identity one = make_authority("one");
  const Identity two = make_authority("two");
  Config config;
  config.certificate_authority = "x";
  EXPECT_EQ(refusal(config), "certificate-authority holds no certificate in PEM form");
  config.certificate_authority = one.certificate;
  config.client_certificate = one.certificate;
  config.client_key = "x";
  EXPECT_EQ(refusal(config), "client-key holds no private key in PEM form");
  config.client_key = two.key;
  EXPECT_EQ(refusal(config), "client-key is not the key of client-certificate");
}

TEST_F(KubeClient, DiscoversWhatTheServerCan) {
  const auto ask = [&] {
    auto discovery = Discovery::ask(client_, {"v1", "policy/v1", "policy/v1beta1"});
    EXPECT_TRUE(discovery);
    return *std::move(discovery);
  };
  const auto resources = [](const Json& list) { return Json{{"resources", list}}; };
  // A server of 1.20.
  server_.serve("/version", {{"major", "1"}, {"minor", "20+"}});
  server_.serve(
      "/api/v1",
      resources({{{"name", "pods"}, {"kind", "Pod"}},
                 {{"name", "pods/ephemeralcontainers"}, {"kind", "EphemeralContainers"}}}));
  server_.serve("/apis/policy/v1beta1",
                resources({{{"name", "poddisruptionbudgets"}, {"kind", "PodDisruptionBudget"}}}));
  const auto answers = [&](const char* path) {
    return [path](const KubeServer::Request& request) { return request.path == path; };
  };
  server_.inject({.matches = answers("/apis/policy/v1"), .status = 404});
  const Discovery old = ask();
  EXPECT_EQ(old.version(), (Version{1, 20}));
  EXPECT_TRUE(old.has(pods));
  EXPECT_FALSE(old.has(nodes));
  EXPECT_FALSE(old.has({"policy", "v1", "poddisruptionbudgets"}));
  EXPECT_TRUE(old.has({"policy", "v1beta1", "poddisruptionbudgets"}));
  EXPECT_FALSE(old.ephemeral_containers());
  EXPECT_FALSE(old.native_sidecars());

  server_.serve("/version", {{"major", "1"}, {"minor", "29"}});
  server_.serve("/api/v1", resources({{{"name", "pods"}, {"kind", "Pod"}},
                                      {{"name", "pods/ephemeralcontainers"}, {"kind", "Pod"}}}));
  server_.serve("/apis/policy/v1", resources(Json::array()));
  const Discovery recent = ask();
  EXPECT_TRUE(recent.has(pods, "ephemeralcontainers"));
  EXPECT_TRUE(recent.ephemeral_containers());
  EXPECT_TRUE(recent.native_sidecars());

  server_.inject({.matches = answers("/apis/policy/v1"), .status = 503});
  const auto failed = Discovery::ask(client_, {"v1", "policy/v1"});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind, ErrorKind::server);
}

}  // namespace
}  // namespace trafficmirror::kube
