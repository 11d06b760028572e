#include <algorithm>
#include <csignal>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include <CLI/CLI.hpp>

#include "kubectl/doctor.h"
#include "kubectl/examine.h"
#include "kubectl/leadership.h"
#include "kubectl/status.h"
#include "kubectl/stop.h"
#include "kubectl/text.h"
#include "operator/kube/client.h"
#include "operator/kube/config.h"
#include "operator/kube/discovery.h"
#include "operator/kube/yaml.h"
#include "operator/names.h"
#include "program/flags.h"
#include "program/start_error.h"

namespace trafficmirror::kubectl {
namespace {

using kube::Json;
using program::StartError;

constexpr const char* program_name = "kubectl trafficmirror";
constexpr int something_is_wrong = 1;

namespace resources = controller::resources;

// What kubectl's own commands take, too.
struct ClusterFlags {
  std::string namespace_;
  kube::PersonalChoice choice;
};

void add_cluster_flags(CLI::App& app, ClusterFlags& flags) {
  app.add_option("-n,--namespace", flags.namespace_, "default: the context's")->type_name("NAME");
  app.add_option("--context", flags.choice.context, "of the kubeconfig; default: the current one")
      ->type_name("NAME");
  app.add_option("--kubeconfig", flags.choice.kubeconfig, "default: $KUBECONFIG, or ~/.kube/config")
      ->type_name("FILE");
}

void add_name(CLI::App& app, std::string& name) {
  app.add_option("name", name, "the TrafficMirror's")->type_name("NAME");
}

std::string server_of(const kube::Client& client) {
  return client.config().host + ":" + std::to_string(client.config().port);
}

[[noreturn]] void give_up(const kube::Client& client, const kube::Error& error) {
  if (error.status == 0) throw StartError("the API server can't be reached: " + error.message);
  throw StartError("the API server at " + server_of(client) + " says: " + error.message);
}

Json find_mirror(kube::Client& client, const kube::Key& key) {
  auto mirror = client.get(resources::mirrors, key);
  if (mirror) return *std::move(mirror);
  if (mirror.error().kind == kube::ErrorKind::not_found)
    throw StartError("there is no TrafficMirror " + to_text(key) +
                     ": see kubectl trafficmirror status -A");
  give_up(client, mirror.error());
}

// Whether the server knows TrafficMirror. Where it does not, that is all there is to say.
bool knows_mirrors(kube::Client& client, const kube::Discovery& discovery) {
  if (discovery.has(resources::mirrors)) return true;
  std::cout << "TrafficMirror is not installed at " << server_of(client) << ": " << how_to_install
            << "\n";
  return false;
}

kube::Discovery discover(kube::Client& client) {
  auto discovery = kube::Discovery::ask(client, controller::groups_to_discover());
  if (!discovery) give_up(client, discovery.error());
  return *std::move(discovery);
}

int run_status(kube::Client& client, const std::string& namespace_, const std::string& name) {
  if (!knows_mirrors(client, discover(client))) return something_is_wrong;
  const auto now = std::chrono::system_clock::now();
  Told told;
  if (!name.empty()) {
    const Json mirror = find_mirror(client, {namespace_, name});
    const auto pods = client.list(resources::pods, namespace_);
    using Pods = kube::Result<std::vector<Json>>;
    told = status_of_one(
        mirror,
        pods ? Pods(std::vector<Json>((*pods)["items"].begin(), (*pods)["items"].end()))
             : Pods(pods.error()),
        find_leadership(client), now);
  } else {
    const auto list = client.list(resources::mirrors, namespace_);
    if (!list) give_up(client, list.error());
    told = status_of_all({(*list)["items"].begin(), (*list)["items"].end()},
                         namespace_.empty() ? "any namespace" : "namespace " + namespace_,
                         find_leadership(client), now);
  }
  std::cout << told.text;
  return told.well ? 0 : something_is_wrong;
}

// The TrafficMirrors that a file holds, "-" for stdin.
std::vector<Json> read_mirrors(const std::string& path, const std::string& namespace_,
                               bool is_namespace_given) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
  } else {
    std::ifstream file(path);
    text << file.rdbuf();
    if (!file) throw StartError(path + ": it cannot be read");
  }
  std::vector<Json> mirrors;
  for (Json& object : kube::parse_yaml(text.str(), path)) {
    if (kube::text_at(object, "/kind") != controller::names::kind) continue;
    if (kube::text_at(object, "/metadata/name").empty())
      throw StartError(path + ": a TrafficMirror has no metadata.name");
    const std::string its = kube::text_at(object, "/metadata/namespace");
    if (is_namespace_given && !its.empty() && its != namespace_)
      throw StartError(path + ": " + kube::key_of(object).name + " is of namespace " + its +
                       ", and not of --namespace " + namespace_);
    if (its.empty()) object["metadata"]["namespace"] = namespace_;
    mirrors.push_back(std::move(object));
  }
  if (mirrors.empty()) throw StartError(path + " holds no TrafficMirror");
  return mirrors;
}

int run_doctor(kube::Client& client, const std::vector<Json>& mirrors,
               const kube::Discovery& discovery) {
  const Leadership leadership = find_leadership(client);
  bool well = true;
  for (const Json& mirror : mirrors) {
    if (mirrors.size() > 1)
      std::cout << (&mirror == &mirrors.front() ? "" : "\n") << to_text(kube::key_of(mirror))
                << ":\n";
    const auto findings = findings_of(examine(client, discovery, mirror, leadership));
    std::cout << text_of(findings);
    well = is_well(findings) && well;
  }
  return well ? 0 : something_is_wrong;
}

int run(int argc, char** argv) {
  // Also what reads our output may end before us.
  std::signal(SIGPIPE, SIG_IGN);
  ClusterFlags flags;
  std::string name, file;
  bool all_namespaces = false, remove = false;
  std::chrono::milliseconds timeout = std::chrono::seconds(90);

  CLI::App app("Shows, checks and stops TrafficMirrors.", program_name);
  app.set_version_flag("--version", std::string(program_name) + " " + TRAFFICMIRROR_VERSION,
                       "print the version and exit");
  app.require_subcommand(1);
  CLI::App* status = app.add_subcommand(
      "status",
      "What flows, who is attached, what is wrong and the cure. Exit code 1 if anything is "
      "wrong.");
  add_name(*status, name);
  status->add_flag("-A,--all-namespaces", all_namespaces, "those of all namespaces");
  CLI::App* doctor = app.add_subcommand(
      "doctor",
      "Checks what a TrafficMirror needs, before it is applied or after. Changes nothing. "
      "Exit code 1 if anything fails.");
  add_name(*doctor, name);
  doctor->add_option("-f,--filename", file, "that holds it, - for stdin")->type_name("FILE");
  CLI::App* stop_command = app.add_subcommand(
      "stop",
      "Sets spec.paused, waits until nothing of it runs any more, and says what was counted.");
  add_name(*stop_command, name);
  stop_command->add_flag("--delete", remove, "delete it, in place of spec.paused");
  program::add_duration(*stop_command, "--timeout", timeout, "how long to wait at most");
  for (CLI::App* command : {status, doctor, stop_command}) add_cluster_flags(*command, flags);
  for (CLI::App* each : {&app, status, doctor, stop_command})
    each->set_help_flag("-h,--help", "print this and exit");
  app.footer(
      "Examples:\n"
      "  kubectl trafficmirror status -A\n"
      "  kubectl trafficmirror doctor -f trafficmirror.yaml\n"
      "  kubectl trafficmirror stop checkout-v2 -n shop");
  if (const auto exit_code = program::parse_flags(app, argc, argv)) return *exit_code;

  if (doctor->parsed() && name.empty() == file.empty())
    throw StartError("doctor takes either a TrafficMirror's name or -f FILE; see --help");
  if (stop_command->parsed() && name.empty())
    throw StartError("stop takes a TrafficMirror's name; see --help");
  if (all_namespaces && !name.empty())
    throw StartError("a name is of one namespace: leave out --all-namespaces");

  kube::Client client(kube::load_personal_config(flags.choice), "kubectl-trafficmirror");
  const std::string& namespace_ =
      flags.namespace_.empty() ? client.config().own_namespace : flags.namespace_;
  if (status->parsed()) return run_status(client, all_namespaces ? "" : namespace_, name);
  if (stop_command->parsed())
    return stop(client, {namespace_, name}, remove ? Stop::remove : Stop::pause, timeout,
                std::cout);
  std::vector<Json> mirrors;
  if (!file.empty()) mirrors = read_mirrors(file, namespace_, !flags.namespace_.empty());
  const kube::Discovery discovery = discover(client);
  if (mirrors.empty()) {
    if (!knows_mirrors(client, discovery)) return something_is_wrong;
    mirrors.push_back(find_mirror(client, {namespace_, name}));
  }
  return run_doctor(client, mirrors, discovery);
}

}  // namespace
}  // namespace trafficmirror::kubectl

int main(int argc, char** argv) {
  namespace kubectl = trafficmirror::kubectl;
  return trafficmirror::program::run_program(kubectl::program_name,
                                             [&] { return kubectl::run(argc, argv); });
}
