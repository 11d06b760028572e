"""kubectl-trafficmirror against a real API server: what it tells a person, with whatever rights that
one has, and by which exit code."""

import datetime
import json
import os
import re
import subprocess
import unittest

import kubetest
from apiserver import ApiServer, wait_until
from kubelet import Kubelet
from operator_process import (MANIFESTS, MIRRORS, NAMESPACE, Mirror, Operator, install,
                              intercepts_of, make_shadow, workload)

SAMPLE = os.path.join(MANIFESTS, "samples/trafficmirror.yaml")
REPLAY = os.path.join(MANIFESTS, "samples/replay.yaml")
CLAIMS = "v1/persistentvolumeclaims"
CONFIGURATIONS = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
LEASES = "coordination.k8s.io/v1/leases"
RBAC = "rbac.authorization.k8s.io"
INJECT = {"trafficmirror.dev/inject": "enabled"}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def setUpModule():
    global server, mirror
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    install(server)
    mirror = Mirror(server)


def plugin(*words, config=None, input=None, environment=None):
    """(exit code, stdout, stderr)"""
    env = {"KUBECONFIG": config or server.admin_kubeconfig, "PATH": os.environ["PATH"],
           "HOME": server.directory, **(environment or {})}
    ended = subprocess.run([kubetest.program("kubectl-trafficmirror"), *words], input=input or "",
                           capture_output=True, text=True, timeout=120, env=env)
    return ended.returncode, ended.stdout, ended.stderr


def wanted_of(things):
    """Without what those who work on them say of them, which may come at any time."""
    if isinstance(things, dict):
        return {key: wanted_of(value) for key, value in things.items()
                if key not in ("status", "managedFields", "resourceVersion")}
    return [wanted_of(thing) for thing in things] if isinstance(things, list) else things


def label(namespace, labels):
    server.client.patch("v1/namespaces", namespace, {"metadata": {"labels": labels}})


def without(labels):
    return dict.fromkeys(labels)


def user(name, rules, namespace="shop"):
    """The kubeconfig of one who may do that in the namespace, and nothing else."""
    server.client.apply({"apiVersion": "v1", "kind": "ServiceAccount",
                         "metadata": {"name": name, "namespace": namespace}})
    server.client.apply({"apiVersion": f"{RBAC}/v1", "kind": "Role", "rules": rules,
                         "metadata": {"name": name, "namespace": namespace}})
    server.client.apply({
        "apiVersion": f"{RBAC}/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]})
    return server.kubeconfig(name, server.token(namespace, name), namespace=namespace)


READER = [{"apiGroups": ["trafficmirror.dev"], "resources": ["trafficmirrors"],
           "verbs": ["get", "list"]}]


def renew_lease(ago=0):
    """As if an operator led, for as long as its Lease lasts."""
    time = datetime.datetime.utcnow() - datetime.timedelta(seconds=ago)
    server.client.apply({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "trafficmirror-operator", "namespace": NAMESPACE},
        "spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 15,
                 "renewTime": time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}, force=True)


class Case(unittest.TestCase):
    def tearDown(self):
        server.client.delete(LEASES, "trafficmirror-operator", NAMESPACE)
        if mirror.exists():
            server.client.patch(MIRRORS, "checkout-v2", {"metadata": {"finalizers": None}}, "shop")
            mirror.delete()
            mirror.wait_for_end()

    def set_status(self, **conditions):
        """The mirror's, in the operator's place: Ready="True", say."""
        generation = server.client.get(MIRRORS, "checkout-v2", "shop")["metadata"]["generation"]
        server.client.patch(MIRRORS, "checkout-v2", {"status": {
            "observedGeneration": generation, "attached": "2/2", "sessions": 24,
            "exchanges": 10234, "shed": 3,
            "conditions": [
                {"type": name, "status": status, "reason": reason, "message": message,
                 "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"}
                for name, (status, reason, message) in conditions.items()]}}, "shop", "status")

    def make_workloads(self, labels=None):
        """Production's and the shadow's, with kubelets that play them, until the test's end."""
        kubelet = Kubelet(server.client)
        self.addCleanup(kubelet.close)
        make_shadow(server)
        server.client.create(workload("checkout", "shop", {"app": "checkout"}, pod_labels=labels))

        def remove():
            for resource, name, namespace in (
                    ("apps/v1/deployments", "checkout", "shop"),
                    ("apps/v1/deployments", "checkout-v2", "shop-shadow"),
                    ("v1/services", "checkout-v2", "shop-shadow")):
                server.client.delete(resource, name, namespace)
            wait_until(lambda: not server.client.list("v1/pods"), "no pods", 30)

        self.addCleanup(remove)
        wait_until(lambda: (server.client.find("v1/endpoints", "checkout-v2", "shop-shadow") or {})
                   .get("subsets", [{}])[0].get("addresses"), "the shadow's endpoints", 30)
        wait_until(lambda: len(server.client.list("v1/pods", "shop")) == 2, "two pods", 30)

    def show(self, text):
        if os.environ.get("SHOW"):
            print(text)
        return text


class Status(Case):
    def test_of_a_mirror_that_is_ready(self):
        renew_lease()
        mirror.apply()
        self.set_status(Ready=("True", "Mirroring", "2 of 2 pods stream to the intercept"),
                        Consented=("True", "Granted", "it accepts"),
                        Mirroring=("True", "Streaming", "2 of 2 pods stream to the intercept"))
        code, text, errors = plugin("status", "checkout-v2", "-n", "shop")
        self.show(text)
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("shop/checkout-v2 is Ready: 2 of 2 pods stream to the intercept\n", text)
        self.assertIn("exchanges  10,234 answered by the shadow\n", text)
        code, text, errors = plugin("status", "-A")
        self.show(text)
        self.assertEqual((code, errors), (0, ""))
        self.assertRegex(text, r"\nshop +checkout-v2 +yes +Mirroring +2/2 +24 +10,234 +3 +\d+s\n$")

    def test_tells_what_is_wrong(self):
        renew_lease()
        mirror.apply()
        code, text, _ = plugin("status", "--namespace=shop")
        self.assertEqual(code, 1)
        self.assertIn("the operator has not looked at it since it was changed", text)
        self.set_status(Ready=("False", "NoPods", "no pod matches"),
                        Attached=("False", "NoPods", "no pod matches"))
        code, text, _ = plugin("status", "-n", "shop")
        self.assertEqual(code, 1)
        self.assertIn("shop/checkout-v2 is not Ready:\n  NoPods  no pod matches\n", text)

    def test_of_what_an_operator_says(self):
        self.make_workloads()
        self.addCleanup(mirror.withdraw_consent)
        self.addCleanup(label, "shop", without(INJECT))
        with Operator(server):
            mirror.apply()
            mirror.wait_for("Ready", "False", "NotGranted")
            code, text, _ = plugin("status", "-A")
            self.show(text)
            self.assertEqual(code, 1)
            cure = re.search("accept traffic of shop: kubectl (annotate .*)\n", text)
            server.kubectl(*cure[1].split())
            mirror.wait_for("Attached", "False", "NamespaceNotLabelled")
            code, text, _ = plugin("status", "checkout-v2", "-n", "shop")
            self.show(text)
            self.assertEqual(code, 1)
            self.assertRegex(text, r"pods +0 of 2 have a sidecar\n +checkout-\S+: no sidecar\n"
                                   r" +checkout-\S+: no sidecar\n")
            self.assertRegex(text, r"NamespaceNotLabelled +0 of 2 pods have a sidecar; pod "
                                   r"checkout-\S+: sidecars are injected in labelled namespaces")
            code, text, _ = plugin("doctor", "checkout-v2", "-n", "shop")
            self.show(text)
            self.assertEqual(code, 1)
            mirror.delete()
            mirror.wait_for_end()

    def test_tells_that_no_operator_leads(self):
        code, text, _ = plugin("status", "-A")
        self.assertEqual(code, 1)
        self.assertIn("no operator has ever led", text)
        renew_lease(ago=300)
        code, text, _ = plugin("status", "-A")
        self.assertEqual(code, 1)
        self.assertIn("no operator leads: the Lease trafficmirror/trafficmirror-operator is "
                      "somebody's, renewed 5m ago", text)

    def test_an_operator_whose_clock_is_wrong_leads(self):
        renew_lease(ago=300)
        with subprocess.Popen([kubetest.program("kubectl-trafficmirror"), "status", "-A"],
                              stdout=subprocess.PIPE, text=True,
                              env={"KUBECONFIG": server.admin_kubeconfig}) as running:
            while running.poll() is None:
                renew_lease(ago=300)
            self.assertEqual((running.returncode, running.stdout.read()),
                             (0, "No TrafficMirrors in any namespace.\n"))

    def test_with_few_rights(self):
        renew_lease()
        mirror.apply()
        self.set_status(Ready=("True", "Mirroring", "2 of 2 pods stream to the intercept"))
        config = user("reader", READER)
        code, text, errors = plugin("status", "checkout-v2", config=config)
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("which have none is not known: pods is forbidden", text)
        self.assertIn("Not checked: whether an operator leads: leases", text)
        code, _, errors = plugin("status", "-A", config=config)
        self.assertEqual(code, 2)
        self.assertIn("trafficmirrors.trafficmirror.dev is forbidden", errors)


class Usage(Case):
    def test_mistakes_are_one_line_and_exit_code_2(self):
        lost = server.kubeconfig("lost", "token", url="http://127.0.0.1:1")
        for words, config, line in (
                (["status", "nothing", "-n", "shop"], None, "there is no TrafficMirror shop/nothing"),
                (["status", "a", "b"], None, "b belongs to no flag"),
                (["status", "a", "-A"], None, "leave out --all-namespaces"),
                (["status", "--colour"], None, "--colour is not known"),
                (["status", "--context", "x"], None, 'no context named "x"'),
                (["status", "--kubeconfig", "/missing"], None, "/missing is missing"),
                (["status"], lost, "the API server can't be reached"),
                ([], None, "A subcommand is required"),
                (["doctor"], None, "-f FILE"),
                (["doctor", "-f", "/missing"], None, "/missing: it cannot be read"),
                (["doctor", "-f", os.path.join(MANIFESTS, "crd.yaml")], None,
                 "holds no TrafficMirror"),
                (["doctor", "-f", SAMPLE, "-n", "other"], None, "is of namespace shop"),
                (["stop"], None, "takes a TrafficMirror's name"),
                (["stop", "nothing", "-n", "shop"], None, "not found"),
                (["stop", "a", "--timeout=soon"], None, "is no duration")):
            code, text, errors = plugin(*words, config=config)
            self.assertEqual((code, text), (2, ""), (words, errors))
            self.assertEqual(errors.count("\n"), 1, errors)
            self.assertIn(line, errors)
            self.assertTrue(errors.startswith("kubectl trafficmirror: "), errors)

    def test_help(self):
        code, text, _ = plugin("--help")
        self.show(text)
        self.assertEqual(code, 0)
        for word in ("status", "doctor", "stop"):
            self.assertIn(word, text)
        code, text, _ = plugin("status", "-h")
        self.show(text)
        self.assertEqual(code, 0)
        self.assertIn("--all-namespaces", text)

    def test_as_a_plugin_of_kubectl(self):
        renew_lease()
        folder = os.path.dirname(kubetest.program("kubectl-trafficmirror"))
        ended = subprocess.run(
            [os.path.join(server.binaries, "kubectl"), "trafficmirror", "status", "-A"],
            capture_output=True, text=True,
            env={"KUBECONFIG": server.admin_kubeconfig, "PATH": folder, "HOME": server.directory})
        self.assertEqual((ended.returncode, ended.stdout),
                         (0, "No TrafficMirrors in any namespace.\n"), ended.stderr)

    def test_credentials_of_a_command(self):
        renew_lease()
        config = user("logged-in", READER)
        with open(config) as file:
            content = json.load(file)
        token = content["users"][0]["user"].pop("token")
        login = server.path("login")
        with open(login, "w") as file:
            file.write("#!/bin/sh\n"
                       "echo '{\"apiVersion\": \"client.authentication.k8s.io/v1beta1\", "
                       "\"kind\": \"ExecCredential\", "
                       "\"status\": {\"token\": \"'\"$TOKEN\"'\"}}'\n")
        os.chmod(login, 0o700)
        execute = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "login",
                   "env": [{"name": "TOKEN", "value": token}]}
        content["users"][0]["user"]["exec"] = execute

        def run():
            with open(config, "w") as file:
                json.dump(content, file)
            return plugin("status", config=config,
                          environment={"PATH": f"{server.directory}:{os.environ['PATH']}"})

        code, text, errors = run()
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("No TrafficMirrors in namespace shop.\n", text)
        execute["env"][0]["value"] = "wrong"
        code, _, errors = run()
        self.assertEqual(code, 2)
        self.assertIn("Unauthorized", errors)
        execute.update({"command": "no-such-command", "installHint": "It is at\nexample.org."})
        code, _, errors = run()
        self.assertEqual(code, 2)
        self.assertIn("gets its credentials from no-such-command, which cannot be started: No such "
                      "file or directory. It is at example.org.\n", errors)


class NotInstalled(Case):
    def test_that_is_said_plainly(self):
        server.kubectl("delete", "crd", "trafficmirrors.trafficmirror.dev")
        try:
            code, text, errors = plugin("status", "-A")
            self.show(text)
            self.assertEqual((code, errors), (1, ""))
            self.assertIn("TrafficMirror is not installed at 127.0.0.1", text)
            code, text, errors = plugin("doctor", "-f", SAMPLE)
            self.show(text)
            self.assertEqual((code, errors), (1, ""))
            self.assertRegex(text, "FAIL +operator +the API server does not know TrafficMirror")
        finally:
            install(server)


class Doctor(Case):
    """This server is so old that sidecars are injected, and that it leaves Pod Security to others."""

    def setUp(self):
        renew_lease()
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        label("shop", INJECT)
        self.addCleanup(label, "shop", without(INJECT))

    def install_webhook(self):
        told = server.kubectl("create", "--dry-run=client", "-o", "json", "-f",
                              os.path.join(MANIFESTS, "webhook.yaml"))
        configuration = json.loads(told)
        configuration["webhooks"][0]["clientConfig"]["caBundle"] = server._encoded("ca.crt")
        server.client.create(configuration)
        self.addCleanup(server.client.delete, CONFIGURATIONS, "trafficmirror-webhook")

    def doctor(self, *words, **options):
        code, text, errors = plugin("doctor", *(words or ("-f", SAMPLE)), **options)
        self.show(text)
        self.assertEqual(errors, "")
        self.assertEqual(code, 1 if "FAIL" in text else 0)
        return [re.split("  +", line, maxsplit=2) for line in text.splitlines()]

    def test_of_a_capture(self):
        self.make_workloads()
        self.assertEqual([line[:2] for line in self.doctor("-f", REPLAY)], [
            ["ok", "server"], ["ok", "operator"], ["ok", "spec"], ["ok", "consent"],
            ["FAIL", "claim"], ["ok", "admission"], ["ok", "shadow"], ["ok", "admission"],
            ["ok", "NetworkPolicy"], ["ok", "reply path"]])
        server.client.create({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "captures", "namespace": "shop"},
            "spec": {"accessModes": ["ReadOnlyMany"],
                     "resources": {"requests": {"storage": "1Gi"}}}})
        self.addCleanup(server.client.patch, CLAIMS, "captures", {"metadata": {"finalizers": None}},
                        "shop")
        self.addCleanup(server.client.delete, CLAIMS, "captures", "shop")
        self.assertEqual(self.complaints("-f", REPLAY), [])

    def complaints(self, *words, **options):
        return [line for line in self.doctor(*words, **options) if line[0] != "ok"]

    def test_before_it_is_applied(self):
        self.make_workloads(INJECT)
        self.install_webhook()
        before = wanted_of(server.client.listing())
        found = self.doctor()
        self.assertEqual([line[:2] for line in found], [
            ["ok", "server"], ["ok", "operator"], ["ok", "spec"], ["ok", "consent"],
            ["WARN", "pods"], ["ok", "injection"], ["ok", "admission"], ["ok", "shadow"],
            ["ok", "admission"], ["ok", "NetworkPolicy"], ["ok", "reply path"]])
        self.assertIn("kubectl rollout restart", found[4][2])
        self.assertEqual(wanted_of(server.client.listing()), before,
                         "the doctor has changed something")
        with open(SAMPLE) as file:
            self.assertEqual(self.doctor("-f", "-", input=file.read()), found)

    def test_finds_each_cause(self):
        self.make_workloads(INJECT)
        self.install_webhook()
        with open(SAMPLE) as file:
            sample = file.read()

        def complaint(*, text=sample):
            """The one beside that running pods have to be restarted."""
            found = [line for line in self.complaints("-f", "-", input=text)
                     if "rollout restart" not in line[2]]
            self.assertEqual(len(found), 1, found)
            return found[0]

        for before, after, words in (
                ("ports: [8080]", "ports: [eighty]", "spec.source.ports"),
                ("percent: 100", "per-cent: 100", "spec.replicate.per-cent"),
                ("memory: 64Mi", "memory: 900Gi", "between 1Mi and 64Gi"),
                ("duration: 2h", "duration: soon", "spec.duration")):
            level, check, told = complaint(text=sample.replace(before, after))
            self.assertEqual((level, check), ("FAIL", "spec"))
            self.assertIn(words, told)
        level, check, told = complaint(text=sample.replace("{app: checkout}", "{app: none}"))
        self.assertEqual((level, check), ("FAIL", "pods"))
        self.assertIn("no pod of namespace shop matches", told)
        level, check, told = complaint(text=sample.replace("name: checkout-v2, port",
                                                           "name: checkout-v3, port"))
        self.assertEqual((level, check), ("FAIL", "shadow"))
        self.assertIn("there is no Service shop-shadow/checkout-v3", told)

        mirror.withdraw_consent()
        self.assertEqual(complaint(), [
            "FAIL", "consent", "namespace shop-shadow does not accept traffic of shop: kubectl "
            "annotate namespace shop-shadow trafficmirror.dev/accept-from=shop"])
        server.kubectl(*complaint()[2].split(": kubectl ")[1].split())

        label("shop", without(INJECT))
        told = self.complaints()
        self.assertIn(["FAIL", "pods"], [line[:2] for line in told])
        self.assertIn("kubectl label namespace shop trafficmirror.dev/inject=enabled", str(told))
        label("shop", INJECT)

        label("shop-shadow", RESTRICTED)
        self.addCleanup(label, "shop-shadow", without(RESTRICTED))
        level, check, told = complaint()
        self.assertEqual((level, check), ("WARN", "admission"))
        self.assertIn("forbids NET_ADMIN and NET_RAW", told)
        label("shop-shadow", without(RESTRICTED))

        def policy(namespace, spec):
            server.client.create({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                                  "metadata": {"name": "closed", "namespace": namespace},
                                  "spec": {"podSelector": {}, **spec}})
            level, check, told = complaint()
            self.assertEqual((level, check), ("FAIL", "NetworkPolicy"))
            server.client.delete("networking.k8s.io/v1/networkpolicies", "closed", namespace)
            return told

        self.assertIn("admit the intercept: allow ingress",
                      policy("shop-shadow", {"policyTypes": ["Ingress"]}))
        self.assertIn("TCP port 7443", policy("shop", {"policyTypes": ["Egress"]}))

        server.client.delete(CONFIGURATIONS, "trafficmirror-webhook")
        self.assertEqual(complaint()[:2], ["FAIL", "injection"])

    def test_the_servers_admission_speaks(self):
        """By a quota, as this server knows no Pod Security."""
        self.make_workloads(INJECT)
        self.install_webhook()
        server.client.create({"apiVersion": "v1", "kind": "ResourceQuota",
                              "metadata": {"name": "full", "namespace": "shop-shadow"},
                              "spec": {"hard": {"cpu": "1"}}})
        self.addCleanup(server.client.delete, "v1/resourcequotas", "full", "shop-shadow")
        server.client.patch("v1/resourcequotas", "full", {"status": {
            "hard": {"cpu": "1"}, "used": {"cpu": "0"}}}, "shop-shadow", "status")
        told = [line for line in self.complaints() if line[1] == "admission"]
        self.assertEqual(len(told), 1)
        self.assertIn("refuses the intercept's pod", told[0][2])
        self.assertIn("failed quota: full: must specify cpu", told[0][2])

    def test_with_few_rights(self):
        self.make_workloads(INJECT)
        config = user("reader", READER)
        found = self.doctor(config=config)
        told = {}
        for level, check, text in found:
            told.setdefault(check, []).append((level, text))
        self.assertEqual(told["server"][0][0], "ok")
        for check in ("operator", "spec", "consent", "pods", "injection", "admission", "shadow",
                      "NetworkPolicy"):
            self.assertEqual({level for level, _ in told[check]}, {"?"}, check)
            self.assertIn("not checked: ", told[check][0][1])

    def test_of_one_that_is_applied(self):
        self.make_workloads(INJECT)
        self.install_webhook()
        mirror.apply()
        self.set_status(Ready=("False", "NotVerified", "target 8080: no reply"),
                        ReplyPathVerified=("False", "NotVerified", "target 8080: no reply"))
        found = self.doctor("checkout-v2", "-n", "shop")
        self.assertIn(["FAIL", "reply path", "target 8080: no reply"], found)
        self.assertIn(["FAIL", "status", "NotVerified: target 8080: no reply"], found)


class Stop(Case):
    def test_it_waits_until_nothing_runs(self):
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        with Operator(server):
            mirror.apply()
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            code, text, errors = plugin("stop", "checkout-v2", "-n", "shop")
            self.show(text)
            self.assertEqual((code, text, errors),
                             (0, "shop/checkout-v2 is stopped: 0 exchanges, 0 shed\n", ""))
            self.assertEqual(intercepts_of(server), [])
            self.assertTrue(server.client.get(MIRRORS, "checkout-v2", "shop")["spec"]["paused"])
            code, text, _ = plugin("status", "-n", "shop")
            self.show(text)
            self.assertEqual(code, 0)
            self.assertRegex(text, "shop +checkout-v2 +stopped +Paused")
            # Again: there is nothing left to do.
            self.assertEqual(plugin("stop", "checkout-v2", "-n", "shop")[0], 0)
            mirror.patch({"paused": False})
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            code, text, errors = plugin("stop", "checkout-v2", "-n", "shop", "--delete")
            self.assertEqual((code, text, errors),
                             (0, "shop/checkout-v2 is gone: 0 exchanges, 0 shed\n", ""))
            self.assertFalse(mirror.exists())
            self.assertEqual(intercepts_of(server), [])

    def test_what_was_counted_is_told_in_the_end(self):
        label("shop", INJECT)
        self.addCleanup(label, "shop", without(INJECT))
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        mirror.apply()
        self.set_status(Ready=("True", "Mirroring", "all"))
        # It has been paused and has ended, as its operator says.
        mirror.patch({"paused": True})
        self.set_status(Ready=("False", "Paused", "spec.paused is true"),
                        Mirroring=("False", "Stopped", "spec.paused is true"))
        self.assertEqual(plugin("stop", "checkout-v2", "-n", "shop")[:2],
                         (0, "shop/checkout-v2 is stopped: 10,234 exchanges, 3 shed\n"))

    def test_without_an_operator_it_says_so(self):
        mirror.apply()
        code, text, errors = plugin("stop", "checkout-v2", "-n", "shop", "--timeout", "500ms")
        self.assertEqual((code, errors), (1, ""))
        self.assertIn("is paused, but has not ended within 1 s: no operator has ever led", text)


if __name__ == "__main__":
    kubetest.main()
