// Where the API server is, and who we are to it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

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

// What the file that $KUBECONFIG names says; otherwise the pod that this runs in.
Config load_config();

// The current context of `file`.
Config read_kubeconfig(const std::filesystem::path& file);

// What a pod is given: KUBERNETES_SERVICE_HOST and _PORT, and the files of its ServiceAccount.
Config in_cluster_config(
    const std::string& host, const std::string& port,
    const std::filesystem::path& directory = "/var/run/secrets/kubernetes.io/serviceaccount");

}  // namespace trafficmirror::kube
