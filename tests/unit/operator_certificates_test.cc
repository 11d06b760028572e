// Certificates and their rotation. The time is virtual, but for what the openssl program says about
// certificates made now: it looks at them with other eyes than the code that made them.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "operator/certificate_rotation.h"
#include "operator/certificates.h"
#include "program/start_error.h"
#include "program/tls.h"

namespace trafficmirror::controller {
namespace {

using kube::SecretData;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;
using std::chrono::system_clock;

const WallTime start = system_clock::from_time_t(1'900'000'000);
const kube::Key mirror{"shop", "checkout-v2"};
const Names sidecar{.uris = {sidecar_identity(mirror)}};

Validity around(WallTime now) {
  return {now - hours(1), now + hours(1)};
}

KeyPair some_ca(WallTime now = start) {
  return make_ca("some CA", around(now));
}

// Files for other programs, gone with this object.
class Directory {
 public:
  Directory() {
    std::string name = testing::TempDir() + "trafficmirror-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no directory for files");
    path_ = name;
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
    return path_ / name;
  }
  // What `openssl ARGUMENTS` writes, from within.
  std::string openssl(const std::string& arguments) const {
    const std::string command = "cd '" + path_.string() + "' && openssl " + arguments + " 2>&1";
    FILE* const output = ::popen(command.c_str(), "r");
    if (output == nullptr) throw std::runtime_error("openssl can't be run");
    std::string text;
    std::array<char, 4096> part{};
    while (const size_t size = std::fread(part.data(), 1, part.size(), output))
      text.append(part.data(), size);
    ::pclose(output);
    return text;
  }

 private:
  std::filesystem::path path_;
};

TEST(Certificates, AreWhatTheOpensslProgramAcceptsOnBothEndsOfAConnection) {
  const Directory files;
  const KeyPair ca = some_ca(system_clock::now());
  const KeyPair leaf = make_leaf(ca, {{"hook.operator.svc"}, {sidecar_identity(mirror)}},
                                 around(system_clock::now()));
  files.write("ca.crt", ca.certificate);
  files.write("leaf.crt", leaf.certificate);
  files.write("leaf.key", leaf.key);

  for (const char* purpose : {"sslserver", "sslclient"})
    EXPECT_EQ(files.openssl(std::string("verify -x509_strict -CAfile ca.crt -purpose ") + purpose +
                            " -verify_hostname hook.operator.svc leaf.crt"),
              "leaf.crt: OK\n");
  EXPECT_EQ(files.openssl("pkey -in leaf.key -pubout"),
            files.openssl("x509 -in leaf.crt -pubkey -noout"));

  const std::string text = files.openssl("x509 -in leaf.crt -noout -text");
  for (const char* line :
       {"Version: 3", "Signature Algorithm: ecdsa-with-SHA256", "Issuer: CN = some CA",
        "NIST CURVE: P-256", "CA:FALSE",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication\n", "DNS:hook.operator.svc, ",
        "URI:spiffe://trafficmirror.dev/ns/shop/mirror/checkout-v2/sidecar\n",
        "X509v3 Authority Key Identifier"})
    EXPECT_NE(text.find(line), std::string::npos) << line << " is not in\n" << text;

  const std::string ca_text = files.openssl("x509 -in ca.crt -noout -text");
  for (const char* line :
       {"X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0\n",
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n",
        "X509v3 Subject Key Identifier"})
    EXPECT_NE(ca_text.find(line), std::string::npos) << line << " is not in\n" << ca_text;
}

TEST(Certificates, SayWhatTheyWereMadeWith) {
  const Names names{{"one.example.org", "two.example.org"}, {"spiffe://example.org/three"}};
  const Validity validity{start, start + hours(24 * 365 * 30)};
  const KeyPair ca = make_ca("some CA", validity);
  const auto of_ca = read_certificate(ca.certificate);
  ASSERT_TRUE(of_ca);
  EXPECT_TRUE(of_ca->ca);
  EXPECT_EQ(of_ca->validity.from, validity.from);
  EXPECT_EQ(of_ca->validity.until, validity.until);  // beyond 2050, where the format changes
  EXPECT_EQ(of_ca->names, Names());

  const auto of_leaf = read_certificate(make_leaf(ca, names, validity).certificate);
  ASSERT_TRUE(of_leaf);
  EXPECT_FALSE(of_leaf->ca);
  EXPECT_EQ(of_leaf->names, names);
}

TEST(Certificates, TakeNamesToTheLetter) {
  const Names names{{"a,DNS:b"}, {"spiffe://c,URI:spiffe://d", "section:e"}};
  EXPECT_EQ(read_certificate(make_leaf(some_ca(), names, around(start)).certificate)->names, names);
}

TEST(Certificates, HavePositiveSerialNumbersOfTheirOwn) {
  const Directory files;
  const KeyPair ca = some_ca();
  std::set<std::string> serials;
  for (int i = 0; i < 5; ++i) {
    files.write("leaf.crt", make_leaf(ca, sidecar, around(start)).certificate);
    const std::string serial = files.openssl("x509 -in leaf.crt -noout -serial");
    EXPECT_EQ(serial.size(), std::string("serial=\n").size() + 40);  // 20 bytes
    EXPECT_LT(serial.at(std::string("serial=").size()), '8');
    serials.insert(serial);
  }
  EXPECT_EQ(serials.size(), 5);
}

TEST(Certificates, DoNotOutliveTheirCa) {
  const KeyPair leaf = make_leaf(some_ca(), sidecar, {start, start + hours(24)});
  EXPECT_EQ(read_certificate(leaf.certificate)->validity.until, start + hours(1));
}

TEST(Certificates, AreSignedByTheirCaAsLongAsBothAreValid) {
  const KeyPair ca = some_ca();
  const KeyPair leaf = make_leaf(ca, sidecar, {start - minutes(1), start + minutes(1)});
  const auto signed_at = [&](WallTime now) {
    return is_signed_by(leaf.certificate, ca.certificate, now);
  };
  EXPECT_TRUE(signed_at(start));
  EXPECT_TRUE(signed_at(start - minutes(1)));
  EXPECT_FALSE(signed_at(start - minutes(1) - seconds(1)));
  EXPECT_TRUE(signed_at(start + minutes(1) - seconds(1)));
  EXPECT_FALSE(signed_at(start + minutes(1)));

  EXPECT_FALSE(is_signed_by(leaf.certificate, some_ca().certificate, start));  // of the same name
  EXPECT_FALSE(is_signed_by(leaf.certificate, leaf.certificate, start));
  EXPECT_FALSE(is_signed_by("", ca.certificate, start));
  EXPECT_FALSE(is_signed_by(leaf.certificate, "", start));
}

TEST(Certificates, KnowTheirKeys) {
  const KeyPair one = some_ca();
  const KeyPair two = some_ca();
  EXPECT_TRUE(key_fits(one));
  EXPECT_FALSE(key_fits({one.certificate, two.key}));
  EXPECT_FALSE(key_fits({one.certificate, ""}));
  EXPECT_FALSE(key_fits({"", one.key}));
}

TEST(Certificates, AreSignedOnlyByACaWithItsKey) {
  const KeyPair ca = some_ca();
  const KeyPair leaf = make_leaf(ca, sidecar, around(start));
  EXPECT_THROW(make_leaf({ca.certificate, some_ca().key}, sidecar, around(start)),
               std::runtime_error);
  EXPECT_THROW(make_leaf({"", ""}, sidecar, around(start)), std::runtime_error);
  EXPECT_THROW(make_leaf(leaf, sidecar, around(start)), std::runtime_error);
}

TEST(Certificates, AreNotReadOutOfAnythingElse) {
  const std::string pem = some_ca().certificate;
  for (const std::string& text :
       {std::string(), std::string("no certificate"), std::string(100, '\0'), some_ca().key,
        pem.substr(0, pem.size() / 2),
        std::string("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")})
    EXPECT_FALSE(read_certificate(text)) << text;
}

TEST(Certificates, AreSplitUpToTheFirstThatIsDamaged) {
  const std::string one = some_ca().certificate;
  const std::string two = some_ca().certificate;
  EXPECT_EQ(split_certificates("words before\n" + one + "words between\n" + two),
            (std::vector<std::string>{one, two}));
  EXPECT_EQ(split_certificates(one + two.substr(0, two.size() / 2)), std::vector<std::string>{one});
  EXPECT_TRUE(split_certificates("").empty());
}

// A life of a hundred hours, the last third of which begins in hour 66⅔; a successor signs ten
// hours after it was made.
const CertificateLifetimes lifetimes{
    .ca = hours(100), .leaf = hours(12), .distribution = hours(10), .backdating = seconds(0)};

class CaRotation : public testing::Test {
 protected:
  // Of one who looks at the time that was asked for, and at the times on the way.
  const SecretData& at(WallTime now) {
    while (secret.look_again < now) {
      const SecretData before = secret.data;
      const WallTime at = secret.look_again;
      secret = rotate_ca(before, at, lifetimes);
      EXPECT_NE(secret.data, before) << "there was no reason to look";
      EXPECT_GT(secret.look_again, at);
    }
    secret = rotate_ca(secret.data, now, lifetimes);
    return secret.data;
  }
  std::vector<std::string> trusted() const { return split_certificates(secret.data.at("ca.crt")); }
  const std::string& signer() const { return secret.data.at("tls.crt"); }

  RotatedSecret secret = rotate_ca({}, start, lifetimes);
  const std::string first = signer();
};

TEST_F(CaRotation, BeginsWithOneCa) {
  EXPECT_EQ(secret.data.size(), 3);
  EXPECT_EQ(trusted(), std::vector<std::string>{first});
  EXPECT_TRUE(key_fits({first, secret.data.at("tls.key")}));
  const auto content = read_certificate(first);
  EXPECT_TRUE(content->ca);
  EXPECT_EQ(content->validity.from, start);
  EXPECT_EQ(content->validity.until, start + hours(100));
}

TEST_F(CaRotation, LeavesItAloneUntilAThirdOfItsLifeIsLeft) {
  const SecretData before = secret.data;
  EXPECT_EQ(secret.look_again, start + hours(66) + minutes(40));
  EXPECT_EQ(at(start + hours(66) + minutes(39)), before);
}

TEST_F(CaRotation, FirstTrustsASuccessorThenLetsItSignThenForgetsTheOld) {
  at(start + hours(67));
  EXPECT_EQ(signer(), first);
  const std::string second = secret.data.at("next.crt");
  EXPECT_EQ(trusted(), (std::vector<std::string>{first, second}));

  const SecretData waiting = secret.data;
  EXPECT_EQ(at(start + hours(76)), waiting);

  at(start + hours(77));
  EXPECT_EQ(signer(), second);
  EXPECT_TRUE(key_fits({second, secret.data.at("tls.key")}));
  EXPECT_EQ(trusted(), (std::vector<std::string>{second, first}));
  EXPECT_FALSE(secret.data.contains("next.crt"));
  EXPECT_FALSE(secret.data.contains("next.key"));

  EXPECT_EQ(trusted().size(), 2);
  at(start + hours(100));
  EXPECT_EQ(signer(), second);
  EXPECT_EQ(trusted(), std::vector<std::string>{second});
}

TEST_F(CaRotation, GoesOnForEver) {
  std::set<std::string> signers;
  for (int hour = 0; hour < 1000; hour += 5) {
    const WallTime now = start + hours(hour);
    at(now);
    const auto content = read_certificate(signer());
    EXPECT_LE(content->validity.from, now);
    EXPECT_GT(content->validity.until, now);
    EXPECT_LE(trusted().size(), 2);
    EXPECT_EQ(trusted().front(), signer());
    signers.insert(signer());
  }
  EXPECT_EQ(signers.size(), 15);  // one each 66⅔ hours
}

// The promise that matters: a leaf is accepted by whoever heard of the bundle no longer ago than
// the time for that.
TEST_F(CaRotation, EverybodyTrustsTheSignerWhoHasHeardOfTheBundleInTime) {
  std::map<WallTime, std::string> bundles;
  for (WallTime now = start; now < start + hours(200); now += hours(2)) {
    bundles[now] = at(now).at("ca.crt");
    const SecretData leaf = rotate_leaf({}, secret.data, sidecar, now, lifetimes).data;
    for (auto heard = bundles.lower_bound(now - lifetimes.distribution); heard != bundles.end();
         ++heard) {
      bool trusts = false;
      for (const std::string& ca : split_certificates(heard->second))
        trusts = trusts || is_signed_by(leaf.at("tls.crt"), ca, now);
      ASSERT_TRUE(trusts);
    }
  }
}

TEST_F(CaRotation, TakesUpWhereAnOperatorThatWasAwayLeftIt) {
  const SecretData before = at(start + hours(67));
  // Behind the time to sign.
  secret = rotate_ca(before, start + hours(90), lifetimes);
  EXPECT_EQ(signer(), before.at("next.crt"));
  // Behind the first CA's end.
  secret = rotate_ca(before, start + hours(120), lifetimes);
  EXPECT_EQ(signer(), before.at("next.crt"));
  EXPECT_EQ(trusted(), std::vector<std::string>{before.at("next.crt")});
  // When the successor is due for one, too.
  secret = rotate_ca(before, start + hours(140), lifetimes);
  EXPECT_EQ(signer(), before.at("next.crt"));
  EXPECT_TRUE(secret.data.contains("next.crt"));
  // When none of it holds any more.
  secret = rotate_ca(before, start + hours(200), lifetimes);
  EXPECT_EQ(trusted(), std::vector<std::string>{signer()});
  EXPECT_FALSE(before.at("ca.crt").find(signer()) != std::string::npos);
}

TEST_F(CaRotation, ReplacesAtOnceWhatCannotSign) {
  const KeyPair leaf = make_leaf({first, secret.data.at("tls.key")}, sidecar, around(start));
  const std::string other_key = some_ca().key;
  const auto with = [&](const char* key, const std::string& text) {
    SecretData changed = secret.data;
    changed[key] = text;
    return changed;
  };
  SecretData no_key = secret.data;
  no_key.erase("tls.key");
  SecretData a_leaf = with("tls.crt", leaf.certificate);
  a_leaf["tls.key"] = leaf.key;
  for (const SecretData& broken :
       {no_key, a_leaf, with("tls.crt", ""), with("tls.crt", "no certificate"),
        with("tls.key", "no key"), with("tls.key", other_key)}) {
    const SecretData mended = rotate_ca(broken, start, lifetimes).data;
    EXPECT_TRUE(key_fits({mended.at("tls.crt"), mended.at("tls.key")}));
    // What it has signed is trusted until it has expired.
    EXPECT_EQ(split_certificates(mended.at("ca.crt")),
              (std::vector<std::string>{mended.at("tls.crt"), first}));
    EXPECT_EQ(rotate_ca(mended, start, lifetimes).data, mended);
  }
  // A clock that was far ahead made this one.
  EXPECT_NE(rotate_ca(secret.data, start - hours(1), lifetimes).data.at("tls.crt"), first);
}

TEST_F(CaRotation, PutsTheSuccessorInPlaceOfASignerThatIsBroken) {
  SecretData broken = at(start + hours(67));
  const std::string second = broken.at("next.crt");
  broken["tls.key"] = "no key";
  secret = rotate_ca(broken, start + hours(68), lifetimes);
  EXPECT_EQ(signer(), second);
  EXPECT_FALSE(secret.data.contains("next.crt"));
}

TEST_F(CaRotation, ReplacesABrokenSuccessor) {
  SecretData broken = at(start + hours(67));
  const std::string second = broken.at("next.crt");
  broken["next.key"] = "no key";
  secret = rotate_ca(broken, start + hours(68), lifetimes);
  EXPECT_EQ(signer(), first);
  EXPECT_NE(secret.data.at("next.crt"), second);
  EXPECT_EQ(secret.look_again, start + hours(78));
}

TEST_F(CaRotation, MendsTheBundle) {
  for (const char* broken : {"", "no certificate"}) {
    SecretData changed = secret.data;
    changed["ca.crt"] = broken;
    changed["of somebody else"] = "text";
    EXPECT_EQ(rotate_ca(changed, start, lifetimes).data, secret.data);
  }
}

TEST(CaRotationByDefault, TakesTenYearsADayAndFiveMinutes) {
  const CertificateLifetimes defaults;
  const SecretData one = rotate_ca({}, start, defaults).data;
  const Validity validity = read_certificate(one.at("tls.crt"))->validity;
  EXPECT_EQ(validity.from, start - minutes(5));
  EXPECT_EQ(validity.until, start + hours(24 * 3650));

  const WallTime late = start + hours(24 * 2440);
  const RotatedSecret two = rotate_ca(one, late, defaults);
  EXPECT_TRUE(two.data.contains("next.crt"));
  EXPECT_EQ(two.look_again, late + hours(24));
}

class LeafRotation : public testing::Test {
 protected:
  RotatedSecret rotate(const SecretData& current, WallTime now) const {
    return rotate_leaf(current, ca, sidecar, now, lifetimes);
  }
  const SecretData ca = rotate_ca({}, start, lifetimes).data;
  const RotatedSecret first = rotate({}, start);
};

TEST_F(LeafRotation, MakesALeafBesideTheBundle) {
  EXPECT_EQ(first.data.size(), 3);
  EXPECT_EQ(first.data.at("ca.crt"), ca.at("ca.crt"));
  EXPECT_TRUE(is_signed_by(first.data.at("tls.crt"), ca.at("tls.crt"), start));
  EXPECT_TRUE(key_fits({first.data.at("tls.crt"), first.data.at("tls.key")}));
  const auto content = read_certificate(first.data.at("tls.crt"));
  EXPECT_EQ(content->names, sidecar);
  EXPECT_EQ(content->validity.until, start + hours(12));
}

TEST_F(LeafRotation, KeepsItUntilAThirdOfItsLifeIsLeft) {
  EXPECT_EQ(first.look_again, start + hours(8));
  EXPECT_EQ(rotate(first.data, start + hours(8) - seconds(1)).data, first.data);
  const RotatedSecret second = rotate(first.data, start + hours(8));
  EXPECT_NE(second.data.at("tls.crt"), first.data.at("tls.crt"));
  EXPECT_NE(second.data.at("tls.key"), first.data.at("tls.key"));
  EXPECT_EQ(second.look_again, start + hours(16));
}

TEST_F(LeafRotation, ReplacesWhatIsOfAnotherNameOrCaOrBroken) {
  const SecretData other_ca = rotate_ca({}, start, lifetimes).data;
  const auto with = [&](const char* key, const std::string& text) {
    SecretData changed = first.data;
    changed[key] = text;
    return changed;
  };
  const Names more{{"checkout"}, sidecar.uris};
  for (const SecretData& wrong :
       {rotate_leaf({}, ca, more, start, lifetimes).data,
        rotate_leaf({}, ca, {.uris = {intercept_identity(mirror)}}, start, lifetimes).data,
        rotate_leaf({}, other_ca, sidecar, start, lifetimes).data, with("tls.crt", ""),
        with("tls.crt", "no certificate"), with("tls.key", "no key"),
        with("tls.key", some_ca().key), with("tls.crt", ca.at("tls.crt"))}) {
    const SecretData mended = rotate(wrong, start).data;
    EXPECT_NE(mended.at("tls.crt"), wrong.at("tls.crt"));
    EXPECT_EQ(rotate(mended, start).data, mended);
  }
}

TEST_F(LeafRotation, BringsTheBundleUpToDateWithoutANewLeaf) {
  SecretData stale = first.data;
  stale["ca.crt"] = "no certificate";
  stale["of somebody else"] = "text";
  EXPECT_EQ(rotate(stale, start).data, first.data);
}

TEST_F(LeafRotation, FollowsTheSigner) {
  const SecretData trusting = rotate_ca(ca, start + hours(67), lifetimes).data;
  const SecretData before = rotate_leaf({}, trusting, sidecar, start + hours(67), lifetimes).data;
  EXPECT_TRUE(is_signed_by(before.at("tls.crt"), ca.at("tls.crt"), start + hours(67)));

  const SecretData signing = rotate_ca(trusting, start + hours(77), lifetimes).data;
  const SecretData after = rotate_leaf(before, signing, sidecar, start + hours(77), lifetimes).data;
  EXPECT_TRUE(is_signed_by(after.at("tls.crt"), trusting.at("next.crt"), start + hours(77)));
}

// What the sidecar makes of the Secret that the operator writes.
TEST(Leaf, IsWhatTheProgramsTake) {
  const WallTime now = system_clock::now();
  const CertificateLifetimes defaults;
  const SecretData ca = rotate_ca({}, now, defaults).data;
  const SecretData leaf = rotate_leaf({}, ca, sidecar, now, defaults).data;
  const Directory files;
  const auto take = [&](const SecretData& data) -> std::string {
    try {
      program::load_tls({files.write("tls.crt", data.at("tls.crt")),
                         files.write("tls.key", data.at("tls.key")),
                         files.write("ca.crt", data.at("ca.crt")), intercept_identity(mirror)});
      return "";
    } catch (const program::StartError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(take(leaf), "");
  // It would notice: this one's time is over.
  const SecretData old = rotate_leaf({}, rotate_ca({}, now - hours(48), lifetimes).data, sidecar,
                                     now - hours(24), lifetimes)
                             .data;
  EXPECT_NE(take(old).find("has expired"), std::string::npos);
}

}  // namespace
}  // namespace trafficmirror::controller
