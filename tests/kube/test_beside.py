"""Intercepts beside the shadow's pods, injected by a real API server, and found by the Endpoints that
the operator writes with no more than its rights."""

import os
import subprocess
import sys
import unittest

import kubetest
from apiserver import ApiServer, free_ports, wait_until
from kubelet import Kubelet
from operator_process import Mirror, install, intercepts_of, make_shadow, workload
from proxy import Proxy
from rest import differences
from test_webhook import INJECT, call_at, operator
import test_webhook


def setUpModule():
    global server, mirror
    server = test_webhook.server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    install(server)
    for namespace in ("shop", "shop-shadow"):
        server.kubectl("label", "namespace", namespace, "trafficmirror.dev/inject=enabled")
    mirror = Mirror(server)
    mirror.consent()


class Beside(unittest.TestCase):
    def containers(self, pod, kind="containers"):
        return [one["name"] for one in pod["spec"].get(kind, ())]

    def listed(self, name):
        found = server.client.find("v1/endpoints", name, "shop-shadow") or {}
        return {one["ip"] for subset in found.get("subsets") or ()
                for one in subset.get("addresses", ())}

    def test_it_becomes_ready_and_leaves_nothing(self):
        kubelet = Kubelet(server.client, own_network=True)
        self.addCleanup(kubelet.close)
        port = free_ports(1)[0]
        call_at(port)
        proxy = Proxy(server)
        self.addCleanup(proxy.close)
        with operator(port, url=proxy.url):
            wait_until(lambda: server.client.find("v1/secrets", "trafficmirror-ca", "trafficmirror"),
                       "the CA", 30)
            before = server.client.listing()
            mirror.apply()
            mirror.patch({"clientAddress": "Preserve"})
            wait_until(lambda: intercepts_of(server), "the Deployment", 30)
            name = intercepts_of(server)[0]["metadata"]["name"]
            make_shadow(server)  # without the label
            mirror.wait_for("InterceptAvailable", "False", "PodsNotLabelled")
            labels = {"spec": {"template": {"metadata": {"labels": INJECT}}}}
            server.client.patch("apps/v1/deployments", "checkout-v2", labels, "shop-shadow")
            server.client.create(workload("checkout", "shop", {"app": "checkout"},
                                          pod_labels=INJECT))
            mirror.wait_for("InterceptAvailable", "True", "Available")
            mirror.wait_for("ReplyPathVerified", "True", "Verified")
            mirror.wait_for("Ready", "True", "Mirroring")

            shadow = server.client.list("v1/pods", "shop-shadow", labels="version=v2")
            self.assertEqual(len(shadow), 2)
            for pod in shadow:
                intercept = next(one for one in pod["spec"]["containers"]
                                 if one["name"].startswith("trafficmirror-intercept-"))
                self.assertEqual(intercept["securityContext"]["capabilities"],
                                 {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]})
                self.assertIn("8080=[$(POD_IP)]:8080", intercept["args"])
            of_deployment = server.client.list(
                "v1/pods", "shop-shadow", labels="app.kubernetes.io/component=intercept")
            wait_until(lambda: self.listed(name) == {pod["status"]["podIP"]
                                                     for pod in (*shadow, *of_deployment)},
                       lambda: f"all of them: {self.listed(name)}", 30)
            self.assertNotIn("selector", server.client.get("v1/services", name, "shop-shadow")["spec"])

            # And back: the Service is again what makes its Endpoints.
            mirror.patch({"clientAddress": "Masquerade"})
            wait_until(lambda: "selector" in server.client.get("v1/services", name, "shop-shadow")
                       ["spec"], "the selector", 30)
            mirror.wait_for("Ready", "True", "Mirroring")
            mirror.patch({"clientAddress": "Pool", "clientAddressPool": ["198.18.0.0/15"]})
            mirror.wait_for("InterceptAvailable", "False", "RestartNeeded")
            mirror.patch({"clientAddress": "Preserve", "clientAddressPool": None})
            mirror.wait_for("Ready", "True", "Mirroring")

            mirror.delete()
            mirror.wait_for_end()
            for resource, thing, namespace in (("apps/v1/deployments", "checkout", "shop"),
                                               ("apps/v1/deployments", "checkout-v2", "shop-shadow"),
                                               ("v1/services", "checkout-v2", "shop-shadow")):
                server.client.delete(resource, thing, namespace)
            wait_until(lambda: not server.client.list("v1/pods"), "no pods", 30)
            wait_until(lambda: not differences(before, server.client.listing()),
                       lambda: f"nothing left: {differences(before, server.client.listing())}", 30)
        refused = [request for request in proxy.requests() if request.status in (401, 403)]
        self.assertEqual(refused, [], "the manifests' rights are not enough")


def in_a_network_of_its_own():
    """Starts this program anew where pods' addresses can be this machine's: the API server takes
    none of loopback for Endpoints. Returns there alone."""
    if os.environ.get("TRAFFICMIRROR_BESIDE") == "inside":
        for words in (["link", "set", "lo", "up"], ["route", "add", "local", "10.244.0.0/16", "dev", "lo"]):
            subprocess.run(["ip", *words], check=True)
        return
    if os.geteuid() != 0:
        print("SKIPPED: a network of its own needs root")
        sys.exit(kubetest.SKIPPED)
    os.environ["TRAFFICMIRROR_BESIDE"] = "inside"
    os.execvp("unshare", ["unshare", "--net", "--kill-child", "--fork", sys.executable, "-B", *sys.argv])


if __name__ == "__main__":
    in_a_network_of_its_own()
    kubetest.main()
