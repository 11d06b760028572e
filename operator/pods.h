// What the operator needs to know of pods, and all that it keeps of them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "net/address.h"
#include "operator/kube/object.h"

namespace trafficmirror::controller {

// "TCP" or "UDP", as Kubernetes writes it.
const char* protocol_name(net::Protocol protocol);
// Of a port of a container, a Service, Endpoints or a NetworkPolicy; one that does not say it is of
// TCP.
bool is_of_protocol(const kube::Json& port, net::Protocol protocol);

// Informer transforms: take out what nobody reads here.
void project_pod(kube::Json& pod);
void project_metadata(kube::Json& object);  // for namespaces: names, labels, annotations
void project_endpoints(kube::Json& endpoints);
// What was applied is kept, the status of Deployments too.
void project_owned(kube::Json& object);

// One of a pod's containers, as far as it is of ours.
struct Container {
  enum class Kind { container, init, ephemeral };
  enum class State { unknown, waiting, running, terminated };
  Kind kind = Kind::container;
  std::string name;
  std::string revision;
  State state = State::unknown;
  std::string reason;   // of waiting or terminated, such as "ImagePullBackOff"
  std::string message;  // of either, may be empty
  int64_t exit_code = 0;
  std::string finished_at;
};

// A projected pod's containers whose name is `name`, or `name` and a number ("name-2"). In the
// order of their creation.
std::vector<Container> containers_of(const kube::Json& pod, const std::string& name);

// Of two containers with equal revisions, neither has to be replaced by the other: their fixed
// arguments, the Secrets that they have variables from, and identities that they can't replace, are
// equal. The memory limit is not among them, which running sidecars take over.
std::string revision_of(const kube::Json& container);

// Neither ended nor about to.
bool is_alive(const kube::Json& pod);
bool is_running(const kube::Json& pod);
// Its interfaces are the node's, and so is the traffic on them.
bool uses_host_network(const kube::Json& pod);
// The condition of this type has status True.
bool has_condition(const kube::Json& object, const std::string& type);
const kube::Json* condition_of(const kube::Json& object, const std::string& type);
// A Namespace whose Pod Security level allows its pods no capability such as NET_RAW.
bool pod_security_forbids(const kube::Json& namespace_);
// The reason is one of those that the kubelet gives for images.
bool is_image_problem(const std::string& reason);

}  // namespace trafficmirror::controller
