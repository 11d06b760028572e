"""Plays the controllers and kubelets of a cluster as far as an operator sees their work: pods of
Deployments and Jobs, the status of pods, and the Endpoints of Services. Nothing runs; an intercept is
played by a FakeIntercept."""

import contextlib
import http.client
import ipaddress
import json
import threading
import zlib

from intercept import BESIDE_PORT, FakeIntercept
from rest import ApiError, Follower, key_of

DEPLOYMENTS, PODS, SERVICES = "apps/v1/deployments", "v1/pods", "v1/services"
ENDPOINTS, CONFIG_MAPS, JOBS = "v1/endpoints", "v1/configmaps", "batch/v1/jobs"

COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
# Annotation of a pod of a Deployment: what template it was made from.
TEMPLATE = "test.example/template"


class Kubelet:
    """`own_network`: pods' addresses are this machine's, so that intercepts are played on them, and
    beside the shadow too."""

    def __init__(self, client, own_network=False):
        self._client = client
        self._own_network = own_network
        self._beside = {}  # intercepts in pods of the shadow, by the pod's UID
        self._lock = threading.RLock()
        self._images = {}  # those that can't be had: (reason, message)
        self._ended = {}  # (namespace, pod, container): (exit code, reason)
        self._addresses = {}  # of pods, by UID
        self._intercepts = {}  # by the pod's UID
        self._endpoints = {}  # as they were written last
        self._failures = {}  # why pods of a Deployment can't be made
        self._ended_jobs = {}  # by UID: (exit code, last words)
        self._stop = False
        self._follower = Follower(
            client, [DEPLOYMENTS, PODS, SERVICES, ENDPOINTS, CONFIG_MAPS, JOBS]
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        self._stop = True
        self._look()
        self._thread.join(10)
        self._follower.stop()
        for intercept in (*self._intercepts.values(), *self._beside.values()):
            intercept.close()

    # --- what tests may ask for -----------------------------------------------------------------

    def refuse_image(self, image, reason="ImagePullBackOff", message="no such image"):
        """Containers of that image wait, also those that run."""
        with self._lock:
            self._images[image] = (reason, message)
        self._look()

    def accept_image(self, image):
        with self._lock:
            self._images.pop(image, None)
        self._look()

    def end_container(self, namespace, pod, container, exit_code=0, reason="Completed"):
        with self._lock:
            self._ended[namespace, pod, container] = (exit_code, reason)
        self._look()

    def end_job(self, job, exit_code, message):
        """The one container of its pod ends with these last words, and the Job does."""
        with self._lock:
            self._ended_jobs[job["metadata"]["uid"]] = (exit_code, message)
        self._look()

    def intercepts(self, name):
        """The FakeIntercepts of the Deployment of that name."""
        with self._follower.changed:
            pods = self._follower.all(PODS)
        with self._lock:
            return [
                self._intercepts[pod["metadata"]["uid"]]
                for pod in pods
                if labels_of(pod).get(INSTANCE) == name
                and pod["metadata"]["uid"] in self._intercepts
            ]

    def _look(self):
        with self._follower.changed:
            self._follower.changed.notify_all()

    # --- its work -------------------------------------------------------------------------------

    def _run(self):
        while not self._stop:
            # What fails, since the server has not or no longer what was seen, is tried again.
            with contextlib.suppress(ApiError, OSError, http.client.HTTPException):
                self._work()
            with self._follower.changed:
                self._follower.changed.wait(0.5)

    def _work(self):
        with self._follower.changed:
            if not self._follower.has_all():
                return
            seen = {resource: self._follower.all(resource) for resource in self._follower.objects}
        for deployment in seen[DEPLOYMENTS]:
            self._scale(deployment, seen[PODS])
        for job in seen[JOBS]:
            self._run_job(job, seen[PODS])
        owners = {owner["metadata"]["uid"] for owner in (*seen[DEPLOYMENTS], *seen[JOBS])}
        for pod in seen[PODS]:
            if owner_of(pod) is not None and owner_of(pod) not in owners:
                self._delete(pod)
        alive = {pod["metadata"]["uid"] for pod in seen[PODS]}
        with self._lock:
            gone = [uid for uid in self._intercepts if uid not in alive]
            for uid in gone:
                self._intercepts.pop(uid).close()
            for uid in [uid for uid in self._beside if uid not in alive]:
                self._beside.pop(uid).close()
        stopped = self._configure(seen[PODS], seen[CONFIG_MAPS])
        for pod in seen[PODS]:
            self._run_pod(pod, stopped)
        self._connect(seen[PODS], stopped)
        for service in seen[SERVICES]:
            self._point(service, seen[PODS], seen[ENDPOINTS])
        services = {key_of(service) for service in seen[SERVICES]}
        for key in [key for key in self._endpoints if key not in services]:
            self._client.delete(ENDPOINTS, key[1], key[0])
            del self._endpoints[key]

    # --- Deployments

    def _scale(self, deployment, pods):
        spec, metadata = deployment["spec"], deployment["metadata"]
        template = json.dumps(spec["template"], sort_keys=True)
        mine = [pod for pod in pods if owner_of(pod) == metadata["uid"]]
        current = [pod for pod in mine if annotations_of(pod).get(TEMPLATE) == digest(template)]
        for pod in mine:
            if pod not in current:
                self._delete(pod)
        wanted = spec.get("replicas", 1)
        for pod in current[wanted:]:
            self._delete(pod)
        for _ in range(wanted - len(current)):
            if not self._make_pod(deployment, "Deployment", digest(template)):
                break
        current = current[:wanted]
        self._tell(deployment, current)

    def _make_pod(self, thing, kind, template):
        metadata, own = thing["metadata"], thing["spec"]["template"]["metadata"]
        owner = {"apiVersion": {"Deployment": "apps/v1", "Job": "batch/v1"}[kind], "kind": kind,
                 "name": metadata["name"], "uid": metadata["uid"], "controller": True}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "namespace": metadata["namespace"],
                "labels": own.get("labels", {}),
                "annotations": {**own.get("annotations", {}), TEMPLATE: template},
                "ownerReferences": [owner],
            },
            "spec": thing["spec"]["template"]["spec"],
        }
        try:
            self._follower.put(PODS, self._client.create(pod))
            self._failures.pop(metadata["uid"], None)
            return True
        except ApiError as error:
            self._failures[metadata["uid"]] = error.message
            return False

    def _tell(self, deployment, pods):
        ready = sum(is_ready(pod) for pod in pods)
        failure = self._failures.get(deployment["metadata"]["uid"])
        enough = ready >= deployment["spec"].get("replicas", 1)
        time = deployment["metadata"]["creationTimestamp"]
        conditions = [condition("Available", enough, time,
                                "MinimumReplicasAvailable" if enough else
                                "MinimumReplicasUnavailable")]
        if failure:
            conditions.append(condition("ReplicaFailure", True, time, "FailedCreate", failure))
        self._set_status(DEPLOYMENTS, deployment, {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods) or None,
            "updatedReplicas": len(pods) or None,
            "readyReplicas": ready or None,
            "availableReplicas": ready or None,
            "conditions": conditions,
        })

    def _delete(self, pod):
        namespace, name = key_of(pod)
        self._client.delete(PODS, name, namespace, grace=0)
        self._follower.drop(PODS, pod)

    # --- Jobs

    def _run_job(self, job, pods):
        namespace, name = key_of(job)
        mine = [pod for pod in pods if owner_of(pod) == job["metadata"]["uid"]]
        if "deletionTimestamp" in job["metadata"]:  # in the foreground
            for pod in mine:
                self._delete(pod)
            self._client.patch(JOBS, name, {"metadata": {"finalizers": None}}, namespace)
            return
        if not mine and not job.get("status", {}).get("conditions"):
            self._make_pod(job, "Job", "")
        with self._lock:
            ended = self._ended_jobs.get(job["metadata"]["uid"])
        if ended:
            time = job["metadata"]["creationTimestamp"]
            self._set_status(JOBS, job, {"conditions": [
                condition("Complete" if ended[0] == 0 else "Failed", True, time)]})

    # --- pods

    def _run_pod(self, pod, stopped):
        uid = pod["metadata"]["uid"]
        with self._lock:
            if uid not in self._addresses:
                number = len(self._addresses) + 1
                self._addresses[uid] = f"10.244.{number >> 8 & 255}.{number & 255}"
                if is_intercept(pod):
                    self._intercepts[uid] = FakeIntercept(
                        self._addresses[uid] if self._own_network else None)
                    self._addresses[uid] = self._intercepts[uid].address
            address = self._addresses[uid]
            if self._own_network and uid not in self._beside and has_intercept_beside(pod):
                self._beside[uid] = FakeIntercept(address, BESIDE_PORT)
                self._beside[uid].targets = [f"8080={address}:8080"]
            intercept = self._intercepts.get(uid)

            def state_of(container):
                name = container["name"]
                if ended := self._ended.get((*key_of(pod), name)):
                    return ended_state(*ended, pod)
                if refused := self._images.get(container["image"]):
                    return {"waiting": {"reason": refused[0], "message": refused[1]}}
                if base_name(name) in stopped and is_ephemeral(pod, name):
                    return ended_state(0, "Completed", pod)
                return {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}

            job = self._ended_jobs.get(owner_of(pod))
            status = pod_status(pod, address, state_of)
            if job:
                (container,) = status["containerStatuses"]
                container["state"] = ended_state(job[0], "Completed", pod)
                container["state"]["terminated"]["message"] = job[1]
                status["phase"] = "Succeeded" if job[0] == 0 else "Failed"
        if intercept is not None and not intercept.is_ready():
            time = pod["metadata"]["creationTimestamp"]
            status["conditions"] = [
                condition("Ready", False, time, "ContainersNotReady")
                if entry["type"] == "Ready" else entry for entry in status["conditions"]
            ]
        self._set_status(PODS, pod, status)

    def _set_status(self, resource, thing, status):
        before = thing.get("status", {})
        if all(before.get(field) == value for field, value in status.items()):
            return
        namespace, name = key_of(thing)
        with contextlib.suppress(ApiError):  # it may be gone
            patch = {"status": status}
            self._follower.put(
                resource, self._client.patch(resource, name, patch, namespace, "status")
            )

    # --- intercepts

    def _configure(self, pods, config_maps):
        """Gives each intercept its configuration; returns the names of those that have told their
        sidecars to stop."""
        texts = {key_of(config): config.get("data", {}) for config in config_maps}
        stopped = set()
        for pod in pods:
            intercept = self._intercepts.get(pod["metadata"]["uid"])
            name = labels_of(pod).get(INSTANCE, "")
            text = texts.get((pod["metadata"]["namespace"], name), {}).get("intercept.yaml", "")
            if intercept is not None and intercept.configure(text):
                stopped.add(name)
        return stopped

    def _connect(self, pods, stopped):
        """A sidecar that runs is connected to each intercept of its name that is ready."""
        sidecars = {}
        for pod in pods:
            for status in container_statuses(pod):
                if "running" in status.get("state", {}):
                    name = base_name(status["name"])
                    sidecars.setdefault(name, set()).add(pod["metadata"]["name"])
        for pod in pods:
            intercept = self._intercepts.get(pod["metadata"]["uid"])
            name = labels_of(pod).get(INSTANCE)
            if intercept is not None:
                connected = intercept.is_ready() and name not in stopped
                intercept.sidecars = sidecars.get(name, set()) if connected else set()
        for intercept in self._beside.values():
            intercept.sidecars = set().union(*sidecars.values())

    # --- Services

    def _point(self, service, pods, endpoints):
        key = key_of(service)
        selector = service["spec"].get("selector")
        if not selector:
            return
        subsets = subsets_of(service, [pod for pod in pods if pod["metadata"]["namespace"] == key[0]
                                       and selector.items() <= labels_of(pod).items()])
        exists = any(key_of(thing) == key for thing in endpoints)
        if exists and self._endpoints.get(key) == subsets:
            return
        thing = {"apiVersion": "v1", "kind": "Endpoints", "subsets": subsets,
                 "metadata": {"namespace": key[0], "name": key[1]}}
        if exists:
            thing = self._client.update(thing)
        else:
            thing = self._client.create(thing)
        self._follower.put(ENDPOINTS, thing)
        self._endpoints[key] = subsets


def labels_of(thing):
    return thing["metadata"].get("labels", {})


def annotations_of(thing):
    return thing["metadata"].get("annotations", {})


def owner_of(pod):
    """The UID of the Deployment or Job that it belongs to."""
    for owner in pod["metadata"].get("ownerReferences", ()):
        if owner["kind"] in ("Deployment", "Job"):
            return owner["uid"]
    return None


def is_intercept(pod):
    return labels_of(pod).get(COMPONENT) == "intercept"


def has_intercept_beside(pod):
    return any(c["name"].startswith("trafficmirror-intercept-")
               for field in ("containers", "initContainers", "ephemeralContainers")
               for c in pod["spec"].get(field, ()))


def base_name(container):
    """An ephemeral container that replaces another has a number behind the name."""
    base, _, number = container.rpartition("-")
    return base if number.isdigit() and len(number) < 8 else container


def digest(text):
    return f"{zlib.crc32(text.encode()):08x}"


def condition(kind, holds, time, reason="", message=""):
    entry = {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": time}
    if reason:
        entry["reason"] = reason
    if message:
        entry["message"] = message
    return entry


def ended_state(exit_code, reason, pod):
    time = pod["metadata"]["creationTimestamp"]
    return {"terminated": {"exitCode": exit_code, "reason": reason, "startedAt": time,
                           "finishedAt": time}}


def is_ephemeral(pod, name):
    return any(c["name"] == name for c in pod["spec"].get("ephemeralContainers", ()))


def container_statuses(pod):
    status = pod.get("status", {})
    for field in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        yield from status.get(field, ())


def is_ready(pod):
    conditions = pod.get("status", {}).get("conditions", ())
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def pod_status(pod, address, state_of):
    """What a kubelet would say of a pod whose containers are in those states."""
    time = pod["metadata"]["creationTimestamp"]

    def statuses(containers):
        return [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": "running" in state,
                "restartCount": 0,
                "started": "running" in state,
                "state": state,
                "lastState": {},
            }
            for container, state in ((one, state_of(one)) for one in containers)
        ]

    spec = pod["spec"]
    containers = statuses(spec["containers"])
    native = [c for c in spec.get("initContainers", ()) if c.get("restartPolicy") == "Always"]
    init = [
        one if any(c["name"] == one["name"] for c in native)
        else {**one, "ready": True, "started": False, "state": ended_state(0, "Completed", pod)}
        for one in statuses(spec.get("initContainers", ()))
    ]
    ready = all(one["ready"] for one in (*containers, *init))
    started = any("waiting" not in one["state"] for one in containers)
    status = {
        "phase": "Running" if started else "Pending",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": time,
        "conditions": [
            condition("Initialized", True, time),
            condition("Ready", ready, time, "" if ready else "ContainersNotReady"),
            condition("ContainersReady", ready, time, "" if ready else "ContainersNotReady"),
            condition("PodScheduled", True, time),
        ],
        "containerStatuses": containers,
    }
    if init:
        status["initContainerStatuses"] = init
    if spec.get("ephemeralContainers"):
        ephemeral = statuses(spec["ephemeralContainers"])
        for one in ephemeral:
            one["ready"] = False
        status["ephemeralContainerStatuses"] = ephemeral
    return status


def subsets_of(service, pods):
    """Of Endpoints. Addresses of loopback, where the intercepts are played, must not be there."""
    by_ports = {}
    for pod in sorted(pods, key=key_of):
        address = pod.get("status", {}).get("podIP")
        if not address or ipaddress.ip_address(address).is_loopback:
            continue
        ports = []
        for port in service["spec"].get("ports", ()):
            number = port.get("targetPort", port["port"])
            if isinstance(number, str):
                number = next((p["containerPort"] for c in pod["spec"]["containers"]
                               for p in c.get("ports", ()) if p.get("name") == number), None)
            if number is not None:
                ports.append((port.get("name", ""), number, port.get("protocol", "TCP")))
        subset = by_ports.setdefault(tuple(ports), {"addresses": [], "notReadyAddresses": []})
        reference = {"kind": "Pod", "name": pod["metadata"]["name"],
                     "namespace": pod["metadata"]["namespace"], "uid": pod["metadata"]["uid"]}
        place = "addresses" if is_ready(pod) else "notReadyAddresses"
        subset[place].append({"ip": address, "targetRef": reference})
    subsets = []
    for ports, subset in sorted(by_ports.items()):
        if not ports:
            continue
        subset = {place: addresses for place, addresses in subset.items() if addresses}
        subset["ports"] = [{"port": number, "protocol": protocol, **({"name": name} if name else {})}
                           for name, number, protocol in ports]
        subsets.append(subset)
    return subsets
