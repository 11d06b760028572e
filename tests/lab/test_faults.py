"""Parts fail and come back: production serves on, mirroring resumes, what was lost is counted."""

import contextlib
import time

import labtest
from lab import Lab, LabError, endpoint, wait_until

RESUMES_WITHIN = 5.0
LOADS = ("short", "kept")


def number_of(name):
    return int(name.rpartition("-")[2])


def newest(server, kind):
    """The highest number of a load's requests that a server has served."""
    return max((number_of(n) for n in server.ids() if n.startswith(f"{kind}-")), default=-1)


class Faults(labtest.LabTest):
    def start(self, lab, shadow):
        self.lab = lab
        self.production = lab.nginx(lab.production, keepalive_requests=500)
        self.shadow = shadow
        self.mirror = lab.mirror()
        address = endpoint(lab.production.ipv4, 80)
        # Long enough for every test here; each ends them itself.
        steady = {"rate": 100, "seconds": 120}
        self.kept = lab.load("kept", address, connections=10, **steady)
        self.short = lab.load("short", address, connections=50, mode="close", **steady)
        for kind in LOADS:
            wait_until(lambda: newest(shadow, kind) > 50, f"the first of {kind} at the shadow")

    def serve_on(self):
        """Production serves 150 more requests of each kind."""
        for kind in LOADS:
            goal = newest(self.production, kind) + 150
            wait_until(lambda: newest(self.production, kind) >= goal, "production serves on", 15)

    def assert_resumes(self, bring_back):
        """Requests that are newer than the part's return reach the shadow in time: those of new
        connections, and those of connections that were open all the while."""
        began = time.monotonic()
        before = {kind: newest(self.production, kind) for kind in LOADS}
        bring_back()
        for kind in LOADS:
            left = max(0.0, RESUMES_WITHIN - (time.monotonic() - began))
            what = f"new requests of {kind} at the shadow"
            wait_until(lambda: newest(self.shadow, kind) > before[kind], what, left)

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
        counted = labtest.unmirrored(metrics)

        def missing():
            served = set(self.shadow.ids())
            return [n for n in self.short.ids() if n not in served and number_of(n) > since]

        # A connection of `short` is one request: each that is missing is counted by itself.
        with contextlib.suppress(LabError):  # the shadow's log may be a moment behind
            wait_until(lambda: len(missing()) <= counted, "the shadow's log", 2)
        self.assertLessEqual(len(missing()), counted, f"missing, {labtest.some(missing())}")
        served = set(self.shadow.ids())
        answered = {*self.kept.ids(), *self.short.ids()}
        self.assertLessEqual(served, answered, "the shadow served what production did not")
        if since < 0 and not answered <= served:
            self.assertGreater(counted, 0)
        return missing()

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
            since = newest(self.production, "short")
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
