"""What the chart makes of its values, and that the manifests are made of it."""

import filecmp
import json
import os
import re
import subprocess
import tempfile
import unittest

import yaml

import helm
import kubetest
from apiserver import TOP
from helm import CHART, of_kind, rights_of, template

SHOPS = {"watchNamespaces": ["shop", "shop-shadow"]}
PODS = {"Deployment": lambda thing: thing["spec"]["template"], "Pod": lambda thing: thing}


def rights(table, name=None):
    """"/pods: list watch" as rights_of has them."""
    return {(resource, verb, name) for line in table.strip().splitlines()
            for resource, verbs in [line.strip().split(": ")] for verb in verbs.split()}


# What the operator asks for where mirrors and shadows are: test_chart_install.py has it do so.
OF_MIRRORS = rights("""
    trafficmirror.dev/trafficmirrors: list watch patch
    trafficmirror.dev/trafficmirrors/status: patch
    /endpoints: list watch create patch delete
    /pods: list watch patch
    /pods/ephemeralcontainers: patch
    /services: list watch create patch delete
    /configmaps: list watch create patch delete
    /secrets: list watch create patch delete
    /serviceaccounts: list watch create patch delete
    apps/deployments: list watch create patch delete
    batch/jobs: list watch create patch delete
    networking.k8s.io/networkpolicies: list watch create patch delete
    policy/poddisruptionbudgets: list watch create patch delete
    /events: create patch""")
WEBHOOKS = "admissionregistration.k8s.io/mutatingwebhookconfigurations"
OF_WEBHOOK = rights(f"{WEBHOOKS}: list watch patch", "trafficmirror-webhook")
LEASE = (rights("coordination.k8s.io/leases: create") |
         rights("coordination.k8s.io/leases: get update", "trafficmirror-operator"))
SECRETS = (rights("/secrets: update", "trafficmirror-ca") |
           rights("/secrets: update", "trafficmirror-webhook"))


def chart():
    with open(os.path.join(CHART, "Chart.yaml")) as file:
        return yaml.safe_load(file)


def container_of(things, kind="Deployment"):
    return PODS[kind](of_kind(things, kind))["spec"]["containers"][0]


class Chart(unittest.TestCase):
    def test_lint_finds_nothing(self):
        for values in ({}, SHOPS, {"webhook.enabled": False, "podMonitor.enabled": True}):
            helm.run("lint", "--strict", CHART, *helm.flags_of(values))

    def test_its_version_is_the_projects(self):
        with open(os.path.join(TOP, "CMakeLists.txt")) as file:
            version = re.search(r"project\(trafficmirror VERSION (\S+)", file.read()).group(1)
        self.assertEqual((chart()["version"], chart()["appVersion"]), (version, version))

    def test_the_manifests_are_made_of_it(self):
        kept = os.path.join(TOP, "deploy", "manifests")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([os.path.join(TOP, "tools", "manifests"), folder], check=True)
            made = sorted(os.listdir(folder))
            self.assertEqual(made, ["crd.yaml", "operator.yaml", "webhook.yaml"])
            _, others, missing = filecmp.cmpfiles(folder, kept, made, shallow=False)
        self.assertEqual(others + missing, [], "run make manifests")


class Rights(unittest.TestCase):
    def test_are_in_all_namespaces_where_none_is_named(self):
        self.assertEqual(rights_of(template()), {
            "": OF_MIRRORS | rights("/namespaces: list watch") | OF_WEBHOOK,
            "trafficmirror": SECRETS | LEASE})

    def test_are_in_the_watched_namespaces_alone(self):
        things = template(SHOPS)
        self.assertEqual(rights_of(things), {
            "": (rights("/namespaces: list watch", "shop") |
                 rights("/namespaces: list watch", "shop-shadow") | OF_WEBHOOK),
            "shop": OF_MIRRORS,
            "shop-shadow": OF_MIRRORS,
            "trafficmirror": SECRETS | LEASE | rights("/secrets: list watch create")})
        for kind in PODS:
            flags = [flag for flag in container_of(things, kind)["args"] if "watch" in flag]
            self.assertEqual(flags, ["--watch-namespace=shop", "--watch-namespace=shop-shadow"])

    def test_are_those_of_the_operators_account(self):
        for values in ({}, SHOPS):
            things = template(values, namespace="somewhere")
            for binding in things:
                if binding["kind"].endswith("Binding"):
                    self.assertEqual(binding["subjects"], [
                        {"kind": "ServiceAccount", "name": "trafficmirror-operator",
                         "namespace": "somewhere"}])
            for kind, pod in PODS.items():
                self.assertEqual(pod(of_kind(things, kind))["spec"]["serviceAccountName"],
                                 of_kind(things, "ServiceAccount")["metadata"]["name"])


class Webhook(unittest.TestCase):
    def test_is_left_out_as_a_whole(self):
        things = template({"webhook.enabled": False})
        kinds = {thing["kind"] for thing in things}
        self.assertFalse(kinds & {"MutatingWebhookConfiguration", "Service"})
        self.assertNotIn("webhook", str(container_of(things)))
        self.assertNotIn("webhook", str(rights_of(things)))

    def test_its_names_are_one(self):
        things = template(namespace="somewhere")
        webhook = of_kind(things, "MutatingWebhookConfiguration")
        name = webhook["metadata"]["name"]
        self.assertEqual(webhook["webhooks"][0]["clientConfig"]["service"], {
            "namespace": "somewhere", "name": name, "path": "/mutate", "port": 443})
        self.assertEqual(of_kind(things, "Service")["metadata"]["name"], name)
        self.assertIn(f"--webhook={name}", container_of(things)["args"])
        self.assertLessEqual(rights(f"{WEBHOOKS}: list watch patch", name), rights_of(things)[""])

    def test_pods_are_created_whatever_becomes_of_it(self):
        webhook = of_kind(template(), "MutatingWebhookConfiguration")["webhooks"][0]
        self.assertEqual(webhook["failurePolicy"], "Ignore")
        self.assertLessEqual(webhook["timeoutSeconds"], 3)
        labelled = {"matchLabels": {"trafficmirror.dev/inject": "enabled"}}
        self.assertEqual(webhook["namespaceSelector"], labelled)
        self.assertEqual(webhook["objectSelector"], labelled)

    def test_is_not_asked_for_others_namespaces_where_they_can_be_told(self):
        def expressions(kubernetes):
            things = template(SHOPS, kubernetes=kubernetes)
            webhook = of_kind(things, "MutatingWebhookConfiguration")["webhooks"][0]
            return webhook["namespaceSelector"].get("matchExpressions")

        self.assertEqual(expressions("1.21.0"), [
            {"key": "kubernetes.io/metadata.name", "operator": "In",
             "values": ["shop", "shop-shadow"]}])
        self.assertIsNone(expressions("1.20.15"))


class Names(unittest.TestCase):
    def test_two_releases_share_nothing(self):
        def keys(namespace):
            return {(thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"])
                    for thing in template({"crds.install": False}, namespace)}

        long = "a" * 62
        for one, other in (("trafficmirror", "shop"), ("shop", "cart"), (f"{long}b", f"{long}c")):
            self.assertFalse(keys(one) & keys(other))

    def test_are_short_enough_whatever_the_namespace(self):
        for length in (1, 41, 42, 63):
            name = of_kind(template(namespace="n" * length), "Service")["metadata"]["name"]
            self.assertLessEqual(len(name), 63)

    def test_a_second_release_in_a_namespace_or_for_one_has_the_same(self):
        """So that Helm refuses it: the operator's Secrets and Lease have fixed names, and a mirror
        is one operator's."""
        def keys(release, namespace):
            return {(thing["kind"], thing["metadata"]["name"], thing["metadata"]["namespace"])
                    for thing in template(SHOPS, namespace, release)
                    if "namespace" in thing["metadata"]}

        self.assertEqual(keys("one", "same"), keys("two", "same"))
        self.assertLessEqual({("Role", "trafficmirror-operator-mirrors", "shop"),
                              ("Role", "trafficmirror-operator-mirrors", "shop-shadow")},
                             keys("one", "here") & keys("two", "there"))


class Pods(unittest.TestCase):
    def test_are_what_pod_security_calls_restricted(self):
        things = template()
        for kind in PODS:
            self.assertEqual(container_of(things, kind)["securityContext"], {
                "runAsNonRoot": True, "runAsUser": 65532, "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"}})

    def test_the_operators_are_those_that_are_meant(self):
        things = template({"podLabels": {"team": "shop"}, "podMonitor.enabled": True})
        labels = {kind: pod(of_kind(things, kind))["metadata"]["labels"]
                  for kind, pod in PODS.items()}
        # What the NetworkPolicies of intercepts let in.
        self.assertEqual(labels["Deployment"]["app.kubernetes.io/name"], "trafficmirror-operator")
        self.assertEqual(labels["Deployment"]["team"], "shop")
        spec = {kind: of_kind(things, kind)["spec"]
                for kind in ("Deployment", "Service", "PodDisruptionBudget", "PodMonitor")}
        for kind, its in spec.items():
            selector = its["selector"].get("matchLabels", its["selector"])
            self.assertLessEqual(selector.items(), labels["Deployment"].items(), kind)
            self.assertFalse(selector.items() <= labels["Pod"].items(), kind)
        ports = {port["name"] for port in container_of(things)["ports"]}
        self.assertLessEqual({spec["PodMonitor"]["podMetricsEndpoints"][0]["port"],
                              spec["Service"]["ports"][0]["targetPort"]}, ports)

    def test_images(self):
        def images(values):
            things = template(values)
            operator, check = container_of(things), container_of(things, "Pod")
            self.assertEqual(operator["image"], check["image"])
            named = dict(flag.split("=", 1) for flag in operator["args"])
            return [operator["image"], named["--sidecar-image"], named["--intercept-image"]]

        version = chart()["appVersion"]
        self.assertEqual(images({}), [f"trafficmirror-{name}:{version}"
                                      for name in ("operator", "sidecar", "intercept")])
        self.assertEqual(images({"images.registry": "registry.example.org/team",
                                 "images.tag": "next", "images.sidecar.tag": "1@sha256:abc",
                                 "images.intercept.repository": "mirror/intercept"}), [
            "registry.example.org/team/trafficmirror-operator:next",
            "registry.example.org/team/trafficmirror-sidecar:1@sha256:abc",
            "registry.example.org/team/mirror/intercept:next"])

    def test_the_pull_policy_is_for_all_images(self):
        things = template({"images.pullPolicy": "Never"})
        self.assertIn("--image-pull-policy=Never", container_of(things)["args"])
        for kind in PODS:
            self.assertEqual(container_of(things, kind)["imagePullPolicy"], "Never")
        for kind in PODS:
            self.assertNotIn("imagePullPolicy", container_of(template(), kind))

    def test_run_where_they_are_wanted(self):
        placed = {"nodeSelector": {"disk": "fast"},
                  "tolerations": [{"key": "system", "operator": "Exists"}]}
        preferred = {"affinity": {"podAntiAffinity": {}}, "priorityClassName": "high"}
        things = template({**placed, **preferred, "podAnnotations": {"note": "1"},
                           "resources": {"limits": {"memory": "1Gi"}}, "log.level": "debug",
                           "log.format": "json"})
        operator, check = (PODS[kind](of_kind(things, kind)) for kind in ("Deployment", "Pod"))
        self.assertLessEqual({**placed, **preferred}.items(), operator["spec"].items())
        self.assertLessEqual(placed.items(), check["spec"].items())
        self.assertEqual(operator["metadata"]["annotations"], {"note": "1"})
        self.assertEqual(container_of(things)["resources"]["limits"], {"memory": "1Gi"})
        self.assertLessEqual({"--log-level=debug", "--log-format=json"},
                             set(container_of(things)["args"]))

    def test_a_budget_is_for_several(self):
        def budgets(replicas):
            things = template({"replicas": replicas})
            self.assertEqual(of_kind(things, "Deployment")["spec"]["replicas"], replicas)
            return [thing for thing in things if thing["kind"] == "PodDisruptionBudget"]

        self.assertEqual(budgets(1), [])
        # One that allows none to go would keep nodes from being drained.
        self.assertEqual([budget["spec"]["maxUnavailable"] for budget in budgets(2)], [1])

    def test_are_probed(self):
        container = container_of(template())
        for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
            self.assertEqual(container[probe]["httpGet"], {"path": path, "port": "http"})


class Options(unittest.TestCase):
    def test_the_crd_is_kept_or_goes_or_is_anothers(self):
        def annotations(values):
            crd = of_kind(template(values), "CustomResourceDefinition")
            return crd["metadata"].get("annotations")

        self.assertEqual(annotations({}), {"helm.sh/resource-policy": "keep"})
        self.assertIsNone(annotations({"crds.keep": False}))
        self.assertNotIn("CustomResourceDefinition",
                         {thing["kind"] for thing in template({"crds.install": False})})

    def test_a_pod_monitor_is_made_where_it_is_wanted(self):
        self.assertNotIn("PodMonitor", {thing["kind"] for thing in template()})
        monitor = of_kind(template({"podMonitor.enabled": True,
                                    "podMonitor.labels": {"release": "prometheus"}}), "PodMonitor")
        self.assertEqual(monitor["apiVersion"], "monitoring.coreos.com/v1")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")

    def test_what_is_wrong_is_refused_and_named(self):
        for key, value, told in (
                ("watchNamespace", ["shop"], r"\bwatchNamespace\b.* not allowed"),
                ("watchNamespaces", "shop", "watchNamespaces"),
                ("watchNamespaces", ["Shop"], r"watchNamespaces[./]0"),
                ("watchNamespaces", ["shop", "shop"], "watchNamespaces"),
                ("replicas", "two", "replicas"),
                ("replicas", 0, "replicas"),
                ("images.tag", 1.0, r"images[./]tag"),
                ("images.pullPolicy", "Sometimes", r"images[./]pullPolicy"),
                ("images.operator.repository", "", r"images[./]operator[./]repository"),
                ("images.sidecar.digest", "sha256:abc", r"\bdigest\b.* not allowed"),
                ("images.proxy", {}, r"\bproxy\b.* not allowed"),
                ("crds.keep", "yes", r"crds[./]keep"),
                ("crds.create", True, r"\bcreate\b.* not allowed"),
                ("webhook.enabled", "no", r"webhook[./]enabled"),
                ("webhook.failurePolicy", "Fail", r"\bfailurePolicy\b.* not allowed"),
                ("podMonitor.enabled", 1, r"podMonitor[./]enabled"),
                ("podMonitor.interval", "30s", r"\binterval\b.* not allowed"),
                ("podMonitor.labels", {"release": 1}, r"podMonitor[./]labels[./]release"),
                ("log.level", "loud", r"log[./]level"),
                ("log.format", "xml", r"log[./]format"),
                ("log.file", "x", r"\bfile\b.* not allowed"),
                ("resources.request", {}, r"\brequest\b.* not allowed"),
                ("resources.limits", "64Mi", r"resources[./]limits"),
                ("nodeSelector", {"disk": True}, r"nodeSelector[./]disk"),
                ("tolerations", {}, "tolerations"),
                ("affinity", [], "affinity"),
                ("priorityClassName", 1, "priorityClassName"),
                ("podAnnotations", {"note": 1}, r"podAnnotations[./]note"),
                ("podLabels", {"team": 1}, r"podLabels[./]team")):
            ended = template({key: value}, check=False)
            self.assertNotEqual(ended.returncode, 0, key)
            self.assertRegex(ended.stderr, rf"of the schema[^$]*{told}")

    def test_the_schema_has_all_values_and_no_others(self):
        with open(os.path.join(CHART, "values.yaml")) as file:
            values = yaml.safe_load(file)
        with open(os.path.join(CHART, "values.schema.json")) as file:
            schema = json.load(file)

        def check(value, its, path):
            its = schema["definitions"].get(its.get("$ref", "").rpartition("/")[2], its)
            if "properties" not in its or path == ".resources":
                return
            self.assertEqual(set(value), set(its["properties"]) - {"global"}, path)
            self.assertIs(its["additionalProperties"], False, path)
            for key in value:
                check(value[key], its["properties"][key], f"{path}.{key}")

        check(values, schema, "")


if __name__ == "__main__":
    kubetest.main(helm.find_helm)
