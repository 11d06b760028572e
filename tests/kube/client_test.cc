// operator/kube against a real API server. test_client.py starts it and says in the environment
// where it is: KUBECONFIG is the administrator's.
#include "operator/kube/client.h"

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <httplib.h>

#include "operator/kube/discovery.h"
#include "operator/kube/events.h"
#include "operator/kube/informer.h"
#include "operator/kube/leader_election.h"

namespace trafficmirror::kube {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

const Resource namespaces{
    .group = "", .version = "v1", .plural = "namespaces", .namespaced = false};
const Resource config_maps{.group = "", .version = "v1", .plural = "configmaps"};
const Resource secrets{.group = "", .version = "v1", .plural = "secrets"};
const Resource events{.group = "", .version = "v1", .plural = "events"};
const Resource leases{.group = "coordination.k8s.io", .version = "v1", .plural = "leases"};
const Resource network_policies{
    .group = "networking.k8s.io", .version = "v1", .plural = "networkpolicies"};
const Resource disruption_budgets{
    .group = "policy", .version = "v1", .plural = "poddisruptionbudgets"};
const Resource definitions{.group = "apiextensions.k8s.io",
                           .version = "v1",
                           .plural = "customresourcedefinitions",
                           .namespaced = false};
const Resource widgets{.group = "test.example", .version = "v1", .plural = "widgets"};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) throw std::runtime_error(std::string(name) + " is missing");
  return value;
}

Json name_of(const Key& key) {
  return {{"name", key.name}, {"namespace", key.namespace_}};
}

Json config_map(const Key& key, const Json& data = Json::object()) {
  return {{"apiVersion", "v1"}, {"kind", "ConfigMap"}, {"metadata", name_of(key)}, {"data", data}};
}

Json widget(const Key& key, const Json& spec) {
  return {{"apiVersion", "test.example/v1"},
          {"kind", "Widget"},
          {"metadata", name_of(key)},
          {"spec", spec}};
}

// Asks `condition` until it is true; false after `longest`.
bool within(std::chrono::milliseconds longest, const std::function<bool()>& condition) {
  const auto end = Clock::now() + longest;
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(10ms);
  }
  return true;
}

std::string message_of(const std::optional<Error>& error) {
  return error ? error->message : "no error";
}

template <class Value>
std::string message_of(const Result<Value>& result) {
  return result ? "no error" : result.error().message;
}

// Each test has a namespace of its own.
class ApiServer : public testing::Test {
 protected:
  static void SetUpTestSuite() { std::signal(SIGPIPE, SIG_IGN); }

  void SetUp() override {
    std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    std::transform(name.begin(), name.end(), name.begin(), [](char c) { return std::tolower(c); });
    namespace_ = name;
    const auto made = client_.create(
        namespaces,
        {{"apiVersion", "v1"}, {"kind", "Namespace"}, {"metadata", {{"name", namespace_}}}});
    ASSERT_TRUE(made) << message_of(made);
  }

  Key key(const std::string& name) const { return {namespace_, name}; }

  // A kind whose spec.size is 1 or more, and which has a status.
  void define_widgets() {
    const Json size = {{"type", "integer"}, {"minimum", 1}};
    const Json part = {{"type", "object"}, {"properties", {{"size", size}}}};
    const Json schema = {{"type", "object"}, {"properties", {{"spec", part}, {"status", part}}}};
    const Json version = {{"name", "v1"},
                          {"served", true},
                          {"storage", true},
                          {"subresources", {{"status", Json::object()}}},
                          {"schema", {{"openAPIV3Schema", schema}}}};
    const Json definition = {
        {"apiVersion", definitions.group_version()},
        {"kind", "CustomResourceDefinition"},
        {"metadata", {{"name", "widgets.test.example"}}},
        {"spec",
         {{"group", "test.example"},
          {"scope", "Namespaced"},
          {"names", {{"plural", "widgets"}, {"singular", "widget"}, {"kind", "Widget"}}},
          {"versions", Json::array({version})}}}};
    const auto made = client_.apply(definitions, definition);
    ASSERT_TRUE(made) << message_of(made);
    ASSERT_TRUE(within(20s, [&] { return bool(client_.list(widgets, namespace_)); }));
  }

  void make_config_maps(int count) {
    for (int i = 0; i < count; ++i) {
      const auto made = client_.create(config_maps, config_map(key("m" + std::to_string(i))));
      ASSERT_TRUE(made) << message_of(made);
    }
  }

  // Makes etcd forget all changes so far.
  void compact() {
    httplib::Client etcd(environment("TEST_ETCD"));
    const auto status = etcd.Post("/v3/maintenance/status", "{}", "application/json");
    ASSERT_TRUE(status && status->status == 200);
    const Json revision = Json::parse(status->body)["header"]["revision"];
    const auto compacted =
        etcd.Post("/v3/kv/compaction", Json{{"revision", revision}, {"physical", true}}.dump(),
                  "application/json");
    ASSERT_TRUE(compacted && compacted->status == 200);
  }

  Client client_{load_config(), "test"};
  Client other_{load_config(), "other"};
  std::string namespace_;
};

// --- requests ------------------------------------------------------------------------------------

TEST_F(ApiServer, AppliesWhatNobodyElseOwns) {
  const Key a = key("a");
  ASSERT_TRUE(client_.apply(config_maps, config_map(a, {{"x", "1"}, {"y", "1"}})));
  ASSERT_TRUE(other_.apply(config_maps, config_map(a, {{"z", "2"}})));

  const auto refused = other_.apply(config_maps, config_map(a, {{"x", "2"}, {"z", "2"}}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::conflict);
  EXPECT_NE(refused.error().message.find(".data.x"), std::string::npos) << message_of(refused);
  EXPECT_NE(refused.error().message.find("\"test\""), std::string::npos) << message_of(refused);

  // By force it is other_'s from then on, and what is applied no more goes.
  ASSERT_TRUE(other_.apply(config_maps, config_map(a, {{"x", "2"}, {"z", "2"}}), {.force = true}));
  EXPECT_EQ(client_.apply(config_maps, config_map(a, {{"x", "1"}})).error().kind,
            ErrorKind::conflict);
  const auto left = client_.apply(config_maps, config_map(a));
  ASSERT_TRUE(left) << message_of(left);
  EXPECT_EQ((*left)["data"], (Json{{"x", "2"}, {"z", "2"}}));

  // The same once more changes nothing.
  const auto again = client_.apply(config_maps, config_map(a));
  ASSERT_TRUE(again);
  EXPECT_EQ(text_at(*again, "/metadata/resourceVersion"),
            text_at(*left, "/metadata/resourceVersion"));
}

TEST_F(ApiServer, CreatesOnceAndPatches) {
  const Key a = key("a");
  ASSERT_TRUE(client_.create(config_maps, config_map(a, {{"x", "1"}})));
  EXPECT_EQ(client_.create(config_maps, config_map(a)).error().kind, ErrorKind::already_exists);

  ASSERT_TRUE(client_.patch(config_maps, a, {{"data", {{"x", nullptr}, {"y", "1"}}}}));
  const auto read = client_.get(config_maps, a);
  ASSERT_TRUE(read);
  EXPECT_EQ((*read)["data"], (Json{{"y", "1"}}));

  // Merges the list by its key, where a merge patch would replace it.
  const Json reference = {{"apiVersion", "v1"}, {"kind", "Node"}, {"name", "n"}};
  for (const char* uid : {"1", "2"}) {
    Json owner = reference;
    owner["uid"] = uid;
    const auto patched =
        client_.patch(config_maps, a, {{"metadata", {{"ownerReferences", Json::array({owner})}}}},
                      PatchType::strategic);
    ASSERT_TRUE(patched) << message_of(patched);
  }
  EXPECT_EQ((*client_.get(config_maps, a))["metadata"]["ownerReferences"].size(), 2U);
}

TEST_F(ApiServer, TellsErrorsApart) {
  EXPECT_EQ(client_.get(config_maps, key("none")).error().kind, ErrorKind::not_found);
  EXPECT_EQ(
      client_.list({.group = "none.example", .version = "v1", .plural = "nones"}, "").error().kind,
      ErrorKind::not_found);
  const auto invalid = client_.create(config_maps, config_map(key("No Name")));
  EXPECT_EQ(invalid.error().kind, ErrorKind::invalid);
  EXPECT_NE(invalid.error().message.find("metadata.name"), std::string::npos);
  EXPECT_EQ(invalid.error().message.find('\n'), std::string::npos);
  EXPECT_EQ(client_.create(config_maps, config_map({"no-such-namespace", "a"})).error().kind,
            ErrorKind::not_found);
}

TEST_F(ApiServer, WritesAStatusApartFromTheSpec) {
  define_widgets();
  const Key a = key("a");
  const auto made = client_.apply(widgets, widget(a, {{"size", 2}}));
  ASSERT_TRUE(made) << message_of(made);
  const auto refused = client_.apply(widgets, widget(a, {{"size", 0}}));
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid);
  EXPECT_NE(refused.error().message.find("spec.size"), std::string::npos) << message_of(refused);

  ASSERT_TRUE(client_.patch_status(widgets, a, {{"size", 5}}));
  Json with_status = widget(a, {{"size", 7}});
  with_status["status"]["size"] = 6;
  const auto applied =
      client_.apply(widgets, with_status, {.force = true, .subresource = "status"});
  ASSERT_TRUE(applied) << message_of(applied);
  EXPECT_EQ((*applied)["status"]["size"], 6);
  EXPECT_EQ((*applied)["spec"]["size"], 2);
  EXPECT_EQ((*applied)["metadata"]["generation"], 1);

  Json changed = *applied;
  changed["spec"]["size"] = 3;
  changed["status"]["size"] = 9;
  const auto updated = client_.update(widgets, changed);
  ASSERT_TRUE(updated) << message_of(updated);
  EXPECT_EQ((*updated)["spec"]["size"], 3);
  EXPECT_EQ((*updated)["status"]["size"], 6);
  EXPECT_EQ((*updated)["metadata"]["generation"], 2);
  EXPECT_EQ(client_.update(widgets, changed, "status").error().kind, ErrorKind::conflict);
}

TEST_F(ApiServer, DeletesOnlyWhatItMeans) {
  const Key a = key("a");
  Json object = config_map(a);
  object["metadata"]["finalizers"] = {"test.example/stay"};
  const auto made = client_.create(config_maps, object);
  ASSERT_TRUE(made) << message_of(made);
  ASSERT_TRUE(client_.patch(config_maps, a, {{"data", {{"x", "1"}}}}));

  EXPECT_EQ(client_.remove(config_maps, a, {.uid = "another"}).error().kind, ErrorKind::conflict);
  const std::string old = text_at(*made, "/metadata/resourceVersion");
  EXPECT_EQ(client_.remove(config_maps, a, {.resource_version = old}).error().kind,
            ErrorKind::conflict);

  const auto waits = client_.remove(config_maps, a, {.uid = text_at(*made, "/metadata/uid")});
  ASSERT_TRUE(waits) << message_of(waits);
  EXPECT_NE(text_at(*waits, "/metadata/deletionTimestamp"), "");
  ASSERT_TRUE(client_.get(config_maps, a));
  ASSERT_TRUE(client_.patch(config_maps, a, {{"metadata", {{"finalizers", nullptr}}}}));
  EXPECT_EQ(client_.get(config_maps, a).error().kind, ErrorKind::not_found);

  ASSERT_TRUE(client_.create(config_maps, config_map(a)));
  // A controller, which is not here, would delete what is the object's before it.
  const auto behind = client_.remove(config_maps, a, {.propagation = "Foreground"});
  ASSERT_TRUE(behind) << message_of(behind);
  EXPECT_EQ((*behind)["metadata"]["finalizers"], Json({"foregroundDeletion"}));
  ASSERT_TRUE(client_.patch(config_maps, a, {{"metadata", {{"finalizers", nullptr}}}}));
  const auto nothing = client_.remove(config_maps, a);
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().kind, ErrorKind::not_found);
}

TEST_F(ApiServer, ListsInPages) {
  make_config_maps(25);
  std::set<std::string> names;
  int pages = 0;
  ListOptions options{.limit = 10};
  do {
    const auto page = client_.list(config_maps, namespace_, options);
    ASSERT_TRUE(page) << message_of(page);
    ++pages;
    for (const Json& item : (*page)["items"]) {
      EXPECT_EQ(text_at(item, "/kind"), "ConfigMap");
      EXPECT_EQ(text_at(item, "/apiVersion"), "v1");
      names.insert(text_at(item, "/metadata/name"));
    }
    options.continue_token = text_at(*page, "/metadata/continue");
  } while (!options.continue_token.empty());
  EXPECT_EQ(pages, 3);
  EXPECT_EQ(names.size(), 25U);

  const auto everywhere =
      client_.list(config_maps, "", {.selection = {.fields = "metadata.name=m7"}});
  ASSERT_TRUE(everywhere) << message_of(everywhere);
  EXPECT_EQ((*everywhere)["items"].size(), 1U);
}

TEST_F(ApiServer, TellsThatAContinueTokenIsGone) {
  make_config_maps(5);
  const auto page = client_.list(config_maps, namespace_, {.limit = 2});
  ASSERT_TRUE(page);
  ASSERT_TRUE(client_.create(config_maps, config_map(key("later"))));
  compact();
  const auto next =
      client_.list(config_maps, namespace_,
                   {.limit = 2, .continue_token = text_at(*page, "/metadata/continue")});
  ASSERT_FALSE(next);
  EXPECT_EQ(next.error().kind, ErrorKind::gone) << message_of(next);
}

// --- watches -------------------------------------------------------------------------------------

TEST_F(ApiServer, Watches) {
  const auto before = client_.list(config_maps, namespace_);
  ASSERT_TRUE(before);
  std::jthread writer([&] {
    Json object = config_map(key("a"));
    object["metadata"]["labels"]["app"] = "checkout";
    EXPECT_TRUE(client_.create(config_maps, object));
    EXPECT_TRUE(client_.create(config_maps, config_map(key("not-selected"))));
    EXPECT_TRUE(client_.patch(config_maps, key("a"), {{"data", {{"x", "1"}}}}));
    EXPECT_TRUE(client_.remove(config_maps, key("a")));
  });
  std::vector<std::string> seen;
  bool bookmark = false;
  std::string last = text_at(*before, "/metadata/resourceVersion");
  const auto take = [&](const WatchEvent& event) {
    last = text_at(event.object, "/metadata/resourceVersion");
    if (event.type == WatchEvent::Type::bookmark) {
      bookmark = true;
      return;
    }
    const char* const names[] = {"added", "modified", "deleted"};
    seen.push_back(names[static_cast<int>(event.type)] +
                   (" " + text_at(event.object, "/metadata/name")) +
                   text_at(event.object, "/data/x"));
  };
  // Before a watch ends the server says how far it was; a busy one may not get to that.
  for (int watches = 0; watches < 5 && !bookmark; ++watches) {
    const auto error = client_.watch(config_maps, namespace_,
                                     {.selection = {.labels = "app=checkout"},
                                      .resource_version = last,
                                      .timeout = 4s,
                                      .silence = 20s},
                                     take);
    EXPECT_FALSE(error) << message_of(error);
  }
  EXPECT_EQ(seen, (std::vector<std::string>{"added a", "modified a1", "deleted a1"}));
  EXPECT_TRUE(bookmark);
  EXPECT_GT(std::stoull(last), std::stoull(text_at(*before, "/metadata/resourceVersion")));
}

TEST_F(ApiServer, AnInformerFollows) {
  make_config_maps(30);
  std::mutex mutex;
  std::map<std::string, int> told;
  Informer informer(client_, {.resource = config_maps,
                              .namespace_ = namespace_,
                              .transform = strip,
                              .changed =
                                  [&](const Key& key) {
                                    const std::lock_guard lock(mutex);
                                    ++told[key.name];
                                  },
                              .page_size = 7,
                              .watch_timeout = 1s});
  ASSERT_TRUE(informer.wait_until_synced(20s));
  EXPECT_EQ(informer.list(namespace_).size(), 30U);
  EXPECT_FALSE((*informer.get(key("m3")))["metadata"].contains("managedFields"));

  // Over the ends of several watches.
  for (int i = 0; i < 20; ++i) {
    const std::string text = std::to_string(i);
    ASSERT_TRUE(client_.patch(config_maps, key("m3"), {{"data", {{"x", text}}}}));
    ASSERT_TRUE(within(10s, [&] { return text_at(*informer.get(key("m3")), "/data/x") == text; }));
    std::this_thread::sleep_for(200ms);
  }
  ASSERT_TRUE(client_.remove(config_maps, key("m3")));
  ASSERT_TRUE(within(10s, [&] { return informer.get(key("m3")) == nullptr; }));
  const std::lock_guard lock(mutex);
  EXPECT_GE(told["m3"], 3);
  EXPECT_EQ(told["m4"], 1);
}

// test_client.py restarts the server when it reads "following", lets m1 vanish while it is away,
// and then writes "restarted".
TEST_F(ApiServer, AnInformerFollowsThroughARestart) {
  make_config_maps(3);
  Informer informer(client_,
                    {.resource = config_maps, .namespace_ = namespace_, .longest_retry = 2s});
  ASSERT_TRUE(informer.wait_until_synced(20s));
  const auto before = client_.list(config_maps, namespace_);
  ASSERT_TRUE(before);
  std::cout << "following " << namespace_ << std::endl;
  std::string line;
  std::getline(std::cin, line);
  ASSERT_EQ(line, "restarted");
  EXPECT_TRUE(within(20s, [&] { return informer.get(key("m1")) == nullptr; }));
  ASSERT_TRUE(client_.create(config_maps, config_map(key("after"))));
  EXPECT_TRUE(within(10s, [&] { return informer.get(key("after")) != nullptr; }));
  EXPECT_EQ(informer.list(namespace_).size(), 3U);

  // A server that was restarted knows no changes from before, which is why it had to list anew.
  const auto error = client_.watch(
      config_maps, namespace_,
      {.resource_version = text_at(*before, "/metadata/resourceVersion"), .timeout = 2s},
      [](const WatchEvent&) {});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind, ErrorKind::gone) << error->message;
}

// --- one leader ----------------------------------------------------------------------------------

TEST_F(ApiServer, OneOfTwoLeads) {
  const auto options = [&](const std::string& identity) {
    return LeaderElection::Options{.lease = key("leader"),
                                   .identity = identity,
                                   .lease_duration = 2s,
                                   .renew_deadline = 1500ms,
                                   .retry_period = 100ms};
  };
  LeaderElection one(client_, options("one"));
  LeaderElection two(other_, options("two"));
  std::optional<std::jthread> one_runs([&](const std::stop_token& stop) { one.run(stop); });
  ASSERT_TRUE(within(10s, [&] { return one.leading(); }));
  std::jthread two_runs([&](const std::stop_token& stop) { two.run(stop); });
  ASSERT_TRUE(within(10s, [&] { return two.leader() == "one"; }));
  // Longer than the lease: it is renewed.
  const auto end = Clock::now() + 3s;
  while (Clock::now() < end) {
    ASSERT_TRUE(one.leading());
    ASSERT_FALSE(two.leading());
    std::this_thread::sleep_for(20ms);
  }
  auto lease = client_.get(leases, key("leader"));
  ASSERT_TRUE(lease);
  EXPECT_EQ(text_at(*lease, "/spec/holderIdentity"), "one");
  EXPECT_EQ((*lease)["spec"]["leaseTransitions"], 0);

  // A release makes room before the lease is over.
  one_runs.reset();
  EXPECT_FALSE(one.leading());
  ASSERT_TRUE(within(1500ms, [&] { return two.leading(); }));
  lease = client_.get(leases, key("leader"));
  ASSERT_TRUE(lease);
  EXPECT_EQ((*lease)["spec"]["leaseTransitions"], 1);
}

TEST_F(ApiServer, AnotherLeadsWhenTheLeaseOfOneThatVanishedIsOver) {
  LeaderElection::Options options{.lease = key("leader"),
                                  .identity = "one",
                                  .lease_duration = 2s,
                                  .renew_deadline = 1500ms,
                                  .retry_period = 100ms};
  LeaderElection one(client_, options);
  one.step();
  ASSERT_TRUE(one.leading());
  options.identity = "two";
  LeaderElection two(other_, options);
  std::jthread two_runs([&](const std::stop_token& stop) { two.run(stop); });
  while (one.leading()) {
    ASSERT_FALSE(two.leading());
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_TRUE(within(5s, [&] { return two.leading(); }));
}

// --- the rest ------------------------------------------------------------------------------------

class Events : public ApiServer {
 protected:
  // The Events about `object`, once there are so many.
  Json about(const Json& object, size_t count) {
    Json items;
    const Key key = key_of(object);
    within(10s, [&] {
      const auto found = client_.list(events, key.namespace_,
                                      {.selection = {.fields = "involvedObject.name=" + key.name}});
      if (found) items = (*found)["items"];
      return found && items.size() >= count;
    });
    EXPECT_EQ(items.size(), count);
    return items;
  }

  EventRecorder recorder_{client_, {.component = "tester", .instance = "tester-1"}};
};

TEST_F(Events, SayWhatHappened) {
  const auto object = client_.create(config_maps, config_map(key("a")));
  ASSERT_TRUE(object);
  recorder_.record(*object, EventType::warning, "Broken", "it broke");
  recorder_.record(*object, EventType::warning, "Broken", "it broke");
  ASSERT_TRUE(within(10s, [&] {
    const Json items = about(*object, 1);
    return !items.empty() && items[0]["count"] == 2;
  }));
  const Json event = about(*object, 1)[0];
  EXPECT_EQ(text_at(event, "/type"), "Warning");
  EXPECT_EQ(text_at(event, "/message"), "it broke");
  EXPECT_EQ(text_at(event, "/involvedObject/uid"), text_at(*object, "/metadata/uid"));
  EXPECT_EQ(text_at(event, "/source/component"), "tester");
}

TEST_F(Events, AreTakenWhateverTheNameAndTheMessage) {
  for (const char* end : {"-", ".", "a"}) {
    // Cut where a name must not end.
    const std::string name = std::string(199, 'a') + end + std::string(20, 'b');
    const auto object = client_.create(config_maps, config_map(key(name)));
    ASSERT_TRUE(object) << message_of(object);
    std::string message = "x";
    for (int i = 0; i < 1000; ++i) message += "ü";
    recorder_.record(*object, EventType::normal, "Long", message);
    EXPECT_EQ(about(*object, 1).size(), 1U) << end;
  }
}

TEST_F(Events, OfWhatHasNoNamespaceAreInDefault) {
  const auto object = client_.get(namespaces, {"", namespace_});
  ASSERT_TRUE(object);
  recorder_.record(*object, EventType::normal, "Seen", "it was seen");
  EXPECT_TRUE(within(10s, [&] {
    const auto found = client_.list(events, "default",
                                    {.selection = {.fields = "involvedObject.name=" + namespace_}});
    return found && (*found)["items"].size() == 1;
  }));
}

TEST_F(ApiServer, DiscoversWhatTheServerCan) {
  const auto found =
      Discovery::ask(client_, {"v1", "networking.k8s.io/v1", "policy/v1", "none.example/v1"});
  ASSERT_TRUE(found) << message_of(found);
  const Version version = found->version();
  EXPECT_EQ(std::to_string(version.major) + "." + std::to_string(version.minor),
            environment("TEST_VERSION"));
  EXPECT_TRUE(found->has(config_maps));
  EXPECT_TRUE(found->has(network_policies));
  EXPECT_EQ(found->has(disruption_budgets), (version >= Version{1, 21}));
  EXPECT_EQ(found->ephemeral_containers(), (version >= Version{1, 22}));
  EXPECT_EQ(found->native_sidecars(), (version >= Version{1, 29}));
}

// The ServiceAccount "reader" may read ConfigMaps, and nothing else.
class ServiceAccount : public ApiServer {
 protected:
  void expect_reader(Client& client) {
    const auto read = client.list(config_maps, namespace_);
    EXPECT_TRUE(read) << message_of(read);
    const auto refused = client.list(secrets, namespace_);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::forbidden);
    EXPECT_NE(refused.error().message.find("system:serviceaccount:default:reader"),
              std::string::npos)
        << refused.error().message;
  }
  static void write(const std::string& file, const std::string& text) {
    std::ofstream(file) << text << '\n';
  }
};

TEST_F(ServiceAccount, IsReadFromItsTokenFileAnew) {
  Config config = read_kubeconfig({environment("TEST_READER_KUBECONFIG")});
  const std::string token = environment("TEST_READER_TOKEN");
  config.token_file = environment("TEST_TOKEN_FILE");
  Client client(config, "reader");
  write(config.token_file, "no.token.atall");
  EXPECT_EQ(client.list(config_maps, namespace_).error().kind, ErrorKind::unauthorized);
  write(config.token_file, token);
  expect_reader(client);
  write(config.token_file, "");
  EXPECT_EQ(client.list(config_maps, namespace_).error().kind, ErrorKind::unauthorized);
}

TEST_F(ServiceAccount, IsWhatAPodIsGiven) {
  Client client(in_cluster_config("127.0.0.1", environment("TEST_PORT"), environment("TEST_POD")),
                "reader");
  EXPECT_EQ(client.config().own_namespace, "default");
  expect_reader(client);
}

TEST_F(ServiceAccount, IsNobodyWithoutAToken) {
  Config config = load_config();
  config.client_certificate.clear();
  config.client_key.clear();
  Client client(config, "nobody");
  const auto refused = client.list(config_maps, namespace_);
  ASSERT_FALSE(refused);
  // Anonymous where the server lets anybody in that far.
  EXPECT_TRUE(refused.error().kind == ErrorKind::forbidden ||
              refused.error().kind == ErrorKind::unauthorized)
      << message_of(refused);
}

TEST_F(ServiceAccount, TrustsNoOtherAuthority) {
  Config config = load_config();
  std::ifstream file(environment("TEST_OTHER_AUTHORITY"));
  config.certificate_authority.assign(std::istreambuf_iterator<char>(file), {});
  Client client(config, "nobody");
  const auto refused = client.list(config_maps, namespace_);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::network);
  EXPECT_NE(refused.error().message.find("certificate"), std::string::npos) << message_of(refused);
}

}  // namespace
}  // namespace trafficmirror::kube
