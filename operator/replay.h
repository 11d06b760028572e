// A capture in place of production's pods: the Job that replays it, and what becomes of that. Pure.
#pragma once

#include <string>

#include "operator/kube/object.h"
#include "operator/mirror.h"
#include "operator/objects.h"
#include "operator/sidecar_container.h"

namespace trafficmirror::controller {

// Of two mirrors with equal revisions the same is replayed. Not of what a running replay takes
// over, such as limits and targets.
std::string replay_revision(const Mirror& mirror);

// The Job, in the mirror's namespace. It has one pod and no second try, since a replay that is
// begun anew sends the shadow its requests twice. What a Job is made of can't be changed later.
WantedObject job_for(const Mirror& mirror, const SidecarSettings& sidecar);

// Carried by the Job's pod, and by no other of the mirror's.
kube::Json replay_labels(const Mirror& mirror);
bool is_replay(const kube::Json& pod);
bool is_pod_of(const kube::Json& pod, const kube::Json& job);

// status.replay.phase. The last three are ends: what has come to one is replayed no more.
namespace phases {
constexpr const char* pending = "Pending";  // nothing of it is replayed yet
constexpr const char* running = "Running";
constexpr const char* succeeded = "Succeeded";  // to the capture's end
constexpr const char* failed = "Failed";        // by itself
constexpr const char* stopped = "Stopped";      // somebody ended it
}  // namespace phases
bool is_end(const std::string& phase);

// "web.pcap of PersistentVolumeClaim captures".
std::string capture_text(const Capture& capture);

// status.replay behind a look at its Job and at that Job's pod, which is null where there is none
// (yet, or any more).
kube::Json replay_after(kube::Json replay, const kube::Json& job, const kube::Json* pod,
                        const std::string& container);

}  // namespace trafficmirror::controller
