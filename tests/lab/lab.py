"""Hosts out of network namespaces on one machine, and real servers and programs on them.

    with Lab() as lab:
        nginx = lab.nginx(lab.production)
        lab.mirror(80, shadow=...)

Each host is in a subnet of its own behind one router. Nothing here has a name on the machine: a
network namespace lives as long as this process holds it, and every process that the lab starts
lives in a process namespace whose first process ends with this one. So nothing outlives a run,
however it ends; only the files of a run that was killed wait for the next one to remove them.
"""

import collections
import contextlib
import ctypes
import fcntl
import glob
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000

libc = ctypes.CDLL(None, use_errno=True)

DIRECTORY_PREFIX = "trafficmirror-lab-"
KEPT_PREFIX = "trafficmirror-lab.kept-"
HERE = os.path.dirname(os.path.abspath(__file__))

SIDECAR_HTTP = 19464
INTERCEPT_HTTP = 9464
INTERCEPT_GRPC = 7443

# How many a database allows: a shadow that falls behind has more at once than production.
DATABASE_CONNECTIONS = 1000

DELAY_INTERFACE = "delay"


class LabError(Exception):
    """What the lab could not do, in one line."""


def check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise LabError(f"{what}: {os.strerror(error)}")


def setns(fd, kind):
    check(libc.setns(fd, kind), "setns")


def wait_until(condition, what, seconds=10.0, interval=0.02):
    """The first true value of condition(), which is asked until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise LabError(f"{what() if callable(what) else what}: not within {seconds:g} s")
        time.sleep(interval)


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Process:
    """A process of the lab, with its output in a file."""

    def __init__(self, name, popen, log):
        self.name = name
        self.log = log
        self._popen = popen
        self.pid = popen.pid

    def running(self):
        return self._popen.poll() is None

    def output(self):
        with open(self.log, errors="replace") as file:
            return file.read()

    def wait(self, seconds=60.0):
        """The exit code."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} has not ended within {seconds:g} s") from None

    def signal(self, number):
        if self.running():
            self._popen.send_signal(number)

    def stop(self, seconds=15.0):
        """Asks it to end, and returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self):
        self.signal(signal.SIGKILL)
        return self.wait(5)

    def cpu_seconds(self):
        """Time on a processor, of all its threads, as the scheduler counts it."""
        nanoseconds = 0
        for path in glob.glob(f"/proc/{self.pid}/task/*/schedstat"):
            with contextlib.suppress(OSError):
                with open(path) as file:
                    nanoseconds += int(file.read().split()[0])
        return nanoseconds / 1e9

    def peak_memory(self):
        """Bytes."""
        with open(f"/proc/{self.pid}/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) * 1024


class Host:
    """A network namespace with one interface, eth0."""

    def __init__(self, lab, name, number):
        self.lab = lab
        self.name = name
        self.ipv4 = f"10.77.{number}.2"
        self.ipv6 = f"fd77:{number}::2"
        self._number = number
        with lab.network(None):
            check(libc.unshare(CLONE_NEWNET), "unshare")
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def address(self, family=4):
        return self.ipv4 if family == 4 else self.ipv6

    def network(self):
        """Sockets that this thread makes within are this host's."""
        return self.lab.network(self)

    def start(self, command, name, environment=None):
        return self.lab.start(self, command, name, environment)

    def run(self, command, check=True, input=None, seconds=60, environment=None, pass_fds=()):
        """Runs to the end; returns the subprocess.CompletedProcess, with text output."""
        popen = self.lab.spawn(
            self,
            command,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            environment=environment,
            pass_fds=pass_fds,
        )
        try:
            out, err = popen.communicate(input, seconds)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.communicate()
            raise LabError(f"{command[0]} has not ended within {seconds:g} s") from None
        if check and popen.returncode != 0:
            raise LabError(f"{' '.join(command)}: {err.strip() or out.strip()}")
        return subprocess.CompletedProcess(command, popen.returncode, out, err)

    def connect(self, address, port, seconds=5.0):
        """A connected TCP socket of this host's."""
        with self.network():
            return socket.create_connection((address, port), seconds)

    def accepts(self, port, address=None):
        """Whether something listens, as asked from the host itself."""
        try:
            with self.connect(address or self.ipv4, port, 1.0):
                return True
        except OSError:
            return False

    def get(self, port, path, address="127.0.0.1", seconds=2.0):
        """(status, body) of a GET, asked from the host itself; (0, reason) where nobody answers."""
        with self.network():
            connection = http.client.HTTPConnection(address, port, timeout=seconds)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                return 0, str(error)
            finally:
                connection.close()


class Lab:
    HOSTS = ("client", "production", "shadow", "intercept")

    def __init__(self, hosts=HOSTS, mtu=1500, binaries=None, last_words=True):
        self.mtu = mtu
        self.binaries = binaries or os.environ.get("TRAFFICMIRROR_BIN")
        self._children = []
        self._last_words = last_words
        self._names = hosts
        self._losses = {}
        self._fds = []
        self._lock = threading.Lock()
        self._postgres_template = None
        self._hosts_file = None

    # --- its life -----------------------------------------------------------------------------

    def __enter__(self):
        if os.geteuid() != 0:
            raise LabError("the lab needs root")
        remove_leftovers(DIRECTORY_PREFIX)
        self._handle_sigterm()
        try:
            self._make_directory()
            self._own_network = self._open("/proc/thread-self/ns/net")
            self._own_processes = self._open("/proc/thread-self/ns/pid")
            self._start_first_process()
            self._make_network()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(self, kind, error, trace):
        if self._last_words and kind is not None and issubclass(kind, Exception):
            self._say_last_words()
        keep = kind is not None and os.environ.get("LAB_KEEP") == "1"
        self._tear_down(keep)
        return False

    def _say_last_words(self):
        """The ends of the programs' logs: they go with the lab, and say why a test failed."""
        for name in ("sidecar", "intercept"):
            with contextlib.suppress(OSError), open(self.path(f"{name}.log")) as file:
                lines = file.read().splitlines()[-20:]
                print(f"\nthe last of {name}.log:", *lines, sep="\n  ", file=sys.stderr)

    def _open(self, path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def _handle_sigterm(self):
        # SIGINT raises already. With SIGTERM raising too, a `with` block tears down after both.
        self._restore_sigterm = None
        if threading.current_thread() is threading.main_thread():
            former = signal.getsignal(signal.SIGTERM)
            if former == signal.SIG_DFL:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
                self._restore_sigterm = former

    def _make_directory(self):
        self.directory, lock_fd = make_directory(DIRECTORY_PREFIX)
        os.chmod(self.directory, 0o711)  # postgres has a directory of its own within
        self._fds.append(lock_fd)

    def _start_first_process(self):
        """The first process of the lab's process namespace: when it ends, the kernel ends the rest.

        It ends with its standard input, whose other end only this process has.
        """
        script = (
            "import signal, sys\n"
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"  # reaps orphans
            "print('up', flush=True)\n"
            "sys.stdin.read()\n"
        )
        check(libc.unshare(CLONE_NEWPID), "unshare")
        try:
            self._first = subprocess.Popen(
                [sys.executable, "-S", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            setns(self._own_processes, CLONE_NEWPID)
        self._first.stdout.readline()
        self._processes_fd = self._open(f"/proc/{self._first.pid}/ns/pid")

    def _make_network(self):
        self.router = Host(self, "router", 0)
        self._fds.append(self.router.fd)
        self.hosts = []
        for number, name in enumerate(self._names, 1):
            host = Host(self, name, number)
            self._fds.append(host.fd)
            self.hosts.append(host)
            setattr(self, name, host)
        for host in [self.router, *self.hosts]:
            # Duplicate address detection would keep IPv6 silent for the first second or two.
            for interfaces in ("all", "default"):
                self._sysctl(host, f"net/ipv6/conf/{interfaces}/accept_dad", 0)
        for interfaces in ("all", "default"):
            # The network lets every source pass, whatever this machine does.
            self._sysctl(self.router, f"net/ipv4/conf/{interfaces}/rp_filter", 0)
        links = ["link set lo up"]
        for host in self.hosts:
            n = host._number
            links += [
                f"link add {host.name} mtu {self.mtu} type veth"
                f" peer name eth0 mtu {self.mtu} netns /proc/self/fd/{host.fd}",
                f"link set {host.name} up",
                f"addr add 10.77.{n}.1/24 dev {host.name}",
                f"addr add fd77:{n}::1/64 dev {host.name} nodad",
            ]
        self._ip(self.router, links)
        self._sysctl(self.router, "net/ipv4/ip_forward", 1)
        self._sysctl(self.router, "net/ipv6/conf/all/forwarding", 1)
        for host in self.hosts:
            n = host._number
            self._ip(
                host,
                [
                    "link set lo up",
                    "link set eth0 up",
                    f"addr add {host.ipv4}/24 dev eth0",
                    f"addr add {host.ipv6}/64 dev eth0 nodad",
                    f"route add default via 10.77.{n}.1",
                    f"route add default via fd77:{n}::1",
                ],
            )
        # A client that opens thousands of connections a second needs its ports back.
        self._sysctl(self.hosts[0], "net/ipv4/ip_local_port_range", "1024 65535")

    def _ip(self, host, lines, *options):
        descriptors = [other.fd for other in self.hosts]  # for `netns /proc/self/fd/N`
        command = ["ip", *options, "-batch", "-"]
        host.run(command, input="\n".join(lines) + "\n", pass_fds=descriptors)

    def _sysctl(self, host, name, value):
        with host.network(), open(f"/proc/sys/{name}", "w") as file:
            file.write(str(value))

    def _tear_down(self, keep=False):
        first = getattr(self, "_first", None)
        if first is not None:
            first.stdin.close()  # ends the first process, and with it every other
            for popen in self._children:  # the first one's end waits until these are reaped
                popen.wait()
            first.wait()
            first.stdout.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        directory = getattr(self, "directory", None)
        if directory is not None and os.path.isdir(directory):
            if keep:
                kept = directory.replace(DIRECTORY_PREFIX, KEPT_PREFIX)
                os.rename(directory, kept)
                print(f"The files of this run are kept in {kept}", file=sys.stderr)
            else:
                shutil.rmtree(directory, ignore_errors=True)
        if self._restore_sigterm is not None:
            signal.signal(signal.SIGTERM, self._restore_sigterm)

    # --- processes ----------------------------------------------------------------------------

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def resolve(self, name, hosts):
        """What a name means to the processes that are started from the first call on; they see
        what later ones change."""
        self._hosts_file = self.path("hosts")
        lines = ["127.0.0.1 localhost", *(f"{host.ipv4} {name}" for host in hosts)]
        # It is mounted, so it stays the same file; as long as before, nobody finds half of it.
        text = "\n".join(lines).ljust(1024, "\n").encode()
        fd = os.open(self._hosts_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(fd, text, 0)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def network(self, host):
        """Puts this thread into a host's network."""
        if host is not None:
            setns(host.fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(self._own_network, CLONE_NEWNET)

    def spawn(self, host, command, environment=None, **options):
        variables = {**os.environ, **(environment or {})}
        with self._lock, host.network():
            # Only children of this thread go there, and no thread may be started meanwhile.
            setns(self._processes_fd, CLONE_NEWPID)
            try:
                popen = subprocess.Popen(
                    command,
                    cwd=self.directory,
                    env=variables,
                    start_new_session=True,  # Ctrl-C is for this process alone
                    preexec_fn=lambda: private_mounts(self._hosts_file),
                    **options,
                )
                self._children = [child for child in self._children if child.returncode is None]
                self._children.append(popen)
                return popen
            except FileNotFoundError as error:
                raise LabError(f"{error.filename} is missing") from None
            finally:
                setns(self._own_processes, CLONE_NEWPID)

    def start(self, host, command, name, environment=None):
        log = self.path(f"{name}.log")
        with open(log, "ab") as file:
            popen = self.spawn(
                host,
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                environment=environment,
            )
        return Process(name, popen, log)

    def start_ready(self, host, command, name, ready, seconds=15.0, environment=None):
        """Starts it and waits for ready(); one line says what its log says if that fails."""
        process = self.start(host, command, name, environment)

        def ready_or_over():
            return ready() or not process.running()

        def last_words():
            lines = process.output().strip().splitlines()
            return f"{name} is not ready" + (f": {lines[-1]}" if lines else "")

        wait_until(ready_or_over, last_words, seconds)
        if not process.running():
            raise LabError(last_words())
        return process

    # --- the network's faults -----------------------------------------------------------------

    def lose(self, source, destination, per_mille):
        """Drops so many of 1,000 packets from one host to another, at the router."""
        self._losses[source.name, destination.name] = (source, destination, per_mille)
        rules = ["table inet lab", "delete table inet lab", "table inet lab {", "chain forward {"]
        rules.append("type filter hook forward priority 0;")
        rules.append(f'iifname "{DELAY_INTERFACE}" accept')  # it was here before its delay
        for a, b, n in self._losses.values():
            for ip, x, y in (("ip", a.ipv4, b.ipv4), ("ip6", a.ipv6, b.ipv6)):
                if n > 0:
                    rules.append(
                        f"{ip} saddr {x} {ip} daddr {y} numgen random mod 1000 < {n} counter drop"
                    )
        rules += ["}", "}"]
        self.router.run(["nft", "-f", "-"], input="\n".join(rules) + "\n")

    def delay(self, one, other, **options):
        """Packets between two hosts, both ways, take their time; options are those of delay.cc."""
        command = [self.program("trafficmirror-delay"), "--interface", DELAY_INTERFACE]

        def up():
            links = self.router.run(["ip", "-o", "link"]).stdout
            return f" {DELAY_INTERFACE}:" in links

        process = self.start_ready(self.router, [*command, *flags(options)], "delay", up)
        # A queue that holds a window of a connection in a hurry.
        self._ip(self.router, [f"link set {DELAY_INTERFACE} mtu {self.mtu} txqueuelen 10000 up"])
        for family in (4, 6):
            lines = [f"route add default dev {DELAY_INTERFACE} table 77"]
            for source, destination in ((one, other), (other, one)):
                addresses = f"from {source.address(family)} to {destination.address(family)}"
                lines.append(f"rule add {addresses} iif {source.name} table 77")
            self._ip(self.router, lines, f"-{family}")
        for interface in ("all", DELAY_INTERFACE):
            self._sysctl(self.router, f"net/ipv4/conf/{interface}/rp_filter", 0)
        return process

    # --- servers ------------------------------------------------------------------------------

    def nginx(self, host, port=80, **options):
        return Nginx(self, host, port, **options)

    def sink(self, host, port=80, **options):
        return Sink(self, host, port, **options)

    def redis(self, host, port=6379):
        directory = self.path(f"redis-{host.name}")
        os.makedirs(directory, exist_ok=True)
        command = ["redis-server", "--port", str(port), "--bind", "*", "-::*"]
        command += ["--protected-mode", "no", "--save", "", "--appendonly", "no"]
        command += ["--enable-debug-command", "yes", "--dir", directory]
        return self.start_ready(host, command, f"redis-{host.name}", lambda: host.accepts(port))

    def talker(self, host, protocol, port=80):
        return Talker(self, host, protocol, port)

    def nghttpd(self, host, port=80):
        return Nghttpd(self, host, port)

    def dnsmasq(self, host):
        return Dnsmasq(self, host)

    def postgres(self, host, port=5432, **changed):
        """With a database `postgres` and a user `postgres` that needs no password; what is changed
        are settings."""
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        if not programs:
            raise LabError("postgresql is missing")
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        if self._postgres_template is None:
            # Both servers begin as copies of one, so that they are alike and it is made once.
            template = self.path("postgres")
            os.mkdir(template)
            shutil.chown(template, "postgres", "postgres")
            initdb = [f"{programs[-1]}/initdb", "--no-sync", "--auth=trust", "--locale=C.UTF-8"]
            host.run([*as_postgres, *initdb, "-D", f"{template}/data"])
            with open(f"{template}/data/pg_hba.conf", "w") as file:
                file.write("host all all 0.0.0.0/0 trust\nhost all all ::0/0 trust\n")
            self._postgres_template = f"{template}/data"
        data = self.path("postgres", host.name)
        if not os.path.isdir(data):
            host.run(["cp", "-a", self._postgres_template, data])
        settings = {
            "listen_addresses": "*",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "off",
            "max_connections": DATABASE_CONNECTIONS,
            "dynamic_shared_memory_type": "mmap",  # nothing outside its directory
            **changed,
        }
        command = [*as_postgres, f"{programs[-1]}/postgres", "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]

        def answers():
            query = ["psql", "-h", host.ipv4, "-p", str(port), "-U", "postgres", "-c", "select 1"]
            return host.run(query, check=False, environment=NO_TLS).returncode == 0

        return self.start_ready(host, command, f"postgres-{host.name}", answers, 30)

    def mariadb(self, host, port=3306):
        """With a database `test`; the user `root` needs no password at the socket of the result."""
        if shutil.which("mariadbd") is None:
            raise LabError("mariadb-server is missing")
        data = self.path(f"mariadb-{host.name}")
        os.makedirs(data)
        shutil.chown(data, "mysql", "mysql")
        common = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal"]
        host.run([*install, "--skip-test-db"])
        unix = os.path.join(data, "socket")
        command = ["mariadbd", *common, f"--socket={unix}", "--bind-address=*", f"--port={port}"]
        command += ["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"]
        command += ["--innodb-buffer-pool-size=16M", "--performance-schema=off"]
        command += [f"--max-connections={DATABASE_CONNECTIONS}"]
        query = ["mariadb", "--no-defaults", f"--socket={unix}", "-uroot", "-e"]

        def answers():
            return host.run([*query, "select 1"], check=False).returncode == 0

        self.start_ready(host, command, f"mariadb-{host.name}", answers, 30)
        host.run([*query, "create database test"])
        return query

    # --- the load -----------------------------------------------------------------------------

    def load(self, name, connect, **options):
        """Starts trafficmirror-load on the client; options are its flags."""
        options = {"id_prefix": name, "log": self.path(f"{name}.ids"), **options}
        command = [self.program("trafficmirror-load"), "--connect", connect, *flags(options)]
        return Load(self.client.start(command, f"load-{name}"), options["log"])

    # --- the mirror ---------------------------------------------------------------------------

    def program(self, name):
        if not self.binaries:
            raise LabError("--bin DIR or TRAFFICMIRROR_BIN has to name the folder of the programs")
        path = os.path.join(os.path.abspath(self.binaries), name)
        if not os.access(path, os.X_OK):
            raise LabError(f"{path} is missing: build first")
        return path

    def sidecar_command(self, **options):
        options = {
            "interface": "eth0",
            "intercept": endpoint(self.intercept.ipv4, INTERCEPT_GRPC),
            **options,
        }
        return [self.program("trafficmirror-sidecar"), *flags(options)]

    def replay_command(self, **options):
        """A sidecar that replays a file."""
        options = {"intercept": endpoint(self.intercept.ipv4, INTERCEPT_GRPC), **options}
        return [self.program("trafficmirror-sidecar"), *flags(options)]

    def intercept_command(self, **options):
        options = {"interface": "eth0", **options}
        return [self.program("trafficmirror-intercept"), *flags(options)]

    def start_sidecar(self, ready=True, environment=None, **options):
        command = self.sidecar_command(**options)
        if not ready:
            return self.production.start(command, "sidecar", environment)
        return self.start_ready(
            self.production, command, "sidecar", self.sidecar_ready, environment=environment
        )

    def start_intercept(self, ready=True, host=None, **options):
        command = self.intercept_command(**options)
        name = f"intercept-{host.name}" if host else "intercept"
        host = host or self.intercept
        if not ready:
            return host.start(command, name)
        return self.start_ready(host, command, name, lambda: self.intercept_ready(host))

    def sidecar_ready(self):
        return self.production.get(SIDECAR_HTTP, "/readyz")[0] == 200

    def intercept_ready(self, host=None):
        return (host or self.intercept).get(INTERCEPT_HTTP, "/readyz")[0] == 200

    def mirror(self, port=80, family=4, sidecar=None, intercept=None):
        """Starts both programs, so that `port` of production is mirrored to that of the shadow: 80,
        or "53/udp", or a list of such."""
        ports = port if isinstance(port, list) else [port]
        address = self.shadow.address(family)
        target = [f"{each}={endpoint(address, str(each).split('/')[0])}" for each in ports]
        intercept_program = self.start_intercept(**{"target": target, **(intercept or {})})
        sidecar_program = self.start_sidecar(port=port, **(sidecar or {}))
        return Mirror(self, sidecar_program, intercept_program)


class Mirror:
    def __init__(self, lab, sidecar, intercept):
        self.lab = lab
        self.sidecar = sidecar
        self.intercept = intercept

    def metrics(self):
        return metrics(self.lab.production, SIDECAR_HTTP)

    def intercept_metrics(self):
        return metrics(self.lab.intercept, INTERCEPT_HTTP)

    def stop(self):
        """Ends both as an operator would; returns their exit codes."""
        return self.sidecar.stop(), self.intercept.stop()


class Load:
    """A running trafficmirror-load."""

    def __init__(self, process, log):
        self.process = process
        self.log = log

    def lines(self):
        """The figures so far; the last line is the summary once it has ended."""
        lines = []
        for line in self.process.output().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def finish(self, seconds=120.0):
        """Waits for its end; returns the summary."""
        if self.process.wait(seconds) != 0:
            raise LabError(self.process.output().strip() or f"{self.process.name} failed")
        return self.lines()[-1]

    def stop(self):
        self.process.signal(signal.SIGTERM)
        return self.finish(15)

    def ids(self):
        """The ids that were answered. Complete once the load has ended."""
        with open(self.log) as file:
            return file.read().split()


Request = collections.namedtuple("Request", "id time request_time bytes address port")


class Server:
    """A server that writes a line for each request it has read whole: id first."""

    log_file = None

    def ids(self):
        ids = []
        with open(self.log_file) as file:
            for line in file:
                if line.endswith("\n"):
                    ids.append(line.split(" ", 1)[0])
        return ids


class Nginx(Server):
    """`/` answers with the host's name, `/same` alike on all hosts, `/mib` with a MiB; `upload`
    proxies `/upload` to a sink's unix socket."""

    def __init__(self, lab, host, port, keepalive_requests=1000000, upload=None, name=None):
        self.host = host
        self.port = port
        self.name = name or f"nginx-{host.name}"
        self.directory = lab.path(self.name)
        self.log_file = os.path.join(self.directory, "requests.log")
        self._lab = lab
        os.makedirs(self.directory, exist_ok=True)
        with open(os.path.join(self.directory, "mib"), "wb") as file:
            file.write(bytes(1 << 20))
        upload_location = ""
        if upload is not None:
            # nginx reads the whole body before it passes it on.
            upload_location = f"location /upload {{ proxy_pass http://unix:{upload}:; }}"
        with open(os.path.join(self.directory, "nginx.conf"), "w") as file:
            file.write(
                NGINX_CONF.format(
                    directory=self.directory,
                    port=port,
                    host=host.name,
                    keepalive_requests=keepalive_requests,
                    upload=upload_location,
                )
            )
        self.start()

    def start(self):
        command = ["nginx", "-p", self.directory, "-c", f"{self.directory}/nginx.conf"]
        command += ["-e", f"{self.directory}/error.log"]
        self.process = self._lab.start_ready(
            self.host, command, self.name, lambda: self.host.accepts(self.port)
        )

    def stop(self):
        """Ends at once, as a pod does whose grace is over. Its log is complete then."""
        code = self.process.stop()
        return code

    def requests(self):
        requests = []
        with open(self.log_file) as file:
            for line in file:
                fields = line.split()
                if line.endswith("\n") and len(fields) == 6:
                    times = float(fields[1]), float(fields[2])
                    requests.append(Request(fields[0], *times, int(fields[3]), fields[4], int(fields[5])))
        return requests


NGINX_CONF = """
user root;
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
events {{ worker_connections 10000; }}
http {{
  log_format request '$arg_id $msec $request_time $request_length $remote_addr $remote_port';
  access_log {directory}/requests.log request buffer=64k flush=20ms;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 1m;
  keepalive_requests {keepalive_requests};
  keepalive_timeout 3600s;
  server {{
    listen {port} backlog=4096;
    listen [::]:{port} backlog=4096;
    location / {{ return 200 "{host}\\n"; }}
    location = /same {{ return 200 "the same\\n"; }}
    location = /mib {{ root {directory}; }}
    {upload}
  }}
}}
"""


class Sink(Server):
    """Reads each request whole and keeps its id, length and SHA-256; may answer late."""

    def __init__(self, lab, host, port, delay=0.0, one_at_a_time=False, unix=None, name=None):
        self.host = host
        self.port = port
        self.name = name or f"sink-{host.name}"
        self.log_file = lab.path(f"{self.name}.requests")
        self._lab = lab
        self._unix = unix
        self._command = [sys.executable, os.path.join(HERE, "sink.py"), "--log", self.log_file]
        self._command += ["--delay", str(delay)]
        self._command += ["--one-at-a-time"] if one_at_a_time else []
        self._command += ["--unix", unix] if unix else ["--port", str(port)]
        self.start()

    def start(self):
        def ready():
            return os.path.exists(self._unix) if self._unix else self.host.accepts(self.port)

        self.process = self._lab.start_ready(self.host, self._command, self.name, ready)

    def stop(self):
        return self.process.stop()

    def bodies(self):
        """{id: (length, SHA-256)}"""
        bodies = {}
        with open(self.log_file) as file:
            for line in file:
                if line.endswith("\n"):
                    name, length, digest = line.split()
                    bodies[name] = (int(length), digest)
        return bodies


Message = collections.namedtuple("Message", "name time digest")


class Talker(Server):
    """The server of talk.py."""

    def __init__(self, lab, host, protocol, port):
        self.host = host
        self.port = port
        self.log_file = lab.path(f"{protocol}-{host.name}.messages")
        command = [sys.executable, os.path.join(HERE, "talk.py"), "serve", protocol]
        command += ["--port", str(port), "--log", self.log_file]
        self.process = lab.start_ready(host, command, f"{protocol}-{host.name}", self.listens)

    def listens(self):
        listening = self.host.run(["ss", "-Hltn", f"sport = :{self.port}"]).stdout
        return bool(listening) and os.path.exists(self.log_file)

    def messages(self):
        with open(self.log_file) as file:
            lines = [line.split() for line in file if line.endswith("\n")]
        return [Message(name, float(time), digest) for name, time, digest in lines]


class Nghttpd(Server):
    """HTTP/2 without TLS: `/` and any query. The verbose log has each request."""

    def __init__(self, lab, host, port):
        self.host = host
        self.port = port
        name = f"nghttpd-{host.name}"
        os.makedirs(lab.path(name), exist_ok=True)
        with open(lab.path(name, "index.html"), "w") as file:
            file.write("a small answer\n")
        command = ["nghttpd", "--no-tls", "--verbose", "--address=0.0.0.0", "-d", lab.path(name)]
        command.append(str(port))
        self.process = lab.start_ready(host, command, name, lambda: host.accepts(port))
        self.log_file = self.process.log

    def ids(self):
        with open(self.log_file, errors="replace") as file:
            return re.findall(r":path: \S*[?&]id=([^&\s]+)", file.read())


class Dnsmasq(Server):
    """Answers for each name under `test.`, on port 53 of UDP and TCP."""

    def __init__(self, lab, host):
        self.host = host
        name = f"dnsmasq-{host.name}"
        self.log_file = lab.path(f"{name}.queries")
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file"]
        command += ["--user=root", "--no-resolv", "--no-hosts", "--address=/test/192.0.2.1"]
        command += ["--log-queries=extra", f"--log-facility={self.log_file}"]
        self.process = lab.start_ready(host, command, name, lambda: host.accepts(53))

    def ids(self):
        """The names that were asked for."""
        with open(self.log_file) as file:
            return re.findall(r" query\[\w+\] (\S+) from .*\n", file.read())


NO_TLS = {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}


def flags(options):
    """{"id_prefix": "a", "port": [80, 81], "new": True} as --id-prefix a --port 80 --port 81 --new."""
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += ["--" + name.replace("_", "-"), *([] if one is True else [str(one)])]
    return words


def private_mounts(hosts_file):
    """Runs in a child: /proc and /sys are those of its own namespaces, as they are in a pod."""
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWIPC), "unshare")
    check(libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "mount /")
    check(libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount /proc")
    check(libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mount /sys")
    if hosts_file is not None:
        check(libc.mount(hosts_file.encode(), b"/etc/hosts", None, MS_BIND, None), "mount /etc/hosts")


def make_directory(prefix):
    """A directory of this run's, and a lock on it to hold until it is removed."""
    directory = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-")
    # The kernel lets go of the lock however this process ends: that tells a leftover.
    fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return directory, fd


def remove_leftovers(prefix):
    """Removes the directories of runs that were killed."""
    for directory in glob.glob(os.path.join(tempfile.gettempdir(), prefix + "*")):
        try:
            fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # No lock yet: a run that has just begun, or one that was killed that early.
            pid = re.fullmatch(rf"{prefix}(\d+)-.*", os.path.basename(directory))
            if pid and not os.path.exists(f"/proc/{pid.group(1)}"):
                shutil.rmtree(directory, ignore_errors=True)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass  # somebody's, who is alive
        finally:
            os.close(fd)


# --- metrics --------------------------------------------------------------------------------------


class Metrics(dict):
    """{(name, ((label, value), ...)): number} of a Prometheus text page."""

    def total(self, name, **labels):
        """The sum over all series of that name that have these labels."""
        wanted = set(labels.items())
        return sum(v for (n, pairs), v in self.items() if n == name and wanted <= set(pairs))

    def by(self, name, label):
        sums = collections.Counter()
        for (n, pairs), value in self.items():
            if n == name:
                sums[dict(pairs).get(label, "")] += value
        return dict(sums)


def parse_metrics(text):
    found = Metrics()
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\d+)?", line)
        if match and not line.startswith("#"):
            name, labels, value = match.groups()
            pairs = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or "")
            found[name, tuple(sorted(pairs))] = float(value)
    return found


def metrics(host, port):
    status, text = host.get(port, "/metrics")
    if status != 200:
        raise LabError(f"{host.name}:{port}/metrics: {status or ''} {text}")
    return parse_metrics(text)


# --- capture --------------------------------------------------------------------------------------

Packet = collections.namedtuple("Packet", "source destination protocol sport dport flags sent text")

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def parse_packet(frame, sent):
    """A Packet of an Ethernet frame, or None if it is neither IPv4 nor IPv6."""
    kind = struct.unpack_from("!H", frame, 12)[0] if len(frame) >= 14 else 0
    ip = frame[14:]
    if kind == 0x0800 and len(ip) >= 20:
        source = socket.inet_ntop(socket.AF_INET, ip[12:16])
        destination = socket.inet_ntop(socket.AF_INET, ip[16:20])
        protocol, payload = ip[9], ip[(ip[0] & 15) * 4 :]
    elif kind == 0x86DD and len(ip) >= 40:
        source = socket.inet_ntop(socket.AF_INET6, ip[8:24])
        destination = socket.inet_ntop(socket.AF_INET6, ip[24:40])
        protocol, payload = ip[6], ip[40:]
    else:
        return None
    sport = dport = tcp_flags = 0
    text = f"{source} > {destination} protocol {protocol}"
    if protocol == 6 and len(payload) >= 14:
        sport, dport = struct.unpack_from("!HH", payload)
        tcp_flags = payload[13]
        names = [n for n, bit in (("FIN", 1), ("SYN", 2), ("RST", 4), ("ACK", 16)) if tcp_flags & bit]
        text = f"{endpoint(source, sport)} > {endpoint(destination, dport)} {'+'.join(names)}"
    return Packet(source, destination, protocol, sport, dport, tcp_flags, sent, text)


class Capture:
    """Sees every packet on a host's interface, and keeps those for which `offends` is true."""

    SO_RCVBUFFORCE = 33
    PACKET_STATISTICS = 6
    OUTGOING = 4

    def __init__(self, host, offends, interface="eth0"):
        self.host = host
        self.packets = 0
        self.offences = []
        self._offends = offends
        with host.network():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, self.SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((interface, 3))
        self._end, self._ended = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while True:
            ready, _, _ = select.select([self._socket, self._end], [], [])
            if self._socket in ready:
                frame, address = self._socket.recvfrom(128)
                self.packets += 1
                packet = parse_packet(frame, address[2] == self.OUTGOING)
                if packet is not None and self._offends(packet):
                    self.offences.append(packet)
            elif self._end in ready:  # only once the socket is empty
                return

    def stop(self):
        """Returns the offending packets; it is an error if the kernel had to drop any."""
        os.write(self._ended, b".")
        self._thread.join(30)
        statistics = self._socket.getsockopt(263, self.PACKET_STATISTICS, 8)
        dropped = struct.unpack("II", statistics)[1]
        self._socket.close()
        os.close(self._end)
        os.close(self._ended)
        if dropped:
            raise LabError(f"the capture on {self.host.name} missed {dropped} packets")
        return self.offences
