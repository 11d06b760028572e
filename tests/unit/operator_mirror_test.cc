// A TrafficMirror as it is read, what is wrong with one, selectors, and names.
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "operator/filter.h"
#include "operator/mirror.h"
#include "operator/names.h"
#include "operator/selector.h"

namespace trafficmirror::controller {
namespace {

using kube::Json;

Json least_object() {
  return Json::parse(R"({
      "metadata": {"name": "checkout-v2", "namespace": "shop", "uid": "u", "generation": 3,
                   "creationTimestamp": "2030-01-01T00:00:00Z"},
      "spec": {"source": {"selector": {"matchLabels": {"app": "checkout"}}, "ports": [8080]},
               "shadow": {"namespace": "shop-shadow", "service": {"name": "checkout-v2"}}}})");
}

Json with(const std::string& pointer, const Json& value) {
  Json object = least_object();
  object["spec"][Json::json_pointer(pointer)] = value;
  return object;
}

TEST(Mirror, NeedsLittle) {
  const auto [mirror, problem] = parse_mirror(least_object());
  EXPECT_EQ(problem, "");
  EXPECT_EQ(to_text(mirror.key), "shop/checkout-v2");
  EXPECT_EQ(mirror.generation, 3);
  EXPECT_FALSE(mirror.deleted);
  EXPECT_FALSE(mirror.has_finalizer);
  EXPECT_EQ(mirror.ports, std::vector<net::ProductionPort>{{8080}});
  EXPECT_EQ(mirror.shadow_port_of({8080}), net::ProductionPort{8080});
  EXPECT_EQ(mirror.attach, Attach::automatic);
  EXPECT_EQ(mirror.percent, 100);
  EXPECT_EQ(mirror.copies, 1U);
  EXPECT_FALSE(mirror.max_rate);
  EXPECT_EQ(mirror.turns, program::Turns::wait);
  EXPECT_EQ(mirror.filter, "");
  EXPECT_EQ(mirror.max_lag, "");
  EXPECT_TRUE(mirror.logins.empty());
  EXPECT_EQ(mirror.logins_secret, "");
  EXPECT_EQ(mirror.idle_timeout, "");
  EXPECT_EQ(mirror.response_timeout, "");
  EXPECT_EQ(mirror.over_lag, program::OverLag::shed);
  EXPECT_EQ(mirror.memory_bytes, 64u << 20);
  EXPECT_EQ(mirror.max_sessions, 20'000u);
  EXPECT_EQ(mirror.replicas, 1);
  EXPECT_FALSE(mirror.paused);
  EXPECT_FALSE(mirror.duration);
}

TEST(Mirror, IsReadWhole) {
  Json object = least_object();
  object["metadata"]["deletionTimestamp"] = "2030-01-02T00:00:00Z";
  object["metadata"]["finalizers"] = {"another.example/finalizer", names::finalizer};
  object["spec"] = Json::parse(R"({
      "source": {"selector": {}, "ports": [9090], "interface": "any", "attach": "Sidecar"},
      "shadow": {"namespace": "dark", "selector": {"matchLabels": {"a": "b"}}, "port": 7000,
                 "logins": {"ports": [{"port": 9090, "protocol": "PostgreSQL"}],
                            "secretName": "logins"}},
      "replicate": {"percent": 12.5, "filter": "src net 10.1.0.0/16", "copies": 3, "maxRate": 50, "turns": "Immediate", "maxLag": "1500ms",
                    "overLag": "CatchUp"},
      "limits": {"memory": "1Gi", "maxSessions": 7, "idleTimeout": "2h", "responseTimeout": "5s"},
      "intercept": {"replicas": 3, "nodeSelector": {"disk": "fast"}},
      "paused": true, "duration": "1h30m"})");
  const auto [mirror, problem] = parse_mirror(object);
  EXPECT_EQ(problem, "");
  EXPECT_TRUE(mirror.deleted);
  EXPECT_TRUE(mirror.has_finalizer);
  EXPECT_EQ(mirror.interface, "any");
  EXPECT_EQ(mirror.attach, Attach::sidecar);
  EXPECT_EQ(mirror.shadow_namespace, "dark");
  EXPECT_EQ(std::get<Json>(mirror.shadow), Json::parse(R"({"matchLabels": {"a": "b"}})"));
  EXPECT_EQ(mirror.shadow_port_of({9090}), net::ProductionPort{7000});
  EXPECT_EQ(mirror.percent, 12.5);
  EXPECT_EQ(mirror.filter, "src net 10.1.0.0/16");
  ASSERT_EQ(mirror.logins.size(), 1U);
  EXPECT_EQ(mirror.logins[0].port, net::Port{9090});
  EXPECT_EQ(mirror.logins[0].protocol, "postgresql");
  EXPECT_EQ(mirror.logins_secret, "logins");
  EXPECT_EQ(mirror.idle_timeout, "2h");
  EXPECT_EQ(mirror.response_timeout, "5s");
  EXPECT_EQ(mirror.copies, 3U);
  EXPECT_EQ(mirror.max_rate, 50U);
  EXPECT_EQ(mirror.turns, program::Turns::off);
  EXPECT_EQ(mirror.max_lag, "1500ms");
  EXPECT_EQ(mirror.over_lag, program::OverLag::catch_up);
  EXPECT_EQ(mirror.memory_bytes, 1u << 30);
  EXPECT_EQ(mirror.max_sessions, 7u);
  EXPECT_EQ(mirror.replicas, 3);
  EXPECT_EQ(mirror.node_selector, (Json{{"disk", "fast"}}));
  EXPECT_TRUE(mirror.paused);
  EXPECT_EQ(mirror.duration, std::chrono::minutes(90));
}

Json login(int port, const char* protocol) {
  return {{"ports", Json::array({{{"port", port}, {"protocol", protocol}}})}};
}

Json object_of_a_capture() {
  Json object = least_object();
  object["spec"]["source"] =
      Json::parse(R"({"capture": {"claimName": "captures", "path": "a/web.pcap"}, "ports": [80]})");
  return object;
}

TEST(Mirror, MayHaveACaptureInPlaceOfPods) {
  Json object = object_of_a_capture();
  auto [mirror, problem] = parse_mirror(object);
  EXPECT_EQ(problem, "");
  ASSERT_TRUE(mirror.capture);
  EXPECT_EQ(mirror.capture->claim, "captures");
  EXPECT_EQ(mirror.capture->path, "a/web.pcap");
  EXPECT_EQ(mirror.capture->speed, "1x");
  EXPECT_EQ(mirror.capture->loop, 1U);
  EXPECT_FALSE(selects(mirror.selector, {{"app", "checkout"}})) << "it has no pods";
  EXPECT_FALSE(selects(mirror.selector, Json()));

  object["spec"]["source"]["capture"].update(Json::parse(
      R"({"speed": "max", "loop": 3, "from": "90s", "until": "2030-01-01T12:00:00Z"})"));
  const Mirror other = parse_mirror(object).mirror;
  EXPECT_EQ(other.capture->speed, "max");
  EXPECT_EQ(other.capture->loop, 3U);
  EXPECT_EQ(other.capture->from, "90s");
  EXPECT_EQ(other.capture->until, "2030-01-01T12:00:00Z");
}

TEST(Mirror, SaysWhatIsWrongWithACapture) {
  const std::string path = "write it from the volume's root on";
  const std::vector<std::pair<Json, std::string>> all{
      {{{"claimName", ""}}, "spec.source.capture.claimName is missing"},
      {{{"path", ""}}, path},
      {{{"path", "/etc/passwd"}}, path},
      {{{"path", "a/../../b"}}, path},
      {{{"path", ".."}}, path},
      {{{"path", "a//b"}}, path},
      {{{"path", "a/"}}, path},
      {{{"path", "..a/.b/c..d"}}, ""},
      {{{"speed", "fast"}}, "spec.source.capture.speed is fast: 1x, 2x or 0.5x"},
      {{{"speed", "1001x"}}, "(0.01x to 1000x), or max"},
      {{{"from", "noon"}}, "spec.source.capture.from is noon: such as 2030-01-01T12:00:00Z"},
      {{{"until", "2030-02-30T00:00:00Z"}}, "spec.source.capture.until is 2030-02-30"},
      {{{"from", "90s"}, {"until", "60s"}}, "until is not later than from"},
      {{{"from", "60s"}, {"until", "90s"}}, ""}};
  for (const auto& [fields, words] : all) {
    Json object = object_of_a_capture();
    object["spec"]["source"]["capture"].update(fields);
    const std::string problem = parse_mirror(object).problem;
    SCOPED_TRACE(fields.dump() + ": " + problem);
    EXPECT_EQ(problem.empty(), words.empty());
    EXPECT_NE(problem.find(words), std::string::npos);
  }
  for (const auto& [field, value] : {std::pair("attach", "Sidecar"), {"interface", "lo"}}) {
    Json object = object_of_a_capture();
    object["spec"]["source"][field] = value;
    EXPECT_EQ(
        parse_mirror(object).problem,
        std::string("spec.source.") + field + " is for pods, and a capture has none: leave it out");
  }
  // The server fills them in.
  Json object = object_of_a_capture();
  object["spec"]["source"].update({{"attach", "Auto"}, {"interface", "eth0"}});
  EXPECT_EQ(parse_mirror(object).problem, "");
}

TEST(Mirror, SaysWhichFieldIsWrong) {
  struct Wrong {
    const char* pointer;
    Json value;
    const char* words;
  };
  const std::vector<Wrong> all{
      {"/source", Json::object(), "spec.source needs a selector or a capture, and not both"},
      {"/source/capture", {{"claimName", "c"}}, "spec.source needs a selector or a capture, and"},
      {"/source/ports", Json::array(), "spec.source.ports is empty"},
      {"/source/ports", {8080, 9090}, ""},
      {"/source/ports", "8080", "does not keep to the schema"},
      {"/source/ports", {53, "53/udp"}, ""},
      {"/source/ports", {"53/sctp"}, "spec.source.ports has \"53/sctp\": a port is a number"},
      {"/source/ports", {"65536/udp"}, "spec.source.ports has \"65536/udp\""},
      {"/source/ports", {0}, "spec.source.ports has 0"},
      {"/source/ports", {1.5}, "spec.source.ports has 1.5"},
      {"/source/ports", Json::array({nullptr}), "spec.source.ports has null"},
      {"/source/selector",
       {{"matchExpressions", {{{"key", "a"}, {"operator", "In"}}}}},
       "spec.source.selector: the label a has operator In and no values"},
      {"/shadow", {{"namespace", "x"}}, "names neither a service nor a selector"},
      {"/shadow",
       {{"namespace", "x"},
        {"selector", {{"matchExpressions", {{{"key", "a"}, {"operator", "Like"}}}}}}},
       "spec.shadow.selector: the label a has operator Like"},
      {"/replicate/turns", "Later", "spec.replicate.turns is none of Wait, Eager and Immediate"},
      {"/replicate/turns", "Eager", ""},
      {"/replicate/overLag", "Drop", "spec.replicate.overLag is none of Shed and CatchUp"},
      {"/replicate/maxLag", "soon", "spec.replicate.maxLag is soon: up to ten years"},
      {"/replicate/maxLag", "87601h", "up to ten years"},
      {"/replicate/maxLag", "87600h", ""},
      {"/replicate/filter", "src net 10.1.0.0/16", ""},
      {"/replicate/filter", "src net",
       "spec.replicate.filter is no pcap filter: can't parse filter expression"},
      {"/replicate/filter", "host web",
       "spec.replicate.filter has \"web\": there may be addresses"},
      {"/limits/idleTimeout", "never", "spec.limits.idleTimeout is never: up to ten years"},
      {"/limits/responseTimeout", "0s", "spec.limits.responseTimeout is 0s"},
      {"/shadow/logins", login(8080, "MySQL"), ""},
      {"/shadow/logins", login(8080, "FTP"), "8080 with a protocol that is none of PostgreSQL and"},
      {"/shadow/logins", login(5432, "MySQL"),
       "spec.shadow.logins.ports has 5432, and spec.source.ports has not, as one of TCP"},
      {"/limits/memory", "9Gigs", "spec.limits.memory is 9Gigs: between 1Mi and 64Gi"},
      {"/limits/memory", "1023Ki", "between 1Mi and 64Gi"},
      {"/limits/memory", "65Gi", "between 1Mi and 64Gi"},
      {"/limits/memory", "64Gi", ""},
      {"/limits/memory", "1Mi", ""},
      {"/duration", "soon", "spec.duration is soon"},
      {"/duration", "0s", "spec.duration is 0s"},
      {"/duration", "90m10", "spec.duration is 90m10"},
      {"/duration", "87601h", "up to ten years"},
      {"/duration", "87600h", ""},
      {"/duration", "1h1m1s", ""}};
  for (const Wrong& wrong : all) {
    const std::string problem = parse_mirror(with(wrong.pointer, wrong.value)).problem;
    SCOPED_TRACE(std::string(wrong.pointer) + " " + wrong.value.dump() + ": " + problem);
    EXPECT_EQ(problem.empty(), std::string(wrong.words).empty());
    EXPECT_NE(problem.find(wrong.words), std::string::npos);
    EXPECT_EQ(problem.find('\n'), std::string::npos);
  }
}

TEST(Mirror, HasAPoolWhereClientsComeFromOne) {
  const auto [preserving, preserving_problem] = parse_mirror(with("/clientAddress", "Preserve"));
  EXPECT_EQ(preserving_problem, "");
  EXPECT_TRUE(preserving.is_intercepted_beside());

  Json of_udp = with("/clientAddress", "Preserve");
  of_udp["spec"]["source"]["ports"] = {8080, "53/udp"};
  EXPECT_EQ(parse_mirror(of_udp).problem,
            "spec.source.ports has 53/udp: UDP is mirrored with clientAddress Masquerade alone");

  Json object = with("/clientAddress", "Pool");
  EXPECT_NE(parse_mirror(object).problem.find("spec.clientAddressPool is missing"),
            std::string::npos);
  object["spec"]["clientAddressPool"] = {"198.18.0.0/15", "fd00:1::/64"};
  const auto [mirror, problem] = parse_mirror(object);
  EXPECT_EQ(problem, "");
  EXPECT_EQ(mirror.client_address, ClientAddress::pool);
  EXPECT_EQ(mirror.client_address_pool, "198.18.0.0/15,fd00:1::/64");

  for (const auto& [networks, words] : std::vector<std::pair<Json, const char*>>{
           {{"198.18.0.1/15"}, "'198.18.0.1/15' is no network"},
           {{"127.0.0.0/8"}, "addresses that no client may have"},
           {{"198.18.0.0/15", "10.9.0.0/16"}, "one network of each family"}}) {
    object["spec"]["clientAddressPool"] = networks;
    EXPECT_NE(parse_mirror(object).problem.find(words), std::string::npos) << networks;
  }
  object["spec"]["clientAddressPool"] = {"198.18.0.0/15"};
  object["spec"]["clientAddress"] = "Preserve";
  EXPECT_NE(parse_mirror(object).problem.find("is for clientAddress Pool alone"),
            std::string::npos);
  object["spec"].erase("clientAddressPool");
  object["spec"]["intercept"]["replicas"] = 2;
  EXPECT_NE(parse_mirror(object).problem.find("beside each pod of the shadow; leave it out"),
            std::string::npos);
}

TEST(Mirror, OfSeveralPortsTakesNoPortOfTheShadow) {
  Json object = with("/source/ports", {8080, 9090});
  object["spec"]["shadow"]["service"]["port"] = 80;
  EXPECT_NE(parse_mirror(object).problem.find("leave the shadow's port out"), std::string::npos);
}

// As libpcap reads it, and nothing that it would look up.
TEST(Filter, MayHaveAddressesNumbersAndTheirWords) {
  for (const char* good :
       {"src net 10.1.0.0/16 and not src host 10.1.0.7", "src net 10.1 or src net 10.2",
        "net 10.1.0.0 mask 255.255.0.0", "(ip6 and src net fd00:1::/64) || host ::1",
        "host ::ffff:10.0.0.1", "tcp dst port 80\nor udp dst port 53", "portrange 8000-9000",
        "ip proto 6", "!udp && src host 10.1.2.3"})
    EXPECT_EQ(problem_of_filter(good), std::nullopt) << good;
  struct Wrong {
    const char* filter;
    const char* words;
  };
  for (const Wrong& wrong : std::initializer_list<Wrong>{
           {"host shop.example.org", "has \"shop.example.org\": there may be addresses, numbers"},
           {"host 1.2.3.4.5", "has \"1.2.3.4.5\""},
           {"host 8000-9000", "has \"8000-9000\""},
           {"host fd00::1::2", "has \"fd00::1::2\""},
           {"host 1e100.net", "has \"1e100.net\""},
           {"port http", "has \"http\""},
           {"ip proto \\tcp", "has \"\\tcp\""},
           {"src AND dst", "has \"AND\""},
           {"src port", "is no pcap filter: can't parse filter expression"},
           {"host 10.0.0.1 and (port 80", "is no pcap filter: can't parse filter expression"},
           {"port 70000", "is no pcap filter"},
           {"tcp and \xc3\xa4", "is no pcap filter"}}) {
    const auto problem = problem_of_filter(wrong.filter);
    ASSERT_TRUE(problem) << wrong.filter;
    EXPECT_NE(problem->find(wrong.words), std::string::npos) << wrong.filter << ": " << *problem;
    EXPECT_EQ(problem->find('\n'), std::string::npos);
  }
  EXPECT_EQ(problem_of_filter("port 80" + std::string(5000, ' ')),
            "is longer than 4096 characters");
}

// One number is one port of the shadow, whichever protocols it has.
TEST(Mirror, OfOnePortMayHaveBothProtocols) {
  Json object = with("/source/ports", {"53/udp", 53});
  object["spec"]["shadow"]["service"]["port"] = 5353;
  const auto [mirror, problem] = parse_mirror(object);
  EXPECT_EQ(problem, "");
  const net::ProductionPort tcp{53, net::Protocol::tcp}, udp{53, net::Protocol::udp};
  EXPECT_EQ(mirror.ports, (std::vector{tcp, udp}));
  EXPECT_TRUE(mirror.has_tcp());
  EXPECT_EQ(mirror.shadow_port_of(tcp), (net::ProductionPort{5353, net::Protocol::tcp}));
  EXPECT_EQ(mirror.shadow_port_of(udp), (net::ProductionPort{5353, net::Protocol::udp}));
  EXPECT_FALSE(parse_mirror(with("/source/ports", {"53/udp"})).mirror.has_tcp());
}

TEST(Mirror, ThatIsNoneIsToldButKnown) {
  for (const char* spec : {"null", "[]", "7", "{}", R"({"source": 5})", R"({"source": {"selector":
       "x", "ports": [1]}})"}) {
    Json object = least_object();
    object["spec"] = Json::parse(spec);
    const auto [mirror, problem] = parse_mirror(object);
    EXPECT_NE(problem, "") << spec;
    EXPECT_EQ(to_text(mirror.key), "shop/checkout-v2");
  }
}

TEST(Selector, SelectsAsKubernetesDoes) {
  const Json labels{{"app", "checkout"}, {"tier", "web"}};
  const auto expression = [](const char* key, const char* op, const Json& values) {
    return Json{
        {"matchExpressions", Json::array({{{"key", key}, {"operator", op}, {"values", values}}})}};
  };
  struct Case {
    Json selector;
    bool selects;
  };
  const std::vector<Case> all{{Json::object(), true},
                              {{{"matchLabels", {{"app", "checkout"}}}}, true},
                              {{{"matchLabels", {{"app", "checkout"}, {"tier", "web"}}}}, true},
                              {{{"matchLabels", {{"app", "checkout"}, {"tier", "db"}}}}, false},
                              {{{"matchLabels", {{"zone", "a"}}}}, false},
                              {expression("app", "In", {"cart", "checkout"}), true},
                              {expression("app", "In", {"cart"}), false},
                              {expression("zone", "In", {"a"}), false},
                              {expression("app", "NotIn", {"cart"}), true},
                              {expression("app", "NotIn", {"checkout"}), false},
                              // A label that is not there has none of the values.
                              {expression("zone", "NotIn", {"a"}), true},
                              {expression("app", "Exists", Json::array()), true},
                              {expression("zone", "Exists", Json::array()), false},
                              {expression("app", "DoesNotExist", Json::array()), false},
                              {expression("zone", "DoesNotExist", Json::array()), true}};
  for (const Case& one : all) {
    EXPECT_EQ(problem_of_selector(one.selector), std::nullopt) << one.selector;
    EXPECT_EQ(selects(one.selector, labels), one.selects) << one.selector;
  }
  Json both = expression("tier", "In", {"db"});
  both["matchLabels"] = {{"app", "checkout"}};
  EXPECT_FALSE(selects(both, labels)) << "all of it has to hold";
  EXPECT_TRUE(selects(Json::object(), Json())) << "a pod without labels";
  EXPECT_FALSE(selects({{"matchLabels", {{"app", "checkout"}}}}, Json()));
}

TEST(Selector, WithoutSenseIsTold) {
  for (const auto& [op, values] :
       std::vector<std::pair<const char*, Json>>{{"In", Json::array()},
                                                 {"NotIn", Json::array()},
                                                 {"Exists", {"a"}},
                                                 {"DoesNotExist", {"a"}},
                                                 {"Gt", {"1"}}}) {
    const Json requirement{{"key", "zone"}, {"operator", op}, {"values", values}};
    const auto problem = problem_of_selector({{"matchExpressions", Json::array({requirement})}});
    ASSERT_TRUE(problem) << op;
    EXPECT_NE(problem->find(std::string("the label zone has operator ") + op), std::string::npos);
  }
}

// RFC 1123 labels of at most 63 characters, with room for a sidecar's number or "-sidecar".
TEST(Names, AreFitForAllThatIsMade) {
  const std::string longest(253, 'a');
  for (const std::string& name : {std::string("a"), std::string("checkout.v2"), longest}) {
    const std::string made = name_for({"shop", name});
    EXPECT_LE(made.size(), 63u - std::string("-999").size());
    EXPECT_EQ(made.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-"), std::string::npos);
  }
}

TEST(Names, AreOthersForOtherMirrors) {
  const std::string longest(252, 'a');
  std::set<std::string> names;
  const std::vector<kube::Key> mirrors{{"shop", "checkout"},    {"shop-eu", "checkout"},
                                       {"shop", longest + "b"}, {"shop", longest + "c"},
                                       {"shop", "check.out"},   {"shop", "check-out"}};
  for (const kube::Key& mirror : mirrors) names.insert(name_for(mirror));
  EXPECT_EQ(names.size(), mirrors.size());
  // Also with another build: what is made is found by it.
  EXPECT_EQ(name_for({"shop", "checkout-v2"}), name_for({"shop", "checkout-v2"}));
}

TEST(Names, LeadBackToTheMirror) {
  const Json object{{"metadata", {{"annotations", {{names::mirror, "shop/checkout-v2"}}}}}};
  EXPECT_EQ(mirror_of(object), (kube::Key{"shop", "checkout-v2"}));
  EXPECT_EQ(mirror_of(Json::parse(R"({"metadata": {}})")), kube::Key());
  EXPECT_EQ(mirror_of(Json{{"metadata", {{"annotations", {{names::mirror, "shop"}}}}}}),
            kube::Key());
}

}  // namespace
}  // namespace trafficmirror::controller
