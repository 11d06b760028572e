#include "operator/kube/exec_credential.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "operator/kube/wall_time.h"
#include "program/start_error.h"

namespace trafficmirror::kube {
namespace {

using program::StartError;
using Clock = std::chrono::steady_clock;

constexpr size_t longest_output = 1 << 20;

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }
  void close() {
    if (number_ >= 0) ::close(number_);
    number_ = -1;
  }

 private:
  int number_;
};

// Our environment, with these in place of those of the same names.
std::vector<std::string> environment_with(
    const std::vector<std::pair<std::string, std::string>>& variables) {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    const bool replaced = std::any_of(variables.begin(), variables.end(),
                                      [&](const auto& v) { return v.first == name; });
    if (!replaced) environment.push_back(text);
  }
  for (const auto& [name, value] : variables) environment.push_back(name + "=" + value);
  return environment;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Its process id, or what errno says.
struct Started {
  pid_t process = -1;
  int error = 0;
};

Started start(const ExecCommand& command, const std::string& info, bool interactive, int output) {
  std::vector<std::string> words{command.command};
  words.insert(words.end(), command.args.begin(), command.args.end());
  auto variables = command.environment;
  variables.emplace_back("KUBERNETES_EXEC_INFO", info);
  std::vector<std::string> environment = environment_with(variables);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  if (!interactive)
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  // We ignore it, and a program that does too goes on writing to nobody.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &pipe);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);

  Started started;
  started.error = posix_spawnp(&started.process, command.command.c_str(), &actions, &attributes,
                               pointers_to(words).data(), pointers_to(environment).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return started;
}

// All that comes until its end; nothing where it takes longer, or says too much.
std::optional<std::string> read_all(int descriptor, Clock::time_point deadline) {
  std::string text;
  std::array<char, 4096> piece{};
  while (text.size() < longest_output) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return std::nullopt;
    pollfd readable{descriptor, POLLIN, 0};
    if (::poll(&readable, 1, static_cast<int>(left.count())) <= 0) continue;
    const ssize_t size = ::read(descriptor, piece.data(), piece.size());
    if (size == 0) return text;
    if (size > 0) text.append(piece.data(), static_cast<size_t>(size));
  }
  return std::nullopt;
}

// How it ended. One that has closed its output and does not end is killed.
int wait_for_end(pid_t process, Clock::time_point deadline) {
  int status = 0;
  while (::waitpid(process, &status, WNOHANG) == 0) {
    if (Clock::now() >= deadline) {
      ::kill(process, SIGKILL);
      ::waitpid(process, &status, 0);
      break;
    }
    ::poll(nullptr, 0, 5);
  }
  return status;
}

std::string describe_end(int status) {
  if (WIFSIGNALED(status)) return "was ended by signal " + std::to_string(WTERMSIG(status));
  return "ended with exit code " + std::to_string(WEXITSTATUS(status));
}

ExecCredential read_credential(const std::string& text, const std::string& api_version,
                               const std::string& who) {
  const Json object = Json::parse(text, nullptr, false);
  if (text_at(object, "/kind") != "ExecCredential")
    throw StartError(who + ", which printed no ExecCredential");
  if (const std::string its = text_at(object, "/apiVersion"); its != api_version)
    throw StartError(who + ", which printed one of " + its + " and not of " + api_version +
                     ": correct its apiVersion in the kubeconfig");
  ExecCredential credential{.token = text_at(object, "/status/token"),
                            .client_certificate = text_at(object, "/status/clientCertificateData"),
                            .client_key = text_at(object, "/status/clientKeyData")};
  if (credential.token.empty() && credential.client_certificate.empty())
    throw StartError(who + ", which printed neither a token nor a certificate");
  if (credential.client_certificate.empty() != credential.client_key.empty())
    throw StartError(who + ", which printed only one of clientCertificateData and clientKeyData");
  const std::string expires = text_at(object, "/status/expirationTimestamp");
  if (const auto end = time_of(expires); end && *end <= std::chrono::system_clock::now())
    throw StartError(who + ", whose credentials expired at " + expires +
                     ": log in anew, and see whether this machine's clock is right");
  return credential;
}

}  // namespace

ExecCredential run_exec(const ExecCommand& command, const std::string& whose,
                        std::chrono::milliseconds patience) {
  const std::string who = whose + " gets its credentials from " + command.command;
  constexpr std::array<const char*, 2> versions{"client.authentication.k8s.io/v1",
                                                "client.authentication.k8s.io/v1beta1"};
  if (std::find(versions.begin(), versions.end(), command.api_version) == versions.end())
    throw StartError(who + " by apiVersion \"" + command.api_version + "\": only " + versions[0] +
                     " and v1beta1 are supported; update the command and the kubeconfig");
  using Interactive = ExecCommand::Interactive;
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (command.interactive == Interactive::always && !terminal)
    throw StartError(who + ", which has to ask a person: run this in a terminal");
  const bool interactive = terminal && command.interactive != Interactive::never;

  Json spec = {{"interactive", interactive}};
  if (!command.cluster.is_null()) spec["cluster"] = command.cluster;
  const Json info = {
      {"apiVersion", command.api_version}, {"kind", "ExecCredential"}, {"spec", spec}};

  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0)
    throw StartError(who + ", which cannot be started: " + std::strerror(errno));
  const Descriptor ours(ends[0]);
  Descriptor its(ends[1]);
  const Started started = start(command, info.dump(), interactive, its.number());
  its.close();
  if (started.error != 0)
    throw StartError(who + ", which cannot be started: " + std::strerror(started.error) +
                     (command.install_hint.empty() ? "" : ". " + command.install_hint));

  const auto deadline = Clock::now() + patience;
  const auto text = read_all(ours.number(), deadline);
  if (!text) {
    wait_for_end(started.process, Clock::now());
    throw StartError(who + ", which did not come to an end within " +
                     std::to_string(std::chrono::ceil<std::chrono::seconds>(patience).count()) +
                     " s");
  }
  const int status = wait_for_end(started.process, deadline);
  if (status != 0) throw StartError(who + ", which " + describe_end(status));
  return read_credential(*text, command.api_version, who);
}

}  // namespace trafficmirror::kube
