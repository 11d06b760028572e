"""What an intercept is told while it runs, by its file, and through it its sidecars."""

import json
import os
import signal
import time

import labtest
from lab import INTERCEPT_HTTP, SIDECAR_HTTP, Lab, endpoint, metrics, wait_until


class ConfigurationTest(labtest.LabTest):
    """Two servers, and programs with files."""

    def setUp(self):
        hosts = (*Lab.HOSTS, "second")
        self.lab = lab = self.enterContext(Lab(hosts))
        self.production, self.shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
        self.target = self.target_at(lab.shadow)

    def target_at(self, host):
        return f"80={endpoint(host.ipv4, 80)}"

    def write(self, name="intercept.yaml", **configuration):
        """Replaces the file as a whole, as kubelet does."""
        path = self.lab.path(name)
        with open(path + ".new", "w") as file:
            for key, value in configuration.items():
                file.write(f"{key.replace('_', '-')}: {json.dumps(value)}\n")
        os.replace(path + ".new", path)
        return path

    def start(self, sidecar=None, **configuration):
        self.intercept = self.lab.start_intercept(config=self.write(**configuration))
        self.sidecar = self.lab.start_sidecar(port=80, **(sidecar or {}))

    def metrics(self):
        return metrics(self.lab.production, SIDECAR_HTTP)

    def shed(self, reason):
        return self.metrics().total("trafficmirror_shed_total", reason=reason)

    def configurations(self, result):
        counted = metrics(self.lab.intercept, INTERCEPT_HTTP)
        return counted.total("trafficmirror_configurations_total", result=result)

    def take(self, **configuration):
        """Writes it and waits until the intercept has it."""
        before = self.configurations("taken")
        self.write(**configuration)
        wait_until(lambda: self.configurations("taken") > before, "the file is read")

    def status(self):
        code, text = self.lab.intercept.get(INTERCEPT_HTTP, "/status")
        self.assertEqual(code, 200)
        return json.loads(text)

    def load(self, name, **options):
        load = {"rate": 200, "seconds": 2, "connections": 10, "mode": "close", **options}
        return self.lab.load(name, endpoint(self.lab.production.ipv4, 80), **load)

    def told(self, words):
        wait_until(lambda: words in self.sidecar.output(), f"the sidecar says: {words}")


class Configuration(ConfigurationTest):
    def test_targets_come_and_go(self):
        lab = self.lab
        second = lab.nginx(lab.second)
        self.start(target=[])
        self.assertEqual(self.status()["reply_path"], [])
        first = self.load("none").finish()
        self.assert_served(first)
        self.assertEqual(self.shed("no_target"), first["requests"])

        kept = self.load("kept", mode="keepalive", seconds=60)
        self.take(target=[self.target])
        wait_until(lambda: self.shadow.ids(), "requests at the first target")
        self.take(target=[self.target_at(lab.second)])
        wait_until(lambda: second.ids(), "requests at the second target")
        served = len(self.shadow.ids())
        self.assert_served(kept.stop())
        self.assertEqual(len(self.shadow.ids()), served, "the first target is gone")
        counted = self.metrics()
        self.assertEqual(counted.total("trafficmirror_streams_total"), 1)
        closed = counted.by("trafficmirror_sessions_closed_total", "reason")
        self.assertEqual(closed["target_gone"], 10)

    def test_limits(self):
        self.start(target=[self.target], sidecar={"percent": 50})
        self.assert_served(self.load("half").finish())
        half = self.metrics()
        opened = half.total("trafficmirror_sessions_opened_total")
        self.assertEqual(opened + self.shed("sampled"), 400)
        self.assertGreater(opened, 100)
        self.assertLess(opened, 300)

        # What comes down the stream goes before the flag.
        self.take(target=[self.target], percent=100, max_sessions=3, memory_limit="2Mi")
        self.told("100 % of the connections, 3 sessions at most, 2097152 bytes")
        self.assert_served(self.load("limited", mode="keepalive", connections=10).finish())
        counted = self.metrics()
        self.assertEqual(counted.total("trafficmirror_sessions_opened_total"), opened + 3)
        self.assertGreaterEqual(self.shed("session_limit"), 7)
        self.assertEqual(self.shed("sampled"), half.total("trafficmirror_shed_total", reason="sampled"))

        # And what it no longer says is the flag's again.
        self.take(target=[self.target])
        self.assert_served(self.load("again").finish())
        self.assertGreater(self.shed("sampled"), counted.total("trafficmirror_shed_total", reason="sampled"))

    def test_rate(self):
        self.start(target=[self.target], sidecar={"max_rate": 20})
        # 600 connections in three seconds: a second's worth of them at once, and so many in each.
        self.assert_served(self.load("many", seconds=3).finish())
        counted = self.metrics()
        opened = counted.total("trafficmirror_sessions_opened_total")
        self.assertEqual(opened + self.shed("rate_limit"), 600)
        self.assertGreaterEqual(opened, 60)
        self.assertLessEqual(opened, 100)
        wait_until(lambda: len(self.shadow.ids()) == opened, "all that were let through")
        self.assertEqual(self.metrics().total("trafficmirror_sessions_closed_total", reason="rate_limit"), 0)

        # Ten that stay are as many too many, whatever it said before: sessions go until it fits.
        self.take(target=[self.target], max_rate=100)
        self.told("up to 100 requests a second")
        self.assert_served(self.load("kept", mode="keepalive", rate=400, seconds=4).finish())
        mirrored = len(self.shadow.ids()) - opened
        self.assertLessEqual(mirrored, 100 * (4 + 2) + 20)
        self.assertGreaterEqual(mirrored, 200)
        counted = self.metrics()
        self.assertGreater(counted.total("trafficmirror_sessions_closed_total", reason="rate_limit"), 0)
        self.assert_sums_close(counted)

    def test_filter(self):
        lab = self.lab
        other = endpoint(lab.production.ipv4, 81)
        lab.sink(lab.production, 81)
        other_shadow = lab.sink(lab.shadow, 81)
        targets = [self.target, f"81={endpoint(lab.shadow.ipv4, 81)}"]
        client = f"src host {lab.client.ipv4}"
        self.intercept = lab.start_intercept(config=self.write(target=targets))
        # On top of the ports.
        self.sidecar = lab.start_sidecar(port=[80, 81], filter=f"{client} and dst port 80")
        first = self.load("first")
        left_out = lab.load("left-out", other, rate=200, seconds=2, connections=10, mode="close")
        kept = lab.load("kept", other, rate=100, seconds=60, connections=5)
        self.assert_served(first.finish())
        self.assert_served(left_out.finish())
        self.assert_same_requests(first.ids(), self.shadow)
        self.assertEqual(other_shadow.ids(), [])
        self.assertEqual(self.shed("filtered"), 400 + 5, "each connection once")
        counted = self.metrics()
        self.assertEqual(labtest.unmirrored(counted), 405)
        self.assertEqual(counted.total("trafficmirror_flows"), 0, "those left out are not followed")

        # What comes down the stream goes before the flag, and is in force for connections that are
        # open, from their next requests on.
        self.take(target=targets, filter=f"{client} and not dst port 80")
        self.told("filter: src host")
        wait_until(lambda: other_shadow.ids(), "requests of connections that were left out")
        second = self.load("second")
        self.assert_served(second.finish())
        self.assert_served(kept.stop())
        self.assertEqual(self.shed("filtered"), 405 + 400)
        self.assertEqual(set(self.shadow.ids()), set(first.ids()))

    def test_a_wrong_filter_changes_nothing(self):
        self.start(target=[self.target])
        self.write(target=[self.target], filter="prot 80")
        wait_until(lambda: self.configurations("refused") == 1, "the file is refused")
        self.assertIn("filter prot 80: is no pcap filter: ", self.intercept.output())
        self.assert_served(self.load("on").finish())
        self.assertEqual(labtest.unmirrored(self.metrics()), 0)

    def test_a_filter_that_the_sidecar_can_not_read_is_said(self):
        lab = self.lab
        sidecar = lab.start_sidecar(ready=False, port=80)
        lab.resolve("client.test", [lab.client])  # to the intercept alone
        name = "src host client.test"
        lab.start_intercept(config=self.write(target=[self.target], filter=name))
        words = f"the intercept says --filter {name}, which here is no pcap filter: unknown host 'client.test'"

        def ready():
            return lab.production.get(SIDECAR_HTTP, "/readyz")[1]

        wait_until(lambda: words in ready(), lambda: f"{ready()}: {sidecar.output()}", 60)
        load = self.load("unmirrored")
        self.assert_served(load.finish())
        self.assertEqual(self.shed("no_stream"), 400)
        self.write(target=[self.target])
        wait_until(lab.sidecar_ready, "the stream", 60)

    def test_a_wrong_file_changes_nothing(self):
        self.start(target=[self.target])
        self.write(target=[self.target], percent=0)
        wait_until(lambda: self.configurations("refused") == 1, "the file is refused")
        self.assertIn(
            "percent 0: is no percentage; write a number from 0.1 to 100; what was read before "
            "stays in use",
            self.intercept.output(),
        )
        self.assert_served(self.load("on").finish())
        self.assertEqual(labtest.unmirrored(self.metrics()), 0)
        self.assertEqual(self.configurations("refused"), 1)

    def test_status(self):
        self.start(target=[self.target])
        self.assert_served(self.load("counted").finish())
        name = self.status()["sidecars"][0]["name"]

        def all_there():
            return self.status()["totals"]["exchanges"] == 400 and not self.status()["totals"]["sessions"]

        wait_until(all_there, lambda: f"400 exchanges: {self.status()}")
        counts = {"sessions": 0, "sessions_opened": 400, "exchanges": 400, "shed": {}}
        counts["closed"] = {"finished": 400}
        path = [{"target": self.target, "verified": True, "message": ""}]
        expected = {"ready": True, "message": "", "reply_path": path, "totals": counts}
        self.assertEqual(self.status(), {**expected, "sidecars": [{"name": name, **counts}]})

        # The sidecar goes, its counts stay.
        self.assertEqual(self.sidecar.stop(), 0)
        wait_until(lambda: not self.status()["sidecars"], "its stream has ended")
        self.assertEqual(self.status(), {**expected, "sidecars": []})

    def test_status_says_why_it_is_not_ready(self):
        lab = self.lab
        path = self.write(target=["80=10.99.99.99:80"])
        lab.start_intercept(ready=False, config=path)
        wait_until(lambda: lab.intercept.get(INTERCEPT_HTTP, "/healthz")[0] == 200, "/healthz")
        status = wait_until(
            lambda: "no answer" in self.status()["message"] and self.status(), self.status
        )
        self.assertFalse(status["ready"])
        self.assertFalse(status["reply_path"][0]["verified"])
        self.assertEqual(status["reply_path"][0]["message"], status["message"])

    def test_stopped_over_the_stream(self):
        self.start(target=[self.target])
        load = self.load("kept", mode="keepalive", seconds=60)
        wait_until(lambda: self.shadow.ids(), "requests at the shadow")
        self.take(target=[], stop_sidecars=True)
        self.assertEqual(self.sidecar.wait(10), 0, self.sidecar.output())
        self.assert_served(load.stop())
        self.assertIn("the intercept says that this sidecar is to end", self.sidecar.output())
        counted = metrics(self.lab.intercept, INTERCEPT_HTTP)
        self.assertEqual(counted.total("trafficmirror_sessions_reset_total"), 0, "it did not itself")
        # One that comes later is told so too, whatever the state of the targets.
        again = self.lab.start_sidecar(ready=False, port=80)
        self.assertEqual(again.wait(10), 0, again.output())
        # And none, once this is over.
        self.take(target=[self.target])
        self.lab.start_sidecar(port=80)

    def test_gives_up_without_a_stream(self):
        sidecar = self.lab.start_sidecar(ready=False, port=80, give_up_after="2s")
        began = time.monotonic()
        self.assertEqual(sidecar.wait(15), 0, sidecar.output())
        self.assertGreater(time.monotonic() - began, 1)
        self.assertIn("no stream for 2 s (--give-up-after): ending", sidecar.output())

    def test_counts_what_it_copies_for_nobody(self):
        lab = self.lab
        self.start(target=[self.target])
        self.intercept.stop()
        wait_until(lambda: "requests are only counted" in self.sidecar.output(), "rest", 20)
        self.assertIn("no stream to the intercept", lab.production.get(SIDECAR_HTTP, "/readyz")[1])
        before = self.shed("no_stream")
        for mode in ("close", "keepalive"):
            lost = self.load(f"lost-{mode}", mode=mode).finish()
            self.assert_served(lost)
            self.assertEqual(self.shed("no_stream") - before, lost["requests"])
            before += lost["requests"]

        kept = self.load("kept", mode="keepalive", seconds=60)
        wait_until(lambda: self.shed("no_stream") > before, "requests of connections that go on")
        lab.start_intercept(target=self.target)
        wait_until(lambda: self.shadow.ids(), "requests at the shadow")
        again = self.load("again")
        self.assert_served(again.finish())
        wait_until(lambda: set(again.ids()) <= set(self.shadow.ids()), "all that came later")
        self.assert_served(kept.stop())
        self.assert_sums_close(self.metrics())
        # Nothing of what was cut was taken for bytes that are missing.
        self.assertEqual(self.metrics().total("trafficmirror_sessions_closed_total",
                                              reason="capture_gap"), 0)

    def test_outlives_production(self):
        """As in a pod that ends: all are told to at once, and production serves on for a while."""
        self.start(sidecar={"outlive_production": True}, target=[self.target])
        load = self.load("kept", mode="keepalive", seconds=60)
        short = self.load("short", seconds=60)
        wait_until(lambda: self.shadow.ids(), "requests at the shadow")
        self.sidecar.signal(signal.SIGTERM)
        told = len(short.ids())
        wait_until(lambda: len(short.ids()) > told + 200, "production serves on")
        self.assertTrue(self.sidecar.running())
        self.assert_served(load.stop())
        self.assert_served(short.stop())
        self.production.stop()
        self.assertEqual(self.sidecar.wait(5), 0, self.sidecar.output())
        self.assert_same_requests([*load.ids(), *short.ids()], self.shadow)
        counted = self.status()["totals"]
        self.assertEqual((counted["shed"], set(counted["closed"])), ({}, {"finished"}))


if __name__ == "__main__":
    labtest.main()
