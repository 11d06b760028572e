#include "operator/webhook.h"

#include <algorithm>
#include <exception>
#include <map>
#include <utility>

#include "operator/kube/base64.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr const char* api_version = "admission.k8s.io/v1";
constexpr const char* no_such_pod = "the request's object is no pod: ";

// The field of that name, or null. What comes may be of any type and nested to any depth, so that
// it is only ever looked at where it is, and never copied, compared or printed as a whole.
const Json& field(const Json& object, const char* name) {
  static const Json none;
  if (!object.is_object()) return none;
  const auto found = object.find(name);
  return found == object.end() ? none : *found;
}

std::string text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : std::string();
}

Json texts_of(const Json& map) {
  Json texts = Json::object();
  if (map.is_object())
    for (const auto& [key, value] : map.items())
      if (value.is_string()) texts[key] = value;
  return texts;
}

bool has_named(const Json& list, const std::string& name) {
  return std::any_of(list.begin(), list.end(),
                     [&](const Json& entry) { return text(field(entry, "name")) == name; });
}

// Class Guaranteed asks it of each container. The API server has written quantities in one form.
bool requests_its_limits(const Json& container) {
  const Json& resources = field(container, "resources");
  for (const char* resource : {"cpu", "memory"}) {
    const std::string limit = text(field(field(resources, "limits"), resource));
    if (limit.empty() || limit == "0") return false;
    // Without a request, it is the limit.
    const Json& request = field(field(resources, "requests"), resource);
    if (!request.is_null() && text(request) != limit) return false;
  }
  return true;
}

Requests requests_for(const Json& spec) {
  for (const char* list : {"containers", "initContainers"}) {
    const Json& containers = field(spec, list);
    if (!std::all_of(containers.begin(), containers.end(), requests_its_limits))
      return Requests::little;
  }
  return Requests::limits;
}

// What is to be added to a pod, as a JSON patch (RFC 6902).
class Patch {
 public:
  explicit Patch(const Json& spec) : spec_(spec) {}

  void append(const char* list, Json entry) { add(list, "-", std::move(entry)); }
  // Before all that the pod has itself.
  void prepend(const char* list, Json entry) {
    add(list, std::to_string(prepended_++), std::move(entry));
  }
  const Json& operations() const { return operations_; }

 private:
  void add(const char* list, const std::string& place, Json entry) {
    const std::string path = std::string("/spec/") + list;
    // The API server may say null where there is nothing.
    bool& made = made_[list];
    if (!made && field(spec_, list).is_null())
      operations_.push_back({{"op", "add"}, {"path", path}, {"value", Json::array({entry})}});
    else
      operations_.push_back(
          {{"op", "add"}, {"path", path + "/" + place}, {"value", std::move(entry)}});
    made = true;
  }

  const Json& spec_;
  Json operations_ = Json::array();
  std::map<std::string, bool> made_;
  int prepended_ = 0;
};

// What keeps the request from being one for a new pod that can be looked at.
std::string problem_of(const Json& root, const Json& request) {
  if (text(field(root, "apiVersion")) != api_version ||
      text(field(root, "kind")) != "AdmissionReview")
    return std::string("the request is no AdmissionReview of ") + api_version +
           ": see admissionReviewVersions of the MutatingWebhookConfiguration";
  const Json& kind = field(request, "kind");
  if (text(field(kind, "kind")) != "Pod" || !text(field(kind, "group")).empty() ||
      text(field(kind, "version")) != "v1" || !text(field(request, "subResource")).empty() ||
      text(field(request, "operation")) != "CREATE")
    return "the request is not for the creation of a pod: see rules of the "
           "MutatingWebhookConfiguration";
  const Json& object = field(request, "object");
  const Json& spec = field(object, "spec");
  if (!spec.is_object()) return std::string(no_such_pod) + "it has no spec";
  if (!field(spec, "containers").is_array())
    return std::string(no_such_pod) + "spec.containers is no list";
  for (const char* list : {"initContainers", "volumes"})
    if (const Json& value = field(spec, list); !value.is_null() && !value.is_array())
      return std::string(no_such_pod) + "spec." + list + " is no list";
  return {};
}

void inject(const Json& spec, const std::vector<Injection>& injections, Patch& patch,
            Review& review) {
  if (const Json& host = field(spec, "hostNetwork"); host.is_boolean() && host.get<bool>())
    return;  // its interfaces carry the traffic of others too; the mirror's status says so
  const Requests requests = requests_for(spec);
  for (const auto& [settings, form] : injections) {
    const std::string name = std::visit([](const auto& one) { return one.name; }, settings);
    if (has_named(field(spec, "containers"), name) ||
        has_named(field(spec, "initContainers"), name))
      continue;
    Json container = std::visit(
        [&, as = form](const auto& one) { return injected_container(one, as, requests); },
        settings);
    if (form == InjectedAs::native_sidecar)
      patch.prepend("initContainers", std::move(container));
    else
      patch.append("containers", std::move(container));
    if (!has_named(field(spec, "volumes"), name))
      patch.append("volumes",
                   std::visit([](const auto& one) { return identity_volume(one); }, settings));
    review.injected.push_back(name);
  }
}

}  // namespace

Review review(const std::string& request_text, const InjectionsFor& injections_for) {
  Review review;
  const Json root = Json::parse(request_text, nullptr, false);
  const Json& request = field(root, "request");
  const std::string uid = text(field(request, "uid"));
  if (uid.empty()) {
    review.problem = "the request is no AdmissionReview: it has no request.uid";
    return review;
  }
  Json response = {{"uid", uid}, {"allowed", true}};
  const Json& metadata = field(field(request, "object"), "metadata");
  const std::string namespace_ = text(field(request, "namespace"));
  std::string name = text(field(metadata, "name"));
  if (name.empty()) name = text(field(metadata, "generateName"));
  review.pod = kube::to_text(kube::Key{namespace_, name});

  review.problem = problem_of(root, request);
  if (review.problem.empty()) {
    try {
      const Json labels = texts_of(field(metadata, "labels"));
      const Json& spec = field(field(request, "object"), "spec");
      Patch patch(spec);
      inject(
          spec,
          injections_for({.namespace_ = namespace_, .name = name, .labels = labels, .spec = spec}),
          patch, review);
      if (!patch.operations().empty()) {
        response["patchType"] = "JSONPatch";
        response["patch"] = kube::encode_base64(patch.operations().dump());
      }
    } catch (const std::exception& error) {
      review.injected.clear();
      review.problem = std::string("the containers could not be made out: ") + error.what();
    }
  }
  review.answer =
      Json{{"apiVersion", api_version}, {"kind", "AdmissionReview"}, {"response", response}}.dump();
  return review;
}

}  // namespace trafficmirror::controller
