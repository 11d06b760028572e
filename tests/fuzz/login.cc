// The modules that log in, as a hostile client and a hostile shadow may speak to them. The first
// byte chooses the protocol; then come pieces, of one side or the other.
#include <memory>
#include <string>

#include "sidecar/login/mysql.h"
#include "sidecar/login/postgresql.h"
#include "tests/fuzz/fuzz.h"

namespace trafficmirror::fuzz {
namespace {

// As a session keeps what is left.
constexpr size_t most_held = (64 << 10) + 16;

void converse(Input& input, session::Login& login) {
  std::string of_client, of_shadow;
  while (!input.empty() && !login.failure()) {
    const uint8_t piece = input.u8();
    const bool client = piece % 2 == 0;
    std::string& said = client ? of_client : of_shadow;
    said += as_text(input.bytes(piece / 2));
    // As long as they are of use.
    if (client ? login.client_is_over() : login.let_in()) return;
    const size_t taken =
        client ? login.client_said(as_bytes(said)) : login.shadow_said(as_bytes(said));
    require(taken <= said.size(), "no more is taken than there is");
    said.erase(0, taken);
    require(said.size() <= most_held, "what is left is bounded");
    const std::string messages = login.take_messages();
    require(messages.empty() || login.asked() || login.failure(),
            "nothing is said for a client that has not said who it is");
    require(messages.size() <= most_held, "what is said is bounded");
    require(!login.failure() || !login.failure()->why.empty(), "a failure has a reason");
  }
}

}  // namespace
}  // namespace trafficmirror::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trafficmirror;
  using login::Protocol;
  fuzz::Input input({data, size});
  login::Credentials known;
  known.set(Protocol::postgresql, "app", "pencil");
  known.set(Protocol::mysql, "app", "pencil");
  if (input.u8() % 2 == 0) {
    login::ScramKeys keys;
    login::Postgresql postgresql(known, keys, "nonce");
    fuzz::converse(input, postgresql);
  } else {
    login::Mysql mysql(known);
    fuzz::converse(input, mysql);
  }
  return 0;
}
