"""The whole of it on real pods: production on one node, its shadow on another, the operator by its
chart, load through a Service; and whatever happens, production answers each request, mirroring
resumes, and the counters account for every request that was not mirrored."""

import collections
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest

import yaml

from cluster import TOP, Cluster, in_namespaces_of_its_own, what_is_missing

import kubetest
from apiserver import NoBinaries, find_binaries
from lab import LabError, parse_metrics, wait_until
from labtest import COMPLETE

CHART = os.path.join(TOP, "deploy/helm/trafficmirror")
SAMPLE = os.path.join(TOP, "deploy/manifests/samples/trafficmirror.yaml")
REPLAY = os.path.join(TOP, "deploy/manifests/samples/replay.yaml")
# Of each program's image, unpacked; and what it may do (capabilities(7)).
MOST_MEGABYTES = {"sidecar": 40, "intercept": 60, "operator": 60}
NET_ADMIN, NET_RAW = 1 << 12, 1 << 13
CAPABILITIES = {"sidecar": NET_RAW, "intercept": NET_ADMIN | NET_RAW, "operator": 0, "replay": 0}
# Of both servers, over the lives of all their pods.
LOG = "/var/log/served"
NGINX = f"""
daemon off;
pid /run/nginx.pid;
user root;
error_log stderr;
events {{}}
http {{
  log_format id "$hostname $remote_addr:$remote_port $request_uri";
  access_log {LOG}/requests.log id;
  server {{ listen 8080; location / {{ return 200 "$request_uri\\n"; }} }}
}}
"""


def say(text):
    """Also beside the programs, as ctest shows what a test prints only where it fails."""
    print(text, flush=True)
    with open(os.path.join(os.environ["TRAFFICMIRROR_BIN"], "../cluster.txt"), "a") as file:
        file.write(text + "\n")


def pack(program, folder):
    subprocess.run([os.path.join(TOP, "tools/root-filesystem"), program, folder], check=True)
    return folder


def deployment(name, namespace, node, logs, labels=None):
    """nginx on that node. It is told to end when nobody sends it new connections any more."""
    container = {
        "name": "app", "image": "localhost/app:test", "imagePullPolicy": "Never",
        "ports": [{"containerPort": 8080}],
        # By lo, where nothing is mirrored: each connection that is belongs to the load.
        "readinessProbe": {"periodSeconds": 1, "exec": {"command": [
            "/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/ready"]}},
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/busybox", "sleep", "4"]}}},
        "volumeMounts": [{"name": "log", "mountPath": LOG}],
    }
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": {"app": name, **(labels or {})}},
                "spec": {"terminationGracePeriodSeconds": 20, "containers": [container],
                         "volumes": [{"name": "log", "hostPath": {"path": logs}}],
                         "nodeSelector": {"kubernetes.io/hostname": node}},
            },
        },
    }


def name_server(name, namespace, node, logs, labels=None):
    """dnsmasq on that node, which has the same answer to each question, and logs the questions."""
    made = deployment(name, namespace, node, logs, labels)
    container = made["spec"]["template"]["spec"]["containers"][0]
    container["image"] = "localhost/name-server:test"
    container["ports"] = [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}]
    del container["readinessProbe"], container["lifecycle"]
    return made


def ask(address, name):
    """Whether a name server answers."""
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + question + b"\0\1\0\1", (address, 53))
        return asking.recv(512)[:2] == b"\x12\x34"


def service(name, namespace):
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"app": name}, "ports": [{"port": 8080}]}}


class Load:
    """Fifty requests a second, each on a connection of its own, to production's Service."""

    def __init__(self, address):
        self._address = address
        self._ended = False
        self._goes_on = threading.Event()
        self._rests = threading.Event()
        self.sent = 0
        self.failures = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.go_on()

    def _run(self):
        while True:
            if not self._goes_on.wait(0):
                self._rests.set()
                self._goes_on.wait()
            if self._ended:
                return
            self.sent += 1
            self._request(f"/request-{self.sent}")
            time.sleep(0.02)

    def _request(self, path):
        connection = http.client.HTTPConnection(self._address, 8080, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.read().decode() != path + "\n":
                raise OSError(f"status {answer.status}")
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{path}: {error!r}")
        connection.close()

    def go_on(self):
        self._rests.clear()
        self._goes_on.set()

    def rest(self):
        """Returns when the last request is answered."""
        self._goes_on.clear()
        self._rests.wait()

    def wait_for(self, count):
        goal = self.sent + count
        wait_until(lambda: self.sent >= goal, f"{count} more requests", count / 50 + 30)

    def end(self):
        self._ended = True
        self._goes_on.set()
        self._thread.join()


# What counters say: connections that began, of these those that were not mirrored whole, and those
# that are open.
Counted = collections.namedtuple("Counted", "connections unmirrored open")


def counted_by(opened, closed, shed, is_open):
    return Counted(opened + sum(shed.values()),
                   sum(n for why, n in closed.items() if why not in COMPLETE) + sum(shed.values()),
                   is_open)


class ClusterTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.started = time.monotonic()
        cls.cluster = cls.enterClassContext(Cluster(binaries))
        cls.step("two nodes are ready")
        cls.add_images()
        cls.step("the images are on both nodes")
        with cls.cluster.last_words():
            cls.install()
        cls.step("the chart is installed, and the operator available")
        cls.make_workloads()
        cls.step("production and shadow are available")

    @classmethod
    def step(cls, what):
        now = time.monotonic()
        say(f"  {now - cls.started:6.1f} s  {what}")
        cls.started = now

    @classmethod
    def add_images(cls):
        folder = os.path.join(cls.cluster.directory, "roots")
        cls.images = {}
        for program in MOST_MEGABYTES:
            name = f"trafficmirror-{program}"
            root = pack(kubetest.program(name), os.path.join(folder, name))
            cls.images[program] = root
            cls.cluster.add_image(name, root, f"/usr/bin/{name}")
        root = pack(shutil.which("nginx", path="/usr/sbin"), os.path.join(folder, "app"))
        for name in ("run", "tmp", "bin", "var/log/nginx", "var/lib/nginx", "etc/nginx"):
            os.makedirs(os.path.join(root, name), exist_ok=True)
        shutil.copy("/bin/busybox", os.path.join(root, "bin"))
        with open(os.path.join(root, "etc/group"), "w") as file:
            file.write("root:x:0:\n")
        with open(os.path.join(root, "etc/nginx/nginx.conf"), "w") as file:
            file.write(NGINX)
        cls.cluster.add_image("app", root, "/usr/bin/nginx", "-c", "/etc/nginx/nginx.conf")
        root = pack("/usr/sbin/dnsmasq", os.path.join(folder, "name-server"))
        for name in ("run", "etc"):
            os.makedirs(os.path.join(root, name), exist_ok=True)
        with open(os.path.join(root, "etc/group"), "w") as file:
            file.write("root:x:0:\n")
        cls.cluster.add_image(
            "name-server", root, "/usr/bin/dnsmasq", "--keep-in-foreground", "--user=root",
            "--group=root", "--no-hosts", "--no-resolv", "--address=/example/10.9.9.9",
            "--log-queries", f"--log-facility={LOG}/questions.log", "--pid-file=/run/dnsmasq.pid")

    @classmethod
    def install(cls):
        cls.cluster.run(helm, "install", "trafficmirror", CHART, "-n", "trafficmirror",
                        "--create-namespace", "--wait", "--timeout=120s",
                        "--set=images.registry=localhost,images.tag=test,images.pullPolicy=Never")

    @classmethod
    def make_workloads(cls):
        inject = {"trafficmirror.dev/inject": "enabled"}
        cls.logs = {}
        for name in ("checkout", "checkout-v2"):
            cls.logs[name] = os.path.join(cls.cluster.directory, f"log-{name}")
            os.mkdir(cls.logs[name])
        for thing in (
                {"apiVersion": "v1", "kind": "Namespace",
                 "metadata": {"name": "shop", "labels": inject}},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop-shadow"}},
                deployment("checkout", "shop", "node1", cls.logs["checkout"], inject),
                service("checkout", "shop"),
                deployment("checkout-v2", "shop-shadow", "node2", cls.logs["checkout-v2"]),
                service("checkout-v2", "shop-shadow")):
            cls.cluster.kubectl("apply", "-f", "-", input=json.dumps(thing))
        cls.wait_for_rollout("shop", "checkout")
        cls.wait_for_rollout("shop-shadow", "checkout-v2")

    @classmethod
    def wait_for_rollout(cls, namespace, name):
        """That of the latest version, with nothing left of those before."""
        cls.cluster.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}",
                            "--timeout=120s")

        def pods():
            return [pod["metadata"]["name"]
                    for pod in cls.cluster.get("pods", "-n", namespace, "-l", f"app={name}")]

        wanted = cls.cluster.get("deployment", "-n", namespace, name)["spec"]["replicas"]
        wait_until(lambda: len(pods()) == wanted, lambda: f"{wanted} pods: {pods()}", 120, 0.5)

    # --- what is seen -------------------------------------------------------------------------

    def ready(self, mirror="checkout-v2"):
        """(status, reason) of the mirror's condition, and what it says."""
        conditions = self.cluster.get("tm", "-n", "shop", mirror).get("status", {}).get(
            "conditions", [])
        for condition in conditions:
            if condition["type"] == "Ready":
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""

    def wait_until_it_mirrors(self):
        wait_until(lambda: self.ready()[0] == "True", lambda: f"Ready: it is {self.ready()}", 120,
                   0.5)

    def served(self, name):
        """Each request that a server has served, as often as it did."""
        path = os.path.join(self.logs[name], "requests.log")
        if not os.path.exists(path):
            return []
        with open(path) as file:
            return re.findall(r" (/request-\d+)\n", file.read())

    def clients(self, name):
        """By request, the address and port that a server saw it come from."""
        with open(os.path.join(self.logs[name], "requests.log")) as file:
            return {path: client for client, path in re.findall(r" (\S+) (/request-\d+)\n", file.read())}

    def pod(self, namespace, selector):
        pods = self.cluster.get("pods", "-n", namespace, "-l", selector)
        self.assertEqual(len(pods), 1)
        return pods[0]

    def counted_by_sidecar(self):
        """That of production's one pod."""
        name = self.pod("shop", "app=checkout")["metadata"]["name"]
        found = parse_metrics(self.cluster.kubectl(
            "exec", "-n", "shop", name, "-c", "app", "--",
            "/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:19464/metrics"))
        return counted_by(found.total("trafficmirror_sessions_opened_total"),
                          found.by("trafficmirror_sessions_closed_total", "reason"),
                          found.by("trafficmirror_shed_total", "reason"),
                          found.total("trafficmirror_sessions_active"))

    def counted_by_intercept(self):
        """What all sidecars told the one that there is, those that are gone too."""
        pod = self.pod("shop-shadow", "app.kubernetes.io/component=intercept")
        connection = http.client.HTTPConnection(pod["status"]["podIP"], 9464, timeout=5)
        connection.request("GET", "/status")
        totals = json.load(connection.getresponse())["totals"]
        connection.close()
        return counted_by(totals["sessions_opened"], totals["closed"], totals["shed"],
                          totals["sessions"])

    # --- what has to hold ---------------------------------------------------------------------

    def assert_accounts(self, what_happens, counted, unattached=False):
        """Whatever happens meanwhile, the counters that it leaves alive account for each request
        that production served and the shadow did not; and what comes behind it is mirrored.
        `unattached`: pods may serve requests before their sidecar is attached to them."""
        load = self.load
        load.rest()
        before, served_before, _ = self.settled(counted, len(self.served("checkout")), 0)
        load.go_on()
        load.wait_for(50)
        what_happens()
        self.wait_until_it_mirrors()
        resumed = load.sent + 50
        load.wait_for(200)
        load.rest()
        self.assertEqual(load.failures, [], "production failed requests")
        after, served, unseen = self.settled(counted, served_before, before.connections, unattached)

        production = self.served("checkout")
        self.assertEqual(len(set(production)), len(production))
        shadow = collections.Counter(self.served("checkout-v2"))
        missing = [path for path in production[served_before:served] if path not in shadow]
        unmirrored = after.unmirrored - before.unmirrored
        self.assertLessEqual(len(missing), unmirrored + unseen, f"missing: {missing[:10]}")
        self.assertEqual([path for path, times in shadow.items() if times != 1], [])
        self.assertEqual([path for path in missing if int(path.rpartition("-")[2]) > resumed], [],
                         f"it was Ready after request {resumed}, and does not mirror")
        load.go_on()
        text = f"{served - served_before:,} requests, {len(missing)} not mirrored and counted"
        return text + (f", {unseen:g} of them before their pod had a sidecar" if unseen else "")

    def settled(self, counted, served_before, connections_before, unattached=False):
        """What is counted when nothing is under way, how many requests production has served, and
        on how many connections that the counters do not know: none, but where some pods were
        without a sidecar."""

        def agree():
            now, served = counted(), len(self.served("checkout"))
            seen.append((now, served))
            unseen = (served - served_before - (now.connections - connections_before)
                      if connections_before else 0)
            # Sidecars tell the intercept every two seconds.
            at_rest = len(seen) > 6 and seen[-1] == seen[-6]
            if now.open == 0 and (unseen == 0 or (unattached and at_rest and unseen > 0)):
                return now, served, unseen
            return None

        seen = []
        def disagreement():
            twice = [path for path, times in
                     collections.Counter(self.served("checkout-v2")).items() if times != 1]
            return (f"counters that agree: {seen[-1]}, before {connections_before} connections, "
                    f"{served_before} requests; {self.load.sent} were sent, and the shadow had "
                    f"{len(twice)} of them more than once: {twice[:5]}")

        return wait_until(agree, disagreement, 30, 0.5)

    # --- what is installed --------------------------------------------------------------------

    def test_images_hold_a_program_and_what_it_loads(self):
        for program, root in self.images.items():
            files = [os.path.join(folder, name) for folder, _, names in os.walk(root)
                     for name in names]
            executable = [os.path.relpath(path, root) for path in files
                          if os.access(path, os.X_OK) and ".so" not in os.path.basename(path)]
            self.assertEqual(executable, [f"usr/bin/trafficmirror-{program}"])
            size = sum(os.path.getsize(path) for path in files) / 1e6
            say(f"  {program}: {size:.1f} MB unpacked")
            self.assertLessEqual(size, MOST_MEGABYTES[program])

    def test_a_name_server_is_mirrored(self):
        """By a TrafficMirror with ports of UDP, a filter, and logins out of a Secret."""
        with self.cluster.last_words():
            self.mirror_a_name_server()

    def mirror_a_name_server(self):
        cluster, logs = self.cluster, {}
        workloads = []
        for name, namespace, node in (("name-server", "shop", "node1"),
                                      ("name-server-v2", "shop-shadow", "node2")):
            logs[name] = os.path.join(cluster.directory, f"log-{name}")
            os.mkdir(logs[name])
            labels = {"trafficmirror.dev/inject": "enabled"} if namespace == "shop" else None
            workloads.append(name_server(name, namespace, node, logs[name], labels))
        workloads.append(service("name-server-v2", "shop-shadow"))
        workloads[-1]["spec"]["ports"] = [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]
        with open(os.path.join(os.path.dirname(SAMPLE), "name-server.yaml")) as file:
            mirror = yaml.safe_load(file)
        mirror["spec"]["replicate"]["filter"] = "src net 10.0.0.0/8 or src net 172.16.0.0/12"
        mirror["spec"]["shadow"]["logins"] = {
            "ports": [{"port": 53, "protocol": "MySQL"}], "secretName": "logins"}
        cluster.kubectl("annotate", "namespace", "shop-shadow",
                        "trafficmirror.dev/accept-from=shop")
        for thing in (mirror, *workloads[1:]):
            cluster.kubectl("apply", "-f", "-", input=json.dumps(thing))
        wait_until(lambda: "NoPods" in str(self.mirrors_status()),
                   lambda: f"nothing more is missing: {self.mirrors_status()}", 90, 0.5)
        cluster.kubectl("apply", "-f", "-", input=json.dumps(workloads[0]))
        self.wait_for_rollout("shop", "name-server")
        self.wait_for_rollout("shop-shadow", "name-server-v2")
        pod = self.pod("shop", "app=name-server")

        # The sidecar waits for the Secret; production does not.
        def says():
            return cluster.run(os.path.join(cluster.binaries, "kubectl"), "logs", "-n", "shop",
                               pod["metadata"]["name"], "--all-containers", check=False)

        if len(pod["spec"]["containers"]) > 1:  # an ephemeral one does not even start
            wait_until(lambda: "credentials.yaml can't be read" in says(), says, 30, 0.5)
        self.assertTrue(ask(pod["status"]["podIP"], "before.example"))
        cluster.kubectl("create", "secret", "generic", "logins", "-n", "shop",
                        "--from-literal=credentials.yaml=mysql: {app: secret-of-the-shadow}")
        wait_until(lambda: "Streaming" in str(self.mirrors_status()),
                   lambda: f"a stream: {self.mirrors_status()}\n{says()}", 240, 1)
        self.assertNotIn("secret-of-the-shadow", says() + str(self.mirrors_status()))

        def asked(name):
            with open(os.path.join(logs[name], "questions.log")) as file:
                return re.findall(r"query\[A\] (\S+\.example)", file.read())

        names = [f"name-{number}.example" for number in range(50)]
        for name in names:
            self.assertTrue(ask(pod["status"]["podIP"], name))
        wait_until(lambda: asked("name-server-v2") == names,
                   lambda: f"the questions: {asked('name-server-v2')}", 30, 0.5)
        self.step(f"a name server is mirrored: its shadow was asked {len(names)} questions")

        cluster.kubectl("delete", "tm", "-n", "shop", "name-server-v2", "--timeout=90s")
        cluster.kubectl("annotate", "namespace", "shop-shadow", "trafficmirror.dev/accept-from-")
        cluster.kubectl("delete", "secret", "-n", "shop", "logins")
        for thing in workloads:
            cluster.kubectl("delete", "-n", thing["metadata"]["namespace"], thing["kind"],
                            thing["metadata"]["name"], "--wait=false")

    def mirrors_status(self):
        """That of the name server's."""
        return self.cluster.get("tm", "-n", "shop", "name-server-v2").get("status", {})

    def assert_rights(self, programs=MOST_MEGABYTES):
        """Of each program, as the kernel has it: its capabilities, and its root file system."""
        found = set()
        for folder in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{folder}/cmdline") as file:
                    command = file.read()
                match = re.match(r"/usr/bin/trafficmirror-(\w+)\0", command)
                if not match:
                    continue
                with open(f"/proc/{folder}/status") as file:
                    status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
                with open(f"/proc/{folder}/mountinfo") as file:
                    root = next(line.split()[5] for line in file if line.split()[4] == "/")
            except (FileNotFoundError, ProcessLookupError):
                continue
            program = "replay" if "\0--pcap\0" in command else match[1]
            found.add(program)
            for kind in ("CapPrm", "CapEff", "CapBnd"):
                self.assertEqual(int(status[kind], 16), CAPABILITIES[program], (program, kind))
            self.assertEqual(status["NoNewPrivs"].strip(), "1", program)
            self.assertEqual(status["Seccomp"].strip(), "2", program)
            self.assertIn("ro", root.split(","), program)
        self.assertLessEqual(set(programs), found)

    def test_production_is_mirrored_whatever_happens(self):
        with self.cluster.last_words():
            self.go_through_it()

    def go_through_it(self):
        cluster = self.cluster
        # What it keeps for itself comes first.
        wait_until(lambda: "caBundle" in str(cluster.get("mutatingwebhookconfigurations")),
                   "the webhook's CA", 30)
        before = cluster.names()
        self.helm_test()
        self.step("helm test passes where there are no mirrors")
        address = cluster.get("service", "-n", "shop", "checkout")["spec"]["clusterIP"]
        self.load = Load(address)
        self.addCleanup(self.load.end)

        with self.assertRaisesRegex(LabError, "(?m)^FAIL +consent"):
            cluster.run(plugin, "doctor", "-f", SAMPLE)
        cluster.kubectl("apply", "-f", SAMPLE)
        with self.assertRaisesRegex(LabError, "NotGranted"):
            self.helm_test()
        self.step("helm test fails where the mirror does not work, and says why")
        watch = cluster.follow("get", "tm", "-n", "shop", "-w")
        self.addCleanup(watch.kill)
        cluster.kubectl("annotate", "namespace", "shop-shadow",
                        "trafficmirror.dev/accept-from=shop")
        wait_until(lambda: self.ready()[0] == "True" or self.ready()[1] == "RestartNeeded",
                   lambda: f"Ready: it is {self.ready()}", 90, 0.5)
        attaches = self.ready()[1] != "RestartNeeded"
        if not attaches:
            self.step("the mirror asks for new pods, as this server can't attach to running ones")
            cluster.kubectl("-n", "shop", "rollout", "restart", "deployment/checkout")
            self.wait_for_rollout("shop", "checkout")
        self.wait_until_it_mirrors()
        self.helm_test()
        watch.terminate()
        self.step("the mirror is Ready, and helm test passes; kubectl get tm -w:")
        say(watch.communicate()[0].rstrip())
        say(cluster.run(plugin, "status", "checkout-v2", "-n", "shop").rstrip())
        self.assert_rights()

        self.step("nothing happens: " + self.assert_accounts(lambda: None, self.counted_by_sidecar))
        self.step("production was scaled from 1 to 5 and back: " +
                  self.assert_accounts(self.scale, self.counted_by_intercept, attaches))
        self.step("the operator's pods were deleted: " +
                  self.assert_accounts(self.delete_operator, self.counted_by_sidecar))
        self.step("the intercept's pod was deleted: " +
                  self.assert_accounts(self.delete_intercept, self.counted_by_sidecar))
        self.step("the shadow rolled out a new version: " +
                  self.assert_accounts(self.roll_out_shadow, self.counted_by_sidecar))
        self.step("the node of shadow and intercept was killed and came back: " +
                  self.assert_accounts(self.kill_node, self.counted_by_sidecar))

        preserved_from = self.load.sent
        self.step("the shadow was to see its clients' addresses: " + self.assert_accounts(
            lambda: self.preserve(attaches), self.counted_by_sidecar))
        self.assert_clients_are_true(preserved_from)
        self.assert_rights()

        cluster.kubectl("delete", "tm", "-n", "shop", "checkout-v2", "--timeout=90s")
        wait_until(lambda: not self.loop_of_shadow(), self.loop_of_shadow, 60, 0.5)
        self.step("the mirror is deleted, and the shadow's network as it was")
        self.replay_what_is_recorded()
        self.load.end()
        self.assertEqual(self.load.failures, [])

        def lasting(names):
            # Pods of production are others by now.
            return {name for name in names
                    if not re.match(r"(Pod|ReplicaSet|ControllerRevision|Endpoint\w+|PodMetrics) ",
                                    name)}

        wait_until(lambda: lasting(cluster.names()) == lasting(before),
                   lambda: "nothing is left: " +
                   ", ".join(sorted(lasting(cluster.names()) ^ lasting(before))), 60, 1)
        wait_until(lambda: not cluster.get("pods", "-n", "shop-shadow", "-l",
                                           "app.kubernetes.io/managed-by=trafficmirror"),
                   "the intercept's end", 60, 0.5)
        self.step(f"the mirror is deleted; production answered all of {self.load.sent:,} requests")

        cluster.run(helm, "uninstall", "trafficmirror", "-n", "trafficmirror", "--wait")
        # The CRD is kept, and what the next operator is trusted by; the rest was there before.
        kept = r"(Namespace|CustomResourceDefinition|APIService|Secret|ServiceAccount|ConfigMap) "

        def left():
            return [name for name in cluster.names()
                    if "trafficmirror" in name and not re.match(kept, name)]

        wait_until(lambda: not left(), lambda: f"nothing but that is left: {left()}", 60, 0.5)
        self.assertFalse(cluster.get("serviceaccounts", "-n", "trafficmirror",
                                     "-l", "app.kubernetes.io/part-of=trafficmirror"))
        self.step("the chart is uninstalled")

    # --- a capture in place of pods -----------------------------------------------------------

    def record(self, path):
        """What production's pod is sent for a while; returns the requests."""
        uid = self.pod("shop", "app=checkout")["metadata"]["uid"]

        def is_in_pod(process):
            with contextlib.suppress(OSError), open(f"/proc/{process}/cgroup") as file:
                return uid in file.read()

        process = next(filter(is_in_pod, filter(str.isdigit, os.listdir("/proc"))))
        self.load.rest()
        served = len(self.served("checkout"))
        # Recording needs no stream.
        sidecar = subprocess.Popen(
            ["nsenter", "-t", process, "-n", kubetest.program("trafficmirror-sidecar"),
             "--port=8080", "--interface=eth0", f"--record={path}", "--intercept=127.0.0.1:1",
             "--http=127.0.0.1:19465"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            for line in sidecar.stderr:
                if "copying from eth0" in line:
                    break
            self.load.go_on()
            self.load.wait_for(300)
            self.load.rest()
        finally:
            sidecar.terminate()
            sidecar.communicate(timeout=10)
        return self.served("checkout")[served:]

    def replay_what_is_recorded(self):
        cluster = self.cluster
        folder = os.path.join(cluster.directory, "captures")
        os.mkdir(folder)
        path = os.path.join(folder, "web.pcap")
        requests = self.record(path)
        self.assertGreaterEqual(len(requests), 300)
        size = {"storage": "1Gi"}
        claim = {"storageClassName": "captures", "accessModes": ["ReadOnlyMany"]}
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "captures"},
                  "spec": {**claim, "capacity": size, "hostPath": {"path": folder}}}
        before = len(self.served("checkout-v2"))

        # The claim comes behind the mirror, and the file may be read behind the claim.
        with open(REPLAY) as file:  # slower, to see how far it is
            cluster.kubectl("apply", "-f", "-", input=file.read().replace("2x", "0.3x"))
        self.wait_for_replay("ClaimNotFound")
        for thing in (volume, {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                               "metadata": {"name": "captures", "namespace": "shop"},
                               "spec": {**claim, "volumeName": "captures",
                                        "resources": {"requests": size}}}):
            cluster.kubectl("apply", "-f", "-", input=json.dumps(thing))
        self.wait_for_replay("ReplayFailed")
        self.assertIn("--pcap /capture/web.pcap: Permission denied", self.ready("checkout-replay")[2])
        os.chmod(path, 0o644)
        for paused in (True, False):
            cluster.kubectl("-n", "shop", "patch", "tm", "checkout-replay", "--type=merge", "-p",
                            json.dumps({"spec": {"paused": paused}}))
            self.wait_for_replay("Paused" if paused else "Replaying")
        status = "{.status.replay.percent}"
        wait_until(lambda: cluster.kubectl("-n", "shop", "get", "tm", "checkout-replay", "-o",
                                           f"jsonpath={status}"), "how far it is", 30, 0.5)
        say(cluster.run(plugin, "status", "checkout-replay", "-n", "shop", check=False).rstrip())
        # Sidecars that were injected rest in their pods; ephemeral ones have ended.
        self.assert_rights({"replay", "intercept", "operator"})
        self.wait_for_replay("Replayed")
        wait_until(lambda: not cluster.get("deployments", "-n", "shop-shadow", "-l",
                                           "app.kubernetes.io/managed-by=trafficmirror"),
                   "the intercept's end", 60, 0.5)
        self.assertEqual(sorted(self.served("checkout-v2")[before:]), sorted(requests))
        say(cluster.run(plugin, "status", "checkout-replay", "-n", "shop", check=False).rstrip())
        cluster.kubectl("delete", "tm", "-n", "shop", "checkout-replay", "--timeout=90s")
        cluster.kubectl("delete", "pvc", "-n", "shop", "captures")
        cluster.kubectl("delete", "pv", "captures")
        self.step(f"a capture of production was replayed by a Job: the shadow served the same "
                  f"{len(requests):,} requests")

    def wait_for_replay(self, reason):
        wait_until(lambda: self.ready("checkout-replay")[1] == reason,
                   lambda: f"{reason}: it is {self.ready('checkout-replay')}", 120, 0.5)

    # --- what happens -------------------------------------------------------------------------

    def helm_test(self):
        return self.cluster.run(helm, "test", "trafficmirror", "-n", "trafficmirror", "--logs",
                                "--timeout=120s")

    def scale(self):
        for replicas in (5, 1):
            self.cluster.kubectl("-n", "shop", "scale", f"--replicas={replicas}",
                                 "deployment/checkout")
            self.wait_for_rollout("shop", "checkout")
            self.wait_until_it_mirrors()
            self.load.wait_for(100)

    def delete_operator(self):
        self.cluster.kubectl("-n", "trafficmirror", "delete", "pod", "--all", "--force",
                             "--grace-period=0")
        self.wait_for_operator()

    def wait_for_operator(self):
        self.cluster.kubectl("-n", "trafficmirror", "rollout", "status",
                             "deployment/trafficmirror-operator", "--timeout=120s")

    def delete_intercept(self):
        self.cluster.kubectl("-n", "shop-shadow", "delete", "pod", "-l",
                             "app.kubernetes.io/component=intercept")

    def roll_out_shadow(self):
        self.cluster.kubectl("-n", "shop-shadow", "set", "env", "deployment/checkout-v2",
                             "VERSION=3")
        self.wait_for_rollout("shop-shadow", "checkout-v2")

    def preserve(self, attaches):
        """What a user does for it: the field, and where pods can't be attached to, their labels."""
        if not attaches:
            inject = "trafficmirror.dev/inject"
            self.cluster.kubectl("label", "namespace", "shop-shadow", f"{inject}=enabled")
        self.cluster.kubectl("-n", "shop", "patch", "tm", "checkout-v2", "--type=merge", "-p",
                             json.dumps({"spec": {"clientAddress": "Preserve"}}))
        if not attaches:
            wait_until(lambda: "RestartNeeded" in str(self.ready()) or
                       "PodsNotLabelled" in str(self.ready()),
                       lambda: f"it asks for new pods: {self.ready()}", 60, 0.5)
            self.cluster.kubectl("-n", "shop-shadow", "patch", "deployment", "checkout-v2", "-p",
                                 json.dumps({"spec": {"template": {"metadata": {
                                     "labels": {inject: "enabled"}}}}}))
            self.wait_for_rollout("shop-shadow", "checkout-v2")
        wait_until(lambda: "1 of 1 shadow pods" in str(self.conditions()),
                   lambda: f"an intercept beside the shadow: {self.conditions()}", 120, 0.5)

    def conditions(self):
        return self.cluster.get("tm", "-n", "shop", "checkout-v2")["status"]["conditions"]

    def loop_of_shadow(self):
        """The interfaces and rules of an intercept's in the shadow's pod."""
        pod = self.pod("shop-shadow", "app=checkout-v2")["metadata"]["name"]
        said = [self.cluster.kubectl("exec", "-n", "shop-shadow", pod, "-c", "app", "--",
                                     "/bin/busybox", "ip", *what) for what in (["link"], ["rule"])]
        return re.findall(r"(?m)^.*(?:trafficmirror|7443).*$", "".join(said))

    def assert_clients_are_true(self, since):
        """Of mirrored requests; and other clients are served as ever, themselves too."""
        self.assertTrue(self.loop_of_shadow())
        production, shadow = self.clients("checkout"), self.clients("checkout-v2")
        both = sorted((int(path.rpartition("-")[2]), path) for path in production if path in shadow)
        true = [path for number, path in both if number > since and production[path] == shadow[path]]
        # Those of the first seconds went by way of the Deployment.
        self.assertGreater(len(true), 200)
        self.assertEqual(true[-200:], [path for _, path in both[-200:]])
        address = self.pod("shop-shadow", "app=checkout-v2")["status"]["podIP"]
        connection = http.client.HTTPConnection(address, 8080, timeout=5)
        connection.request("GET", "/ordinary")
        self.assertEqual(connection.getresponse().read(), b"/ordinary\n")
        connection.close()
        self.step(f"the shadow saw the true address and port of {len(true)} requests' clients")

    def kill_node(self):
        self.cluster.kubectl("-n", "shop", "patch", "tm", "checkout-v2", "--type=merge", "-p",
                             json.dumps({"spec": {"intercept": {"nodeSelector": {
                                 "kubernetes.io/hostname": "node2"}}}}))
        wait_until(lambda: [pod["spec"].get("nodeName") for pod in self.cluster.get(
            "pods", "-n", "shop-shadow", "-l", "app.kubernetes.io/component=intercept")] == ["node2"],
            "an intercept on node2", 90, 0.5)
        self.wait_until_it_mirrors()
        sidecar = self.pod("shop", "app=checkout")
        container = next(c["name"] for c in sidecar["spec"]["containers"] +
                         sidecar["spec"].get("initContainers", []) +
                         sidecar["spec"].get("ephemeralContainers", [])
                         if c["name"].startswith("trafficmirror"))
        self.cluster.power(2, "off")
        # For longer than what is captured is kept for it.
        wait_until(lambda: "requests are only counted" in self.cluster.kubectl(
            "-n", "shop", "logs", sidecar["metadata"]["name"], "-c", container, "--since=60s"),
            "the sidecar's rest", 60, 1)
        operators = self.cluster.get("pods", "-n", "trafficmirror", "-l",
                                     "app.kubernetes.io/name=trafficmirror-operator")
        if any(pod["spec"]["nodeName"] == "node1" for pod in operators):
            wait_until(lambda: self.ready()[0] != "True", "the status says so", 60, 0.5)
        self.load.wait_for(50)
        self.cluster.power(2, "on")
        self.wait_for_rollout("shop-shadow", "checkout-v2")
        self.wait_for_operator()


def main():
    global binaries, helm, plugin
    try:
        binaries = os.environ.get("KUBE_BIN") or find_binaries()
    except NoBinaries as error:
        say(f"SKIPPED: {error}")
        sys.exit(kubetest.SKIPPED)
    found = subprocess.run([os.path.join(TOP, "tools/helm-binary"), "--cached"], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    helm = found.stdout.strip()
    missing = what_is_missing(binaries) or ("" if helm else found.stderr.strip())
    if missing:
        say(f"SKIPPED: {missing}")
        sys.exit(kubetest.SKIPPED)
    plugin = kubetest.program("kubectl-trafficmirror")
    in_namespaces_of_its_own()
    try:
        unittest.main(argv=sys.argv[:1], verbosity=2)
    except LabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
