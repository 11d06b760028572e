// The stream over mutual TLS: an uplink and the intercept's service, in this process.
#include <array>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spdlog/sinks/ringbuffer_sink.h>
#include <spdlog/spdlog.h>

#include "intercept/service.h"
#include "operator/certificate_rotation.h"
#include "program/tls.h"
#include "sidecar/uplink/uplink.h"
#include "tests/unit/certificates.h"
#include "tests/unit/tcp_packets.h"
#include "trafficmirror/v1/mirror.grpc.pb.h"

namespace trafficmirror {
namespace {

using intercept::StreamRefusal;
using std::chrono::milliseconds;
using tests::Certificate;
using tests::CertificateFiles;
using uplink::Uplink;

constexpr std::chrono::seconds patience(10);
const std::string own = "10.0.1.2";
const std::string shadow = "10.0.0.5:8080";
const std::string intercept_name = "intercept.shop-shadow";
const std::string sidecar_name = "spiffe://trafficmirror/shop/checkout/sidecar";

template <typename Condition>
bool soon(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

// Keeps the log while it lives.
class Log {
 public:
  Log() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", kept_)); }
  ~Log() { spdlog::set_default_logger(before_); }
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  // How many lines have it.
  long count(const std::string& text) const {
    const std::vector<std::string> lines = kept_->last_formatted();
    return std::count_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.find(text) != std::string::npos;
    });
  }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  const std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> kept_ =
      std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(1000);
};

// What a stream runs into, as seen by its sidecar.
uplink::Event next(Uplink& sidecar) {
  const auto deadline = Uplink::Clock::now() + patience;
  while (Uplink::Clock::now() < deadline) {
    sidecar.run(Uplink::Clock::now());
    pollfd events{sidecar.descriptor(), POLLIN, 0};
    ::poll(&events, 1, 20);
    for (uplink::Event& event : sidecar.take_events())
      if (!std::holds_alternative<uplink::Configuration>(event)) return std::move(event);
  }
  return uplink::StreamLost{"nothing came"};
}

Uplink::Options to(net::Port port, std::shared_ptr<program::Tls> tls) {
  return {.intercept = {"127.0.0.1", port},
          .tls = std::move(tls),
          .name = "pod-1",
          .version = "1.2.3",
          .ports = {{80}}};
}

// Nothing where the sidecar gets a stream, otherwise why not.
std::string refusal(net::Port port, std::shared_ptr<program::Tls> tls) {
  Uplink sidecar(to(port, std::move(tls)));
  const uplink::Event end = next(sidecar);
  const auto* lost = std::get_if<uplink::StreamLost>(&end);
  return lost == nullptr ? "" : lost->reason;
}

class TlsStream : public testing::Test {
 protected:
  void SetUp() override {
    relay.set_paths({intercept::Path{*net::IpAddress::parse(own), 1500}});
    relay.prove(intercept::Relay::Clock::now());
    arrive(shadow, 10000, {5, seed + 1, {.syn = true, .ack = true}, ""});
    ASSERT_EQ(relay.not_ready(), std::nullopt);
    sent.clear();
  }

  // One packet of the shadow's.
  void arrive(const std::string& from, uint16_t to_port, const tests::Segment& segment) {
    const std::string bytes = tests::packet(from, own + ":" + std::to_string(to_port), segment);
    const std::array<std::span<const uint8_t>, 1> packets = {tests::bytes_of(bytes)};
    relay.headers(packets);
  }

  void serve(std::shared_ptr<program::Tls> tls) {
    service.emplace(net::HostPort{"127.0.0.1", {}}, std::move(tls), relay, counters);
  }
  void serve() { serve(intercept_files.tls(sidecar_name)); }

  // A packet goes up and its answer comes down.
  bool talks(Uplink& sidecar, uint16_t port, const std::string& payload) {
    const std::string packet =
        tests::packet(own + ":" + std::to_string(port), shadow,
                      {.sequence = 7, .flags = {.syn = true}, .payload = payload});
    sidecar.send(std::string(packet));
    {
      std::unique_lock lock(mutex);
      const bool came = injected.wait_for(lock, patience,
                                          [&] { return sent.find(payload) != std::string::npos; });
      if (!came) return false;
    }
    arrive(shadow, port, {5, 8, {.syn = true, .ack = true}, ""});
    return std::holds_alternative<uplink::Headers>(next(sidecar));
  }

  uint64_t refused(StreamRefusal reason) const {
    return counters.refused_streams[static_cast<size_t>(reason)];
  }

  static constexpr uint32_t seed = 1000;
  Log log;
  Certificate ca{{.name = "ca", .ca = true}};
  Certificate other_ca{{.name = "other ca", .ca = true}};
  Certificate intercept_certificate{
      {.name = "intercept", .alternative_names = "DNS:" + intercept_name}, &ca};
  Certificate sidecar_certificate{{.name = "sidecar", .alternative_names = "URI:" + sidecar_name},
                                  &ca};
  CertificateFiles intercept_files{intercept_certificate, ca.certificate()};
  CertificateFiles sidecar_files{sidecar_certificate, ca.certificate()};

  std::mutex mutex;
  std::condition_variable injected;
  std::string sent;
  intercept::Counters counters;
  intercept::Relay relay{{10000, 32767},
                         {{80, *net::Endpoint::parse(shadow)}},
                         seed,
                         [this](std::string_view packets) {
                           const std::lock_guard lock(mutex);
                           sent += packets;
                           injected.notify_all();
                         },
                         counters};
  std::optional<intercept::Service> service;
};

uint16_t leased_port(const uplink::Event& end) {
  const auto* lease = std::get_if<session::Lease>(&end);
  return lease == nullptr ? uint16_t{0} : lease->sources.at(0).first.number;
}

TEST_F(TlsStream, CarriesPacketsBothWays) {
  serve();
  Uplink sidecar(to(service->port(), sidecar_files.tls(intercept_name)));
  const uint16_t port = leased_port(next(sidecar));
  ASSERT_NE(port, 0);
  EXPECT_TRUE(talks(sidecar, port, "over TLS"));
  for (const auto reason :
       {StreamRefusal::handshake, StreamRefusal::hung_up, StreamRefusal::identity})
    EXPECT_EQ(refused(reason), 0U);
  EXPECT_EQ(log.count("warning"), 0);
}

TEST_F(TlsStream, StaysPlainTextWithoutIt) {
  serve(nullptr);
  Uplink sidecar(to(service->port(), nullptr));
  const uint16_t port = leased_port(next(sidecar));
  ASSERT_NE(port, 0);
  EXPECT_TRUE(talks(sidecar, port, "plain"));
}

TEST_F(TlsStream, RefusesASidecarOfAnotherCa) {
  serve();
  const Certificate stranger({.name = "sidecar", .alternative_names = "URI:" + sidecar_name},
                             &other_ca);
  const CertificateFiles files(stranger, ca.certificate());
  EXPECT_NE(refusal(service->port(), files.tls(intercept_name))
                .find("if it refused this sidecar's certificate, its log says why"),
            std::string::npos);
  EXPECT_TRUE(soon([&] { return refused(StreamRefusal::handshake) == 1; }));
  EXPECT_EQ(log.count("no stream, as the TLS handshake failed: its certificate has expired, or no "
                      "CA of --tls-ca has signed it"),
            1);
}

TEST_F(TlsStream, RefusesASidecarOfAnotherMirror) {
  serve();
  const Certificate stranger(
      {.name = sidecar_name,
       .alternative_names = "DNS:other.example,URI:" + sidecar_name + "/more"},
      &ca);
  const CertificateFiles files(stranger, ca.certificate());
  const std::string reason = "its certificate is not that of " + sidecar_name +
                             " (--tls-peer) but of other.example, " + sidecar_name + "/more";
  EXPECT_EQ(refusal(service->port(), files.tls(intercept_name)),
            "refused by the intercept: " + reason);
  EXPECT_EQ(refused(StreamRefusal::identity), 1U);
  EXPECT_EQ(log.count(" is refused: " + reason), 1);
  EXPECT_EQ(relay.statistics().streams, 0U);

  const Certificate nameless({.name = sidecar_name}, &ca);
  EXPECT_NE(
      refusal(service->port(), CertificateFiles(nameless, ca.certificate()).tls(intercept_name))
          .find("but of nobody"),
      std::string::npos);
  EXPECT_EQ(refused(StreamRefusal::identity), 2U);
  EXPECT_EQ(log.count(" is refused: "), 1) << "one line in ten seconds";
}

TEST_F(TlsStream, RefusesAnInterceptOfAnotherCa) {
  const Certificate stranger({.name = "intercept", .alternative_names = "DNS:" + intercept_name},
                             &other_ca);
  const CertificateFiles files(stranger, ca.certificate());
  serve(files.tls(sidecar_name));
  EXPECT_EQ(refusal(service->port(), sidecar_files.tls(intercept_name)),
            "the intercept's certificate has expired, or no CA of --tls-ca has signed it");
  EXPECT_TRUE(soon([&] { return refused(StreamRefusal::hung_up) == 1; }));
  EXPECT_EQ(log.count("the other side hung up"), 1);
}

TEST_F(TlsStream, RefusesAnInterceptOfAnotherNameThoughTheAddressFits) {
  const Certificate stranger(
      {.name = intercept_name, .alternative_names = "IP:127.0.0.1,DNS:other.example"}, &ca);
  const CertificateFiles files(stranger, ca.certificate());
  serve(files.tls(sidecar_name));
  EXPECT_EQ(refusal(service->port(), sidecar_files.tls(intercept_name)),
            "the intercept's certificate is not that of " + intercept_name +
                " (--tls-peer) but of other.example");
}

TEST_F(TlsStream, RefusesPlainTextOnEitherSide) {
  serve();
  EXPECT_NE(refusal(service->port(), nullptr).find("does it want TLS?"), std::string::npos);
  EXPECT_TRUE(soon([&] { return refused(StreamRefusal::handshake) == 1; }));
  EXPECT_EQ(log.count("no stream, as the TLS handshake failed: it does not speak TLS"), 1);

  serve(nullptr);
  EXPECT_EQ(refusal(service->port(), sidecar_files.tls(intercept_name)),
            "the intercept does not speak TLS");
}

// A client of gRPC's own, for what an uplink never does. It keeps the first message that comes
// down.
grpc::Status call(net::Port port, const std::string& ca, const std::string& certificate,
                  const std::string& key, bool wants_identity = false,
                  v1::InterceptMessage* first = nullptr) {
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(intercept_name);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto stub = v1::Mirror::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(port.number),
      ca.empty()
          ? grpc::InsecureChannelCredentials()
          : grpc::SslCredentials(
                {.pem_root_certs = ca, .pem_private_key = key, .pem_cert_chain = certificate}),
      arguments));
  grpc::ClientContext context;
  const auto stream = stub->Stream(&context);
  v1::SidecarMessage hello;
  hello.mutable_hello()->add_ports(80);
  hello.mutable_hello()->set_wants_identity(wants_identity);
  stream->Write(hello);
  v1::InterceptMessage message;
  if (stream->Read(first == nullptr ? &message : first)) context.TryCancel();
  return stream->Finish();
}

TEST_F(TlsStream, RefusesASidecarWithoutACertificateOrWithAnExpiredOne) {
  serve();
  const net::Port port = service->port();
  EXPECT_EQ(
      call(port, ca.certificate(), sidecar_certificate.certificate(), sidecar_certificate.key())
          .error_code(),
      grpc::StatusCode::CANCELLED)
      << "with one it gets its lease";
  EXPECT_EQ(call(port, ca.certificate(), "", "").error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(soon([&] { return refused(StreamRefusal::handshake) == 1; }));
  EXPECT_EQ(log.count("no stream, as the TLS handshake failed: it has no certificate"), 1);

  const Certificate expired({.name = "sidecar",
                             .alternative_names = "URI:" + sidecar_name,
                             .begins = -7200,
                             .ends = -3600},
                            &ca);
  EXPECT_EQ(call(port, ca.certificate(), expired.certificate(), expired.key()).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(soon([&] { return refused(StreamRefusal::handshake) == 2; }));
}

TEST_F(TlsStream, RefusesAnInterceptWithAnExpiredCertificate) {
  const Certificate expired({.name = "intercept",
                             .alternative_names = "DNS:" + intercept_name,
                             .begins = -7200,
                             .ends = -3600},
                            &ca);
  grpc::SslServerCredentialsOptions options;
  options.pem_key_cert_pairs = {{expired.key(), expired.certificate()}};
  v1::Mirror::Service mirror;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(options), &port);
  builder.RegisterService(&mirror);
  const auto server = builder.BuildAndStart();
  EXPECT_EQ(refusal({static_cast<uint16_t>(port)}, sidecar_files.tls(intercept_name)),
            "the intercept's certificate has expired, or no CA of --tls-ca has signed it");
}

TEST_F(TlsStream, LivesOnWhileCertificatesAndCasAreRotated) {
  serve();
  const net::Port port = service->port();
  const auto sidecar_tls = sidecar_files.tls(intercept_name);
  Uplink old_stream(to(port, sidecar_tls));
  const uint16_t old_port = leased_port(next(old_stream));
  ASSERT_NE(old_port, 0);

  // Leaves of a new CA. While both are trusted, each side's leaf may be of either.
  const Certificate new_intercept(
      {.name = "intercept", .alternative_names = "DNS:" + intercept_name}, &other_ca);
  const Certificate new_sidecar({.name = "sidecar", .alternative_names = "URI:" + sidecar_name},
                                &other_ca);
  const std::string both = ca.certificate() + other_ca.certificate();
  intercept_files.write(intercept_certificate, both);
  sidecar_files.write(sidecar_certificate, both);
  EXPECT_EQ(refusal(port, sidecar_tls), "");
  sidecar_files.write(new_sidecar, both);
  EXPECT_EQ(refusal(port, sidecar_tls), "");
  intercept_files.write(new_intercept, both);
  EXPECT_EQ(refusal(port, sidecar_tls), "");
  intercept_files.write(new_intercept, other_ca.certificate());
  sidecar_files.write(new_sidecar, other_ca.certificate());
  EXPECT_EQ(refusal(port, sidecar_tls), "");
  EXPECT_EQ(log.count("warning"), 0);

  // What was issued by the old CA is good no more, but for the stream that is there.
  const CertificateFiles left_behind(sidecar_certificate, both);
  EXPECT_NE(refusal(port, left_behind.tls(intercept_name)), "");
  EXPECT_TRUE(soon([&] { return refused(StreamRefusal::handshake) == 1; }));
  sidecar_files.write(new_sidecar, ca.certificate());
  EXPECT_NE(refusal(port, sidecar_tls), "") << "the new intercept is none of the old CA's";
  EXPECT_TRUE(talks(old_stream, old_port, "still there"));
}

// A sidecar's, whose environment holds it.
std::shared_ptr<program::Tls> tls_of_environment(const Certificate& certificate,
                                                 const std::string& cas) {
  const std::array<std::pair<const char*, std::string>, 3> variables = {
      {{"TRAFFICMIRROR_TLS_CERTIFICATE", certificate.certificate()},
       {"TRAFFICMIRROR_TLS_KEY", certificate.key()},
       {"TRAFFICMIRROR_TLS_CA", cas}}};
  for (const auto& [name, value] : variables) ::setenv(name, value.c_str(), 1);
  auto tls = program::load_tls({.certificate = "", .key = "", .ca = "", .peer = intercept_name});
  for (const auto& [name, value] : variables) ::unsetenv(name);
  return tls;
}

std::shared_ptr<const program::TlsMaterial> identity_of(const Certificate& certificate,
                                                        const std::string& cas) {
  return std::make_shared<const program::TlsMaterial>(
      program::TlsMaterial{certificate.certificate(), certificate.key(), cas});
}

TEST_F(TlsStream, ReplacesTheIdentityOfAnEnvironmentWhileTheCaIsRotated) {
  relay.set_identity(identity_of(sidecar_certificate, ca.certificate()));
  serve();
  const net::Port port = service->port();
  const auto sidecar_tls = tls_of_environment(sidecar_certificate, ca.certificate());
  Uplink old_stream(to(port, sidecar_tls));
  const uint16_t old_port = leased_port(next(old_stream));
  ASSERT_NE(old_port, 0);
  EXPECT_EQ(sidecar_tls->replacements().taken, 0U) << "it has that one already";

  // While both CAs are trusted the sidecar is sent a leaf of the new one, down the stream it has.
  const Certificate new_intercept(
      {.name = "intercept", .alternative_names = "DNS:" + intercept_name}, &other_ca);
  const Certificate new_sidecar({.name = "sidecar", .alternative_names = "URI:" + sidecar_name},
                                &other_ca);
  const std::string both = ca.certificate() + other_ca.certificate();
  intercept_files.write(intercept_certificate, both);
  relay.set_identity(identity_of(new_sidecar, both));
  ASSERT_TRUE(soon([&] { return sidecar_tls->replacements().taken == 1; }));
  EXPECT_EQ(*sidecar_tls->material(), *identity_of(new_sidecar, both));
  EXPECT_EQ(refusal(port, sidecar_tls), "");

  // Then the intercept shows and trusts the new one alone: what the environment holds is of no use.
  intercept_files.write(new_intercept, other_ca.certificate());
  EXPECT_NE(refusal(port, tls_of_environment(sidecar_certificate, both)), "");
  EXPECT_EQ(refusal(port, sidecar_tls), "");
  relay.set_identity(identity_of(new_sidecar, other_ca.certificate()));
  ASSERT_TRUE(soon([&] { return sidecar_tls->replacements().taken == 2; }));
  EXPECT_EQ(refusal(port, sidecar_tls), "");
  EXPECT_TRUE(talks(old_stream, old_port, "still there"));
  EXPECT_EQ(old_stream.counters().streams, 1U);
  EXPECT_EQ(log.count("PRIVATE KEY"), 0);
}

TEST_F(TlsStream, KeepsTheIdentityOfAnEnvironmentWhileWhatIsSentDoesNotFit) {
  serve();
  const auto sidecar_tls = tls_of_environment(sidecar_certificate, ca.certificate());
  Uplink stream(to(service->port(), sidecar_tls));
  const uint16_t port = leased_port(next(stream));
  ASSERT_NE(port, 0);
  auto wrong = *identity_of(sidecar_certificate, ca.certificate());
  wrong.key = intercept_certificate.key();
  relay.set_identity(std::make_shared<const program::TlsMaterial>(wrong));
  ASSERT_TRUE(soon([&] { return sidecar_tls->replacements().refused == 1; }));
  EXPECT_EQ(log.count("the key that was sent is not the key of the certificate"), 1);
  EXPECT_EQ(log.count("PRIVATE KEY"), 0);
  EXPECT_TRUE(talks(stream, port, "still there"));
  EXPECT_EQ(refusal(service->port(), sidecar_tls), "");
}

TEST_F(TlsStream, SendsAnIdentityOnlyToWhoWantsItAndHasShownWhoItIs) {
  relay.set_identity(identity_of(sidecar_certificate, ca.certificate()));
  serve();
  const auto got_identity = [&](const Certificate& shown, bool wants) {
    v1::InterceptMessage first;
    call(service->port(), ca.certificate(), shown.certificate(), shown.key(), wants, &first);
    return first.configuration().has_identity();
  };
  EXPECT_TRUE(got_identity(sidecar_certificate, true));
  EXPECT_FALSE(got_identity(sidecar_certificate, false));
  EXPECT_FALSE(got_identity(intercept_certificate, true))
      << "signed by the CA, but of another name";

  serve(nullptr);
  v1::InterceptMessage first;
  call(service->port(), "", "", "", true, &first);
  EXPECT_TRUE(first.has_configuration());
  EXPECT_FALSE(first.configuration().has_identity()) << "in plain text, to anybody";
}

TEST_F(TlsStream, WantsNoIdentityWhereItsOwnIsInFiles) {
  relay.set_identity(identity_of(sidecar_certificate, ca.certificate() + other_ca.certificate()));
  serve();
  const auto sidecar_tls = sidecar_files.tls(intercept_name);
  EXPECT_EQ(refusal(service->port(), sidecar_tls), "");
  EXPECT_EQ(sidecar_tls->material()->ca, ca.certificate());
}

TEST_F(TlsStream, KeepsWhatItHasWhileFilesDoNotFit) {
  serve();
  const auto sidecar_tls = sidecar_files.tls(intercept_name);
  const Certificate next_one({.name = "intercept", .alternative_names = "DNS:" + intercept_name},
                             &ca);
  intercept_files.write_certificate(next_one);  // and not yet its key
  EXPECT_EQ(refusal(service->port(), sidecar_tls), "");
  EXPECT_EQ(log.count("what was read before is still in use"), 1);
  intercept_files.write(next_one, other_ca.certificate());
  EXPECT_NE(refusal(service->port(), sidecar_tls), "") << "now the new CA counts";
}

// What the operator makes, on both sides, at each step of replacing its CA.
TEST_F(TlsStream, StandsWithTheOperatorsCertificatesWhicheverCaSignedThem) {
  using std::chrono::hours;
  const auto now = std::chrono::system_clock::now();
  const controller::CertificateLifetimes lifetimes{
      .ca = hours(30), .leaf = hours(10), .distribution = hours(1)};
  const kube::Key mirror{"shop", "checkout"};
  const kube::SecretData alone = controller::rotate_ca({}, now - hours(21), lifetimes).data;
  const kube::SecretData trusting = controller::rotate_ca(alone, now - hours(1), lifetimes).data;
  const kube::SecretData signing = controller::rotate_ca(trusting, now, lifetimes).data;
  ASSERT_EQ(signing.at("tls.crt"), trusting.at("next.crt"));

  const auto write = [&](const CertificateFiles& files, const kube::SecretData& signer,
                         const std::string& identity) {
    const kube::SecretData leaf =
        controller::rotate_leaf({}, signer, {.uris = {identity}}, now, lifetimes).data;
    for (const auto& [name, text] : leaf) files.write_text(name, text);
  };
  const std::string of_intercept = controller::intercept_identity(mirror);
  const std::string of_sidecar = controller::sidecar_identity(mirror);
  write(intercept_files, trusting, of_intercept);
  serve(intercept_files.tls(of_sidecar));
  for (const kube::SecretData* const intercepts : {&trusting, &signing}) {
    write(intercept_files, *intercepts, of_intercept);
    for (const kube::SecretData* const sidecars : {&trusting, &signing}) {
      write(sidecar_files, *sidecars, of_sidecar);
      EXPECT_EQ(refusal(service->port(), sidecar_files.tls(of_intercept)), "");
    }
  }
  // One that has slept through all of it does not know the new CA.
  write(sidecar_files, alone, of_sidecar);
  EXPECT_NE(refusal(service->port(), sidecar_files.tls(of_intercept)), "");
  // Of another mirror.
  write(sidecar_files, signing, controller::sidecar_identity({"shop", "checkout-v3"}));
  EXPECT_NE(refusal(service->port(), sidecar_files.tls(of_intercept)), "");
}

}  // namespace
}  // namespace trafficmirror
