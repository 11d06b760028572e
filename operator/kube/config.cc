#include "operator/kube/config.h"

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include <yaml-cpp/yaml.h>

#include "operator/kube/base64.h"
#include "operator/kube/exec_credential.h"
#include "operator/kube/yaml.h"
#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

using program::StartError;

std::string read_file(const std::filesystem::path& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file || text.empty())
    throw StartError(what + " cannot be read: " + path.string() + " is missing or empty");
  return text;
}

std::string trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

// https://HOST[:PORT][/PATH] into its parts.
void read_server(const std::string& server, const std::string& where, Config& config) {
  const auto fail = [&] {
    throw StartError(where + ": server \"" + server +
                     "\" is no URL; write it as https://HOST:PORT");
  };
  std::string_view rest = server;
  const auto take = [&](std::string_view prefix) {
    if (rest.substr(0, prefix.size()) != prefix) return false;
    rest.remove_prefix(prefix.size());
    return true;
  };
  if (take("http://")) {
    config.tls = false;
    config.port = 80;
  } else if (!take("https://")) {
    fail();
  }
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) {
    config.path = rest.substr(slash);
    while (config.path.ends_with('/')) config.path.pop_back();
    rest = rest.substr(0, slash);
  }
  size_t host_end = rest.find(':');
  if (rest.starts_with('[')) {
    const size_t bracket = rest.find(']');
    if (bracket == std::string_view::npos) fail();
    config.host = rest.substr(1, bracket - 1);
    host_end = bracket + 1 < rest.size() ? bracket + 1 : std::string_view::npos;
  } else {
    config.host = rest.substr(0, host_end);
  }
  if (config.host.empty()) fail();
  if (host_end == std::string_view::npos) return;
  const auto port =
      rest[host_end] == ':' ? parse_port(rest.substr(host_end + 1)) : std::optional<uint16_t>();
  if (!port) fail();
  config.port = *port;
}

struct File {
  std::filesystem::path path;
  YAML::Node root;

  std::string where() const { return path.string(); }
  std::filesystem::path beside(const std::string& other) const {
    return path.parent_path() / other;  // an absolute one stays as it is
  }
};

File load(const std::filesystem::path& path) {
  File file{path, {}};
  const std::string text = read_file(path, "the kubeconfig");
  try {
    file.root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw StartError(file.where() + " line " + std::to_string(error.mark.line + 1) + ": " +
                     error.msg);
  }
  if (!file.root.IsMap()) throw StartError(file.where() + " is no kubeconfig: it has to be a map");
  return file;
}

// An entry of a list, or a part of one, and the file that it stands in.
struct Entry {
  const File& file;
  YAML::Node map;

  std::string where() const { return file.where(); }

  std::string text(const std::string& key) const {
    const YAML::Node value = map[key];
    if (!value || value.IsNull()) return "";
    if (!value.IsScalar()) throw StartError(where() + ": " + key + " has to be a plain value");
    return value.Scalar();
  }

  bool flag(const std::string& key) const {
    const std::string value = text(key);
    if (!value.empty() && value != "true" && value != "false")
      throw StartError(where() + ": " + key + " is true or false");
    return value == "true";
  }

  // Of the maps in the list `key`.
  std::vector<Entry> list(const std::string& key) const {
    const YAML::Node entries = map[key];
    std::vector<Entry> found;
    if (entries && entries.IsSequence())
      for (const YAML::Node& entry : entries)
        if (entry.IsMap()) found.push_back({file, entry});
    return found;
  }

  // What KEY-data holds in base64, or else what the file at KEY does, as seen from this file.
  std::string data(const std::string& key) const {
    if (const std::string encoded = text(key + "-data"); !encoded.empty()) {
      const auto decoded = decode_base64(encoded);
      if (!decoded || decoded->empty())
        throw StartError(where() + ": " + key + "-data is no base64");
      return *decoded;
    }
    const std::string path = text(key);
    return path.empty() ? "" : read_file(file.beside(path), where() + ": " + key);
  }
};

// Kubeconfigs: lists of named clusters, users and contexts.
class Kubeconfig {
 public:
  explicit Kubeconfig(const std::vector<std::filesystem::path>& paths) {
    for (const std::filesystem::path& path : paths) {
      where_ += (where_.empty() ? "" : ":") + path.string();
      if (paths.size() == 1 || std::filesystem::exists(path)) files_.push_back(load(path));
    }
    if (files_.empty()) throw StartError("none of these kubeconfigs is there: " + where_);
  }

  Config read(std::string context_name, Exec exec) const {
    for (const File& file : files_)
      if (context_name.empty()) context_name = Entry{file, file.root}.text("current-context");
    if (context_name.empty())
      throw StartError(where_ + " has no current-context; choose one: kubectl config use-context");
    const Entry context = find("contexts", "context", context_name);
    const Entry cluster = find("clusters", "cluster", context.text("cluster"));
    Config config;
    read_cluster(cluster, config);
    if (const std::string user = context.text("user"); !user.empty())
      read_user(find("users", "user", user), user, cluster, exec, config);
    if (const std::string name = context.text("namespace"); !name.empty())
      config.own_namespace = name;
    return config;
  }

 private:
  // The content of the first entry of `list` that has that name.
  Entry find(const std::string& list, const std::string& content, const std::string& name) const {
    for (const File& file : files_)
      for (const Entry& entry : Entry{file, file.root}.list(list))
        if (entry.text("name") == name && entry.map[content] && entry.map[content].IsMap())
          return {file, entry.map[content]};
    throw StartError(where_ + ": there is no " + content + " named \"" + name + "\" under " + list);
  }

  static void read_cluster(const Entry& cluster, Config& config) {
    read_server(cluster.text("server"), cluster.where(), config);
    if (!cluster.text("proxy-url").empty())
      throw StartError(cluster.where() + ": proxy-url is not supported");
    config.certificate_authority = cluster.data("certificate-authority");
    config.tls_server_name = cluster.text("tls-server-name");
    config.verify = !cluster.flag("insecure-skip-tls-verify");
  }

  static void read_user(const Entry& user, const std::string& name, const Entry& cluster, Exec exec,
                        Config& config) {
    const std::string whose = user.where() + ": user \"" + name + "\"";
    for (const char* key : {"exec", "auth-provider", "username", "as"})
      if (user.map[key] && (key != std::string("exec") || exec == Exec::refuse))
        throw StartError(whose + " uses " + key +
                         ", which is not supported; use a client certificate or a token");
    config.client_certificate = user.data("client-certificate");
    config.client_key = user.data("client-key");
    if (config.client_certificate.empty() != config.client_key.empty())
      throw StartError(whose + " needs both client-certificate and client-key");
    config.token = trim(user.text("token"));
    if (const std::string path = user.text("tokenFile"); !path.empty()) {
      config.token_file = user.file.beside(path);
      read_file(config.token_file, user.where() + ": tokenFile");
    }
    if (!user.map["exec"]) return;
    if (!user.map["exec"].IsMap()) throw StartError(whose + ": exec has to be a map");
    const ExecCredential credential =
        run_exec(command_of({user.file, user.map["exec"]}, cluster, config), whose);
    if (!credential.token.empty()) {
      config.token = credential.token;
      config.token_file.clear();
    }
    if (!credential.client_certificate.empty()) {
      config.client_certificate = credential.client_certificate;
      config.client_key = credential.client_key;
    }
  }

  static ExecCommand command_of(const Entry& exec, const Entry& cluster, const Config& config) {
    ExecCommand command;
    command.command = exec.text("command");
    if (command.command.empty()) throw StartError(exec.where() + ": exec names no command");
    // Only a mere name is looked for in $PATH.
    if (command.command.find('/') != std::string::npos)
      command.command = exec.file.beside(command.command).string();
    if (exec.map["args"])
      for (const YAML::Node& argument : exec.map["args"]) command.args.push_back(argument.Scalar());
    for (const Entry& variable : exec.list("env"))
      command.environment.emplace_back(variable.text("name"), variable.text("value"));
    command.api_version = exec.text("apiVersion");
    command.install_hint = trim(exec.text("installHint"));
    const std::string mode = exec.text("interactiveMode");
    command.interactive = mode == "Never"    ? ExecCommand::Interactive::never
                          : mode == "Always" ? ExecCommand::Interactive::always
                                             : ExecCommand::Interactive::if_available;
    if (exec.flag("provideClusterInfo")) command.cluster = cluster_for_command(cluster, config);
    return command;
  }

  static Json cluster_for_command(const Entry& cluster, const Config& config) {
    Json told = {{"server", cluster.text("server")}};
    if (!config.tls_server_name.empty()) told["tls-server-name"] = config.tls_server_name;
    if (!config.verify) told["insecure-skip-tls-verify"] = true;
    if (!config.certificate_authority.empty())
      told["certificate-authority-data"] = encode_base64(config.certificate_authority);
    for (const Entry& extension : cluster.list("extensions"))
      if (extension.text("name") == "client.authentication.k8s.io/exec")
        told["config"] = json_of(extension.map["extension"]);
    return told;
  }

  std::vector<File> files_;
  std::string where_;
};

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// What $KUBECONFIG names; nothing where it names nothing.
std::vector<std::filesystem::path> files_of_environment() {
  std::vector<std::filesystem::path> files;
  std::istringstream list(variable("KUBECONFIG"));
  for (std::string file; std::getline(list, file, ':');)
    if (!file.empty()) files.emplace_back(file);
  return files;
}

Config config_of_pod(const std::string& otherwise) {
  const std::string host = variable("KUBERNETES_SERVICE_HOST");
  if (host.empty()) throw StartError("no API server is known: " + otherwise);
  return in_cluster_config(host, variable("KUBERNETES_SERVICE_PORT"));
}

}  // namespace

Config read_kubeconfig(const std::vector<std::filesystem::path>& files, const std::string& context,
                       Exec exec) {
  try {
    return Kubeconfig(files).read(context, exec);
  } catch (const YAML::Exception& error) {
    throw StartError(files.front().string() + ": " + error.what());
  }
}

Config in_cluster_config(const std::string& host, const std::string& port,
                         const std::filesystem::path& directory) {
  Config config;
  const auto number = parse_port(port);
  if (host.empty() || !number)
    throw StartError("KUBERNETES_SERVICE_HOST \"" + host + "\" and KUBERNETES_SERVICE_PORT \"" +
                     port + "\" are no address of an API server");
  config.host = host;
  config.port = *number;
  config.token_file = directory / "token";
  read_file(config.token_file, "the ServiceAccount's token");
  config.certificate_authority =
      read_file(directory / "ca.crt", "the ServiceAccount's certificate authority");
  config.own_namespace = trim(read_file(directory / "namespace", "the ServiceAccount's namespace"));
  return config;
}

Config load_config() {
  if (const auto files = files_of_environment(); !files.empty()) return read_kubeconfig(files);
  return config_of_pod("set KUBECONFIG to a kubeconfig file, or run this in a pod");
}

Config load_personal_config(const PersonalChoice& choice) {
  std::vector<std::filesystem::path> files = files_of_environment();
  if (!choice.kubeconfig.empty()) files = {choice.kubeconfig};
  if (const std::string home = variable("HOME"); files.empty() && !home.empty()) {
    const auto usual = std::filesystem::path(home) / ".kube" / "config";
    if (std::filesystem::exists(usual)) files = {usual};
  }
  if (!files.empty()) return read_kubeconfig(files, choice.context, Exec::run);
  return config_of_pod("there is no ~/.kube/config; name a kubeconfig with --kubeconfig");
}

}  // namespace trafficmirror::kube
