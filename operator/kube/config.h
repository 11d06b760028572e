// Where the API server is, and who we are to it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace trafficmirror::kube {

struct Config {
  bool tls = true;
  std::string host;  // a name or an address, IPv6 without brackets
  uint16_t port = 443;
  std::string path;  // before every path of the API: "" or "/prefix"

  // PEM. Without one, the system's authorities are trusted; with one, only it is.
  std::string certificate_authority;
  bool verify = true;
  // The name that the server's certificate has to carry, where that is not the host.
  std::string tls_server_name;

  std::string client_certificate;  // PEM, the chain behind it may follow
  std::string client_key;          // PEM
  std::string token;
  // Read anew for each request, since it is replaced before it expires; wins over `token`.
  std::filesystem::path token_file;

  // Where we are at home: the pod's namespace or the context's.
  std::string own_namespace = "default";
};

// All of these throw program::StartError with one line that names what is wrong.

// For a program that runs on: what $KUBECONFIG says; otherwise the pod that this runs in.
Config load_config();

// What a person gave in place of what is read otherwise; empty for nothing.
struct PersonalChoice {
  std::filesystem::path kubeconfig{};
  std::string context{};
};

// For a program that a person runs and that ends soon, as kubectl does it: what the file given or
// $KUBECONFIG or ~/.kube/config says; otherwise the pod that this runs in. A user's command (exec)
// is run, once.
Config load_personal_config(const PersonalChoice& choice);

// Of several files the first counts that says something, as for kubectl, and those that are not
// there do not matter. Users with `exec` are refused where `Exec::refuse`, since what they get
// expires.
enum class Exec { refuse, run };
Config read_kubeconfig(const std::vector<std::filesystem::path>& files,
                       const std::string& context = "", Exec exec = Exec::refuse);

// What a pod is given: KUBERNETES_SERVICE_HOST and _PORT, and the files of its ServiceAccount.
Config in_cluster_config(
    const std::string& host, const std::string& port,
    const std::filesystem::path& directory = "/var/run/secrets/kubernetes.io/serviceaccount");

}  // namespace trafficmirror::kube
