#include "intercept/sidecar_identity.h"

#include <array>

#include <CLI/App.hpp>
#include <gtest/gtest.h>

#include "program/flags.h"
#include "program/start_error.h"
#include "tests/unit/certificates.h"

namespace trafficmirror::intercept {
namespace {

using tests::Certificate;
using tests::CertificateFiles;

class SidecarIdentityTest : public testing::Test {
 protected:
  std::string wrong(const SidecarIdentityOptions& of, const program::Tls* with) {
    try {
      load_sidecar_identity(of, with);
      return "";
    } catch (const program::StartError& error) {
      return error.what();
    }
  }

  // What a look says is wrong; "" where it finds nothing new, or something good.
  static std::string wrong(SidecarIdentity& identity) {
    const auto found = identity.look_again();
    const auto* const text = found ? std::get_if<std::string>(&*found) : nullptr;
    return text == nullptr ? "" : *text;
  }

  const Certificate ca{{.name = "ca", .ca = true}};
  const Certificate own{{.name = "intercept"}, &ca};
  const Certificate first{{.name = "first"}, &ca};
  const Certificate second{{.name = "second"}, &ca};
  const CertificateFiles own_files{own, ca.certificate()};
  const CertificateFiles files{first, "not looked at"};
  const std::shared_ptr<program::Tls> tls = own_files.tls("sidecar");
  const SidecarIdentityOptions options{files.path("tls.crt"), files.path("tls.key")};
};

TEST_F(SidecarIdentityTest, BothFilesOrNeitherAndOnlyWithTls) {
  EXPECT_EQ(load_sidecar_identity({}, tls.get()), nullptr);
  EXPECT_EQ(load_sidecar_identity({}, nullptr), nullptr);
  EXPECT_EQ(wrong({options.certificate, ""}, tls.get()),
            "--sidecar-tls-key is missing: sidecars need a certificate and its key");
  EXPECT_EQ(wrong({"", options.key}, tls.get()),
            "--sidecar-tls-certificate is missing: sidecars need a certificate and its key");
  EXPECT_EQ(wrong(options, nullptr),
            "--sidecar-tls-certificate needs TLS on the stream: give --tls-certificate, --tls-key, "
            "--tls-ca and --tls-peer too");
  EXPECT_EQ(wrong(options, tls.get()), "");
}

TEST_F(SidecarIdentityTest, HasToFitTogether) {
  files.write_text("tls.key", second.key());
  EXPECT_EQ(wrong(options, tls.get()), "--sidecar-tls-key " + options.key +
                                           " is not the key of the certificate in "
                                           "--sidecar-tls-certificate " +
                                           options.certificate);
}

TEST_F(SidecarIdentityTest, IsTheFilesWithTheInterceptsCas) {
  const auto identity = load_sidecar_identity(options, tls.get());
  EXPECT_EQ(*identity->material(),
            (program::TlsMaterial{first.certificate(), first.key(), ca.certificate()}));
  EXPECT_FALSE(identity->look_again());
}

TEST_F(SidecarIdentityTest, FollowsTheFilesAndTheCas) {
  const auto identity = load_sidecar_identity(options, tls.get());
  files.write(second, "");
  const auto found = identity->look_again();
  ASSERT_TRUE(found);
  EXPECT_EQ(std::get<SidecarIdentity::Material>(*found), identity->material());
  EXPECT_EQ(identity->material()->certificate, second.certificate());
  EXPECT_FALSE(identity->look_again());

  const std::string both = ca.certificate() + Certificate({.name = "b", .ca = true}).certificate();
  own_files.write(own, both);
  EXPECT_TRUE(identity->look_again());
  EXPECT_EQ(identity->material()->ca, both);
}

TEST_F(SidecarIdentityTest, KeepsWhatItHasAndSaysOnceWhatDoesNotFit) {
  const auto identity = load_sidecar_identity(options, tls.get());
  const auto before = identity->material();
  files.write_certificate(second);  // and not yet its key
  EXPECT_NE(wrong(*identity).find("is not the key of the certificate"), std::string::npos);
  EXPECT_FALSE(identity->look_again());
  EXPECT_EQ(identity->material(), before);
  files.write_text("tls.key", "nonsense");
  EXPECT_NE(wrong(*identity).find("holds no private key"), std::string::npos);
  files.write(first, "");  // put back
  EXPECT_FALSE(identity->look_again());
  files.write_text("tls.key", "nonsense");
  EXPECT_NE(wrong(*identity), "") << "it is wrong anew";
  files.write(second, "");
  EXPECT_TRUE(identity->look_again());
  EXPECT_EQ(identity->material()->key, second.key());
}

TEST_F(SidecarIdentityTest, ComesFromFlags) {
  CLI::App app("", "trafficmirror-intercept");
  SidecarIdentityOptions read;
  add_sidecar_identity_flags(app, read);
  const std::array<const char*, 5> arguments = {"program", "--sidecar-tls-certificate", "a",
                                                "--sidecar-tls-key", "b"};
  ASSERT_EQ(program::parse_flags(app, 5, arguments.data()), std::nullopt);
  EXPECT_EQ(read.certificate, "a");
  EXPECT_EQ(read.key, "b");
}

}  // namespace
}  // namespace trafficmirror::intercept
