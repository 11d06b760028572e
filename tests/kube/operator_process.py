"""The operator as a process, and what tests ask of a server that it works on."""

import os
import signal
import subprocess
import tempfile

import kubetest
from apiserver import HERE, free_ports, wait_until

MANIFESTS = os.path.join(HERE, "../../deploy/manifests")
MIRRORS = "trafficmirror.dev/v1alpha1/trafficmirrors"
NAMESPACE = "trafficmirror"
ACCOUNT = "trafficmirror-operator"


def install(server):
    """What comes before the operator, as the manifests have it."""
    server.kubectl("apply", "-f", os.path.join(MANIFESTS, "crd.yaml"))
    server.kubectl("wait", "--for=condition=established", "crd/trafficmirrors.trafficmirror.dev")
    server.kubectl("apply", "-f", os.path.join(MANIFESTS, "operator.yaml"))
    for name in (NAMESPACE, "shop", "shop-shadow"):
        server.namespace(name)


class Operator:
    """Runs with the rights of the ServiceAccount that the manifests, or the chart in `namespace`,
    make for it, and with the flags of `args` in place of those here. In a `with` block it has to
    end well, and what it logged is shown where the block does not."""

    def __init__(self, server, *flags, url=None, identity="one", namespace=NAMESPACE, args=None):
        self.log = tempfile.TemporaryFile(mode="w+")
        config = server.kubeconfig(f"operator-{identity}", server.token(namespace, ACCOUNT),
                                   url=url, namespace=namespace)
        args = args or ["--sidecar-image=example.org/sidecar:1",
                        "--intercept-image=example.org/intercept:1", "--identity=$(POD_NAME)"]
        self.process = subprocess.Popen(
            [kubetest.program("trafficmirror-operator"),
             *(arg.replace("$(POD_NAME)", identity) for arg in args),
             "--http", f"127.0.0.1:{free_ports(1)[0]}", *flags],
            env={**os.environ, "KUBECONFIG": config}, stdout=self.log, stderr=subprocess.STDOUT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def __enter__(self):
        return self

    def stop(self):
        """Ends it, which has to be well."""
        if self.process.poll() is None:
            self.process.terminate()
        if self.process.wait(20) not in (0, -signal.SIGKILL):
            raise AssertionError(f"the operator ended with {self.process.returncode}:\n"
                                 f"{self.output()}")

    def __exit__(self, kind, error, trace):
        try:
            self.stop()
        finally:
            if kind:
                print(self.output())
            self.log.close()


class Mirror:
    """The sample, shop/checkout-v2, on a server."""

    def __init__(self, server):
        self.server = server

    def apply(self):
        self.server.kubectl("apply", "-f", os.path.join(MANIFESTS, "samples/trafficmirror.yaml"))

    def patch(self, spec):
        self.server.client.patch(MIRRORS, "checkout-v2", {"spec": spec}, "shop")

    def delete(self):
        self.server.kubectl("delete", "-n", "shop", "trafficmirror", "checkout-v2", "--wait=false")

    def consent(self):
        self.server.kubectl("annotate", "namespace", "shop-shadow", "--overwrite",
                            "trafficmirror.dev/accept-from=shop")

    def withdraw_consent(self):
        self.server.kubectl("annotate", "namespace", "shop-shadow",
                            "trafficmirror.dev/accept-from-")

    def exists(self):
        return self.server.client.find(MIRRORS, "checkout-v2", "shop") is not None

    def status(self):
        return (self.server.client.find(MIRRORS, "checkout-v2", "shop") or {}).get("status", {})

    def condition(self, name):
        for entry in self.status().get("conditions", []):
            if entry["type"] == name:
                return entry["status"], entry["reason"]
        return None

    def wait_for(self, name, status, reason, seconds=30.0):
        wait_until(lambda: self.condition(name) == (status, reason),
                   lambda: f"{name} {status} {reason}; the status is {self.status()}", seconds)

    def wait_for_end(self):
        wait_until(lambda: not self.exists(), "the mirror's end", 60)


def intercepts_of(server, namespace="shop-shadow"):
    """The intercepts' Deployments there."""
    return server.client.list("apps/v1/deployments", namespace,
                              labels="app.kubernetes.io/managed-by=trafficmirror")


def workload(name, namespace, labels, port=8080, pod_labels=None):
    """A Deployment with a container that declares the port."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": {**labels, **(pod_labels or {})}},
                "spec": {"containers": [{"name": "app", "image": "example.org/app:1",
                                         "ports": [{"containerPort": port}]}]},
            },
        },
    }


def make_shadow(server, namespace="shop-shadow"):
    """A shadow to mirror to: a Deployment and its Service."""
    labels = {"app": "checkout", "version": "v2"}
    server.client.create(workload("checkout-v2", namespace, labels))
    server.client.create({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "checkout-v2", "namespace": namespace},
        "spec": {"selector": labels, "ports": [{"port": 8080, "targetPort": 8080}]}})
