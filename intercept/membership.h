// --member-of: the intercept is one of several, and a name says which of them are to work: those
// that it has the addresses of. So they can be told to end that nothing else reaches, such as an
// ephemeral container.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace trafficmirror::intercept {

// Whether an address of this host is one of the name's, as the resolver says; nothing where that
// can't be told now, since nobody answers. May take seconds.
std::optional<bool> has_address_of_this_host(const std::string& name);

// What follows from one answer after the other. Pure.
class Listing {
 public:
  // A name server that has just been started may know too little for a moment.
  static constexpr int answers_to_leave = 3;

  enum class Change { none, joined, left };
  // `listed` as above; what can't be told changes nothing.
  Change take(std::optional<bool> listed);

 private:
  bool joined_ = false;
  int misses_ = 0;  // in a row
};

// Asks on a thread of its own.
class Membership {
 public:
  using Ask = std::function<std::optional<bool>()>;
  // `ask` and `left` have to be safe on any thread, and `ask` also after this has gone: nobody can
  // end a look-up that waits for an answer. `left` is called once, when it is no member any more.
  Membership(Ask ask, std::function<void()> left);
  ~Membership();
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

  enum class Outcome { joined, stopped, gave_up };
  // Until it is a member, `stop_descriptor` is readable, or `longest` is over.
  Outcome wait(int stop_descriptor, std::chrono::milliseconds longest) const;

 private:
  struct Shared;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace trafficmirror::intercept
