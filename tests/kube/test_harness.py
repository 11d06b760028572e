"""What the other tests here lean on: the played controllers and kubelets, the played intercept, the
proxy and its trap, and the listing."""

import http.client
import json
import subprocess
import sys
import unittest

import kubetest
from apiserver import HERE, ApiServer, LabError, wait_until
from intercept import PORT
from kubelet import Kubelet, is_ready, pod_status
from proxy import Proxy
from rest import ApiError, Client, differences

# A program that makes ConfigMaps one after the other, until it is killed.
WRITER = f"""
import sys
sys.path.append({HERE!r})
from rest import Client
client = Client(sys.argv[1], token=sys.argv[2])
for number in range(1, 100):
    client.create({{"apiVersion": "v1", "kind": "Event", "involvedObject": {{"namespace": "writer"}},
                   "metadata": {{"name": f"e{{number}}", "namespace": "writer"}}}})
    client.create({{"apiVersion": "v1", "kind": "ConfigMap",
                   "metadata": {{"name": f"m{{number}}", "namespace": "writer"}}}})
"""


def setUpModule():
    global server, kubelet
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    kubelet = Kubelet(server.client)
    unittest.addModuleCleanup(kubelet.close)


def pods(namespace):
    return server.client.list("v1/pods", namespace)


def deployment(name, namespace, labels, replicas=1, image="example.org/app:1"):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": "app", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    }


def addresses(name, namespace):
    """Those of the Endpoints that are ready, with their port."""
    found = server.client.find("v1/endpoints", name, namespace) or {}
    return sorted((address["ip"], port["port"]) for subset in found.get("subsets", ())
                  for address in subset.get("addresses", ()) for port in subset["ports"])


def page(address, path):
    connection = http.client.HTTPConnection(address, PORT, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Cluster(unittest.TestCase):
    def test_a_deployment_is_scaled_and_served(self):
        before = server.client.listing()
        space = server.namespace("scaled")
        server.client.create(deployment("app", space, {"app": "a"}, replicas=3))
        server.client.create({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "app", "namespace": space},
            "spec": {"clusterIP": "None", "selector": {"app": "a"},
                     "ports": [{"port": 80, "targetPort": "http"}]}})
        wait_until(lambda: len(addresses("app", space)) == 3, "three addresses")
        self.assertEqual(sorted((pod["status"]["podIP"], 8080) for pod in pods(space)),
                         addresses("app", space))
        wait_until(lambda: "3/3" in server.kubectl("-n", space, "get", "deployment", "app"),
                   "all of them available")
        first = {pod["metadata"]["uid"] for pod in pods(space)}

        # Another image: other pods. One that can't be had: none is ready.
        kubelet.refuse_image("example.org/app:2")
        server.client.patch("apps/v1/deployments", "app", {"spec": {"replicas": 2, "template": {
            "spec": {"containers": [{"name": "app", "image": "example.org/app:2"}]}}}}, space)

        def waiting():
            states = [pod["status"].get("containerStatuses") for pod in pods(space)]
            return len(states) == 2 and all(
                state and state[0]["state"].get("waiting", {}).get("reason") == "ImagePullBackOff"
                for state in states)

        wait_until(waiting, "two that wait for their image")
        self.assertFalse(first & {pod["metadata"]["uid"] for pod in pods(space)})
        wait_until(lambda: not addresses("app", space), "no address that is ready")
        kubelet.accept_image("example.org/app:2")
        wait_until(lambda: len(pods(space)) == 2 and all(map(is_ready, pods(space))), "both ready")

        name = pods(space)[0]["metadata"]["name"]
        kubelet.end_container(space, name, "app", 137, "OOMKilled")
        wait_until(lambda: not is_ready(server.client.get("v1/pods", name, space)), "its end")
        server.client.delete("v1/pods", name, space)
        wait_until(lambda: len(pods(space)) == 2 and all(map(is_ready, pods(space))), "another")

        server.client.delete("apps/v1/deployments", "app", space)
        server.client.delete("v1/services", "app", space)
        wait_until(lambda: not pods(space) and not server.client.list("v1/endpoints", space),
                   "nothing")
        self.assertEqual(
            differences(before, server.client.listing()),
            ["left: v1/namespaces scaled", "left: v1/serviceaccounts scaled/default"])
        server.delete_namespace(space)
        self.assertEqual(differences(before, server.client.listing()), [])

    def test_a_deployment_says_why_it_has_no_pods(self):
        space = server.namespace("refused")
        wanted = deployment("app", space, {"app": "a"})
        wanted["spec"]["template"]["spec"]["serviceAccountName"] = "nobody"
        server.client.create(wanted)

        def failure():
            status = server.client.get("apps/v1/deployments", "app", space).get("status", {})
            return [entry["message"] for entry in status.get("conditions", ())
                    if entry["type"] == "ReplicaFailure"]

        self.assertIn('serviceaccount "nobody" not found', wait_until(failure, "a reason")[0])

    def test_an_intercept_answers(self):
        space = server.namespace("shadow")
        labels = {"app.kubernetes.io/component": "intercept",
                  "app.kubernetes.io/instance": "trafficmirror-a"}
        configuration = {"apiVersion": "v1", "kind": "ConfigMap",
                         "metadata": {"name": "trafficmirror-a", "namespace": space},
                         "data": {"intercept.yaml": 'target:\n  - "8080=10.0.0.5:80"\n'
                                                    "stop-sidecars: false\n"}}
        server.client.apply(configuration)
        server.client.create(deployment("trafficmirror-a", space, labels))
        production = server.namespace("production")
        workload = deployment("app", production, {"app": "a"})
        workload["spec"]["template"]["spec"]["containers"].append(
            {"name": "trafficmirror-a", "image": "example.org/sidecar:1"})
        server.client.create(workload)

        intercept = wait_until(lambda: kubelet.intercepts("trafficmirror-a"), "the intercept")[0]

        def status():
            return json.loads(page(intercept.address, "/status")[1])

        wait_until(lambda: status()["sidecars"], "a connected sidecar")
        self.assertEqual(status()["sidecars"][0]["name"],
                         pods(production)[0]["metadata"]["name"])
        self.assertEqual(status()["reply_path"],
                         [{"target": "8080=10.0.0.5:80", "verified": True, "message": ""}])
        self.assertEqual(page(intercept.address, "/readyz")[0], 200)
        wait_until(lambda: is_ready(pods(space)[0]), "the intercept's pod")
        self.assertEqual(pods(space)[0]["status"]["podIP"], intercept.address)

        intercept.problem = "no reply came back"
        self.assertEqual(page(intercept.address, "/readyz"), (503, "no reply came back"))
        self.assertFalse(status()["reply_path"][0]["verified"])
        wait_until(lambda: not is_ready(pods(space)[0]), "that it is not ready")
        intercept.problem = ""
        wait_until(lambda: status()["sidecars"], "the sidecar again")
        configuration["data"]["intercept.yaml"] = "target: []\nstop-sidecars: true\n"
        server.client.apply(configuration)
        wait_until(lambda: not status()["sidecars"], "the sidecar's end")
        self.assertEqual(status()["reply_path"], [])

        server.client.delete("apps/v1/deployments", "trafficmirror-a", space)
        wait_until(lambda: not kubelet.intercepts("trafficmirror-a"), "the intercept's end")

        def refuses():
            try:
                page(intercept.address, "/status")
            except OSError:
                return True

        wait_until(refuses, "that nobody answers")

    def test_ephemeral_containers_do_not_make_a_pod_ready_or_unready(self):
        def container(name):
            return {"name": name, "image": name}

        pod = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
               "spec": {"initContainers": [container("first")], "containers": [container("app")],
                        "ephemeralContainers": [container("late")]}}
        running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "none"}}
        for late in (running, waiting):
            status = pod_status(pod, "10.0.0.1",
                                lambda one: late if one["name"] == "late" else running)
            self.assertEqual(status["ephemeralContainerStatuses"][0]["state"], late)
            self.assertTrue(is_ready({"status": status}))
            self.assertIn("terminated", status["initContainerStatuses"][0]["state"])
        status = pod_status(pod, "10.0.0.1", lambda _: waiting)
        self.assertFalse(is_ready({"status": status}))
        self.assertEqual(status["phase"], "Pending")


class Between(unittest.TestCase):
    def setUp(self):
        server.namespace("writer")
        server.client.apply({"apiVersion": "v1", "kind": "ServiceAccount",
                             "metadata": {"name": "writer", "namespace": "writer"}})
        rbac = "rbac.authorization.k8s.io"
        verbs = ["create", "get", "list", "watch"]
        server.client.apply({
            "apiVersion": f"{rbac}/v1", "kind": "Role",
            "metadata": {"name": "writer", "namespace": "writer"},
            "rules": [{"apiGroups": [""], "resources": ["configmaps", "events"], "verbs": verbs}]})
        server.client.apply({
            "apiVersion": f"{rbac}/v1", "kind": "RoleBinding",
            "metadata": {"name": "writer", "namespace": "writer"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "writer"},
            "subjects": [{"kind": "ServiceAccount", "name": "writer", "namespace": "writer"}]})
        self.proxy = Proxy(server)
        self.addCleanup(self.proxy.close)
        self.addCleanup(server.delete_namespace, "writer")
        self.token = server.token("writer", "writer")
        self.client = Client(self.proxy.url, token=self.token)
        self.addCleanup(self.client.close)

    def test_requests_pass_and_are_counted(self):
        config = {"apiVersion": "v1", "kind": "ConfigMap",
                  "metadata": {"name": "a", "namespace": "writer"}}
        version = self.client.page("v1/configmaps", "writer")["metadata"]["resourceVersion"]
        watch = self.client.watch("v1/configmaps", "writer", version)
        self.client.create(config)
        kind, thing = next(iter(watch))
        self.assertEqual((kind, thing["metadata"]["name"]), ("ADDED", "a"))
        watch.close()
        with self.assertRaises(ApiError) as refused:
            self.client.list("v1/secrets", "writer")
        self.assertEqual(refused.exception.status, 403)
        seen = [(r.method, r.path.rsplit("/", 1)[1], r.watch, r.status)
                for r in self.proxy.requests()]
        self.assertEqual(seen, [
            ("GET", "configmaps", False, 200), ("GET", "configmaps", True, 200),
            ("GET", "v1", False, 200), ("POST", "configmaps", False, 201),
            ("GET", "secrets", False, 403)])
        self.assertEqual(self.proxy.writes(), 1)

    def made_when_killed(self, number, after):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, self.proxy.url, self.token],
                                  stderr=subprocess.DEVNULL)
        self.proxy.kill_at(number, writer, after)
        try:
            self.assertTrue(self.proxy.trapped(30))
            self.assertEqual(writer.wait(10), -9)
        finally:
            writer.kill()
            writer.wait()
        return [thing["metadata"]["name"] for thing in server.client.list("v1/configmaps", "writer")]

    def test_kills_before_a_write(self):
        self.assertEqual(self.made_when_killed(3, after=False), ["m1", "m2"])

    def test_kills_after_a_write(self):
        self.assertEqual(self.made_when_killed(3, after=True), ["m1", "m2", "m3"])


class Listing(unittest.TestCase):
    def test_tells_what_was_left_what_is_gone_and_what_changed(self):
        space = server.namespace("listed")
        self.addCleanup(server.delete_namespace, space)

        def config(name, **data):
            return {"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                    "metadata": {"name": name, "namespace": space}}

        server.client.create(config("gone"))
        server.client.create(config("changed", x="1"))
        before = server.client.listing()
        # What has another version only is the same.
        server.client.patch("v1/configmaps", "changed", {"data": {"x": "2"}}, space)
        server.client.patch("v1/configmaps", "changed", {"data": {"x": "1"}}, space)
        server.client.delete("v1/configmaps", "gone", space)
        server.client.create(config("left"))
        lines = [line for line in differences(before, server.client.listing())
                 if ".managedFields" not in line]
        self.assertEqual(lines, [f"left: v1/configmaps {space}/left",
                                 f"gone: v1/configmaps {space}/gone"])
        server.client.patch("v1/configmaps", "changed", {"data": {"x": "3"}}, space)
        self.assertIn(f'changed: v1/configmaps {space}/changed .data.x: "1" is now "3"',
                      differences(before, server.client.listing()))

    def test_a_namespace_waits_for_finalizers(self):
        space = server.namespace("held")
        server.client.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": "held", "namespace": space, "finalizers": ["test.example/stay"]}})
        with self.assertRaises(LabError):
            server.delete_namespace(space, seconds=1)
        self.assertEqual(server.client.get("v1/namespaces", space)["status"]["phase"], "Terminating")
        server.client.patch("v1/configmaps", "held", {"metadata": {"finalizers": None}}, space)
        server.delete_namespace(space)
        self.assertIsNone(server.client.find("v1/namespaces", space))


if __name__ == "__main__":
    kubetest.main()
