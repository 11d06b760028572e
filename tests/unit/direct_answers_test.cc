#include <gtest/gtest.h>

#include "sidecar/direct/answers.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::direct {
namespace {

using std::chrono::milliseconds;

constexpr net::TcpFlags syn{.syn = true}, syn_ack{.syn = true, .ack = true}, ack{.ack = true},
    rst_ack{.rst = true, .ack = true};
const std::string shadow = "10.0.0.5:8080", other = "10.0.0.6:8080";

class DirectAnswers : public testing::Test {
 protected:
  void send(net::TcpFlags flags, uint32_t length = 0, const std::string& to = shadow) {
    net::TcpHeader header;
    header.flags = flags;
    answers_.sent(*net::Endpoint::parse(to), header, length);
  }
  void receive(net::TcpFlags flags, const std::string& from = shadow) {
    answers_.received(tests::parsed(tests::packet(from, "10.0.1.2:10001", {.flags = flags})));
  }
  std::vector<std::string> missing_after(milliseconds time) {
    now_ += time;
    std::vector<std::string> targets;
    for (const net::Endpoint& target : answers_.missing(now_))
      targets.push_back(target.to_string());
    return targets;
  }

  static constexpr milliseconds patience = Answers::patience, moment{1};
  using Targets = std::vector<std::string>;
  Answers answers_;
  Answers::Clock::time_point now_{std::chrono::hours(1)};
};

TEST_F(DirectAnswers, ATargetThatAnswersNoSynIsNamedOnceUntilItIsAskedAgain) {
  send(syn);
  EXPECT_EQ(missing_after(moment), Targets());
  EXPECT_EQ(missing_after(patience - moment), Targets());
  EXPECT_EQ(missing_after(moment), Targets{shadow});
  EXPECT_EQ(missing_after(patience), Targets()) << "nothing was sent since";
  send(syn);
  EXPECT_EQ(missing_after(moment), Targets());
  EXPECT_EQ(missing_after(patience), Targets{shadow});
}

TEST_F(DirectAnswers, AnAnswerToOneOfThemIsEnough) {
  send(syn);
  missing_after(moment);
  send(syn);
  receive(syn_ack);
  EXPECT_EQ(missing_after(2 * patience), Targets());
  send(syn);
  missing_after(moment);
  receive(rst_ack);
  EXPECT_EQ(missing_after(patience), Targets()) << "a refusal is an answer";
}

// Each SYN is answered, and nothing behind it passes.
TEST_F(DirectAnswers, DataIsNotAnsweredByAHandshake) {
  send(syn);
  missing_after(moment);
  receive(syn_ack);
  send(ack, 100);
  EXPECT_EQ(missing_after(moment), Targets());
  receive(syn_ack);  // sent again, as the ACK did not arrive
  EXPECT_EQ(missing_after(patience), Targets{shadow});
  send(ack, 100);
  missing_after(moment);
  receive(ack);
  EXPECT_EQ(missing_after(patience), Targets());
}

TEST_F(DirectAnswers, APureAcknowledgmentAsksForNothing) {
  send(ack);
  missing_after(moment);
  EXPECT_EQ(missing_after(patience), Targets());
}

TEST_F(DirectAnswers, TargetsAreToldApart) {
  send(syn);
  send(syn, 0, other);
  missing_after(moment);
  receive(syn_ack, other);
  EXPECT_EQ(missing_after(patience), Targets{shadow});
}

// Of one endpoint, UDP and TCP are two servers.
TEST_F(DirectAnswers, ADatagramAnswersNoConnection) {
  send(syn);
  missing_after(moment);
  answers_.received(tests::parsed(tests::datagram(shadow, "10.0.1.2:10001", "answer")));
  EXPECT_EQ(missing_after(patience), Targets{shadow});
}

TEST_F(DirectAnswers, WithoutAStreamNoAnswerCanCome) {
  send(syn);
  missing_after(moment);
  answers_.forget();
  EXPECT_EQ(missing_after(patience), Targets());
}

}  // namespace
}  // namespace trafficmirror::direct
