"""The chart on a real API server, by the real helm: what installing, upgrading and uninstalling bring
about, and that the operator works with the flags and the rights that it gives."""

import contextlib
import os
import shutil
import subprocess
import unittest

import yaml

import helm
import kubetest
from apiserver import ApiServer, find_binaries, free_ports, wait_until
from helm import CHART, rights_of
from kubelet import Kubelet
from operator_process import ACCOUNT, Mirror, Operator, intercepts_of, make_shadow, workload
from proxy import Proxy
from rest import ApiError, differences

CRDS, CRD = "apiextensions.k8s.io/v1/customresourcedefinitions", "trafficmirrors.trafficmirror.dev"
WEBHOOKS = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
DEPLOYMENTS = "apps/v1/deployments"
# What the operator keeps in its namespace for the next one: sidecars that run trust its CA.
ITS_OWN = [("v1/secrets", "trafficmirror-ca"), ("v1/secrets", "trafficmirror-webhook"),
           ("coordination.k8s.io/v1/leases", "trafficmirror-operator")]
SHOPS = {"watchNamespaces": ["shop", "shop-shadow"]}
INJECT = {"trafficmirror.dev/inject": "enabled"}


def setUpModule():
    global server, mirror
    # There is no controller that makes the tokens which it would mount into pods.
    server = ApiServer(["--disable-admission-plugins=ServiceAccount"]).__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    for name in ("trafficmirror", "shop", "shop-shadow", "cart"):
        server.namespace(name)
    server.kubectl("label", "namespace", "shop", "trafficmirror.dev/inject=enabled")
    mirror = Mirror(server)


class Release:
    def __init__(self, name="trafficmirror", namespace="trafficmirror"):
        self.name, self.namespace = name, namespace

    def start(self, *words):
        folders = {f"HELM_{kind}_HOME": server.path("helm", kind.lower())
                   for kind in ("CACHE", "CONFIG", "DATA")}
        return helm.start(*words, "--namespace", self.namespace, environment={
            **folders, "KUBECONFIG": server.admin_kubeconfig, "HOME": server.directory})

    def helm(self, *words, check=True):
        """Its output, or the CompletedProcess where `check` is false."""
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        if not check:
            return subprocess.CompletedProcess(words, process.returncode, out, err)
        if process.returncode != 0:
            raise AssertionError(f"helm {' '.join(words)}: {err}")
        return out

    def install(self, values=None, *words, check=True):
        return self.helm("install", self.name, CHART, *helm.flags_of(values or {}), *words,
                         check=check)

    def upgrade(self, values=None, *words, chart=CHART):
        return self.helm("upgrade", self.name, chart, *helm.flags_of(values or {}), *words)

    def uninstall(self):
        self.helm("uninstall", self.name, "--ignore-not-found")

    def things(self):
        """What it was installed with."""
        return list(yaml.safe_load_all(self.helm("get", "manifest", self.name)))

    def operator(self, *flags, **options):
        """With its Deployment's flags, as that is on the server."""
        pod = server.client.get(DEPLOYMENTS, ACCOUNT, self.namespace)["spec"]["template"]
        port = free_ports(1)[0]
        started = Operator(server, "--webhook-host=localhost",
                           f"--webhook-listen=127.0.0.1:{port}", *flags, namespace=self.namespace,
                           args=pod["spec"]["containers"][0]["args"], **options)
        started.webhook_url = f"https://localhost:{port}/mutate"
        return started


class Case(unittest.TestCase):
    def release(self, *words):
        release = Release(*words)

        def clean():
            release.uninstall()
            for resource, name in ITS_OWN:
                server.client.delete(resource, name, release.namespace)
            server.client.delete(CRDS, CRD)
            wait_until(lambda: server.client.find(CRDS, CRD) is None, "the CRD's end", 30)

        self.addCleanup(clean)
        return release

    def assert_listing(self, before, *expected):
        """Now tells these differences from before; the API server follows the CRD in its own
        time."""
        seen = {}

        def is_so():
            with contextlib.suppress(ApiError):  # a resource goes that is just being listed
                seen["differences"] = differences(before, server.client.listing())
                return seen["differences"] == list(expected)

        wait_until(is_so, lambda: f"not {expected} but {seen}", 30)


def ca_bundle(name="trafficmirror-webhook"):
    webhook = server.client.get(WEBHOOKS, name)["webhooks"][0]
    return webhook["clientConfig"].get("caBundle")


def call_at(url, name="trafficmirror-webhook"):
    """Has the API server call the webhook there, and not at its Service, which no node has."""
    configuration = server.client.get(WEBHOOKS, name)
    client = configuration["webhooks"][0]["clientConfig"]
    del client["service"]
    client["url"] = url
    server.client.update(configuration)


class Life(Case):
    def test_uninstalling_leaves_the_crd_that_is_to_be_kept_and_nothing_else(self):
        release = self.release()
        before = server.client.listing()
        kept = ["left: apiextensions.k8s.io/v1/customresourcedefinitions "
                "trafficmirrors.trafficmirror.dev",
                "left: apiregistration.k8s.io/v1/apiservices v1alpha1.trafficmirror.dev"]
        release.install({"crds.keep": False})
        server.kubectl("wait", "--for=condition=established", f"crd/{CRD}")
        self.assertEqual(server.client.get(DEPLOYMENTS, ACCOUNT, "trafficmirror")["spec"]
                         ["replicas"], 2)
        release.uninstall()
        self.assert_listing(before)

        release.install()
        server.kubectl("wait", "--for=condition=established", f"crd/{CRD}")
        uid = server.client.get(CRDS, CRD)["metadata"]["uid"]
        release.uninstall()
        self.assert_listing(before, *kept)
        release.install()
        release.upgrade({"replicas": 3})
        self.assertEqual(server.client.get(DEPLOYMENTS, ACCOUNT, "trafficmirror")["spec"]
                         ["replicas"], 3)
        # Another says now who has it; what it holds stays.
        release.upgrade({"crds.install": False})
        release.uninstall()
        self.assert_listing(before, *kept)
        self.assertEqual(server.client.get(CRDS, CRD)["metadata"]["uid"], uid)

    def test_an_upgrade_leaves_the_ca_that_the_operator_wrote(self):
        release = self.release()
        release.install()
        self.assertIsNone(ca_bundle())
        with release.operator():
            bundle = wait_until(ca_bundle, "the CA", 30)
        newer = server.path("newer-chart")
        shutil.copytree(CHART, newer)
        path = os.path.join(newer, "templates", "webhook.yaml")
        with open(path) as file:
            text = file.read()
        self.assertIn("timeoutSeconds: 3", text)
        sides = [[], ["--server-side=false"]] if helm.major_version() >= 4 else [[]]
        for seconds, side in enumerate(sides, 1):
            with open(path, "w") as file:
                file.write(text.replace("timeoutSeconds: 3", f"timeoutSeconds: {seconds}"))
            release.upgrade({}, *side, chart=newer)
            webhook = server.client.get(WEBHOOKS, "trafficmirror-webhook")["webhooks"][0]
            self.assertEqual(webhook["timeoutSeconds"], seconds)
            self.assertEqual(ca_bundle(), bundle, side)

    def test_two_releases_live_beside_each_other(self):
        one, two = self.release("one", "team-one"), self.release("two", "team-two")
        one.install({"watchNamespaces": ["shop"]}, "--create-namespace")
        before = server.client.listing()
        two.install({"watchNamespaces": ["cart"], "crds.install": False}, "--create-namespace")
        for other, values in ((Release("three", "team-three"), {"watchNamespaces": ["shop"]}),
                              (Release("four", "team-one"), {"watchNamespaces": ["cart"]})):
            refused = other.install({**values, "crds.install": False}, "--create-namespace",
                                    check=False)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn("invalid ownership metadata", refused.stderr)
        two.uninstall()
        self.assert_listing(before, "left: v1/namespaces team-two")


def used(requests):
    """What rights requests took: {(namespace, resource, verb)}."""
    rights = set()
    for request in requests:
        words = request.path.strip("/").split("/")
        group, words = ("", words[2:]) if words[0] == "api" else (words[1:2], words[3:])
        if not words:
            continue  # what the server can do, which everybody may ask
        namespace = ""
        if words[0] == "namespaces" and len(words) > 2:
            namespace, words = words[1], words[2:]
        resource = "/".join([*group, words[0], *words[2:]])
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
            request.method, "watch" if request.watch else "get" if len(words) > 1 else "list")
        rights.add((namespace, resource if group else f"/{resource}", verb))
        if request.method == "PATCH" and request.status == 201:
            rights.add((namespace, resource if group else f"/{resource}", "create"))
    return rights


class Watched(Case):
    def test_a_mirror_works_with_the_rights_that_are_given_and_takes_each_of_them(self):
        release = self.release()
        release.install(SHOPS)
        server.kubectl("wait", "--for=condition=established", f"crd/{CRD}")
        kubelet = Kubelet(server.client)
        self.addCleanup(kubelet.close)
        proxy = Proxy(server)
        self.addCleanup(proxy.close)
        make_shadow(server)
        with release.operator(url=proxy.url) as operator:
            wait_until(ca_bundle, "the CA", 30)
            call_at(operator.webhook_url)
            mirror.apply()
            mirror.patch({"clientAddress": "Preserve"})
            mirror.consent()
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            name = intercepts_of(server)[0]["metadata"]["name"]
            mirror.patch({"clientAddress": "Masquerade"})
            wait_until(lambda: server.client.find("v1/secrets", f"{name}-sidecar", "shop"),
                       "the sidecars' Secret", 30)
            server.client.create(workload("checkout", "shop", {"app": "checkout"},
                                          pod_labels=INJECT))
            mirror.wait_for("Ready", "True", "Mirroring")
            self.assertEqual(mirror.status()["attached"], "2/2")
            for problem in ("no answer", "", "no answer", ""):
                kubelet.intercepts(name)[0].problem = problem
                mirror.wait_for("ReplyPathVerified", *(("False", "NotVerified") if problem else
                                                       ("True", "Verified")))
            budgets = "policy/v1beta1/poddisruptionbudgets"
            mirror.patch({"intercept": {"replicas": 2}, "replicate": {"percent": 50}})
            wait_until(lambda: server.client.find(budgets, name, "shop-shadow"), "a budget", 30)
            mirror.patch({"intercept": {"replicas": 1}})
            wait_until(lambda: not server.client.find(budgets, name, "shop-shadow"), "no budget", 30)
            mirror.patch({"source": {"selector": None, "capture": {"claimName": "captures",
                                                                   "path": "web.pcap"}}})
            wait_until(lambda: server.client.find("batch/v1/jobs", name, "shop"), "a Job", 60)
            # As if they had run out.
            for _, secret in ITS_OWN[:2]:
                server.client.patch("v1/secrets", secret, {"data": None}, "trafficmirror")
                wait_until(lambda: server.client.get("v1/secrets", secret, "trafficmirror")
                           .get("data"), "another certificate", 30)
            mirror.delete()
            mirror.wait_for_end()
            logged = operator.output()
        for resource, thing, namespace in ((DEPLOYMENTS, "checkout", "shop"),
                                           (DEPLOYMENTS, "checkout-v2", "shop-shadow"),
                                           ("v1/services", "checkout-v2", "shop-shadow")):
            server.client.delete(resource, thing, namespace)
        given = rights_of(release.things())
        release.uninstall()  # its Deployment has pods here, too
        wait_until(lambda: not server.client.list("v1/pods"), "no pods", 30)
        mirror.withdraw_consent()

        refused = [request for request in proxy.requests() if request.status in (401, 403)]
        self.assertEqual(refused, [], "the chart's rights are not enough")
        self.assertNotIn("forbidden", logged)

        def in_mirrors(rights):
            """Either of them may be production's, and have what only the other needs here."""
            return {("mirrors" if namespace in SHOPS["watchNamespaces"] else namespace,
                     resource, verb) for namespace, resource, verb in rights}

        given = {(namespace, resource, verb) for namespace, rights in given.items()
                 for resource, verb, _ in rights}
        # This server has no such thing.
        self.assertEqual(in_mirrors(given) - in_mirrors(used(proxy.requests())),
                         {("mirrors", "/pods/ephemeralcontainers", "patch")})

    def test_it_may_do_nothing_elsewhere(self):
        self.release().install(SHOPS)
        account = f"system:serviceaccount:trafficmirror:{ACCOUNT}"

        def may(*words):
            return server.kubectl("auth", "can-i", *words, "--as", account,
                                  check=False).stdout.strip()

        for namespace in ("shop", "shop-shadow"):
            self.assertEqual(may("list", "secrets", "-n", namespace), "yes")
        self.assertEqual(may("list", "secrets", "-n", "trafficmirror"), "yes")
        for resource in ("secrets", "pods", "services", "trafficmirrors", "endpoints"):
            for verb in ("list", "patch"):
                self.assertEqual(may(verb, resource, "--all-namespaces"), "no", resource)
                self.assertEqual(may(verb, resource, "-n", "cart"), "no", resource)
        self.assertEqual(may("list", "namespaces"), "no")
        self.assertEqual(may("list", "namespaces/shop"), "yes")
        self.assertEqual(may("list", "namespaces/cart"), "no")
        self.assertEqual(may("patch", "mutatingwebhookconfigurations"), "no")
        for namespace in ("shop", "trafficmirror"):
            for thing in ("get secrets/other", "update secrets/other", "create pods",
                          "create roles", "escalate roles", "create pods/exec"):
                self.assertEqual(may(*thing.split(), "-n", namespace), "no", thing)


class Test(Case):
    def test_helm_test_passes_where_each_mirror_is_ready_and_says_what_is_not(self):
        release = self.release()
        release.install(SHOPS)
        server.kubectl("wait", "--for=condition=established", f"crd/{CRD}")
        with release.operator():
            code, said, _ = self.helm_test(release)
            self.assertEqual((code, said), (0, "the operator leads; TrafficMirrors: 0, each of "
                                               "them Ready or stopped as wanted\n"))
            self.assertEqual(server.client.list("v1/pods", "trafficmirror"), [])
            mirror.apply()
            mirror.wait_for("Ready", "False", "NotGranted")
            code, said, told = self.helm_test(release, patience="1s")
            self.assertNotEqual(code, 0)
            self.assertIn("trafficmirror-check", told)
            self.assertIn("shop/checkout-v2: NotGranted: ", said)
            # It is left for kubectl logs, until it is tested again.
            self.assertEqual(len(server.client.list("v1/pods", "trafficmirror")), 1)
            mirror.delete()
            mirror.wait_for_end()
            self.assertEqual(self.helm_test(release)[0], 0)

    def helm_test(self, release, patience=None):
        """Plays the node: runs what the pod says, with the rights of its account. Helm's exit code,
        what the pod said, and what helm."""
        before = {pod["metadata"]["uid"] for pod in server.client.list("v1/pods")}
        with release.start("test", release.name) as process:
            try:
                def new_pod():
                    return next((pod for pod in server.client.list("v1/pods", release.namespace)
                                 if pod["metadata"]["uid"] not in before), None)

                pod = wait_until(new_pod, "the test's pod", 30)
                args = pod["spec"]["containers"][0]["args"]
                if patience:
                    args = [*(arg for arg in args if not arg.startswith("--check=")),
                            f"--check={patience}"]
                config = server.kubeconfig(
                    "check", server.token(release.namespace, pod["spec"]["serviceAccountName"]),
                    namespace=release.namespace)
                ended = subprocess.run([kubetest.program("trafficmirror-operator"), *args],
                                       env={"KUBECONFIG": config}, capture_output=True, text=True)
                self.assertEqual(ended.stderr, "")
                server.client.patch(
                    "v1/pods", pod["metadata"]["name"],
                    {"status": {"phase": "Failed" if ended.returncode else "Succeeded"}},
                    release.namespace, "status")
                out, err = process.communicate(timeout=60)
            except BaseException:
                process.kill()
                raise
        return process.returncode, ended.stdout, out + err


if __name__ == "__main__":
    kubetest.main(find_binaries, helm.find_helm)
