#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "operator/kube/config.h"
#include "operator/kube/exec_credential.h"
#include "operator/kube/object.h"
#include "operator/kube/yaml.h"
#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

class KubeConfig : public testing::Test {
 protected:
  KubeConfig() {
    std::string name = testing::TempDir() + "kube-config-XXXXXX";
    directory_ = mkdtemp(name.data());
    setenv("HOME", directory_.c_str(), 1);
    unsetenv("KUBECONFIG");
    unsetenv("KUBERNETES_SERVICE_HOST");
  }
  ~KubeConfig() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return directory_ / name;
  }
  // A kubeconfig with one of everything.
  std::filesystem::path kubeconfig(const std::string& cluster, const std::string& user) {
    return write("kubeconfig",
                 "current-context: here\n"
                 "contexts:\n"
                 "- {name: elsewhere, context: {cluster: b, user: b}}\n"
                 "- {name: here, context: {cluster: a, user: me, namespace: shop}}\n"
                 "clusters: [{name: a, cluster: {" +
                     cluster + "}}]\nusers: [{name: me, user: {" + user + "}}]\n");
  }
  static std::string refusal(const std::function<void()>& body) {
    try {
      body();
    } catch (const program::StartError& error) {
      return error.what();
    }
    return "nothing was wrong";
  }

  std::filesystem::path directory_;
};

TEST_F(KubeConfig, ReadsTheCurrentContext) {
  write("certificate.pem", "a certificate");
  write("token", "from a file\n");
  const auto config = read_kubeconfig({kubeconfig(
      "server: 'https://api.example:6443/prefix/', certificate-authority-data: YSBDQQ==,"
      "tls-server-name: kubernetes",
      "client-certificate: certificate.pem, client-key-data: YSBrZXk=,"
      "token: ' abc ', tokenFile: token")});
  EXPECT_TRUE(config.tls);
  EXPECT_EQ(config.host, "api.example");
  EXPECT_EQ(config.port, 6443);
  EXPECT_EQ(config.path, "/prefix");
  EXPECT_EQ(config.certificate_authority, "a CA");
  EXPECT_TRUE(config.verify);
  EXPECT_EQ(config.tls_server_name, "kubernetes");
  EXPECT_EQ(config.client_certificate, "a certificate");
  EXPECT_EQ(config.client_key, "a key");
  EXPECT_EQ(config.token, "abc");
  EXPECT_EQ(config.token_file, directory_ / "token");
  EXPECT_EQ(config.own_namespace, "shop");
}

TEST_F(KubeConfig, ReadsServers) {
  const auto read = [&](const std::string& server) {
    return read_kubeconfig({kubeconfig("server: '" + server + "'", "token: a")});
  };
  EXPECT_EQ(read("https://[fd00::1]:6443").host, "fd00::1");
  EXPECT_EQ(read("https://[fd00::1]:6443").port, 6443);
  EXPECT_EQ(read("https://[fd00::1]").port, 443);
  EXPECT_EQ(read("http://localhost").port, 80);
  EXPECT_FALSE(read("http://localhost").tls);
  for (const char* server : {"", "api:6443", "https://", "https://a:0", "https://a:70000",
                             "https://[fd00::1", "https://[fd00::1]6443", "https://a:b"})
    EXPECT_NE(refusal([&] { read(server); }).find("is no URL"), std::string::npos) << server;
}

TEST_F(KubeConfig, SaysWhatIsWrong) {
  const std::string file = (directory_ / "kubeconfig").string();
  const std::string server = "server: 'https://a'";
  EXPECT_EQ(refusal([&] { read_kubeconfig({file}); }),
            "the kubeconfig cannot be read: " + file + " is missing or empty");
  const auto wrong = [&](const std::string& cluster, const std::string& user) {
    return refusal([&] { read_kubeconfig({kubeconfig(cluster, user)}); });
  };
  EXPECT_EQ(wrong(server, "exec: {command: aws}"),
            file +
                ": user \"me\" uses exec, which is not supported; use a client certificate or a "
                "token");
  EXPECT_EQ(wrong(server, "auth-provider: {name: gcp}"),
            file +
                ": user \"me\" uses auth-provider, which is not supported; use a client "
                "certificate or a token");
  EXPECT_EQ(wrong(server, "client-certificate-data: YQ=="),
            file + ": user \"me\" needs both client-certificate and client-key");
  EXPECT_EQ(wrong(server, "client-certificate-data: 'a?b='"),
            file + ": client-certificate-data is no base64");
  EXPECT_EQ(wrong(server + ", certificate-authority: ca.pem", "token: a"),
            file + ": certificate-authority cannot be read: " + (directory_ / "ca.pem").string() +
                " is missing or empty");
  EXPECT_EQ(wrong(server + ", insecure-skip-tls-verify: maybe", "token: a"),
            file + ": insecure-skip-tls-verify is true or false");
  EXPECT_EQ(refusal([&] { read_kubeconfig({write("kubeconfig", "contexts: []")}); }),
            file + " has no current-context; choose one: kubectl config use-context");
  EXPECT_EQ(refusal([&] { read_kubeconfig({write("kubeconfig", "current-context: x")}); }),
            file + ": there is no context named \"x\" under contexts");
  EXPECT_EQ(refusal([&] { read_kubeconfig({write("kubeconfig", "a: [")}); }).find(file + " line "),
            0U);
}

TEST_F(KubeConfig, ReadsWhatAPodIsGiven) {
  write("token", "secret");
  write("ca.crt", "a CA");
  write("namespace", "trafficmirror\n");
  const auto config = in_cluster_config("fd00::1", "443", directory_);
  EXPECT_EQ(config.host, "fd00::1");
  EXPECT_EQ(config.port, 443);
  EXPECT_EQ(config.certificate_authority, "a CA");
  EXPECT_EQ(config.token_file, directory_ / "token");
  EXPECT_EQ(config.own_namespace, "trafficmirror");
  std::filesystem::remove(directory_ / "token");
  EXPECT_EQ(refusal([&] { in_cluster_config("fd00::1", "443", directory_); }),
            "the ServiceAccount's token cannot be read: " + (directory_ / "token").string() +
                " is missing or empty");
}

TEST_F(KubeConfig, TheEnvironmentChooses) {
  setenv("KUBECONFIG", kubeconfig("server: 'https://a'", "token: a").c_str(), 1);
  EXPECT_EQ(load_config().host, "a");
  unsetenv("KUBECONFIG");
  EXPECT_EQ(refusal([] { load_config(); }),
            "no API server is known: set KUBECONFIG to a kubeconfig file, or run this in a pod");
}

TEST_F(KubeConfig, OfSeveralFilesTheFirstCountsThatSaysSomething) {
  std::filesystem::create_directory(directory_ / "sub");
  write("sub/token", "of sub");
  const auto first = write("sub/first",
                           "clusters: [{name: a, cluster: {server: 'https://first'}}]\n"
                           "users: [{name: me, user: {tokenFile: token}}]\n");
  const auto second = kubeconfig("server: 'https://second'", "token: second");
  const auto config = read_kubeconfig({directory_ / "missing", first, second});
  EXPECT_EQ(config.host, "first");
  EXPECT_EQ(config.token_file, directory_ / "sub/token");  // as seen from its own file
  EXPECT_EQ(config.own_namespace, "shop");                 // only the second has a context
  EXPECT_EQ(read_kubeconfig({second, first}).host, "second");
  EXPECT_EQ(refusal([&] {
              read_kubeconfig({"/missing/a", "/missing/b"});
            }),
            "none of these kubeconfigs is there: /missing/a:/missing/b");
  setenv("KUBECONFIG", (first.string() + ":" + second.string()).c_str(), 1);
  EXPECT_EQ(load_config().host, "first");
}

TEST_F(KubeConfig, APersonChooses) {
  EXPECT_EQ(
      refusal([] { load_personal_config({}); }),
      "no API server is known: there is no ~/.kube/config; name a kubeconfig with --kubeconfig");
  std::filesystem::create_directory(directory_ / ".kube");
  const std::string contexts =
      "contexts:\n- {name: one, context: {cluster: one}}\n- {name: two, context: {cluster: two}}\n";
  write(".kube/config", "current-context: one\n" + contexts +
                            "clusters:\n- {name: one, cluster: {server: 'https://one'}}\n"
                            "- {name: two, cluster: {server: 'https://two'}}\n");
  EXPECT_EQ(load_personal_config({}).host, "one");
  EXPECT_EQ(load_personal_config({.context = "two"}).host, "two");
  EXPECT_EQ(refusal([] { load_personal_config({.context = "three"}); }),
            (directory_ / ".kube/config").string() +
                ": there is no context named \"three\" under contexts");
  const auto other = kubeconfig("server: 'https://other'", "token: a");
  setenv("KUBECONFIG", other.c_str(), 1);
  EXPECT_EQ(load_personal_config({}).host, "other");
  EXPECT_EQ(load_personal_config({.kubeconfig = directory_ / ".kube/config"}).host, "one");
}

// Commands that hand out credentials, written as shell scripts.
class ExecCredentials : public KubeConfig {
 protected:
  // A script beside the kubeconfig.
  void script(const std::string& text) {
    const auto path = write("login", "#!/bin/sh\n" + text);
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  }
  Config read(const std::string& more = "", const std::string& cluster = "") {
    const auto file = kubeconfig("server: 'https://a'" + cluster,
                                 "exec: {apiVersion: client.authentication.k8s.io/" + version_ +
                                     ", command: ./login" + more + "}");
    return load_personal_config({.kubeconfig = file});
  }
  std::string wrong(const std::string& more = "") {
    std::string message = refusal([&] { read(more); });
    const std::string prefix = (directory_ / "kubeconfig").string() +
                               ": user \"me\" gets its credentials from " +
                               (directory_ / "./login").string();
    if (message.starts_with(prefix)) message = "..." + message.substr(prefix.size());
    return message;
  }
  static std::string credential(const std::string& status) {
    return "echo '{\"apiVersion\": \"client.authentication.k8s.io/v1\", "
           "\"kind\": \"ExecCredential\", \"status\": {" +
           status + "}}'\n";
  }

  std::string version_ = "v1";
};

TEST_F(ExecCredentials, AreATokenOrACertificate) {
  script(credential(R"("token": "abc", "expirationTimestamp": "2200-01-01T00:00:00.5Z")"));
  EXPECT_EQ(read().token, "abc");
  script(credential(R"("clientCertificateData": "a certificate", "clientKeyData": "a key")"));
  EXPECT_EQ(read().client_certificate, "a certificate");
  EXPECT_EQ(read().client_key, "a key");
}

TEST_F(ExecCredentials, TheCommandIsToldWhatItNeeds) {
  // It hands out what it was given, as a token.
  script("printf '%s' \"$KUBERNETES_EXEC_INFO\" >\"$0.info\"\n" +
         credential(R"("token": "'"$1 $2 $PROFILE $HOME"'")"));
  const std::string more = ", args: [get token, 7], env: [{name: PROFILE, value: shop}]";
  EXPECT_EQ(read(more).token, "get token 7 shop " + directory_.string());
  const auto info = [&] {
    std::ifstream file(directory_ / "login.info");
    return Json::parse(file);
  };
  EXPECT_EQ(info(), Json::parse(R"({"apiVersion": "client.authentication.k8s.io/v1",
                                    "kind": "ExecCredential", "spec": {"interactive": false}})"));
  read(", provideClusterInfo: true, interactiveMode: Never",
       ", certificate-authority-data: YSBDQQ==, extensions: [{name: "
       "client.authentication.k8s.io/exec, extension: {audience: a, age: 7, fast: true}}]");
  EXPECT_EQ(info()["spec"]["cluster"],
            Json::parse(R"({"server": "https://a", "certificate-authority-data": "YSBDQQ==",
                            "config": {"audience": "a", "age": 7, "fast": true}})"));
}

TEST_F(ExecCredentials, WhatIsWrongIsOneLine) {
  EXPECT_EQ(wrong(", installHint: Get it from example.org."),
            "..., which cannot be started: No such file or directory. Get it from example.org.");
  script("exit 3");
  EXPECT_EQ(wrong(), "..., which ended with exit code 3");
  script("kill -9 $$");
  EXPECT_EQ(wrong(), "..., which was ended by signal 9");
  script("echo hello");
  EXPECT_EQ(wrong(), "..., which printed no ExecCredential");
  script(credential(""));
  EXPECT_EQ(wrong(), "..., which printed neither a token nor a certificate");
  script(credential(R"("clientCertificateData": "a")"));
  EXPECT_EQ(wrong(), "..., which printed only one of clientCertificateData and clientKeyData");
  script(credential(R"("token": "a", "expirationTimestamp": "2001-01-01T00:00:00Z")"));
  EXPECT_EQ(wrong(),
            "..., whose credentials expired at 2001-01-01T00:00:00Z: log in anew, and see whether "
            "this machine's clock is right");
  EXPECT_EQ(wrong(", interactiveMode: Always"),
            "..., which has to ask a person: run this in a terminal");
  version_ = "v1alpha1";
  EXPECT_EQ(wrong(),
            "... by apiVersion \"client.authentication.k8s.io/v1alpha1\": only "
            "client.authentication.k8s.io/v1 and v1beta1 are supported; update the command and "
            "the kubeconfig");
  version_ = "v1";
  script(
      "echo '{\"apiVersion\": \"client.authentication.k8s.io/v1beta1\", "
      "\"kind\": \"ExecCredential\"}'");
  EXPECT_EQ(wrong(),
            "..., which printed one of client.authentication.k8s.io/v1beta1 and not of "
            "client.authentication.k8s.io/v1: correct its apiVersion in the kubeconfig");
}

TEST_F(ExecCredentials, ACommandThatDoesNotEndIsGivenUp) {
  // One that goes on saying nothing, and one that closes its output and goes on.
  for (const char* text : {"exec sleep 600", "exec >&-; exec sleep 600"}) {
    script(text);
    const auto begin = std::chrono::steady_clock::now();
    const std::string message = refusal([&] {
      run_exec({.command = (directory_ / "login").string(),
                .api_version = "client.authentication.k8s.io/v1"},
               "user", std::chrono::milliseconds(100));
    });
    EXPECT_TRUE(message.ends_with("which did not come to an end within 1 s") ||
                message.ends_with("which was ended by signal 9"))
        << message;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  }
}

TEST(Yaml, IsReadAsKubectlDoes) {
  const auto documents = parse_yaml(
      "---\n"
      "a: [1, -2, 1.5, true, No, null, ~, '1', \"true\", 1.2.3, nan, 0x1]\n"
      "b: &anchor {c: d}\n"
      "e: *anchor\n"
      "f:\n"
      "---\n"
      "# nothing\n"
      "---\n"
      "{\"json\": [\"too\"]}\n",
      "file");
  ASSERT_EQ(documents.size(), 2U);
  EXPECT_EQ(documents[0],
            Json::parse(R"({"a": [1, -2, 1.5, true, false, null, null, "1", "true", "1.2.3", "nan",
                                  "0x1"],
                            "b": {"c": "d"}, "e": {"c": "d"}, "f": null})"));
  EXPECT_EQ(documents[1], Json::parse(R"({"json": ["too"]})"));
  const auto wrong = [](const std::string& text) {
    try {
      parse_yaml(text, "file");
    } catch (const program::StartError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was wrong");
  };
  EXPECT_EQ(wrong("a: [").substr(0, 12), "file line 1:");
  EXPECT_EQ(wrong("a:\n  ? [b]\n  : c"), "file line 2: a key has to be a plain value");
  EXPECT_EQ(wrong(std::string(200, '[') + std::string(200, ']')),
            "file line 1: this is nested too deep");
}

}  // namespace
}  // namespace trafficmirror::kube
