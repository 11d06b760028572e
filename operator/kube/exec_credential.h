// Credentials that a command hands out, as those of managed clusters do (`aws eks get-token`,
// gke-gcloud-auth-plugin, kubelogin): a kubeconfig names it under `exec`.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "operator/kube/object.h"

namespace trafficmirror::kube {

struct ExecCommand {
  enum class Interactive { never, if_available, always };

  std::string command;  // looked for in $PATH where it is a mere name
  std::vector<std::string> args{};
  std::vector<std::pair<std::string, std::string>> environment{};  // beside our own
  std::string api_version{};
  std::string install_hint{};  // for a person, where there is no such command
  Interactive interactive = Interactive::if_available;
  Json cluster{};  // what it is told of the cluster; null for nothing
};

// What it hands out; empty where it does not.
struct ExecCredential {
  std::string token;
  std::string client_certificate;  // PEM
  std::string client_key;          // PEM
};

// Runs it, with our stderr, and our stdin where it may ask a person; waits for `patience` at most.
// Throws program::StartError, one line that begins with `whose`: "user \"me\"".
ExecCredential run_exec(const ExecCommand& command, const std::string& whose,
                        std::chrono::milliseconds patience = std::chrono::minutes(2));

}  // namespace trafficmirror::kube
