"""A real Kubernetes API server with its etcd, on loopback, for as long as a `with` block.

    with ApiServer() as server:
        server.client.create({...})
        server.kubectl("get", "pods")

There are no controllers and no nodes: kubelet.py plays what of them is needed. Both programs end
with this one, however it ends.
"""

import base64
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.append(os.path.join(TOP, "tests", "lab"))

from lab import LabError, Process, make_directory, remove_leftovers, wait_until  # noqa: E402
from rest import ApiError, Client, admin_context, path_of  # noqa: E402

DIRECTORY_PREFIX = "trafficmirror-kube-"
PR_SET_PDEATHSIG = 1
ISSUER = "https://kubernetes.default.svc"

libc = ctypes.CDLL(None)


class NoBinaries(LabError):
    """There is no API server on this machine."""


def find_binaries():
    """The folder of kube-apiserver, etcd and kubectl."""
    command = [os.path.join(TOP, "tools", "kubernetes-binaries"), "--cached"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if found.returncode == 2:
        raise NoBinaries(found.stderr.strip())
    if found.returncode != 0:
        raise LabError(found.stderr.strip())
    return found.stdout.strip()


def end_with_parent():
    """Runs in a child."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class ApiServer:
    def __init__(self, flags=()):
        """`flags` are more of kube-apiserver's."""
        self.binaries = find_binaries()
        self._flags = list(flags)
        self._processes = []

    # --- its life -----------------------------------------------------------------------------

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            raise LabError("the main thread has to start it, since it ends with its thread")
        remove_leftovers(DIRECTORY_PREFIX)
        self.directory, self._lock_fd = make_directory(DIRECTORY_PREFIX)
        self._former = signal.getsignal(signal.SIGTERM)
        if self._former == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            self._make_certificates()
            ports = free_ports(3)
            self.etcd_url, peer_url = (f"http://127.0.0.1:{port}" for port in ports[:2])
            self.port = ports[2]
            self.url = f"https://127.0.0.1:{self.port}"
            self._start_etcd(peer_url)
            self.client = Client(self.url, admin_context(*map(self.path, ADMIN_FILES)))
            self.start()
            self.admin_kubeconfig = self.kubeconfig("admin", certificate="admin")
            self.namespace("default")
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(self, kind, error, trace):
        self._tear_down()
        return False

    def _tear_down(self):
        if hasattr(self, "client"):
            self.client.close()
        for process in reversed(self._processes):
            with contextlib.suppress(LabError):
                process.kill()
        os.close(self._lock_fd)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._former == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def run(self, command, name, environment=None):
        """Starts it, with its output in a file, beside others."""
        log = self.path(f"{name}.log")
        with open(log, "ab") as file:
            popen = subprocess.Popen(
                command,
                cwd=self.directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process alone
                preexec_fn=end_with_parent,
            )
        process = Process(name, popen, log)
        self._processes = [other for other in self._processes if other.running()] + [process]
        return process

    def _start_etcd(self, peer_url):
        flags = {
            "name": "test",
            "data-dir": self.path("etcd"),
            "listen-client-urls": self.etcd_url,
            "advertise-client-urls": self.etcd_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"test={peer_url}",
        }
        command = [os.path.join(self.binaries, "etcd"), "--unsafe-no-fsync"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        # It is not tried on all processors, and says so.
        self.etcd = self.run(command, "etcd", {"ETCD_UNSUPPORTED_ARCH": os.uname().machine
                                               if os.uname().machine != "x86_64" else ""})

    def start(self):
        """Starts kube-apiserver, and waits until it is ready. Only after stop()."""
        flags = {
            "etcd-servers": self.etcd_url,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": self.port,
            # It would want an address that is not loopback's.
            "endpoint-reconciler-type": "none",
            "tls-cert-file": self.path("server.crt"),
            "tls-private-key-file": self.path("server.key"),
            "client-ca-file": self.path("ca.crt"),
            "service-account-issuer": ISSUER,
            "service-account-key-file": self.path("accounts.pub"),
            "service-account-signing-key-file": self.path("accounts.key"),
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "RBAC",
            "allow-privileged": "true",
        }
        command = [os.path.join(self.binaries, "kube-apiserver")]
        command += [f"--{name}={value}" for name, value in flags.items()] + self._flags
        self.apiserver = self.run(command, "kube-apiserver")
        wait_until(self._ready_or_over, self._last_words, 90, 0.1)
        if not self.apiserver.running():
            raise LabError(self._last_words())

    def stop(self):
        """Ends kube-apiserver at once; etcd stays."""
        self.apiserver.kill()

    def _ready_or_over(self):
        if not self.apiserver.running() or not self.etcd.running():
            return True
        with contextlib.suppress(OSError):
            return self.client.raw("GET", "/readyz")[0] == 200
        return False

    def _last_words(self):
        failed = self.apiserver if self.etcd.running() else self.etcd
        lines = failed.output().strip().splitlines()
        return f"{failed.name} is not ready" + (f": {lines[-1]}" if lines else "")

    # --- who may ask --------------------------------------------------------------------------

    def _make_certificates(self):
        self._openssl("req", "-x509", *NEW_KEY, "-days", "2", "-subj", "/CN=test authority",
                      "-keyout", "ca.key", "-out", "ca.crt")
        names = "DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1"
        self.certificate("server", "/CN=kube-apiserver", names)
        self.certificate("admin", "/O=system:masters/CN=admin")
        self._openssl("genrsa", "-out", "accounts.key", "2048")
        self._openssl("rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub")

    def certificate(self, name, subject, alternative_names=""):
        """NAME.crt and NAME.key in the directory, of the server's authority."""
        lines = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature",
                 "extendedKeyUsage=clientAuth,serverAuth"]
        if alternative_names:
            lines.append(f"subjectAltName={alternative_names}")
        with open(self.path(f"{name}.ext"), "w") as file:
            file.write("\n".join(lines) + "\n")
        self._openssl("req", *NEW_KEY, "-subj", subject, "-keyout", f"{name}.key",
                      "-out", f"{name}.csr")
        self._openssl("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.crt",
                      "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext",
                      "-out", f"{name}.crt")

    def _openssl(self, *words):
        command = ["openssl", *words]
        try:
            ended = subprocess.run(command, cwd=self.directory, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError:
            raise LabError("openssl is missing") from None
        if ended.returncode != 0:
            raise LabError(f"{' '.join(command)}: {ended.stderr.strip()}")

    def token(self, namespace, account, seconds=3600):
        """A token of that ServiceAccount."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                   "spec": {"expirationSeconds": seconds}}
        path = path_of("v1/serviceaccounts", account, namespace, "token")
        return self.client.call("POST", path, request)["status"]["token"]

    def kubeconfig(self, name, token=None, token_file=None, certificate=None, url=None,
                   namespace="default"):
        """Writes a kubeconfig for this server, or one in front of it at `url`; returns its path."""
        cluster = {"server": url or self.url}
        if cluster["server"].startswith("https:"):
            cluster["certificate-authority-data"] = self._encoded("ca.crt")
        user = {}
        if certificate:
            user["client-certificate-data"] = self._encoded(f"{certificate}.crt")
            user["client-key-data"] = self._encoded(f"{certificate}.key")
        if token:
            user["token"] = token
        if token_file:
            user["tokenFile"] = token_file
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": context}],
            "current-context": "test",
        }
        path = self.path(f"{name}.kubeconfig")
        with open(path, "w") as file:
            json.dump(config, file)  # JSON is YAML, too
        return path

    def _encoded(self, name):
        with open(self.path(name), "rb") as file:
            return base64.b64encode(file.read()).decode()

    # --- use ----------------------------------------------------------------------------------

    def kubectl(self, *words, input=None, check=True):
        """Its output as the administrator, or the CompletedProcess where `check` is false."""
        command = [os.path.join(self.binaries, "kubectl"), *words]
        ended = subprocess.run(
            command,
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "KUBECONFIG": self.admin_kubeconfig, "HOME": self.directory},
        )
        if not check:
            return ended
        if ended.returncode != 0:
            raise LabError(f"kubectl {' '.join(words)}: {ended.stderr.strip()}")
        return ended.stdout

    def version(self):
        """(1, 20)"""
        answer = self.client.call("GET", "/version")
        return int(answer["major"]), int(answer["minor"].rstrip("+"))

    def namespace(self, name, labels=None):
        """Makes it where it is not there yet, with its ServiceAccount "default", as a cluster's
        controllers would. No pod gets a token, for which a controller would be needed, too."""
        with contextlib.suppress(ApiError):
            self.client.create({"apiVersion": "v1", "kind": "Namespace",
                                "metadata": {"name": name, "labels": labels or {}}})
        self.client.apply({"apiVersion": "v1", "kind": "ServiceAccount",
                           "metadata": {"name": "default", "namespace": name},
                           "automountServiceAccountToken": False})
        return name

    def delete_namespace(self, name, seconds=60):
        """As a cluster's controllers do it: deletes what is in it, and waits until finalizers let
        go of that."""
        self.client.delete("v1/namespaces", name)
        resources = []
        for resource in [*self.client.listable_resources(), "v1/events"]:
            group_version, plural = resource.rsplit("/", 1)
            for entry in self.client.resources_of(group_version):
                if entry["name"] == plural and entry["namespaced"] and "delete" in entry["verbs"]:
                    resources.append(resource)

        def is_empty():
            left = [(resource, thing["metadata"]["name"])
                    for resource in resources for thing in self.client.list(resource, name)]
            for resource, thing in left:
                self.client.delete(resource, thing, name, grace=0)
            return not left

        wait_until(is_empty, f"the namespace {name} is not empty", seconds, 0.2)
        thing = self.client.get("v1/namespaces", name)
        thing["spec"]["finalizers"] = []
        self.client.update(thing, "finalize")

    def forget(self, resource, name, namespace):
        """Deletes an object of a core resource ("configmaps") behind the server's back."""
        key = f"/registry/{resource}/{namespace}/{name}".encode()
        request = {"key": base64.b64encode(key).decode()}
        answer = Client(self.etcd_url).call("POST", "/v3/kv/deleterange", request)
        if answer.get("deleted") != "1":
            raise LabError(f"etcd has no {key.decode()}")


NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
ADMIN_FILES = ("ca.crt", "admin.crt", "admin.key")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
