// Which connections are mirrored, in the syntax of pcap-filter(7).
#pragma once

#include <memory>
#include <string>
#include <variant>

#include "net/address.h"

namespace trafficmirror::program {

// Compiled once, and then the same for whoever copies it.
//
// It is asked about a connection, not about its packets: as of the SYN that its client sends. So a
// connection is in or out as a whole, whichever of its packets is seen first.
class FlowFilter {
 public:
  // Longer ones are refused: what comes from another host is compiled too.
  static constexpr size_t longest = 4096;

  // What is wrong with it where it can't be. Names of hosts in it are looked up now, which may take
  // seconds. The empty one lets everything through.
  static std::variant<FlowFilter, std::string> compile(const std::string& expression);

  const std::string& expression() const { return expression_; }
  // Asked about the flow's first packet: a SYN, or a datagram.
  bool lets_through(const net::FlowKey& flow, net::Protocol protocol = net::Protocol::tcp) const;

  // The same expression, with its names of the same addresses.
  bool operator==(const FlowFilter& other) const;

 private:
  struct Program;
  FlowFilter(std::string expression, std::shared_ptr<const Program> program)
      : expression_(std::move(expression)), program_(std::move(program)) {}

  std::string expression_;
  std::shared_ptr<const Program> program_;
};

}  // namespace trafficmirror::program
