#include "operator/mirror.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "intercept/client_addresses.h"
#include "operator/filter.h"
#include "operator/names.h"
#include "operator/selector.h"
#include "program/flags.h"
#include "sidecar/replay/schedule.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

constexpr std::chrono::hours longest_duration{10 * 365 * 24};

// "1h30m": the sum of its parts. Nothing where it isn't one, or longer than ten years.
std::optional<std::chrono::seconds> parse_sum_of_durations(const std::string& text) {
  std::chrono::seconds sum{0};
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t unit = text.find_first_of("hms", begin);
    if (unit == std::string::npos) return std::nullopt;
    const auto part = program::parse_duration(text.substr(begin, unit + 1 - begin));
    if (!part) return std::nullopt;
    sum += std::chrono::duration_cast<std::chrono::seconds>(*part);
    begin = unit + 1;
  }
  if (sum <= std::chrono::seconds(0) || sum > longest_duration) return std::nullopt;
  return sum;
}

// What the schema promises, so that a field of another type has not come through it.
template <typename Value>
void read(const Json& object, const char* pointer, Value& value) {
  const Json::json_pointer at(pointer);
  if (object.contains(at)) value = object[at].get<Value>();
}

template <typename Choice, size_t count>
bool read_choice(const Json& object, const char* pointer,
                 const std::array<const char*, count>& names, Choice& choice) {
  std::string name = names[static_cast<size_t>(choice)];
  read(object, pointer, name);
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return false;
  choice = static_cast<Choice>(found - names.begin());
  return true;
}

std::string read_duration(const Json& spec, const char* pointer, const std::string& field,
                          std::string& text) {
  read(spec, pointer, text);
  if (text.empty() || program::parse_duration(text)) return "";
  return "spec." + field + " is " + text + ": up to ten years, such as 500ms or 2s";
}

std::string read_logins(const Json& spec, Mirror& mirror) {
  constexpr std::array protocols = {std::pair("PostgreSQL", "postgresql"),
                                    std::pair("MySQL", "mysql")};
  std::vector<Json> ports;
  read(spec, "/shadow/logins/ports", ports);
  read(spec, "/shadow/logins/secretName", mirror.logins_secret);
  for (const Json& entry : ports) {
    const net::Port port{entry.at("port").get<uint16_t>()};
    const std::string text = "spec.shadow.logins.ports has " + std::to_string(port.number);
    if (std::find(mirror.ports.begin(), mirror.ports.end(), net::ProductionPort{port.number}) ==
        mirror.ports.end())
      return text + ", and spec.source.ports has not, as one of TCP: add it there";
    const auto* const found =
        std::find_if(protocols.begin(), protocols.end(),
                     [&](const auto& each) { return each.first == entry.at("protocol"); });
    if (found == protocols.end())
      return text + " with a protocol that is none of PostgreSQL and MySQL";
    mirror.logins.push_back({port, found->second});
  }
  return "";
}

std::string read_client_address(const Json& spec, Mirror& mirror) {
  constexpr std::array modes = {"Masquerade", "Preserve", "Pool"};
  if (!read_choice(spec, "/clientAddress", modes, mirror.client_address))
    return "spec.clientAddress is none of Masquerade, Preserve and Pool";
  std::vector<std::string> networks;
  read(spec, "/clientAddressPool", networks);
  if ((mirror.client_address == ClientAddress::pool) == networks.empty())
    return networks.empty()
               ? "spec.clientAddressPool is missing: with clientAddress Pool, give the networks "
                 "that the shadow's clients are to come from, such as 198.18.0.0/15"
               : "spec.clientAddressPool is for clientAddress Pool alone: leave one of them out";
  std::string& pool = mirror.client_address_pool;
  for (const std::string& network : networks) pool += (pool.empty() ? "" : ",") + network;
  std::array<std::optional<intercept::Network>, 2> parsed;
  if (!networks.empty())
    if (const auto wrong = intercept::parse_pool(pool, parsed))
      return "spec.clientAddressPool: " + *wrong;
  if (!mirror.is_intercepted_beside()) return "";
  const auto udp = std::find_if(mirror.ports.begin(), mirror.ports.end(), [](const auto& port) {
    return port.protocol == net::Protocol::udp;
  });
  if (udp != mirror.ports.end())
    return "spec.source.ports has " + udp->to_string() +
           ": UDP is mirrored with clientAddress Masquerade alone";
  if (mirror.replicas != 1)
    return "spec.intercept.replicas is " + std::to_string(mirror.replicas) +
           ": with clientAddress Preserve and Pool there is an intercept beside each pod of the "
           "shadow; leave it out";
  return "";
}

std::string read_pace(const Json& spec, Mirror& mirror) {
  // In the order of the values; Off would be a boolean in YAML 1.1.
  constexpr std::array turns = {"Wait", "Eager", "Immediate"};
  constexpr std::array over_lag = {"Shed", "CatchUp"};
  if (!read_choice(spec, "/replicate/turns", turns, mirror.turns))
    return "spec.replicate.turns is none of Wait, Eager and Immediate";
  if (!read_choice(spec, "/replicate/overLag", over_lag, mirror.over_lag))
    return "spec.replicate.overLag is none of Shed and CatchUp";
  if (auto problem = read_duration(spec, "/replicate/maxLag", "replicate.maxLag", mirror.max_lag);
      !problem.empty())
    return problem;
  read(spec, "/replicate/filter", mirror.filter);
  if (!mirror.filter.empty())
    if (const auto problem = problem_of_filter(mirror.filter))
      return "spec.replicate.filter " + *problem;
  read(spec, "/replicate/copies", mirror.copies);
  uint32_t max_rate = 0;
  read(spec, "/replicate/maxRate", max_rate);
  if (max_rate != 0) mirror.max_rate = max_rate;
  return "";
}

std::string read_ports(const Json& spec, Mirror& mirror) {
  std::vector<Json> ports;
  read(spec, "/source/ports", ports);
  for (const Json& port : ports) {
    const auto parsed =
        net::ProductionPort::parse(port.is_string() ? port.get<std::string>() : port.dump());
    if (!parsed)
      return "spec.source.ports has " + port.dump() +
             ": a port is a number from 1 to 65535, or of UDP such as 53/udp";
    mirror.ports.push_back(*parsed);
  }
  std::sort(mirror.ports.begin(), mirror.ports.end());
  return mirror.ports.empty() ? "spec.source.ports is empty: give the port that is copied" : "";
}

// Within the volume, and nowhere else.
bool is_relative(const std::string& path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

std::string read_capture(const Json& source, Capture& capture) {
  const std::string field = "spec.source.capture.";
  read(source, "/capture/claimName", capture.claim);
  if (capture.claim.empty())
    return field + "claimName is missing: name a PersistentVolumeClaim of this namespace";
  read(source, "/capture/path", capture.path);
  if (!is_relative(capture.path))
    return field + "path is " + capture.path +
           ": write it from the volume's root on, such as 2030-01-01/web.pcap, without ..";
  read(source, "/capture/speed", capture.speed);
  if (!replay::parse_speed(capture.speed))
    return field + "speed is " + capture.speed + ": 1x, 2x or 0.5x (0.01x to 1000x), or max";
  read(source, "/capture/loop", capture.loop);
  read(source, "/capture/from", capture.from);
  read(source, "/capture/until", capture.until);
  replay::Schedule::Options part;
  for (const auto& [name, text, moment] :
       {std::tuple("from", &capture.from, &part.from), {"until", &capture.until, &part.until}}) {
    if (text->empty()) continue;
    *moment = replay::parse_moment(*text);
    if (!*moment)
      return field + name + " is " + *text +
             ": such as 2030-01-01T12:00:00Z, or 90s from the first packet on";
  }
  if (replay::nothing_within(part))
    return field + "until is not later than from: nothing is between them";
  for (const auto& [name, of_pods] : {std::pair("interface", "eth0"), {"attach", "Auto"}})
    if (source.value(name, of_pods) != of_pods)
      return std::string("spec.source.") + name +
             " is for pods, and a capture has none: leave it out";
  return "";
}

std::string read_source(const Json& spec, Mirror& mirror) {
  const Json source = spec.value("source", Json::object());
  if (source.contains("selector") == source.contains("capture"))
    return "spec.source needs a selector or a capture, and not both";
  if (source.contains("capture")) return read_capture(source, mirror.capture.emplace());
  mirror.selector = source["selector"];
  if (const auto problem = problem_of_selector(mirror.selector))
    return "spec.source.selector: " + *problem;
  return "";
}

std::string read_spec(const Json& spec, Mirror& mirror) {
  if (auto problem = read_source(spec, mirror); !problem.empty()) return problem;
  if (auto problem = read_ports(spec, mirror); !problem.empty()) return problem;
  if (!mirror.capture) read(spec, "/source/interface", mirror.interface);
  std::string attach = "Auto";
  read(spec, "/source/attach", attach);
  mirror.attach = attach == "Ephemeral" ? Attach::ephemeral
                  : attach == "Sidecar" ? Attach::sidecar
                                        : Attach::automatic;

  read(spec, "/shadow/namespace", mirror.shadow_namespace);
  std::optional<uint16_t> shadow_port;
  const auto read_port = [&](const char* pointer) {
    const Json::json_pointer at(pointer);
    if (spec.contains(at)) shadow_port = spec[at].get<uint16_t>();
  };
  if (spec.contains("/shadow/service"_json_pointer)) {
    ShadowService service;
    read(spec, "/shadow/service/name", service.name);
    mirror.shadow = service;
    read_port("/shadow/service/port");
  } else if (spec.contains("/shadow/selector"_json_pointer)) {
    mirror.shadow = spec["shadow"]["selector"];
    if (const auto problem = problem_of_selector(spec["shadow"]["selector"]))
      return "spec.shadow.selector: " + *problem;
    read_port("/shadow/port");
  } else {
    return "spec.shadow names neither a service nor a selector";
  }
  if (shadow_port) mirror.shadow_port = net::Port{*shadow_port};
  if (mirror.shadow_port && mirror.ports.front().number != mirror.ports.back().number)
    return "spec.source.ports has several ports and spec.shadow one: leave the shadow's port out, "
           "and each goes to the same port there, or make a TrafficMirror for each port";

  if (auto problem = read_logins(spec, mirror); !problem.empty()) return problem;
  read(spec, "/replicate/percent", mirror.percent);
  if (auto problem = read_pace(spec, mirror); !problem.empty()) return problem;
  read(spec, "/limits/memory", mirror.memory);
  read(spec, "/limits/maxSessions", mirror.max_sessions);
  const auto memory = program::parse_size(mirror.memory);
  if (!memory || *memory < least_sidecar_memory || *memory > most_sidecar_memory)
    return "spec.limits.memory is " + mirror.memory + ": between 1Mi and 64Gi is possible";
  mirror.memory_bytes = *memory;
  if (auto problem =
          read_duration(spec, "/limits/idleTimeout", "limits.idleTimeout", mirror.idle_timeout);
      !problem.empty())
    return problem;
  if (auto problem = read_duration(spec, "/limits/responseTimeout", "limits.responseTimeout",
                                   mirror.response_timeout);
      !problem.empty())
    return problem;

  read(spec, "/intercept/replicas", mirror.replicas);
  if (auto problem = read_client_address(spec, mirror); !problem.empty()) return problem;
  read(spec, "/intercept/resources", mirror.resources);
  read(spec, "/intercept/nodeSelector", mirror.node_selector);
  read(spec, "/intercept/tolerations", mirror.tolerations);
  read(spec, "/paused", mirror.paused);
  read(spec, "/duration", mirror.duration_text);
  if (!mirror.duration_text.empty()) {
    mirror.duration = parse_sum_of_durations(mirror.duration_text);
    if (!mirror.duration)
      return "spec.duration is " + mirror.duration_text + ": up to ten years, such as 30m or 2h";
  }
  return "";
}

}  // namespace

ParsedMirror parse_mirror(const Json& object) {
  ParsedMirror parsed;
  Mirror& mirror = parsed.mirror;
  mirror.key = kube::key_of(object);
  mirror.uid = kube::text_at(object, "/metadata/uid");
  mirror.created = kube::text_at(object, "/metadata/creationTimestamp");
  mirror.deleted = !kube::text_at(object, "/metadata/deletionTimestamp").empty();
  const auto finalizers = "/metadata/finalizers"_json_pointer;
  mirror.has_finalizer =
      object.contains(finalizers) && std::find(object[finalizers].begin(), object[finalizers].end(),
                                               names::finalizer) != object[finalizers].end();
  // Objects from before a change of the schema may not keep it.
  try {
    read(object, "/metadata/generation", mirror.generation);
    parsed.problem = read_spec(object.contains("spec") ? object["spec"] : Json::object(), mirror);
  } catch (const Json::exception& error) {
    parsed.problem = std::string("the spec does not keep to the schema: ") + error.what();
  }
  return parsed;
}

}  // namespace trafficmirror::controller
