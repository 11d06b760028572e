// SIGHUP: the limits in the file of --config are read again while the sidecar mirrors.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>

#include "program/background.h"
#include "program/limits.h"
#include "program/signals.h"

namespace trafficmirror::sidecar {

// All is called by one thread.
class Reload {
 public:
  struct Reading {
    program::Limits limits;
    std::string needs_restart;  // the flags that differ and can't change so: "http, interface"
  };
  // Or what is wrong, in one line.
  using Read = std::function<std::variant<Reading, std::string>()>;
  struct Counters {
    uint64_t taken = 0;
    uint64_t refused = 0;
  };

  // `read` is called on a thread of its own, also after this has gone, as it may have names of
  // hosts to look up. Null: there is no file, which is said when it is asked for. `signal` outlives
  // this.
  Reload(program::ReloadSignal& signal, Read read) : signal_(signal), read_(std::move(read)) {}

  // Calls `take(int)` for each descriptor that is readable when take() has something to do.
  template <typename Take>
  void for_each_descriptor(Take&& take) const {
    take(signal_.descriptor());
    take(reading_.descriptor());
  }
  // The limits, each time that they were read. What else is to be said about it is logged.
  std::optional<program::Limits> take();

  const Counters& counters() const { return counters_; }

 private:
  program::ReloadSignal& signal_;
  const Read read_;
  program::Background<std::variant<Reading, std::string>> reading_;
  bool asked_ = false;
  Counters counters_;
};

}  // namespace trafficmirror::sidecar
