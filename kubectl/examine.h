// Asks the API server what the doctor wants to know, with the user's own rights. What may not be
// asked is left as the server's refusal.
#pragma once

#include "kubectl/doctor.h"
#include "operator/kube/client.h"
#include "operator/kube/discovery.h"

namespace trafficmirror::kubectl {

// `mirror` is what a file says, or an object of the server. Nothing is made: what is written is
// written as a dry run.
Examination examine(kube::Client& client, const kube::Discovery& discovery,
                    const kube::Json& mirror, const Leadership& leadership);

}  // namespace trafficmirror::kubectl
