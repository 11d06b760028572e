"""Parts fail and come back: production serves on, mirroring resumes, what was lost is counted."""

import time

import labtest
from lab import Lab, endpoint, wait_until

RESUMES_WITHIN = 5.0


def number_of(name):
    return int(name.rpartition("-")[2])


class Faults(labtest.LabTest):
    def start(self, lab, shadow):
        self.lab = lab
        self.production = lab.nginx(lab.production, keepalive_requests=100)
        self.shadow = shadow
        self.mirror = lab.mirror()
        address = endpoint(lab.production.ipv4, 80)
        # Long enough for every test here; each ends them itself.
        steady = {"rate": 100, "seconds": 120}
        self.kept = lab.load("kept", address, connections=10, **steady)
        self.short = lab.load("short", address, connections=50, mode="close", **steady)
        wait_until(lambda: self.mirrored_beyond(50), "the first requests at the shadow")

    def latest(self):
        """The number of the newest request of `short` that production has served."""
        names = [name for name in self.production.ids() if name.startswith("short-")]
        return max(map(number_of, names), default=0)

    def mirrored_beyond(self, number):
        names = [name for name in self.shadow.ids() if name.startswith("short-")]
        return any(number_of(name) > number for name in names)

    def serve_on(self):
        """Production serves 300 more requests."""
        goal = self.latest() + 150  # `kept` and `short` have the same rate
        wait_until(lambda: self.latest() >= goal, "production serves on", 15)

    def assert_resumes(self, bring_back):
        began = time.monotonic()
        newest = self.latest()
        bring_back()
        left = RESUMES_WITHIN - (time.monotonic() - began)
        self.assertGreater(left, 0, "the part itself took too long to come back")
        wait_until(lambda: self.mirrored_beyond(newest), "new requests at the shadow", left)

    def assert_accounted(self, since=-1):
        """Production answered everything, and the metrics account for what the shadow lacks."""
        loads = (self.kept, self.short)
        for load in loads:
            self.assert_served(load.stop())
        wait_until(
            lambda: self.mirror.metrics().total("trafficmirror_sessions_active") == 0,
            "the end of all sessions",
            30,
        )
        metrics = self.mirror.metrics()
        self.assert_sums_close(metrics)
        served = set(self.shadow.ids())
        missing = [name for name in self.short.ids() if name not in served]
        missing = [name for name in missing if number_of(name) > since]
        counted = unmirrored = labtest.unmirrored(metrics)
        # A connection of `short` is one request: each that is missing is counted by itself.
        self.assertGreaterEqual(counted, len(missing), f"missing, {labtest.some(missing)}")
        answered = {*self.kept.ids(), *self.short.ids()}
        self.assertLessEqual(served, answered, "the shadow served what production did not")
        if since < 0 and not answered <= served:
            self.assertGreater(unmirrored, 0)
        return missing

    def test_shadow_restarted(self):
        with Lab() as lab:
            self.start(lab, lab.nginx(lab.shadow))
            self.shadow.stop()
            self.serve_on()
            self.assert_resumes(self.shadow.start)
            self.serve_on()
            self.assertTrue(self.assert_accounted(), "the shadow was down and nothing is missing")

    def test_intercept_killed(self):
        with Lab() as lab:
            self.start(lab, lab.nginx(lab.shadow))
            self.mirror.intercept.kill()
            self.serve_on()
            target = f"80={endpoint(lab.shadow.ipv4, 80)}"
            self.assert_resumes(lambda: lab.start_intercept(target=target))
            self.serve_on()
            missing = self.assert_accounted()
            self.assertTrue(missing, "the intercept was down and nothing is missing")

    def test_sidecar_killed(self):
        with Lab() as lab:
            self.start(lab, lab.nginx(lab.shadow))
            self.mirror.sidecar.kill()
            self.serve_on()

            def bring_back():
                self.mirror.sidecar = lab.start_sidecar(port=80)

            self.assert_resumes(bring_back)
            since = self.latest()
            self.serve_on()
            # What the killed sidecar had counted went with it; the new one counts its own.
            self.assert_accounted(since)

    def slow_shadow(self, rate):
        """20 connections and a shadow that answers after 200 ms: it serves 100 requests a second."""
        with Lab() as lab:
            lab.nginx(lab.production)
            shadow = lab.sink(lab.shadow, delay=0.2)
            mirror = lab.mirror()
            load = lab.load(
                "slow",
                endpoint(lab.production.ipv4, 80),
                rate=rate,
                seconds=min(labtest.seconds(8), 8),
                connections=20,
            )
            summary = load.finish()
            self.assert_served(summary)
            # Production does not wait for the shadow.
            self.assertLess(summary["p50_us"], 100_000)
            wait_until(
                lambda: mirror.metrics().total("trafficmirror_sessions_active") == 0,
                "the end of all sessions",
                90,
                0.2,
            )
            metrics = mirror.metrics()
            self.assert_sums_close(metrics)
            answered, served = load.ids(), shadow.ids()
            self.assertLessEqual(set(served), set(answered))
            self.assertEqual(len(set(served)), len(served), "more than once at the shadow")
            if len(served) < len(answered):
                self.assertGreater(labtest.unmirrored(metrics), 0)
            return answered, served

    def test_shadow_slow(self):
        answered, served = self.slow_shadow(rate=50)
        self.assertEqual(set(answered), set(served))

    def test_shadow_too_slow(self):
        self.slow_shadow(rate=400)


if __name__ == "__main__":
    labtest.main()
