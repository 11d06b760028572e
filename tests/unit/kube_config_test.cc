#include <cstdlib>
#include <fstream>

#include <gtest/gtest.h>

#include "operator/kube/config.h"
#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

class KubeConfig : public testing::Test {
 protected:
  KubeConfig() {
    std::string name = testing::TempDir() + "kube-config-XXXXXX";
    directory_ = mkdtemp(name.data());
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
  const auto config = read_kubeconfig(
      kubeconfig("server: 'https://api.example:6443/prefix/', certificate-authority-data: YSBDQQ==,"
                 "tls-server-name: kubernetes",
                 "client-certificate: certificate.pem, client-key-data: YSBrZXk=,"
                 "token: ' abc ', tokenFile: token"));
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
    return read_kubeconfig(kubeconfig("server: '" + server + "'", "token: a"));
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
  EXPECT_EQ(refusal([&] { read_kubeconfig(file); }),
            "the kubeconfig cannot be read: " + file + " is missing or empty");
  const auto wrong = [&](const std::string& cluster, const std::string& user) {
    return refusal([&] { read_kubeconfig(kubeconfig(cluster, user)); });
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
  EXPECT_EQ(refusal([&] { read_kubeconfig(write("kubeconfig", "contexts: []")); }),
            file + " has no current-context; choose one: kubectl config use-context");
  EXPECT_EQ(refusal([&] { read_kubeconfig(write("kubeconfig", "current-context: x")); }),
            file + ": there is no context named \"x\" under contexts");
  EXPECT_EQ(refusal([&] { read_kubeconfig(write("kubeconfig", "a: [")); }).find(file + " line "),
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
  setenv("KUBECONFIG", "a:b", 1);
  EXPECT_EQ(refusal([] { load_config(); }),
            "KUBECONFIG names several files; name one (kubectl config view --flatten)");
  unsetenv("KUBECONFIG");
  unsetenv("KUBERNETES_SERVICE_HOST");
  EXPECT_EQ(refusal([] { load_config(); }),
            "no API server is known: set KUBECONFIG to a kubeconfig file, or run this in a pod");
}

}  // namespace
}  // namespace trafficmirror::kube
