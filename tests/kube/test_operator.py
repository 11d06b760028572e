"""The operator against a real API server, with the rights of the manifests: what kubectl apply brings
about and shows, that nothing of it is left, that another one takes over, and that certificates are
replaced."""

import base64
import datetime
import json
import subprocess
import time
import unittest

import yaml

import kubetest
from apiserver import ApiServer, wait_until
from kubelet import Kubelet
from operator_process import (ACCOUNT, MANIFESTS, MIRRORS, NAMESPACE, Mirror, Operator, install,
                              intercepts_of, make_shadow, workload)
from proxy import Proxy
from rest import differences

LEASES = "coordination.k8s.io/v1/leases"
JOBS = "batch/v1/jobs"


def setUpModule():
    global server, mirror
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    install(server)
    mirror = Mirror(server)


def merged(thing, into):
    """What is in `into`, and what `thing` has besides."""
    if not (isinstance(thing, dict) and isinstance(into, dict)):
        return into
    return {**thing, **{key: merged(thing.get(key), value) for key, value in into.items()}}


class Case(unittest.TestCase):
    def played(self):
        """Controllers, kubelets and intercepts are played from here to the test's end."""
        kubelet = Kubelet(server.client)
        self.addCleanup(kubelet.close)
        return kubelet

    def make_workloads(self):
        """Production's and the shadow's, until the test's end."""
        make_shadow(server)
        server.client.create(workload("checkout", "shop", {"app": "checkout"}))

        def remove():
            for resource, name, namespace in (
                    ("apps/v1/deployments", "checkout", "shop"),
                    ("apps/v1/deployments", "checkout-v2", "shop-shadow"),
                    ("v1/services", "checkout-v2", "shop-shadow")):
                server.client.delete(resource, name, namespace)
            wait_until(lambda: not server.client.list("v1/pods"), "no pods", 30)

        self.addCleanup(remove)


class Life(Case):
    def test_apply_and_delete(self):
        proxy = Proxy(server)
        self.addCleanup(proxy.close)
        with Operator(server, url=proxy.url):
            # What the operator has for itself comes before the first mirror.
            wait_until(lambda: server.client.find("v1/secrets", "trafficmirror-ca", NAMESPACE),
                       "the CA", 30)
            before = server.client.listing()
            mirror.apply()
            mirror.wait_for("Consented", "False", "NotGranted")
            self.assertEqual(mirror.condition("Ready"), ("False", "NotGranted"))
            self.assertEqual(intercepts_of(server), [])

            mirror.consent()
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            mirror.wait_for("InterceptAvailable", "False", "ServiceNotFound")
            self.assertEqual(mirror.condition("Ready"), ("False", "ServiceNotFound"))
            for resource in ("v1/services", "v1/configmaps", "v1/secrets", "v1/serviceaccounts",
                             "networking.k8s.io/v1/networkpolicies"):
                self.assertTrue([thing for thing in server.client.list(resource, "shop-shadow")
                                 if thing["metadata"]["name"].startswith("trafficmirror-")],
                                resource)
            budgets = "policy/v1beta1/poddisruptionbudgets"
            self.assertEqual(server.client.list(budgets, "shop-shadow"), [])
            mirror.patch({"intercept": {"replicas": 2}})
            wait_until(lambda: server.client.list(budgets, "shop-shadow"), "a budget", 30)

            deployment = intercepts_of(server)[0]
            name = deployment["metadata"]["name"]
            server.client.patch("apps/v1/deployments", name, {"spec": {"replicas": 7}},
                                "shop-shadow")
            wait_until(lambda: server.client.get("apps/v1/deployments", name, "shop-shadow")
                       ["spec"]["replicas"] == 2, "the drift's correction", 30)
            server.client.delete("v1/services", name, "shop-shadow")
            wait_until(lambda: server.client.find("v1/services", name, "shop-shadow"),
                       "the Service again", 30)

            mirror.delete()
            mirror.wait_for_end()
            mirror.withdraw_consent()
            self.assertEqual(differences(before, server.client.listing()), [])
        refused = [request for request in proxy.requests() if request.status in (401, 403)]
        self.assertEqual(refused, [], "the manifests' rights are not enough")

    def test_it_becomes_ready_where_the_cluster_plays_along(self):
        kubelet = self.played()
        self.make_workloads()
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        with Operator(server):
            mirror.apply()
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            name = intercepts_of(server)[0]["metadata"]["name"]
            mirror.wait_for("InterceptAvailable", "True", "Available")
            mirror.wait_for("ReplyPathVerified", "True", "Verified")
            # This server has no ephemeral containers.
            mirror.wait_for("Attached", "False", "NamespaceNotLabelled")

            intercept = kubelet.intercepts(name)[0]
            intercept.problem = "the shadow at 10.244.0.2:8080 does not answer"
            mirror.wait_for("ReplyPathVerified", "False", "NotVerified")
            intercept.problem = ""
            mirror.wait_for("ReplyPathVerified", "True", "Verified")

            # What one has counted stays in the sums when it is replaced.
            intercept.exchanges, intercept.shed = 40, 2
            wait_until(lambda: mirror.status()["exchanges"] == 40, "what it counted", 30)
            pod = server.client.list("v1/pods", "shop-shadow",
                                     labels="app.kubernetes.io/component=intercept")[0]
            server.client.delete("v1/pods", pod["metadata"]["name"], "shop-shadow")
            wait_until(lambda: kubelet.intercepts(name) not in ([], [intercept]), "another", 30)
            kubelet.intercepts(name)[0].exchanges = 5
            wait_until(lambda: mirror.status()["exchanges"] == 45, "the sum", 30)
            self.assertEqual(mirror.status()["shed"], 2)
            events = [event["reason"] for event in server.client.list("v1/events", "shop")]
            self.assertIn("NotVerified", events)
            mirror.delete()
            mirror.wait_for_end()
        self.assertEqual(intercepts_of(server), [])

    def test_kubectl_shows_and_explains_it(self):
        mirror.apply()
        server.client.patch(MIRRORS, "checkout-v2", {"status": {
            "attached": "2/3", "sessions": 12, "exchanges": 34567, "shed": 8,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Mirroring",
                            "message": "all is well", "observedGeneration": 1,
                            "lastTransitionTime": "2030-01-01T00:00:00Z"}]}},
            "shop", "status")
        lines = server.kubectl("get", "tm", "-n", "shop").splitlines()
        self.assertEqual(lines[0].split(), ["NAME", "READY", "REASON", "ATTACHED", "SESSIONS",
                                            "EXCHANGES", "SHED", "AGE"])
        self.assertEqual(lines[1].split()[:-1],
                         ["checkout-v2", "True", "Mirroring", "2/3", "12", "34567", "8"])
        told = server.kubectl("explain", "tm.spec")
        for field in ("source", "shadow", "clientAddress", "replicate", "limits", "intercept",
                      "paused", "duration"):
            self.assertRegex(told, rf"(?m)^   {field}\t<")

        def fields(schema, path):
            for name, field in schema.get("properties", {}).items():
                yield f"{path}.{name}", field
                yield from fields(field, f"{path}.{name}")
                yield from fields(field.get("items", {}), f"{path}.{name}[]")

        crd = server.client.get("apiextensions.k8s.io/v1/customresourcedefinitions",
                                "trafficmirrors.trafficmirror.dev")
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for path, field in fields(schema["properties"]["spec"], "spec"):
            self.assertTrue(field.get("description"), f"{path} is not described")
        server.client.delete(MIRRORS, "checkout-v2", "shop")

    def test_what_the_schema_forbids_is_refused(self):
        with open(f"{MANIFESTS}/samples/trafficmirror.yaml") as file:
            sample = file.read()
        for good, bad, word in (
                ("ports: [8080]", "ports: []", "spec.source.ports"),
                ("ports: [8080]", "ports: [0]", "spec.source.ports"),
                ("ports: [8080]", "ports: [65536]", "spec.source.ports"),
                ("ports: [8080]", "ports: [8080/tcp]", "spec.source.ports"),
                ("ports: [8080]", "ports: [65536/udp]", "spec.source.ports"),
                ("ports: [8080]", "ports: [0/udp]", "spec.source.ports"),
                ("ports: [8080]", "ports: [53/udp, 53/udp]", "spec.source.ports"),
                ("ports: [8080]", "ports: [1.5]", "spec.source.ports"),
                ("ports: [8080]", "ports: [[8080]]", "spec.source.ports"),
                ("percent: 100", "percent: 0", "spec.replicate.percent"),
                ("percent: 100", "percent: 0.05", "spec.replicate.percent"),
                ("percent: 100", "percent: 101", "spec.replicate.percent"),
                ("percent: 100", "turns: Later", "spec.replicate.turns"),
                ("percent: 100", "overLag: Drop", "spec.replicate.overLag"),
                ("percent: 100", "maxLag: 2 s", "spec.replicate.maxLag"),
                ("percent: 100", "maxRate: 0", "spec.replicate.maxRate"),
                ("percent: 100", "filter: ''", "spec.replicate.filter"),
                ("port: 8080}", "port: 8080}\n    logins: {secretName: a}", "spec.shadow.logins"),
                ("port: 8080}", "port: 8080}\n    logins: {ports: []}", "spec.shadow.logins.ports"),
                ("port: 8080}", "port: 8080}\n    logins: {ports: [{port: 8080}]}",
                 "spec.shadow.logins.ports"),
                ("port: 8080}", "port: 8080}\n    logins: {ports: [{port: 8080, protocol: FTP}]}",
                 "spec.shadow.logins.ports"),
                ("port: 8080}", "port: 8080}\n    logins: {ports: [{port: 1, protocol: MySQL}, "
                 "{port: 1, protocol: PostgreSQL}]}", "spec.shadow.logins.ports"),
                ("port: 8080}", "port: 8080}\n    logins: {ports: [{port: 1, protocol: MySQL}], "
                 "secretName: A/b}", "spec.shadow.logins.secretName"),
                ("memory: 64Mi", "idleTimeout: never", "spec.limits.idleTimeout"),
                ("memory: 64Mi", "responseTimeout: 0s", "spec.limits.responseTimeout"),
                ("memory: 64Mi", "memory: a lot", "spec.limits.memory"),
                ("replicas: 1", "replicas: 0", "spec.intercept.replicas"),
                ("duration: 2h", "duration: soon", "spec.duration"),
                ("duration: 2h", "clientAddress: Magic", "spec.clientAddress"),
                ("duration: 2h", "clientAddress: Pool", "spec.clientAddressPool"),
                ("duration: 2h", "clientAddress: Pool\n  clientAddressPool: []",
                 "spec.clientAddressPool"),
                ("duration: 2h", "clientAddress: Pool\n  clientAddressPool: [198.18.0.0]",
                 "spec.clientAddressPool"),
                ("duration: 2h", "clientAddress: Preserve\n  clientAddressPool: [198.18.0.0/15]",
                 "spec")):
            self.assertIn(good, sample)
            ended = server.kubectl("apply", "-f", "-", input=sample.replace(good, bad),
                                   check=False)
            self.assertNotEqual(ended.returncode, 0, bad)
            self.assertIn(word, ended.stderr)


    def test_what_the_schema_takes_is_kept(self):
        for sample in ("name-server", "database"):
            path = f"{MANIFESTS}/samples/{sample}.yaml"
            with open(path) as file:
                wanted = yaml.safe_load(file)["spec"]
            for way in ([], ["--server-side"]):
                told = server.kubectl("apply", "-f", path, *way, "--dry-run=server", "-o", "json")
                self.assertEqual(merged(json.loads(told)["spec"], wanted),
                                 json.loads(told)["spec"], f"{sample} {way}")


class Ports(Case):
    def test_those_of_udp_are_targets_of_their_own(self):
        self.played()
        self.make_workloads()
        server.client.patch("v1/services", "checkout-v2", {"spec": {"ports": [
            {"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}},
            "shop-shadow")
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        with Operator(server):
            mirror.apply()
            mirror.patch({"source": {"ports": [8080, "53/udp"]},
                          "shadow": {"service": {"port": None}}})
            mirror.wait_for("ReplyPathVerified", "True", "Verified")
            name = intercepts_of(server)[0]["metadata"]["name"]

            def targets():
                config = server.client.get("v1/configmaps", name, "shop-shadow")
                return [target.partition("=")[0] for target in
                        yaml.safe_load(config["data"]["intercept.yaml"])["target"]]

            wait_until(lambda: sorted(targets()) == ["53/udp", "53/udp", "8080", "8080"],
                       lambda: f"targets of both: {targets()}", 30)
            policy = server.client.get("networking.k8s.io/v1/networkpolicies", name, "shop-shadow")
            self.assertEqual(policy["spec"]["egress"][0]["ports"],
                             [{"port": 53, "protocol": "UDP"}, {"port": 8080, "protocol": "TCP"}])
            mirror.delete()
            mirror.wait_for_end()


class Filter(Case):
    def test_a_wrong_one_is_told_and_goes_no_further(self):
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        with Operator(server):
            mirror.apply()
            mirror.patch({"replicate": {"filter": "src net 10.1.0.0/16 and port http"}})
            mirror.wait_for("Ready", "False", "InvalidSpec")
            self.assertIn('spec.replicate.filter has "http": ', str(mirror.status()))
            mirror.patch({"replicate": {"filter": "src net"}})
            told = "spec.replicate.filter is no pcap filter: can't parse filter expression"
            wait_until(lambda: told in str(mirror.status()), told, 30)
            events = [event["message"] for event in server.client.list("v1/events", "shop")
                      if event["reason"] == "InvalidSpec"]
            self.assertTrue(any("spec.replicate.filter" in message for message in events), events)

            right = "src net 10.1.0.0/16"
            mirror.patch({"replicate": {"filter": right}})
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            name = intercepts_of(server)[0]["metadata"]["name"]
            config = server.client.get("v1/configmaps", name, "shop-shadow")
            self.assertEqual(yaml.safe_load(config["data"]["intercept.yaml"])["filter"], right)
            mirror.delete()
            mirror.wait_for_end()


class Replay(Case):
    def job(self):
        found = server.client.list(JOBS, "shop")
        return found[0] if found else None

    def apply(self):
        """The sample, by the name that all mirrors have here."""
        with open(f"{MANIFESTS}/samples/replay.yaml") as file:
            sample = file.read()
        server.kubectl("apply", "-f", "-", input=sample.replace("checkout-replay", "checkout-v2"))

    def replay(self):
        return mirror.status().get("replay", {})

    def test_a_capture_is_replayed_once(self):
        kubelet = self.played()
        self.make_workloads()
        # Nothing of theirs changes any more.
        wait_until(lambda: len(str(server.client.find("v1/endpoints", "checkout-v2", "shop-shadow"))
                               .split("targetRef")) == 3, "the shadow's endpoints", 30)
        wait_until(lambda: all(deployment.get("status", {}).get("availableReplicas")
                               == deployment["spec"]["replicas"]
                               for namespace in ("shop", "shop-shadow")
                               for deployment in
                               server.client.list("apps/v1/deployments", namespace)),
                   "all their pods", 30)
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        proxy = Proxy(server)
        self.addCleanup(proxy.close)
        with Operator(server, url=proxy.url):
            wait_until(lambda: server.client.find("v1/secrets", "trafficmirror-ca", NAMESPACE),
                       "the CA", 30)
            before = server.client.listing()
            self.apply()
            mirror.wait_for("Ready", "True", "Replaying")
            job = self.job()
            pod = job["spec"]["template"]["spec"]
            self.assertEqual(pod["volumes"][1]["persistentVolumeClaim"],
                             {"claimName": "captures", "readOnly": True})
            self.assertEqual(job["spec"]["backoffLimit"], 0)
            intercept = kubelet.intercepts(job["metadata"]["name"])[0]
            intercept.replay, intercept.exchanges = {"packets": 1200, "percent": 40}, 300
            wait_until(lambda: self.replay().get("percent") == 40, self.replay, 30)
            self.assertEqual(self.replay()["packets"], 1200)
            self.assertEqual(self.replay()["phase"], "Running")
            wait_until(lambda: mirror.status()["exchanges"] == 300, "what was counted", 30)
            kubelet.end_job(job, 0, "/capture/web.pcap: 54.1 s of the capture in 4.8 s\n")
            mirror.wait_for("Mirroring", "False", "Stopped", 60)
            self.assertEqual(mirror.condition("Ready"), ("False", "Replayed"))
            self.assertIn("54.1 s of the capture", self.replay()["report"])
            self.assertEqual(mirror.status()["exchanges"], 300)
            self.assertEqual(intercepts_of(server), [])
            self.assertEqual(self.job()["metadata"]["uid"], job["metadata"]["uid"])
        # Neither for another operator nor where the Job is gone.
        with Operator(server, url=proxy.url, identity="two"):
            server.client.delete(JOBS, job["metadata"]["name"], "shop")
            mirror.patch({"intercept": {"replicas": 2}})
            wait_until(lambda: mirror.status()["observedGeneration"] == 2, "its look", 30)
            self.assertIsNone(self.job())
            self.assertEqual(self.replay()["phase"], "Succeeded")

            mirror.patch({"source": {"capture": {"path": "nowhere.pcap"}}})
            mirror.wait_for("Ready", "True", "Replaying")
            self.assertNotIn("report", self.replay())
            kubelet.end_job(self.job(), 2, "trafficmirror-sidecar: --pcap /capture/nowhere.pcap: "
                                           "No such file or directory\n")
            mirror.wait_for("Ready", "False", "ReplayFailed")
            self.assertIn("nowhere.pcap: No such file or directory", self.replay()["message"])
            mirror.delete()
            mirror.wait_for_end()
            wait_until(lambda: not differences(before, server.client.listing()),
                       lambda: f"nothing is left: {differences(before, server.client.listing())}", 30)
        refused = [request for request in proxy.requests() if request.status in (401, 403)]
        self.assertEqual(refused, [], "the manifests' rights are not enough")

    def test_what_the_schema_forbids_of_it_is_refused(self):
        with open(f"{MANIFESTS}/samples/replay.yaml") as file:
            sample = file.read()
        given = "capture: {claimName: captures, path: web.pcap, speed: 2x}"
        self.assertIn(given, sample)
        for source, word in (
                ("capture: {claimName: captures}", "path"),
                ("capture: {path: web.pcap}", "claimName"),
                ("capture: {claimName: a/b, path: web.pcap}", "claimName"),
                ("capture: {claimName: captures, path: /web.pcap}", "path"),
                ("capture: {claimName: captures, path: a/../../b}", "path"),
                ("capture: {claimName: captures, path: web.pcap, speed: fast}", "speed"),
                ("capture: {claimName: captures, path: web.pcap, loop: 0}", "loop"),
                ("capture: {claimName: captures, path: web.pcap, from: noon}", "from"),
                (given + "\n    selector: {}", "source")):
            ended = server.kubectl("apply", "-f", "-", input=sample.replace(given, source),
                                   check=False)
            self.assertNotEqual(ended.returncode, 0, source)
            self.assertIn(word, ended.stderr)


class Check(Case):
    def check(self):
        ended = subprocess.run(
            [kubetest.program("trafficmirror-operator"), "--check=5s"], capture_output=True,
            text=True, env={"KUBECONFIG": server.kubeconfig(
                "check", server.token(NAMESPACE, ACCOUNT), namespace=NAMESPACE)})
        self.assertEqual(ended.stderr, "")
        return ended.returncode, ended.stdout

    def test_passes_only_where_an_operator_leads_and_each_mirror_is_ready(self):
        mirror.apply()
        code, found = self.check()
        self.assertEqual(code, 1)
        self.assertIn("no operator leads", found)
        self.assertIn("shop/checkout-v2: the operator has not looked at it", found)
        with Operator(server):
            mirror.wait_for("Ready", "False", "NotGranted")
            code, found = self.check()
            self.assertEqual(code, 1)
            self.assertIn("shop/checkout-v2: NotGranted: ", found)
            self.assertNotIn("no operator", found)
            mirror.patch({"paused": True})
            mirror.wait_for("Mirroring", "False", "Stopped")
            self.assertEqual(self.check(), (0, "the operator leads; TrafficMirrors: 1, each of "
                                               "them Ready or stopped as wanted\n"))
            mirror.delete()
            mirror.wait_for_end()


class WatchedNamespaces(Case):
    def test_what_is_elsewhere_is_not_touched(self):
        other = server.client.create({
            "apiVersion": "trafficmirror.dev/v1alpha1", "kind": "TrafficMirror",
            "metadata": {"name": "elsewhere", "namespace": "shop-shadow"},
            "spec": {"source": {"selector": {"matchLabels": {"app": "a"}}, "ports": [80]},
                     "shadow": {"namespace": "shop", "service": {"name": "a"}}}})
        self.addCleanup(server.client.delete, MIRRORS, "elsewhere", "shop-shadow")
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        mirror.apply()
        with Operator(server, "--watch-namespace=shop"):
            wait_until(lambda: "may not look into shop-shadow" in str(mirror.status()),
                       lambda: f"the refusal; the status is {mirror.status()}", 30)
            self.assertEqual(intercepts_of(server), [])
        self.assertEqual(server.client.get(MIRRORS, "elsewhere", "shop-shadow")["metadata"]
                         ["resourceVersion"], other["metadata"]["resourceVersion"])
        with Operator(server, "--watch-namespace=shop", "--watch-namespace=shop-shadow"):
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            mirror.delete()
            mirror.wait_for_end()


class Leader(Case):
    def holder(self):
        lease = server.client.find(LEASES, "trafficmirror-operator", NAMESPACE) or {}
        return lease.get("spec", {}).get("holderIdentity")

    def works(self):
        """Waits until somebody corrects a drift, and returns how long it took."""
        name = intercepts_of(server)[0]["metadata"]["name"]
        begin = time.monotonic()
        server.client.delete("v1/configmaps", name, "shop-shadow")
        wait_until(lambda: server.client.find("v1/configmaps", name, "shop-shadow"),
                   "the ConfigMap again", 30)
        return time.monotonic() - begin

    def test_another_takes_over(self):
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        with Operator(server, identity="one") as one:
            wait_until(lambda: self.holder() == "one", "that one leads", 30)
            with Operator(server, identity="two") as two:
                mirror.apply()
                wait_until(lambda: intercepts_of(server), "the intercept", 30)
                self.assertEqual(self.holder(), "one")
                # Killed: when its lease has run out.
                one.kill()
                self.assertLess(self.works(), 20)
                self.assertEqual(self.holder(), "two")
                with Operator(server, identity="three"):
                    # Ended: at once.
                    two.stop()
                    wait_until(lambda: self.holder() == "three", "that three leads", 10)
                    self.works()
                    mirror.delete()
                    mirror.wait_for_end()


class Certificates(Case):
    def certificate(self, resource="v1/secrets", name=None, namespace="shop-shadow"):
        name = name or intercepts_of(server)[0]["metadata"]["name"]
        data = server.client.get(resource, name, namespace)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def openssl(self, *words, certificate):
        return subprocess.run(["openssl", *words], input=certificate, capture_output=True,
                              text=True, check=True).stdout

    def valid_for(self, certificate):
        end = self.openssl("x509", "-noout", "-enddate", certificate=certificate)
        when = datetime.datetime.strptime(end.strip().removeprefix("notAfter="),
                                          "%b %d %H:%M:%S %Y %Z")
        return (when - datetime.datetime.utcnow()).total_seconds()

    def test_are_replaced_before_they_expire(self):
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        with Operator(server, "--certificate-lifetime", "12s"):
            mirror.apply()
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            deployment = intercepts_of(server)[0]
            seen = [self.certificate()]

            def another():
                now = self.certificate()
                self.assertGreater(self.valid_for(now["tls.crt"]), 0)
                if now != seen[-1]:
                    seen.append(now)
                return len(seen) > 2

            wait_until(another, "a second other certificate", 60, 0.2)
            for secret in seen:
                with open(server.path("rotation-ca.crt"), "w") as file:
                    file.write(secret["ca.crt"])
                told = self.openssl("verify", "-no_check_time", "-CAfile",
                                    server.path("rotation-ca.crt"),
                                    certificate=secret["tls.crt"])
                self.assertIn("OK", told)
            # Intercepts read it where it is mounted, and are not rolled for it.
            self.assertEqual(intercepts_of(server)[0]["metadata"]["generation"],
                             deployment["metadata"]["generation"])
            mirror.delete()
            mirror.wait_for_end()

    def test_a_new_ca_is_trusted_before_it_signs(self):
        mirror.consent()
        self.addCleanup(mirror.withdraw_consent)
        server.client.delete("v1/secrets", "trafficmirror-ca", NAMESPACE)
        with Operator(server, "--ca-lifetime", "30s", "--ca-distribution", "3s",
                      "--certificate-lifetime", "8s"):
            mirror.apply()
            wait_until(lambda: intercepts_of(server), "the intercept", 30)
            first = self.certificate()
            last = {"secret": first}

            def signed_by_another():
                now = self.certificate()
                if now != last["secret"]:
                    # Whoever still has the one before is trusted, and trusts.
                    for ours, theirs in ((now, last["secret"]), (last["secret"], now)):
                        with open(server.path("rotation-ca.crt"), "w") as file:
                            file.write(ours["ca.crt"])
                        told = self.openssl("verify", "-no_check_time", "-CAfile",
                                            server.path("rotation-ca.crt"),
                                            certificate=theirs["tls.crt"])
                        self.assertIn("OK", told)
                    last["secret"] = now
                return self.issuer_key(now) != self.issuer_key(first)

            wait_until(signed_by_another, "a certificate of another CA", 90, 0.2)
            mirror.delete()
            mirror.wait_for_end()
        # The next test's operator is not to begin with a CA that is about to end.
        server.client.delete("v1/secrets", "trafficmirror-ca", NAMESPACE)

    def issuer_key(self, secret):
        told = self.openssl("x509", "-noout", "-ext", "authorityKeyIdentifier",
                            certificate=secret["tls.crt"])
        return told.split("\n")[1].strip()


if __name__ == "__main__":
    kubetest.main()
