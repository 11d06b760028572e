"""The webhook, called by a real API server over TLS: which pods get a sidecar, that pods are created
whatever becomes of the operator, and that another certificate is no gap."""

import json
import os
import unittest

import kubetest
from apiserver import ApiServer, free_ports, wait_until
from kubelet import Kubelet
from operator_process import (MANIFESTS, NAMESPACE, Mirror, Operator, install, intercepts_of,
                              make_shadow, workload)
from proxy import Proxy
from rest import path_of

WEBHOOK = "trafficmirror-webhook"
CONFIGURATIONS = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
INJECT = {"trafficmirror.dev/inject": "enabled"}
CHECKOUT = {"app": "checkout", **INJECT}


def setUpModule():
    global server, mirror
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    install(server)
    server.kubectl("label", "namespace", "shop", "trafficmirror.dev/inject=enabled")
    mirror = Mirror(server)
    mirror.consent()


def call_at(port):
    """Has the API server call the webhook there, and not at its Service, which no node has."""
    told = server.kubectl("create", "--dry-run=client", "-o", "json", "-f",
                          os.path.join(MANIFESTS, "webhook.yaml"))
    configuration = json.loads(told)
    for webhook in configuration["webhooks"]:
        webhook["clientConfig"] = {"url": f"https://localhost:{port}/mutate"}
        if before := server.client.find(CONFIGURATIONS, WEBHOOK):
            webhook["clientConfig"]["caBundle"] = (
                before["webhooks"][0]["clientConfig"].get("caBundle"))
    server.client.delete(CONFIGURATIONS, WEBHOOK)
    server.client.create(configuration)


def operator(port, **options):
    flags = options.pop("flags", ())
    return Operator(server, "--webhook", WEBHOOK, "--webhook-host", "localhost",
                    "--webhook-listen", f"127.0.0.1:{port}", *flags, **options)


def pod(labels, namespace="shop", **spec):
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "pod-", "namespace": namespace, "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "example.org/app:1"}], **spec}}


def created(thing):
    """As the API server would create it, all admission included."""
    path = path_of("v1/pods", namespace=thing["metadata"]["namespace"], dryRun="All")
    return server.client.call("POST", path, thing)


def containers(thing):
    return [container["name"] for container in created(thing)["spec"]["containers"]]


def wait_until_injected(name):
    wait_until(lambda: containers(pod(CHECKOUT)) == ["app", name], "that pods are injected", 30)


class Webhook(unittest.TestCase):
    def setUp(self):
        self.port = free_ports(1)[0]
        call_at(self.port)
        mirror.apply()

    def tearDown(self):
        if mirror.exists():
            with operator(self.port):
                mirror.delete()
                mirror.wait_for_end()

    def name(self):
        wait_until(lambda: intercepts_of(server), "the intercept", 30)
        return intercepts_of(server)[0]["metadata"]["name"]

    def test_pods_of_a_mirror_are_injected_and_no_others(self):
        proxy = Proxy(server)
        self.addCleanup(proxy.close)
        with operator(self.port, url=proxy.url):
            name = self.name()
            wait_until_injected(name)
            spec = created(pod(CHECKOUT))["spec"]
            sidecar = spec["containers"][1]
            security = sidecar["securityContext"]
            self.assertEqual(security["capabilities"], {"add": ["NET_RAW"], "drop": ["ALL"]})
            self.assertTrue(security["readOnlyRootFilesystem"])
            self.assertIn("8080", sidecar["args"])
            volume = next(one for one in spec["volumes"] if one["name"] == name)
            self.assertIn("secret", volume)
            # Its Secret is there before any pod needs it.
            self.assertIsNotNone(server.client.find("v1/secrets", volume["secret"]["secretName"],
                                                    "shop"))
            mirror.patch({"shadow": {"logins": {
                "ports": [{"port": 8080, "protocol": "MySQL"}], "secretName": "logins"}}})

            def sources():
                volumes = created(pod(CHECKOUT))["spec"]["volumes"]
                volume = next(one for one in volumes if one["name"] == name)
                return [source["secret"]["name"] for source in
                        volume.get("projected", {"sources": []})["sources"]]

            wait_until(lambda: "logins" in sources(), "the Secret of the logins", 30)
            for other in (pod({"app": "checkout"}), pod({"app": "cart", **INJECT}),
                          pod(CHECKOUT, "shop-shadow"), pod(CHECKOUT, hostNetwork=True)):
                self.assertEqual(containers(other), ["app"], other)
            mirror.patch({"paused": True})
            wait_until(lambda: containers(pod(CHECKOUT)) == ["app"], "that it is paused", 30)
            mirror.patch({"paused": False})
            wait_until_injected(name)
            mirror.delete()
            mirror.wait_for_end()
            self.assertEqual(containers(pod(CHECKOUT)), ["app"])
        refused = [request for request in proxy.requests() if request.status in (401, 403)]
        self.assertEqual(refused, [], "the manifests' rights are not enough")

    def test_a_mirror_becomes_ready_by_injection_alone(self):
        kubelet = Kubelet(server.client)
        self.addCleanup(kubelet.close)
        make_shadow(server)
        with operator(self.port):
            wait_until_injected(self.name())
            server.client.create(workload("checkout", "shop", {"app": "checkout"},
                                          pod_labels=INJECT))
            mirror.wait_for("Attached", "True", "AllAttached")
            mirror.wait_for("Ready", "True", "Mirroring")
            self.assertEqual(mirror.status()["attached"], "2/2")
            mirror.delete()
            mirror.wait_for_end()
        for resource, thing, namespace in (("apps/v1/deployments", "checkout", "shop"),
                                           ("apps/v1/deployments", "checkout-v2", "shop-shadow"),
                                           ("v1/services", "checkout-v2", "shop-shadow")):
            server.client.delete(resource, thing, namespace)
        wait_until(lambda: not server.client.list("v1/pods"), "no pods", 30)

    def test_pods_are_created_without_an_operator(self):
        with operator(self.port):
            wait_until_injected(self.name())
        self.assertEqual(containers(pod(CHECKOUT)), ["app"])

    def test_another_certificate_is_no_gap(self):
        def certificate():
            return server.client.get("v1/secrets", WEBHOOK, NAMESPACE)["data"]["tls.crt"]

        # Not the one of an earlier test, which is good for months.
        server.client.delete("v1/secrets", WEBHOOK, NAMESPACE)
        with operator(self.port, flags=("--certificate-lifetime", "9s")):
            name = self.name()
            wait_until_injected(name)
            seen = {certificate()}

            def another():
                self.assertEqual(containers(pod(CHECKOUT)), ["app", name])
                seen.add(certificate())
                return len(seen) > 3

            wait_until(another, "a third other certificate", 60, 0.05)
        server.client.delete("v1/secrets", WEBHOOK, NAMESPACE)

    def test_one_that_does_not_lead_serves_too(self):
        other = free_ports(1)[0]
        with operator(self.port):
            name = self.name()
            wait_until_injected(name)
            with operator(other, identity="two"):
                call_at(other)
                wait_until_injected(name)


if __name__ == "__main__":
    kubetest.main()
