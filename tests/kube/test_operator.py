"""The operator against a real API server: what kubectl apply brings about, and that nothing is left."""

import os
import subprocess
import tempfile
import time
import unittest

import kubetest
from apiserver import ApiServer, free_ports
from rest import differences

MANIFESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../deploy/manifests")
MIRRORS = "trafficmirror.dev/v1alpha1/trafficmirrors"


def setUpModule():
    global server
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    server.kubectl("apply", "-f", os.path.join(MANIFESTS, "crd.yaml"))
    server.kubectl("wait", "--for=condition=established", "crd/trafficmirrors.trafficmirror.dev")
    for name in ("shop", "shop-shadow", "trafficmirror"):
        server.namespace(name)


def wait_until(condition, what, seconds=30.0):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what() if callable(what) else what}: not within {seconds:g} s")
        time.sleep(0.05)


class Operator:
    """A running operator, with a log."""

    def __init__(self, *flags):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [kubetest.program("trafficmirror-operator"),
             "--sidecar-image", "example.org/sidecar:1", "--intercept-image",
             "example.org/intercept:1", "--namespace", "trafficmirror", "--http",
             f"127.0.0.1:{free_ports(1)[0]}",
             *flags],
            env={**os.environ, "KUBECONFIG": server.admin_kubeconfig},
            stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.process.terminate()
        code = self.process.wait(20)
        self.log.seek(0)
        text = self.log.read()
        self.log.close()
        if kind:
            print(text)
        elif code != 0:
            raise AssertionError(f"the operator ended with {code}:\n{text}")


def status():
    return (server.client.find(MIRRORS, "checkout-v2", "shop") or {}).get("status", {})


def condition(name):
    found = [entry for entry in status().get("conditions", []) if entry["type"] == name]
    return (found[0]["status"], found[0]["reason"]) if found else None


class Life(unittest.TestCase):
    def test_apply_and_delete(self):
        with Operator():
            # What the operator has for itself comes before the first mirror.
            wait_until(lambda: server.client.find("v1/secrets", "trafficmirror-ca",
                                                  "trafficmirror"), "the CA")
            before = server.client.listing()
            server.kubectl("apply", "-f", os.path.join(MANIFESTS, "samples/trafficmirror.yaml"))
            wait_until(lambda: condition("Consented") == ("False", "NotGranted"),
                       lambda: f"word of the missing consent; status {status()}")
            self.assertEqual(condition("Ready"), ("False", "NotGranted"))
            self.assertEqual(server.client.list("apps/v1/deployments", "shop-shadow"), [])

            server.kubectl("annotate", "namespace", "shop-shadow",
                           "trafficmirror.dev/accept-from=shop")
            wait_until(lambda: server.client.list("apps/v1/deployments", "shop-shadow"),
                       "the intercept")
            wait_until(lambda: condition("InterceptAvailable") == ("False", "ServiceNotFound"),
                       lambda: f"word of the missing Service; status {status()}")
            for resource in ("v1/services", "v1/configmaps", "v1/secrets", "v1/serviceaccounts",
                             "networking.k8s.io/v1/networkpolicies"):
                self.assertTrue([thing for thing in server.client.list(resource, "shop-shadow")
                                 if thing["metadata"]["name"].startswith("trafficmirror-")],
                                resource)

            deployment = server.client.list("apps/v1/deployments", "shop-shadow")[0]
            name = deployment["metadata"]["name"]
            server.client.patch("apps/v1/deployments", name, {"spec": {"replicas": 7}},
                                "shop-shadow")
            wait_until(lambda: server.client.get("apps/v1/deployments", name, "shop-shadow")
                       ["spec"]["replicas"] == 1, "the drift's correction")

            server.kubectl("delete", "-n", "shop", "trafficmirror", "checkout-v2", "--wait=false")
            wait_until(lambda: not server.client.find(MIRRORS, "checkout-v2", "shop"),
                       "the mirror's end")
            server.kubectl("annotate", "namespace", "shop-shadow",
                           "trafficmirror.dev/accept-from-")
            self.assertEqual(differences(before, server.client.listing()), [])


if __name__ == "__main__":
    kubetest.main()
