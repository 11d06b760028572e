// The webhook's server over real TLS, on the loopback.
#include <future>

#include <gtest/gtest.h>
#include <httplib.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "operator/webhook_server.h"
#include "program/start_error.h"

namespace trafficmirror::controller {
namespace {

const std::string host = "trafficmirror-webhook.trafficmirror.svc";

Validity today() {
  const auto now = std::chrono::system_clock::now();
  return {now - std::chrono::hours(1), now + std::chrono::hours(1)};
}

KeyPair leaf(const KeyPair& ca, const std::string& name = host) {
  return make_leaf(ca, {.dns = {name}}, today());
}

const std::string request = R"({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
    "request": {"uid": "7", "kind": {"group": "", "version": "v1", "kind": "Pod"},
    "namespace": "shop", "operation": "CREATE", "object": {"metadata": {"name": "checkout"},
    "spec": {"containers": [{"name": "app"}]}}}})";

std::vector<Injection> one_sidecar(const NewPod&) {
  return {{SidecarSettings{.name = "trafficmirror-a",
                           .image = "example.org/sidecar:1",
                           .ports = {{8080}},
                           .intercept = {"intercept.shop-shadow.svc", {7443}},
                           .tls_peer = "spiffe://example.org/intercept",
                           .secret = "trafficmirror-a-sidecar"},
           InjectedAs::container}};
}

// A connection of its own, of a client that trusts `ca` and wants `name`.
class Connection {
 public:
  Connection(net::Port port, const std::string& ca, const std::string& name = host)
      : context_(SSL_CTX_new(TLS_client_method())), socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    BIO* pem = BIO_new_mem_buf(ca.data(), static_cast<int>(ca.size()));
    X509* certificate = PEM_read_bio_X509(pem, nullptr, nullptr, nullptr);
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context_), certificate);
    X509_free(certificate);
    BIO_free(pem);
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port.number);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    connection_ = SSL_new(context_);
    SSL_set1_host(connection_, name.c_str());
    SSL_set_fd(connection_, socket_);
    trusted_ = SSL_connect(connection_) == 1;
  }
  ~Connection() {
    SSL_free(connection_);
    SSL_CTX_free(context_);
    close(socket_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool trusted() const { return trusted_; }
  void send(const std::string& text) {
    SSL_write(connection_, text.data(), static_cast<int>(text.size()));
  }
  std::string receive_all() {
    std::string all, some(4096, '\0');
    int got = 0;
    while ((got = SSL_read(connection_, some.data(), static_cast<int>(some.size()))) > 0)
      all.append(some, 0, static_cast<size_t>(got));
    return all;
  }
  std::string post(const std::string& body) {
    send("POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body);
    return receive_all();
  }

 private:
  SSL_CTX* context_;
  int socket_;
  SSL* connection_ = nullptr;
  bool trusted_ = false;
};

std::string answer_to(net::Port port, const std::string& ca, const std::string& body) {
  return Connection(port, ca).post(body);
}

double metric(const WebhookServer& server, const std::string& name, const std::string& label = "") {
  for (const auto& family : server.metrics())
    if (family.name == name)
      for (const auto& sample : family.metric)
        if (label.empty() || sample.label.at(0).value == label) return sample.counter.value;
  ADD_FAILURE() << name;
  return -1;
}

class WebhookServerTest : public testing::Test {
 protected:
  WebhookServerTest() { EXPECT_EQ(server_.use(leaf(ca_)), std::nullopt); }

  const KeyPair ca_ = make_ca("one", today());
  WebhookServer server_{{"127.0.0.1", {0}}, one_sidecar};
};

TEST_F(WebhookServerTest, IsCalledByTheNameOfItsService) {
  EXPECT_EQ(webhook_dns_name({"trafficmirror", "trafficmirror-webhook"}), host);
}

TEST_F(WebhookServerTest, AnswersReviews) {
  const std::string answer = answer_to(server_.port(), ca_.certificate, request);
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
  EXPECT_NE(answer.find("JSONPatch"), std::string::npos) << answer;
  EXPECT_EQ(metric(server_, "trafficmirror_operator_webhook_requests_total", "injected"), 1);
  EXPECT_EQ(metric(server_, "trafficmirror_operator_webhook_injections_total"), 1);
}

TEST_F(WebhookServerTest, ShowsTheCertificateOfItsNameAndCa) {
  EXPECT_TRUE(Connection(server_.port(), ca_.certificate).trusted());
  EXPECT_FALSE(Connection(server_.port(), ca_.certificate, "other.svc").trusted());
  EXPECT_FALSE(Connection(server_.port(), make_ca("two", today()).certificate).trusted());
}

TEST_F(WebhookServerTest, ChangesItsCertificateUnderALiveConnection) {
  Connection before(server_.port(), ca_.certificate);
  ASSERT_TRUE(before.trusted());
  const KeyPair other = make_ca("two", today());
  EXPECT_EQ(server_.use(leaf(other)), std::nullopt);
  EXPECT_TRUE(Connection(server_.port(), other.certificate).trusted());
  EXPECT_FALSE(Connection(server_.port(), ca_.certificate).trusted());
  EXPECT_TRUE(before.post(request).starts_with("HTTP/1.1 200"));
}

TEST_F(WebhookServerTest, KeepsItsCertificateWhereTheNewOneIsNone) {
  const KeyPair other = leaf(ca_);
  for (const KeyPair& bad :
       {KeyPair{"", ""}, KeyPair{other.certificate, leaf(ca_).key}, KeyPair{"no PEM", other.key}})
    EXPECT_NE(server_.use(bad), std::nullopt);
  EXPECT_TRUE(Connection(server_.port(), ca_.certificate).trusted());
}

TEST_F(WebhookServerTest, RefusesWhatItCantReadOrIsTooLarge) {
  EXPECT_TRUE(answer_to(server_.port(), ca_.certificate, "{").starts_with("HTTP/1.1 400"));
  EXPECT_EQ(metric(server_, "trafficmirror_operator_webhook_requests_total", "problem"), 1);
  Connection large(server_.port(), ca_.certificate);
  large.send("POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Length: 8388609\r\n\r\n");
  EXPECT_TRUE(large.receive_all().starts_with("HTTP/1.1 413"));
}

TEST_F(WebhookServerTest, StandsGarbageInPlaceOfAHandshake) {
  httplib::Client plain("127.0.0.1", server_.port().number);
  EXPECT_FALSE(plain.Get("/healthz"));
  Connection after(server_.port(), ca_.certificate);
  after.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(after.receive_all().ends_with("ok\n"));
}

TEST_F(WebhookServerTest, DoesNotStartOnATakenPort) {
  EXPECT_THROW(WebhookServer({"127.0.0.1", server_.port()}, one_sidecar), program::StartError);
}

TEST_F(WebhookServerTest, ServesNobodyBeforeItHasACertificate) {
  WebhookServer server({"127.0.0.1", {0}}, one_sidecar);
  EXPECT_FALSE(Connection(server.port(), ca_.certificate).trusted());
  EXPECT_EQ(server.use(leaf(ca_)), std::nullopt);
  EXPECT_TRUE(Connection(server.port(), ca_.certificate).trusted());
}

TEST(WebhookServerStop, WaitsForTheRequestAtHand) {
  const KeyPair ca = make_ca("one", today());
  std::promise<void> asked, go_on;
  auto server =
      std::make_unique<WebhookServer>(net::HostPort{"127.0.0.1", {0}}, [&](const NewPod& pod) {
        asked.set_value();
        go_on.get_future().wait();
        return one_sidecar(pod);
      });
  EXPECT_EQ(server->use(leaf(ca)), std::nullopt);
  auto answer = std::async(std::launch::async, answer_to, server->port(), ca.certificate, request);
  asked.get_future().wait();
  auto stopped = std::async(std::launch::async, [&] { server.reset(); });
  EXPECT_EQ(stopped.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  go_on.set_value();
  EXPECT_TRUE(answer.get().starts_with("HTTP/1.1 200"));
  stopped.get();
}

}  // namespace
}  // namespace trafficmirror::controller
