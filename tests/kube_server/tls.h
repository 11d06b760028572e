// Certificates for tests, made when they are asked for.
#pragma once

#include <string>

namespace trafficmirror::kube {

struct Identity {
  std::string certificate;  // PEM
  std::string key;          // PEM
};

// Signed by itself; may sign others.
Identity make_authority(const std::string& name);
// For a server on `alternative_names` ("IP:127.0.0.1,DNS:kubernetes"), or for a client.
Identity make_leaf(const Identity& authority, const std::string& name,
                   const std::string& alternative_names);

}  // namespace trafficmirror::kube
