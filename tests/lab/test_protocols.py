"""Protocols whose two sides do not politely take turns: the shadow gets every client byte, and soon.

Production and shadow are servers of their own, which speak when they like: what they say, and when,
is not the same. The mirror may not wait for what never comes, and may not fall behind.
"""

import collections
import math
import sys
import time

import labtest
from lab import HERE, Lab, endpoint, wait_until


def say(figures):
    print(f"{figures} ... ", end="", file=sys.stderr, flush=True)


class Protocols(labtest.LabTest):
    def talk(self, lab, *words, connections, seconds):
        """Runs the client of talk.py; returns the names of what it has sent."""
        command = [sys.executable, f"{HERE}/talk.py", *words]
        command += ["--connect", endpoint(lab.production.ipv4, 80)]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        return lab.client.run(command).stdout.split()

    def assert_keeps_up(self, began, complete, seconds):
        """`complete` becomes true soon after production is done: what a mirror loses in each turn
        adds up until then."""
        production = time.monotonic() - began
        wait_until(complete, "the rest at the shadow", seconds)
        lag = time.monotonic() - began - production
        say(f"{production:.2f} s, then {lag:.2f} s until the shadow has it all")
        self.assertLess(lag, max(2.0, production / 2))

    def assert_whole(self, mirror, sessions):
        """Each session has ended as the connection did."""
        wait_until(
            lambda: mirror.metrics().total("trafficmirror_sessions_active") == 0,
            "the end of all sessions",
            10,
        )
        metrics = mirror.metrics()
        self.assert_sums_close(metrics)
        self.assert_nothing_unmirrored(metrics)
        self.assertEqual(metrics.total("trafficmirror_sessions_opened_total"), sessions)

    def test_http2(self):
        """Many streams on each connection, as fast as they go."""
        with Lab() as lab:
            production, shadow = lab.nghttpd(lab.production), lab.nghttpd(lab.shadow)
            asked = len(production.ids())
            mirror = lab.mirror()
            requests, connections = 8000, 4
            with open(lab.path("uris"), "w") as file:
                for number in range(requests // connections):
                    file.write(f"http://{lab.production.ipv4}/?id=h2-{number}\n")
            began = time.monotonic()
            options = ["-n", str(requests), "-c", str(connections), "-m", "32"]
            lab.client.run(["h2load", *options, "-i", lab.path("uris")])
            self.assert_keeps_up(began, lambda: len(shadow.ids()) >= requests, 30)
            self.assertEqual(len(production.ids()), asked + requests)
            self.assertEqual(
                collections.Counter(shadow.ids()), collections.Counter(production.ids())
            )
            self.assert_whole(mirror, connections)

    def compare_messages(self, protocol):
        connections, seconds = 10, min(labtest.seconds(5), 5)
        with Lab() as lab:
            production = lab.talker(lab.production, protocol)
            shadow = lab.talker(lab.shadow, protocol)
            mirror = lab.mirror()
            began = time.monotonic()
            sent = self.talk(lab, "speak", protocol, connections=connections, seconds=seconds)
            self.assert_keeps_up(began, lambda: len(shadow.messages()) >= len(sent), 30)
            served = {message.name: message for message in production.messages()}
            self.assertEqual(sorted(served), sorted(sent))
            mirrored = {message.name: message for message in shadow.messages()}
            self.assertEqual(len(shadow.messages()), len(sent), "more than once at the shadow")
            self.assertEqual(
                {name: message.digest for name, message in mirrored.items()},
                {name: message.digest for name, message in served.items()},
            )
            late = sorted(mirrored[name].time - served[name].time for name in sent)
            middle = late[len(late) // 2]
            say(f"late {middle * 1000:.1f} ms at the median, {late[-1]:.2f} s at most")
            # Until it shows that the two sides take no turns, the mirror waits for what is said next.
            self.assertLess(middle, 1.0)
            self.assertLess(late[-1], 3.0)
            self.assert_whole(mirror, connections)

    def test_websocket(self):
        self.compare_messages("websocket")

    def test_server_that_pushes(self):
        self.compare_messages("lines")

    def compare_requests(self, path, depth, connections):
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            mirror = lab.mirror()
            words = ["pipeline", "--path", path, "--depth", str(depth)]
            seconds = min(labtest.seconds(4), 20)
            began = time.monotonic()
            sent = self.talk(lab, *words, connections=connections, seconds=seconds)
            self.assert_keeps_up(began, lambda: len(shadow.ids()) >= len(sent), 60)
            self.assert_same_requests(sent, production)
            self.assert_same_requests(sent, shadow)
            self.assert_whole(mirror, connections)
            say(f"{len(sent)} requests")

    def test_pipelining(self):
        """Eight requests are always under way."""
        self.compare_requests("/same", 8, math.ceil(labtest.rate(4)))

    def test_large_responses(self):
        """A MiB each, as fast as they go."""
        self.compare_requests("/mib", 1, 4)


if __name__ == "__main__":
    labtest.main()
