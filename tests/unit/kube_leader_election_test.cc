#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "operator/kube/leader_election.h"
#include "operator/kube/wall_time.h"
#include "tests/kube_server/kube_server.h"

namespace trafficmirror::kube {
namespace {

using namespace std::chrono_literals;

const Resource leases{.group = "coordination.k8s.io", .version = "v1", .plural = "leases"};
const Key lease{"trafficmirror", "operator"};

class KubeLeaderElection : public testing::Test {
 protected:
  // One of the programs that want to lead.
  struct Candidate {
    Candidate(KubeLeaderElection& test, const std::string& identity)
        : client(test.server_.config(), "test"),
          election(client, {.lease = lease,
                            .identity = identity,
                            .started = [this] { ++started; },
                            .stopped = [this] { ++stopped; },
                            .now = [&test] { return test.now_; }}) {}
    Client client;
    int started = 0;
    int stopped = 0;
    LeaderElection election;
  };

  std::string holder() { return text_at(server_.object(leases, lease), "/spec/holderIdentity"); }

  KubeServer server_;
  LeaderElection::Clock::time_point now_{1h};
  Candidate one_{*this, "one"};
  Candidate two_{*this, "two"};
};

TEST_F(KubeLeaderElection, TheFirstLeadsAndRenews) {
  EXPECT_EQ(one_.election.step(), 2s);
  EXPECT_TRUE(one_.election.leading());
  EXPECT_EQ(one_.started, 1);
  EXPECT_EQ(holder(), "one");
  const auto wait = two_.election.step();
  EXPECT_GE(wait, 2s);
  EXPECT_LE(wait, 2400ms);
  EXPECT_FALSE(two_.election.leading());
  EXPECT_EQ(two_.election.leader(), "one");
  // Over many times the lease's duration.
  for (int i = 0; i < 50; ++i) {
    now_ += 2s;
    one_.election.step();
    two_.election.step();
  }
  EXPECT_TRUE(one_.election.leading());
  EXPECT_EQ(one_.started, 1);
  EXPECT_EQ(one_.stopped, 0);
  EXPECT_EQ(two_.started, 0);
  // A renewal is one request.
  EXPECT_EQ(server_.count(has_method("PUT")), 50U);
  const Json spec = server_.object(leases, lease)["spec"];
  EXPECT_EQ(spec["leaseDurationSeconds"], 15);
  EXPECT_EQ(spec["leaseTransitions"], 0);
}

TEST_F(KubeLeaderElection, AnotherFollowsWhenTheLeaseIsOver) {
  one_.election.step();
  now_ += 5s;
  two_.election.step();  // sees it now, and counts from here
  now_ += 14999ms;
  two_.election.step();
  EXPECT_FALSE(two_.election.leading());
  now_ += 1ms;
  two_.election.step();
  EXPECT_TRUE(two_.election.leading());
  EXPECT_EQ(server_.object(leases, lease)["spec"]["leaseTransitions"], 1);
  // The one before has long stopped by itself, and learns why.
  EXPECT_FALSE(one_.election.leading());
  one_.election.step();
  EXPECT_EQ(one_.stopped, 1);
  EXPECT_EQ(one_.election.leader(), "two");
}

TEST_F(KubeLeaderElection, StopsLeadingWhenItCannotRenew) {
  one_.election.step();
  server_.inject({.matches = has_method("PUT"), .times = -1, .status = 500});
  for (int i = 0; i < 4; ++i) {
    now_ += 2s;
    EXPECT_EQ(one_.election.step(), 2s);
    EXPECT_TRUE(one_.election.leading());
  }
  now_ += 1999ms;
  EXPECT_EQ(one_.election.step(), 1ms) << "not later than the deadline";
  EXPECT_EQ(one_.stopped, 0);
  now_ += 1ms;
  EXPECT_FALSE(one_.election.leading());
  one_.election.step();
  EXPECT_EQ(one_.stopped, 1);
  // It comes back when the server does.
  server_.clear_faults();
  now_ += 2s;
  one_.election.step();
  EXPECT_TRUE(one_.election.leading());
  EXPECT_EQ(one_.started, 2);
}

TEST_F(KubeLeaderElection, BeginsAnewWhereItWasAwayForTooLong) {
  one_.election.step();
  now_ += 10s;
  EXPECT_FALSE(one_.election.leading());
  // Nobody took the lease, but others might have; so what runs has to be stopped first.
  one_.election.step();
  EXPECT_EQ(one_.stopped, 1);
  EXPECT_EQ(one_.started, 2);
  EXPECT_TRUE(one_.election.leading());
}

TEST_F(KubeLeaderElection, ARenewalThatHangsLeavesTimeForAnother) {
  LeaderElection election(
      one_.client,
      {.lease = lease, .identity = "one", .renew_deadline = 1s, .retry_period = 1ms, .now = [&] {
         return now_;
       }});
  election.step();
  server_.inject({.matches = has_method("PUT"), .hold = true});
  now_ += 1ms;
  const auto begin = LeaderElection::Clock::now();
  election.step();
  EXPECT_LT(LeaderElection::Clock::now() - begin, 950ms) << "it was given up half-way";
  server_.release();
  now_ += 900ms;
  election.step();
  now_ += 900ms;
  EXPECT_TRUE(election.leading());
}

TEST_F(KubeLeaderElection, OneOfTwoThatWriteAtOnceLeads) {
  // The second has read that there is no lease when the first makes it.
  server_.inject({.status = 404, .reason = "NotFound"});
  one_.election.step();
  server_.inject({.status = 404, .reason = "NotFound"});
  two_.election.step();
  EXPECT_TRUE(one_.election.leading());
  EXPECT_FALSE(two_.election.leading());
  EXPECT_EQ(holder(), "one");
}

TEST_F(KubeLeaderElection, GivesWayWhenAnotherTookTheLease) {
  one_.election.step();
  Json stolen = server_.object(leases, lease);
  stolen["spec"]["holderIdentity"] = "two";
  server_.put(leases, stolen);
  now_ += 2s;
  one_.election.step();
  EXPECT_FALSE(one_.election.leading());
  EXPECT_EQ(one_.stopped, 1);
  EXPECT_EQ(holder(), "two");
}

TEST_F(KubeLeaderElection, GoesOnWhenAnswersGetLost) {
  one_.election.step();
  // As if a renewal had been written, and its answer had not come.
  Json renewed = server_.object(leases, lease);
  renewed["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z";
  server_.put(leases, renewed);
  now_ += 2s;
  one_.election.step();
  EXPECT_TRUE(one_.election.leading());
  EXPECT_EQ(one_.stopped, 0);
}

TEST_F(KubeLeaderElection, ReleasesTheLeaseSoThatAnotherNeedNotWait) {
  one_.election.step();
  two_.election.step();
  one_.election.release();
  EXPECT_EQ(one_.stopped, 1);
  EXPECT_EQ(holder(), "");
  two_.election.step();
  EXPECT_TRUE(two_.election.leading());
  two_.election.release();
  two_.election.release();
  EXPECT_EQ(two_.stopped, 1);
}

TEST_F(KubeLeaderElection, RunsUntilItIsStopped) {
  std::atomic<int> stopped = 0;
  LeaderElection election(
      one_.client,
      {.lease = lease, .identity = "runner", .retry_period = 1ms, .stopped = [&] { ++stopped; }});
  std::jthread thread([&](const std::stop_token& stop) { election.run(stop); });
  ASSERT_TRUE(server_.wait_for(has_method("PUT"), 3));
  EXPECT_TRUE(election.leading());
  // In the midst of a renewal that does not come to its end.
  server_.inject({.matches = has_method("PUT"), .hold = true});
  ASSERT_TRUE(server_.wait_for_held(1));
  thread.request_stop();
  thread.join();
  EXPECT_EQ(stopped, 1);
  EXPECT_FALSE(election.leading());
  server_.release();
}

TEST(KubeWallTime, IsRfc3339) {
  const std::chrono::system_clock::time_point time(1767225599s + 42us);
  EXPECT_EQ(to_text(time), "2025-12-31T23:59:59Z");
  EXPECT_EQ(to_text_with_microseconds(time), "2025-12-31T23:59:59.000042Z");
}

}  // namespace
}  // namespace trafficmirror::kube
