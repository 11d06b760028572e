#include <cstdlib>
#include <vector>

#include <CLI/App.hpp>
#include <gtest/gtest.h>

#include "program/flags.h"
#include "program/start_error.h"
#include "program/tls.h"
#include "tests/unit/certificates.h"

namespace trafficmirror::program {
namespace {

using tests::Certificate;
using tests::CertificateFiles;

class TlsOptionsTest : public testing::Test {
 protected:
  TlsOptionsTest() { clear(); }
  ~TlsOptionsTest() override { clear(); }

  static void set(const char* part, const std::string& text) {
    ::setenv((std::string("TRAFFICMIRROR_TLS_") + part).c_str(), text.c_str(), 1);
  }
  static void clear() {
    for (const char* part : {"CERTIFICATE", "KEY", "CA"})
      ::unsetenv((std::string("TRAFFICMIRROR_TLS_") + part).c_str());
  }

  // What is wrong; "" where all is well.
  static std::string wrong(const TlsOptions& options) {
    try {
      load_tls(options);
      return "";
    } catch (const StartError& error) {
      return error.what();
    }
  }

  const Certificate ca{{.name = "ca", .ca = true}};
  const Certificate leaf{{.name = "leaf", .alternative_names = "DNS:leaf"}, &ca};
  const CertificateFiles files{leaf, ca.certificate()};
};

TEST_F(TlsOptionsTest, NothingGivenIsNoTls) {
  EXPECT_EQ(load_tls({}), nullptr);
  set("KEY", "");  // as good as not set
  EXPECT_EQ(load_tls({}), nullptr);
}

TEST_F(TlsOptionsTest, AllOfItOrNothing) {
  EXPECT_EQ(wrong(files.options("peer")), "");
  TlsOptions options = files.options("");
  EXPECT_EQ(wrong(options),
            "--tls-peer is missing: name whom the other side's certificate has to be of");
  options = files.options("peer");
  options.certificate.clear();
  EXPECT_EQ(wrong(options),
            "--tls-certificate is missing, and TRAFFICMIRROR_TLS_CERTIFICATE is not set: TLS needs "
            "a certificate, its key and a CA");
  options = files.options("peer");
  options.key.clear();
  EXPECT_TRUE(wrong(options).starts_with("--tls-key is missing")) << wrong(options);
  options = files.options("peer");
  options.ca.clear();
  EXPECT_TRUE(wrong(options).starts_with("--tls-ca is missing")) << wrong(options);
  EXPECT_TRUE(wrong({.certificate = "", .key = "", .ca = "", .peer = "peer"})
                  .starts_with("--tls-certificate is missing"));
  set("CA", ca.certificate());
  EXPECT_TRUE(wrong({}).starts_with("--tls-certificate is missing"));
}

TEST_F(TlsOptionsTest, TheEnvironmentHoldsThePemAndFilesWin) {
  set("CERTIFICATE", leaf.certificate());
  set("KEY", leaf.key());
  set("CA", ca.certificate());
  TlsOptions options;
  options.peer = "peer";
  const auto tls = load_tls(options);
  ASSERT_TRUE(tls);
  EXPECT_EQ(tls->peer(), "peer");
  EXPECT_EQ(tls->material()->certificate, leaf.certificate());
  EXPECT_EQ(tls->material()->key, leaf.key());
  EXPECT_EQ(tls->material()->ca, ca.certificate());

  set("KEY", "nonsense");
  EXPECT_EQ(wrong(options),
            "TRAFFICMIRROR_TLS_KEY holds no private key in PEM, or one with a passphrase");
  options.key = files.path("tls.key");
  EXPECT_EQ(wrong(options), "");
}

TEST_F(TlsOptionsTest, WhatDoesNotFitIsNamed) {
  const TlsOptions options = files.options("peer");
  const std::string certificate = "--tls-certificate " + options.certificate;
  const std::string key = "--tls-key " + options.key;
  const std::string ca_file = "--tls-ca " + options.ca;

  TlsOptions missing = options;
  missing.key = "/nowhere";
  EXPECT_EQ(wrong(missing), "--tls-key /nowhere can't be read: No such file or directory");
  missing.key = "/";
  EXPECT_EQ(wrong(missing), "--tls-key / can't be read: Is a directory");

  files.write_text("tls.crt", "nonsense");
  EXPECT_EQ(wrong(options), certificate + " holds no certificate in PEM");
  files.write_text("tls.crt", leaf.certificate() + leaf.certificate().substr(0, 200));
  EXPECT_EQ(wrong(options),
            certificate + " holds a certificate that is damaged, behind a whole one");

  files.write(leaf, "");
  EXPECT_EQ(wrong(options), ca_file + " holds no certificate in PEM");
  files.write(leaf, ca.certificate());
  files.write_text("tls.key", leaf.certificate());
  EXPECT_EQ(wrong(options), key + " holds no private key in PEM, or one with a passphrase");
  const Certificate other({.name = "other"}, &ca);
  files.write_text("tls.key", other.key());
  EXPECT_EQ(wrong(options), key + " is not the key of the certificate in " + certificate);

  files.write(
      Certificate({.name = "old", .alternative_names = "", .begins = -7200, .ends = -3600}, &ca),
      ca.certificate());
  EXPECT_TRUE(wrong(options).starts_with(certificate + " has expired: it was valid until 20"))
      << wrong(options);
  files.write(
      Certificate({.name = "new", .alternative_names = "", .begins = 3600, .ends = 7200}, &ca),
      ca.certificate());
  EXPECT_TRUE(wrong(options).starts_with(certificate + " is not valid before 20"))
      << wrong(options);
}

TEST_F(TlsOptionsTest, FlagsAreKeysOfTheFileToo) {
  files.write_text("config.yaml", "tls-certificate: a\ntls-key: b\ntls-ca: c\ntls-peer: d\n");
  CLI::App app("Copies live TCP traffic.", "trafficmirror-sidecar");
  TlsOptions options;
  CommonOptions common;
  add_tls_flags(app, options);
  add_common_flags(app, common);
  const std::string config = files.path("config.yaml");
  const std::vector<const char*> arguments = {"program", "--config", config.c_str(), "--tls-peer",
                                              "spiffe://e"};
  ASSERT_EQ(parse_flags(app, static_cast<int>(arguments.size()), arguments.data()), std::nullopt);
  EXPECT_EQ(options.certificate, "a");
  EXPECT_EQ(options.key, "b");
  EXPECT_EQ(options.ca, "c");
  EXPECT_EQ(options.peer, "spiffe://e");
}

TEST_F(TlsOptionsTest, WhatHasChangedIsRead) {
  const auto tls = load_tls(files.options("peer"));
  const auto first = tls->material();
  EXPECT_EQ(tls->material(), first);
  const Certificate second({.name = "second"}, &ca);
  files.write_certificate(second);
  EXPECT_EQ(tls->material(), first) << "its key is not there yet";
  files.write(second, ca.certificate());
  EXPECT_EQ(tls->material()->certificate, second.certificate());
}

// What the other side sends in place of what the environment holds.
class TlsReplacementTest : public TlsOptionsTest {
 protected:
  TlsReplacementTest() {
    set("CERTIFICATE", leaf.certificate());
    set("KEY", leaf.key());
    set("CA", ca.certificate());
    TlsOptions options;
    options.peer = "peer";
    tls = load_tls(options);
  }

  static TlsMaterial material_of(const Certificate& of, const std::string& cas) {
    return {of.certificate(), of.key(), cas};
  }
  TlsMaterial good() const { return material_of(next, ca.certificate() + other_ca.certificate()); }

  // Sends it, and nothing changes but the count.
  void expect_refused(const TlsMaterial& sent) {
    const auto before = tls->material();
    const auto counted = tls->replacements();
    testing::internal::CaptureStdout();
    tls->replace(sent);
    const std::string log = testing::internal::GetCapturedStdout();
    EXPECT_EQ(tls->material(), before);
    EXPECT_EQ(tls->replacements().taken, counted.taken);
    EXPECT_EQ(tls->replacements().refused, counted.refused + 1);
    EXPECT_EQ(log.find("PRIVATE KEY"), std::string::npos);
  }

  const Certificate other_ca{{.name = "other ca", .ca = true}};
  const Certificate next{{.name = "next", .alternative_names = "DNS:leaf"}, &other_ca};
  std::shared_ptr<Tls> tls;
};

TEST_F(TlsReplacementTest, IsInUseFromThenOn) {
  EXPECT_TRUE(tls->from_environment());
  tls->replace(good());
  EXPECT_EQ(*tls->material(), good());
  EXPECT_EQ(tls->replacements().taken, 1U);
  tls->replace(good());
  EXPECT_EQ(tls->replacements().taken, 1U) << "it was in use already";
  tls->replace(material_of(leaf, ca.certificate()));
  EXPECT_EQ(*tls->material(), material_of(leaf, ca.certificate()));
  EXPECT_EQ(tls->replacements().taken, 2U);
  EXPECT_EQ(tls->replacements().refused, 0U);
}

TEST_F(TlsReplacementTest, HasToHoldUpAsAtTheStart) {
  TlsMaterial wrong = good();
  wrong.key = leaf.key();
  expect_refused(wrong);
  wrong = good();
  wrong.certificate.resize(100);
  expect_refused(wrong);
  wrong = good();
  wrong.key = wrong.certificate;
  expect_refused(wrong);
  wrong = good();
  wrong.ca = "nonsense";
  expect_refused(wrong);
  expect_refused({});
  expect_refused(material_of(
      Certificate({.name = "old", .alternative_names = "", .begins = -7200, .ends = -3600}, &ca),
      ca.certificate()));
  wrong = good();
  wrong.ca += std::string(max_tls_material_bytes, '\n');
  expect_refused(wrong);

  // So it is behind one that was taken.
  tls->replace(good());
  wrong = good();
  wrong.key = leaf.key();
  expect_refused(wrong);
  EXPECT_EQ(*tls->material(), good());
}

TEST_F(TlsReplacementTest, IsNotForWhatComesOutOfFiles) {
  for (const auto part : {&TlsOptions::certificate, &TlsOptions::key, &TlsOptions::ca}) {
    TlsOptions options;
    options.peer = "peer";
    options.*part = files.options("peer").*part;
    const auto with_file = load_tls(options);
    EXPECT_FALSE(with_file->from_environment());
    with_file->replace(good());
    EXPECT_EQ(*with_file->material(), material_of(leaf, ca.certificate()));
    EXPECT_EQ(with_file->replacements().taken, 0U);
  }
}

}  // namespace
}  // namespace trafficmirror::program
