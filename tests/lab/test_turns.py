"""A shadow that takes 200 ms for each request, where each connection has ten a second."""

import json
import os

import labtest
from lab import SIDECAR_HTTP, Lab, endpoint, metrics, wait_until

DELAY = 0.2
LOAD = {"rate": 50, "seconds": 4, "connections": 5, "mode": "keepalive", "body_bytes": 3000}
REQUESTS = 200
# By its end a shadow that each request waits for is 2 s behind.
BEHIND = 1


class SlowShadow(labtest.LabTest):
    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        self.production = lab.sink(lab.production)
        self.shadow = lab.sink(lab.shadow, delay=DELAY)

    def mirror(self, **sidecar):
        """Mirrors a load; returns what the sidecar counted once all its sessions have ended."""
        self.mirrored = self.lab.mirror(sidecar=sidecar)
        return self.run_load("slow")

    def run_load(self, name):
        to = endpoint(self.lab.production.ipv4, 80)
        self.assert_served(self.lab.load(name, to, **LOAD).finish())

        def ended():
            counted = metrics(self.lab.production, SIDECAR_HTTP)
            return counted.total("trafficmirror_sessions_active") == 0 and counted

        counted = wait_until(ended, "all sessions end", 20)
        self.assert_sums_close(counted)
        return counted

    def later_than(self, counted, seconds):
        """How many exchanges were sent so much later than production's client sent them."""
        name = "trafficmirror_exchange_lag_seconds"
        counts = {
            float(dict(labels)["le"]): value
            for (series, labels), value in counted.items()
            if series == name + "_bucket"
        }
        self.assertEqual(counted.total(name + "_count"), counts[float("inf")])
        return counts[float("inf")] - counts[seconds]

    def assert_all_whole(self, counted, requests=REQUESTS):
        self.assert_nothing_unmirrored(counted)
        self.assertEqual(len(self.shadow.bodies()), requests)
        self.assertEqual(self.shadow.bodies(), self.production.bodies())
        self.assertEqual(counted.total("trafficmirror_exchange_lag_seconds_count"), requests)
        self.assertEqual(counted.total("trafficmirror_exchanges_total"), requests)

    def test_wait_falls_behind(self):
        counted = self.mirror()
        self.assert_all_whole(counted)
        self.assertGreater(self.later_than(counted, BEHIND), 10)

    def test_wait_sheds_beyond_the_longest_lag(self):
        counted = self.mirror(max_lag="500ms")
        self.assertEqual(self.later_than(counted, 0.5), 0)
        closed = counted.by("trafficmirror_sessions_closed_total", "reason")
        reasons = {reason for reason, count in closed.items() if count}
        self.assertLessEqual(reasons, {"lag_limit", "finished"})
        self.assertGreaterEqual(closed["lag_limit"], 5)
        # Its connections are taken up again, and what is mirrored is whole.
        self.assertGreater(counted.total("trafficmirror_sessions_opened_total"), 5)
        bodies = self.shadow.bodies()
        self.assertGreater(len(bodies), REQUESTS // 4)
        self.assertLess(len(bodies), REQUESTS)
        self.assertLessEqual(bodies.items(), self.production.bodies().items())

    def test_wait_catches_up_beyond_the_longest_lag(self):
        counted = self.mirror(max_lag="500ms", over_lag="catch-up")
        self.assert_all_whole(counted)
        self.assertGreater(self.later_than(counted, 0.2), 10, "it waits as long as it may")
        self.assertEqual(self.later_than(counted, BEHIND), 0)

    def test_eager_keeps_up(self):
        counted = self.mirror(turns="eager")
        self.assert_all_whole(counted)
        self.assertEqual(self.later_than(counted, BEHIND), 0)

    def test_off_keeps_up(self):
        counted = self.mirror(turns="off")
        self.assert_all_whole(counted)
        self.assertEqual(self.later_than(counted, BEHIND), 0)

    def test_the_intercept_says_otherwise(self):
        path = self.lab.path("intercept.yaml")

        def write(**configuration):
            with open(path + ".new", "w") as file:
                json.dump({"target": [f"80={endpoint(self.lab.shadow.ipv4, 80)}"], **configuration}, file)
            os.replace(path + ".new", path)

        write(**{"turns": "eager", "max-lag": "3s", "over-lag": "catch-up"})
        self.lab.start_intercept(config=path)
        sidecar = self.lab.start_sidecar(port=80)
        words = "turns eager, up to 3000 ms late and then catch-up"
        wait_until(lambda: words in sidecar.output(), sidecar.output)
        eager = self.run_load("eager")
        self.assert_all_whole(eager)
        self.assertEqual(self.later_than(eager, BEHIND), 0)
        write(turns="wait")
        wait_until(lambda: "turns wait\n" in sidecar.output(), sidecar.output)
        waiting = self.run_load("waiting")
        self.assert_all_whole(waiting, 2 * REQUESTS)
        self.assertGreater(self.later_than(waiting, BEHIND), 10)


if __name__ == "__main__":
    labtest.main()
