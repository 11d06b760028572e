"""The lab itself: what the other tests take for granted."""

import glob
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import lab as lab_module
import labtest
from lab import RST, Capture, Lab, LabError, endpoint, parse_metrics, wait_until


def lab_files():
    pattern = os.path.join(tempfile.gettempdir(), lab_module.DIRECTORY_PREFIX)
    return glob.glob(f"{pattern}{os.getpid()}-*")


def network_of(fd):
    return f"net:[{os.fstat(fd).st_ino}]"


def processes_in(networks):
    """Processes of the machine that are in one of these networks."""
    found = []
    for link in glob.glob("/proc/[0-9]*/ns/net"):
        try:
            if os.readlink(link) in networks:
                found.append(link)
        except OSError:
            pass  # it has ended
    return found


class Topology(labtest.LabTest):
    def test_every_host_reaches_every_other(self):
        with Lab() as lab:
            for source in lab.hosts:
                for other in lab.hosts:
                    for family in (4, 6):
                        with self.subTest(source=source.name, other=other.name, family=family):
                            self.assertTrue(self.reaches(source, other, family))

    def reaches(self, source, other, family):
        """A closed port is refused by the other host, and by nobody in between."""
        try:
            source.connect(other.address(family), 9, 0.9)  # less than a SYN's retransmission
        except ConnectionRefusedError:
            return True
        return False

    def test_mtu_and_offloads(self):
        for mtu in (1500, 9000):
            with Lab(mtu=mtu) as lab:
                nginx = lab.nginx(lab.production)
                capture = Capture(lab.production, lambda packet: False)
                link = lab.production.run(["ip", "-o", "link", "show", "eth0"]).stdout
                self.assertIn(f" mtu {mtu} ", link)
                load = lab.load(
                    "b",
                    endpoint(lab.production.ipv4, nginx.port),
                    rate=5,
                    seconds=1,
                    body_bytes=1 << 20,
                )
                self.assert_served(load.finish())
                capture.stop()
                # Without segmentation offload it would be 5 MiB / MTU frames and their ACKs.
                self.assertLess(capture.packets, 5 * (1 << 20) / mtu)

    def test_loss(self):
        with Lab() as lab:
            lab.lose(lab.client, lab.shadow, 200)
            sent, received = 2000, 0
            with lab.shadow.network():
                receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                receiver.bind(("0.0.0.0", 9))
            with lab.client.network():
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.setblocking(False)
            for _ in range(sent):
                sender.sendto(b"x", (lab.shadow.ipv4, 9))
                try:
                    while receiver.recv(16):
                        received += 1
                except BlockingIOError:
                    pass
            sender.close()
            receiver.close()
            # 1,600 are expected; six standard deviations are 108.
            self.assertAlmostEqual(received, 1600, delta=110)
            lab.lose(lab.client, lab.shadow, 0)
            self.assertTrue(self.reaches(lab.client, lab.shadow, 4))

    def test_delay(self):
        """All of it arrives, late, and only what is held is overtaken."""
        with Lab() as lab:
            lab.delay(lab.client, lab.shadow, milliseconds=20, held=200, held_milliseconds=10)
            for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                with lab.shadow.network():
                    receiver = socket.socket(kind, socket.SOCK_DGRAM)
                    receiver.bind(("", 9))
                with lab.client.network():
                    sender = socket.socket(kind, socket.SOCK_DGRAM)
                receiver.settimeout(5)
                for number in range(100):
                    sender.sendto(number.to_bytes(2, "big"), (lab.shadow.address(family), 9))
                    time.sleep(0.0001)
                received = []
                while len(received) < 100:
                    received.append(int.from_bytes(receiver.recv(2), "big"))
                sender.close()
                receiver.close()
                self.assertEqual(sorted(received), list(range(100)))
                late = [a for a, b in zip(received, received[1:]) if a > b]
                self.assertGreater(len(late), 1)
                self.assertLess(len(late), 50)
                # Back and forth: the other host's refusal is late too.
                began = time.monotonic()
                self.assertTrue(self.reaches(lab.shadow, lab.client, family))
                self.assertGreater(time.monotonic() - began, 0.04)
            self.assertTrue(self.reaches(lab.client, lab.production, 4))


class Servers(labtest.LabTest):
    def test_nginx_logs_every_request(self):
        with Lab() as lab:
            nginx = lab.nginx(lab.production, keepalive_requests=7)
            loads = [
                lab.load(
                    f"{mode}{family}",
                    endpoint(lab.production.address(family), 80),
                    rate=300,
                    seconds=1,
                    mode=mode,
                )
                for mode in ("keepalive", "close")
                for family in (4, 6)
            ]
            for load in loads:
                summary = load.finish()
                self.assert_served(summary)
                self.assertGreater(summary["connections_opened"], 300 / 7)
            nginx.stop()
            answered = [name for load in loads for name in load.ids()]
            self.assertEqual(sorted(nginx.ids()), sorted(answered))
            self.assertEqual(len(set(answered)), 1200)

    def test_sink_digests_are_of_the_bodies(self):
        with Lab() as lab:
            sinks = [lab.sink(lab.production), lab.sink(lab.shadow)]
            for sink in sinks:
                for size in (1, 65536, 16 << 20):
                    load = lab.load(
                        f"b{size}",
                        endpoint(sink.host.ipv4, 80),
                        rate=2,
                        seconds=1,
                        connections=1,
                        body_bytes=size,
                    )
                    self.assert_served(load.finish())
            # The same ids make the same bodies; another id makes another body.
            self.assertEqual(sinks[0].bodies(), sinks[1].bodies())
            self.assertEqual(len(sinks[0].bodies()), 6)
            digests = {digest for length, digest in sinks[0].bodies().values() if length > 1}
            self.assertEqual(len(digests), 4)

    def test_slow_sink_shows_in_the_latency(self):
        with Lab() as lab:
            lab.sink(lab.production, delay=0.2)
            load = lab.load(
                "slow", endpoint(lab.production.ipv4, 80), rate=20, seconds=1, connections=2
            )
            summary = load.finish()
            self.assert_served(summary)
            # Two connections serve 10 a second: the queue is part of the latency.
            self.assertGreater(summary["max_us"], 800_000)

    def test_failures_are_counted(self):
        with Lab() as lab:
            nginx = lab.nginx(lab.production)
            load = lab.load(
                "f", endpoint(lab.production.ipv4, 80), rate=200, seconds=30, mode="close"
            )
            wait_until(lambda: len(nginx.ids()) > 50, "requests")
            nginx.stop()
            wait_until(lambda: not lab.production.accepts(80), "the end of nginx")
            probes = lab.load(
                "g", endpoint(lab.production.ipv4, 80), rate=50, seconds=1, mode="close"
            )
            self.assertEqual(probes.finish()["failed_by"], {"connect": 50})
            summary = load.stop()
            self.assertGreater(summary["failed"], 0)
            self.assertEqual(summary["ok"] + summary["failed"], summary["requests"])

    def test_redis_and_postgres(self):
        with Lab() as lab:
            lab.redis(lab.production)
            lab.postgres(lab.production)
            ping = lab.client.run(["redis-cli", "-h", lab.production.ipv4, "ping"])
            self.assertEqual(ping.stdout.strip(), "PONG")
            query = ["psql", "-h", lab.production.ipv6, "-U", "postgres", "-Atc", "select 6*7"]
            answer = lab.client.run(query, environment=lab_module.NO_TLS).stdout
            self.assertEqual(answer.strip(), "42")

    def test_a_server_that_cannot_start_says_why(self):
        with Lab() as lab:
            lab.nginx(lab.production)
            with self.assertRaisesRegex(LabError, "Failed listening on port 80"):
                command = ["redis-server", "--port", "80", "--save", ""]
                lab.start_ready(lab.production, command, "second", lambda: False)


class Captures(labtest.LabTest):
    def test_it_sees_what_it_is_told_to(self):
        with Lab() as lab:
            nginx = lab.nginx(lab.shadow)
            from_shadow = Capture(lab.client, lambda packet: packet.source == lab.shadow.ipv4)
            resets = Capture(lab.shadow, lambda packet: packet.flags & RST and not packet.sent)
            lab.client.connect(lab.shadow.ipv4, nginx.port).close()
            with self.assertRaises(ConnectionRefusedError):
                lab.shadow.connect(lab.intercept.ipv4, 9)
            self.assertGreater(len(from_shadow.stop()), 0)
            offences = resets.stop()
            self.assertEqual([packet.source for packet in offences], [lab.intercept.ipv4])


class Metrics(labtest.LabTest):
    def test_parse(self):
        metrics = parse_metrics(
            "# HELP a_total help\n# TYPE a_total counter\n"
            'a_total{reason="x, \\"y\\"",port="80"} 2\na_total{reason="z"} 3e0\nb 1.5 1700000000\n'
        )
        self.assertEqual(metrics.total("a_total"), 5)
        self.assertEqual(metrics.total("a_total", reason="z"), 3)
        self.assertEqual(metrics.by("a_total", "reason"), {'x, \\"y\\"': 2, "z": 3})
        self.assertEqual(metrics.total("b"), 1.5)

    def test_sums(self):
        page = (
            "trafficmirror_sessions_opened_total 5\ntrafficmirror_sessions_active %d\n"
            'trafficmirror_sessions_closed_total{reason="finished"} 2\n'
            'trafficmirror_sessions_closed_total{reason="idle_timeout"} 1\n'
        )
        self.assert_sums_close(parse_metrics(page % 2))
        with self.assertRaises(AssertionError):
            self.assert_sums_close(parse_metrics(page % 3))


VICTIM = """
import os
import sys
from lab import Lab
with Lab() as lab:
    lab.nginx(lab.production)
    lab.redis(lab.shadow)
    lab.client.start(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000"], "orphan")
    print(lab.directory, flush=True)
    print(*[f"net:[{os.fstat(host.fd).st_ino}]" for host in lab.hosts], flush=True)
    sys.stdin.read()
"""


class TearDown(labtest.LabTest):
    def test_nothing_is_left(self):
        with Lab() as lab:
            networks = {network_of(host.fd) for host in [lab.router, *lab.hosts]}
            lab.nginx(lab.production)
            lab.client.start(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000"], "orphan")
            self.assertTrue(processes_in(networks))
            self.assertTrue(lab_files())
        self.assertEqual(processes_in(networks), [])
        self.assertEqual(lab_files(), [])
        self.assertNotIn(os.readlink("/proc/self/ns/net"), networks)

    def test_nothing_is_left_after_an_error(self):
        with self.assertRaises(ZeroDivisionError):
            with Lab() as lab:
                networks = {network_of(host.fd) for host in lab.hosts}
                lab.nginx(lab.production)
                1 / 0
        self.assertEqual(processes_in(networks), [])
        self.assertEqual(lab_files(), [])

    def test_two_labs_at_once(self):
        with Lab() as one, Lab() as other:
            first, second = one.nginx(one.production), other.nginx(other.production)
            load = one.load("one", endpoint(one.production.ipv4, 80), rate=50, seconds=1)
            self.assert_served(load.finish())
            first.stop()
            second.stop()
            self.assertEqual(len(first.ids()), 50)
            self.assertEqual(second.ids(), [])

    def victim(self):
        process = subprocess.Popen(
            [sys.executable, "-c", VICTIM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the trace of a KeyboardInterrupt
            text=True,
            cwd=lab_module.HERE,
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        directory = process.stdout.readline().strip()
        networks = set(process.stdout.readline().split())
        self.assertTrue(processes_in(networks))
        return process, directory, networks

    def test_sigterm_and_sigint(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            process, directory, networks = self.victim()
            process.send_signal(number)
            process.wait(20)
            self.assertEqual(processes_in(networks), [])
            self.assertFalse(os.path.exists(directory))

    def test_sigkill(self):
        process, directory, networks = self.victim()
        process.kill()
        process.wait()
        wait_until(lambda: not processes_in(networks), "the end of the killed run's processes")
        self.assertTrue(os.path.exists(directory))
        with Lab():  # the next run removes the files
            self.assertFalse(os.path.exists(directory))

    def test_a_living_run_is_left_alone(self):
        process, directory, networks = self.victim()
        with Lab():
            self.assertTrue(os.path.exists(directory))
            self.assertTrue(processes_in(networks))
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    labtest.main()
