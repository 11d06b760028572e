"""A real Kubernetes with two nodes on this machine, in namespaces of its own, for as long as a `with`
block: control plane, kubelets, containerd, kube-proxy and a pod network (kube/up.sh).

    with Cluster(binaries) as cluster:
        cluster.add_image("app", folder, "/usr/bin/app")
        cluster.kubectl("get", "nodes")

Binaries are a folder of Kubernetes' programs; the rest is Debian's.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path += [os.path.join(TOP, "tests", "kube"), os.path.join(TOP, "tests", "lab")]

from lab import LabError  # noqa: E402

NODES = 2
PROGRAMS = ("kube-apiserver", "etcd", "kubectl", "kube-controller-manager", "kube-scheduler",
            "kubelet", "kube-proxy")
TOOLS = ("containerd", "ctr", "containerd-shim-runc-v2", "runc", "conntrack", "jq", "openssl", "cc")


def what_is_missing(binaries):
    """Why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "nodes need root"
    lacks = [name for name in PROGRAMS if not os.access(os.path.join(binaries, name), os.X_OK)]
    if lacks:
        return f"{binaries} lacks {' '.join(lacks)}"
    lacks = [name for name in TOOLS if not shutil.which(name)]
    if lacks:
        return f"this machine lacks {' '.join(lacks)}"
    if not os.path.exists("/usr/lib/cni/bridge"):
        return "this machine lacks containernetworking-plugins"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "/sys/fs/cgroup can't be written"
    return ""


def in_namespaces_of_its_own():
    """Starts this program anew where its network is nobody else's, and where all that it starts ends
    with it. Returns there alone."""
    if os.environ.get("TRAFFICMIRROR_CLUSTER") == "inside":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    os.environ["TRAFFICMIRROR_CLUSTER"] = "inside"
    os.execvp("unshare", ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child",
                          sys.executable, "-B", *sys.argv])


class Cluster:
    def __init__(self, binaries):
        self.binaries = binaries

    def __enter__(self):
        try:
            return self._start()
        except LabError as error:
            # Kubernetes' own start is not what is tested here.
            print(f"  the nodes are started once more: {error}", flush=True)
            return self._start()

    def _start(self):
        self.directory = tempfile.mkdtemp(prefix="trafficmirror-cluster-")
        self._environment = {**os.environ, "KUBE_BIN": self.binaries, "KUBE_NODE": str(NODES),
                             "KUBE_DIR": self.directory, "HOME": self.directory}
        try:
            self._script("up.sh")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._environment["KUBECONFIG"] = os.path.join(self.directory, "conf/admin.kubeconfig")
        return self

    def __exit__(self, kind, error, trace):
        self._script("down.sh")
        shutil.rmtree(self.directory, ignore_errors=True)
        return False

    def _script(self, name, *words):
        log = os.path.join(self.directory, f"{name}.log")
        # To a file, since what it starts keeps its output open.
        with open(log, "w") as file:
            ended = subprocess.run([os.path.join(HERE, "kube", name), *words], stdout=file,
                                   stderr=subprocess.STDOUT, env=self._environment)
        if ended.returncode != 0:
            with open(log) as file:
                raise LabError(f"{name}: {file.read().strip()}")

    def power(self, node, state):
        """"off" ends all of that node at once; "on" starts it again."""
        self._script("node-power.sh", state, str(node))

    def add_image(self, name, root, *entrypoint):
        """localhost/NAME:test on every node, of a folder."""
        archive = os.path.join(self.directory, f"{name}.tar")
        self._script("image.sh", archive, f"localhost/{name}:test", root, *entrypoint)
        for node in range(1, NODES + 1):
            self.on_node(node, "ctr", "-n", "k8s.io", "images", "import", archive)

    def on_node(self, node, *command):
        with open(os.path.join(self.directory, f"run/holder{node}.pid")) as file:
            holder = file.read().strip()
        inside = ["nsenter", "-t", holder, "-p", "-n", "-m", "-u", "-i", "--", *command]
        ended = subprocess.run(inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode != 0:
            raise LabError(f"{' '.join(command)}: {ended.stdout.strip()}")
        return ended.stdout

    def run(self, program, *words, input=None, check=True):
        """What it prints, as a user of the cluster who may do everything."""
        ended = subprocess.run([program, *words], input=input, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, timeout=240,
                               env=self._environment)
        if check and ended.returncode != 0:
            raise LabError(f"{os.path.basename(program)} {' '.join(words)}: "
                           f"{(ended.stdout + ended.stderr).strip()}")
        return ended.stdout

    def kubectl(self, *words, input=None):
        return self.run(os.path.join(self.binaries, "kubectl"), *words, input=input)

    def follow(self, *words):
        """A kubectl that runs until it is ended; its output is to be read."""
        return subprocess.Popen([os.path.join(self.binaries, "kubectl"), *words],
                                stdout=subprocess.PIPE, text=True, env=self._environment)

    def get(self, *words):
        """An object, or the items of a list."""
        answer = json.loads(self.kubectl("get", *words, "-o", "json"))
        return answer["items"] if answer["kind"] == "List" else answer

    @contextlib.contextmanager
    def last_words(self):
        """Of a block that fails it shows what the pods' state is and what they say."""
        try:
            yield
        except BaseException:
            def say(*words):
                with contextlib.suppress(LabError):
                    print(self.kubectl(*words))

            say("get", "pods", "-A", "-o", "wide")
            say("get", "tm", "-A")
            for pod in self.get("pods", "-A"):
                name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
                print(f"--- {namespace}/{name}, its events and what it says")
                say("get", "events", "-n", namespace, f"--field-selector=involvedObject.name={name}")
                say("logs", "-n", namespace, name, "--all-containers", "--tail=20")
            raise

    def names(self):
        """All objects that there are, but for what comes and goes by itself."""
        passing = {"events", "events.events.k8s.io", "componentstatuses", "leases.coordination.k8s.io"}
        resources = self.kubectl("api-resources", "--verbs=list", "-o", "name").split()
        wanted = ",".join(sorted(set(resources) - passing))
        return set(self.kubectl("get", wanted, "-A", "-o", "jsonpath={range .items[*]}{.kind} "
                                "{.metadata.namespace}/{.metadata.name}{'\\n'}{end}").splitlines())
