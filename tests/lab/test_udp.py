"""Datagrams: the shadow gets each one that production gets, as it was, and its answers are counted."""

import collections
import contextlib
import re
import socket
import struct

import labtest
from lab import Capture, Lab, endpoint, wait_until

ICMP = 1


def names(prefix, count):
    return [f"{prefix}-{number}.test" for number in range(count)]


def question(number, name):
    """A question of DNS for an A record (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


class Wire:
    """The questions that come to a host, as tcpdump sees them: (id, name) of each."""

    def __init__(self, lab, host):
        log = lab.path(f"tcpdump-{host.name}.log")
        command = ["tcpdump", "-i", "eth0", "-n", "-l", "--immediate-mode", "udp dst port 53"]

        def listens():
            with open(log) as file:
                return "listening" in file.read()

        self._process = lab.start_ready(host, command, f"tcpdump-{host.name}", listens)

    def questions(self):
        return collections.Counter(
            re.findall(r": (\d+)\+ A\? (\S+)\. \(", self._process.output())
        )


class Udp(labtest.LabTest):
    def ask(self, lab, asked, family=4, rate=1000):
        """Asks production for each of the names once, over twenty sockets."""
        with open(lab.path("names"), "w") as file:
            file.writelines(f"{name} A\n" for name in asked)
        command = ["dnsperf", "-s", lab.production.address(family), "-d", lab.path("names")]
        command += ["-n", "1", "-c", "20", "-Q", str(round(labtest.rate(rate)))]
        report = lab.client.run(command, seconds=120).stdout
        answered = int(re.search(r"Queries completed: +(\d+)", report).group(1))
        self.assertEqual(answered, len(asked), report)

    def ask_from_ports_of_their_own(self, lab, asked, behind=lambda answered: None):
        """Asks production, each time from another port, and waits for the answer; calls `behind`."""
        with contextlib.ExitStack() as to_the_end:  # so that no port is used again
            with lab.client.network():
                sockets = [
                    to_the_end.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    for _ in asked
                ]
            for number, (one, name) in enumerate(zip(sockets, asked)):
                one.settimeout(5)
                one.connect((lab.production.ipv4, 53))
                one.send(question(number, name))
                self.assertEqual(one.recv(512)[:2], struct.pack("!H", number))
                behind(number + 1)

    def assert_mirrored(self, mirror, exchanges):
        def answered():
            return mirror.metrics().total("trafficmirror_exchanges_total") >= exchanges

        wait_until(answered, lambda: f"{exchanges} answers: {mirror.metrics()}", 15)
        found = mirror.metrics()
        self.assertEqual(found.total("trafficmirror_exchanges_total"), exchanges)
        self.assert_sums_close(found)
        self.assertEqual(found.total("trafficmirror_shed_total"), 0, found)
        self.assertEqual(found.total("trafficmirror_capture_drops_total"), 0)
        return found

    def mirror_questions(self, family, capture):
        asked = names("load", round(labtest.seconds(4) * labtest.rate(1000)))
        with Lab() as lab:
            production, shadow = lab.dnsmasq(lab.production), lab.dnsmasq(lab.shadow)
            # The intercept's own kernel knows nothing of the sessions, and has to keep quiet.
            quiet = Capture(lab.shadow, lambda packet: packet.protocol == ICMP)
            wires = [Wire(lab, lab.production), Wire(lab, lab.shadow)]
            mirror = lab.mirror("53/udp", family, sidecar={"capture": capture})
            self.ask(lab, asked, family)
            self.assert_same_requests(asked, shadow)
            self.assertEqual(sorted(production.ids()), sorted(asked))
            found = self.assert_mirrored(mirror, len(asked))
            self.assertEqual(found.total("trafficmirror_sessions_opened_total"), 20)
            for wire in wires:
                wait_until(lambda: wire.questions().total() >= len(asked), "the questions")
            at_production, at_shadow = [wire.questions() for wire in wires]
            self.assertEqual(at_production.total(), len(asked))
            self.assertEqual(at_shadow, at_production, "ids and names")
            self.assertEqual(quiet.stop(), [])
            self.assertEqual(mirror.stop(), (0, 0))

    def test_dns_ipv4(self):
        self.mirror_questions(4, "ring")

    def test_dns_ipv6(self):
        self.mirror_questions(6, "ring")

    def test_dns_by_libpcap(self):
        self.mirror_questions(4, "pcap")

    def test_sent_directly(self):
        """By the sidecar itself; the intercept returns the answers' headers."""
        asked = names("direct", 200)
        for delivery in ("direct", "direct-link"):
            with self.subTest(delivery), Lab() as lab:
                lab.dnsmasq(lab.production)
                shadow = lab.dnsmasq(lab.shadow)
                mirror = lab.mirror("53/udp", sidecar={"delivery": delivery})
                self.ask(lab, asked)
                self.assert_same_requests(asked, shadow)
                found = self.assert_mirrored(mirror, len(asked))
                self.assertEqual(found.total("trafficmirror_injected_packets_total"), len(asked))
                self.assertEqual(found.total("trafficmirror_inject_errors_total"), 0)

    def test_copies(self):
        asked = names("copy", 200)
        with Lab() as lab:
            lab.dnsmasq(lab.production)
            shadow = lab.dnsmasq(lab.shadow)
            mirror = lab.mirror("53/udp", sidecar={"copies": 3})
            self.ask(lab, asked)
            found = self.assert_mirrored(mirror, 3 * len(asked))
            self.assertEqual(found.total("trafficmirror_sessions_opened_total"), 3 * 20)
            self.assertEqual(collections.Counter(shadow.ids()), {name: 3 for name in asked})

    def test_a_port_for_each_question(self):
        """More of them, in the end, than there are source ports."""
        asked = names("port", 600)
        with Lab() as lab:
            lab.dnsmasq(lab.production)
            shadow = lab.dnsmasq(lab.shadow)
            mirror = lab.mirror("53/udp", intercept={"source_ports": "10000-10256"})

            def wait_for_the_shadow(answered):
                if answered % 200 == 0:
                    self.assert_mirrored(mirror, answered)

            self.ask_from_ports_of_their_own(lab, asked, wait_for_the_shadow)
            self.assert_same_requests(asked, shadow)
            found = mirror.metrics()
            self.assertEqual(found.total("trafficmirror_sessions_opened_total"), len(asked))
            self.assertLessEqual(found.total("trafficmirror_sessions_active"), 256)

    def test_clients_that_fall_silent_are_forgotten(self):
        asked = names("silent", 20)
        with Lab() as lab:
            lab.dnsmasq(lab.production)
            lab.dnsmasq(lab.shadow)
            mirror = lab.mirror("53/udp", sidecar={"idle_timeout": "1s"})
            self.ask_from_ports_of_their_own(lab, asked)
            wait_until(
                lambda: mirror.metrics().by("trafficmirror_sessions_closed_total", "reason").get(
                    "idle_timeout"
                )
                == len(asked),
                "the end of all sessions",
            )
            self.assert_mirrored(mirror, len(asked))

    def test_the_same_port_of_both_protocols(self):
        asked = names("both", 200)
        with Lab() as lab:
            production, shadow = lab.dnsmasq(lab.production), lab.dnsmasq(lab.shadow)
            mirror = lab.mirror([53, "53/udp"])
            self.ask(lab, asked)
            over_tcp = names("tcp", 20)
            for number, name in enumerate(over_tcp):
                asking = question(number, name)
                with lab.client.connect(lab.production.ipv4, 53) as connection:
                    connection.sendall(struct.pack("!H", len(asking)) + asking)
                    self.assertGreater(len(connection.recv(512)), len(asking))
            self.assert_same_requests(asked + over_tcp, shadow)
            self.assertEqual(sorted(production.ids()), sorted(shadow.ids()))
            found = self.assert_mirrored(mirror, len(asked) + len(over_tcp))
            self.assertEqual(found.total("trafficmirror_sessions_opened_total"), 20 + len(over_tcp))
            proven = mirror.intercept_metrics().by("trafficmirror_reply_path_proven", "target")
            shadow_port = endpoint(lab.shadow.ipv4, 53)
            self.assertEqual(proven, {shadow_port: 1, f"{shadow_port}/udp": 1})

    def test_a_shadow_that_is_not_there(self):
        """Production goes on; what was sent is counted, and no answer is."""
        asked = names("alone", 50)
        with Lab() as lab:
            lab.dnsmasq(lab.production)
            mirror = lab.mirror("53/udp")
            self.ask(lab, asked)

            def sent():
                return mirror.intercept_metrics().total("trafficmirror_injected_packets_total")

            wait_until(lambda: sent() == len(asked), lambda: f"{sent()} datagrams are sent")
            self.assertEqual(mirror.metrics().total("trafficmirror_exchanges_total"), 0)
            self.assertEqual(mirror.metrics().total("trafficmirror_sessions_active"), 20)

    def test_fragments_are_counted(self):
        with Lab() as lab:
            lab.dnsmasq(lab.production)
            mirror = lab.mirror("53/udp")
            with lab.client.network():
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with client:
                client.sendto(bytes(3000), (lab.production.ipv4, 53))

            def fragments():
                return mirror.metrics().total(
                    "trafficmirror_capture_unusable_packets_total", reason="fragment"
                )

            wait_until(lambda: fragments() == 1, "the first of the fragments")
            self.assertEqual(mirror.metrics().total("trafficmirror_sessions_opened_total"), 0)

    def test_replay(self):
        asked = names("file", 300)
        with Lab() as lab:
            lab.dnsmasq(lab.production)
            shadow = lab.dnsmasq(lab.shadow)
            file = lab.path("recorded.pcap")
            mirror = lab.mirror("53/udp", sidecar={"record": file})
            self.ask(lab, asked)
            self.assert_mirrored(mirror, len(asked))
            mirror.sidecar.stop()
            result = lab.production.run(lab.replay_command(port="53/udp", pcap=file), seconds=60)
            self.assertIn(f"exchanges  {len(asked)} answered by the shadow", result.stdout)
            self.assertIn("sessions   20 opened: 20 capture_ended", result.stdout)
            wait_until(lambda: len(shadow.ids()) == 2 * len(asked), "the questions of the replay")
            self.assertEqual(
                collections.Counter(shadow.ids()), {name: 2 for name in asked}, result.stdout
            )

    def test_a_port_without_a_target(self):
        with Lab() as lab:
            lab.dnsmasq(lab.shadow)
            lab.start_intercept(target=f"53={endpoint(lab.shadow.ipv4, 53)}")
            sidecar = lab.start_sidecar(ready=False, port="53/udp")
            wanted = "production port 53/udp has no --target here; those with one are 53"
            wait_until(lambda: wanted in sidecar.output(), sidecar.output)


if __name__ == "__main__":
    labtest.main()
