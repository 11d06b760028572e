"""SIGHUP: both programs read their files again, while connections run and nothing is started anew."""

import signal

import labtest
from lab import SIDECAR_HTTP, endpoint, metrics, wait_until
from test_configuration import ConfigurationTest


class Reload(ConfigurationTest):
    def start(self, own=None, **configuration):
        """Both with files, `own` the sidecar's."""
        path = self.write_own(**(own or {}))
        super().start(sidecar={"config": path}, **configuration)

    def write_own(self, **configuration):
        return self.write("sidecar.yaml", **configuration)

    def lines(self, process, words):
        return [line for line in process.output().splitlines() if words in line]

    def reload(self, process, words):
        """SIGHUP, and one line more that has these words; returns it."""
        before = len(self.lines(process, words))
        process.signal(signal.SIGHUP)
        lines = wait_until(
            lambda: self.lines(process, words)[before:],
            lambda: f"{process.name} says: {words}: {process.output()}",
        )
        self.assertEqual(len(lines), 1)
        return lines[0]

    def reload_changed(self, process, words):
        """SIGHUP, where an intercept, which looks at its file by itself too, may come before it."""
        process.signal(signal.SIGHUP)
        return wait_until(
            lambda: self.lines(process, words), lambda: f"{process.name} says: {words}: {process.output()}"
        )[0]

    def reload_own(self, words, **configuration):
        self.write_own(**configuration)
        return self.reload(self.sidecar, words)

    def opened(self):
        return self.metrics().total("trafficmirror_sessions_opened_total")

    def short(self, name):
        """400 connections with a request each. Returns its ids, and what was opened for it and shed."""
        before = self.opened(), self.metrics().by("trafficmirror_shed_total", "reason")
        load = self.load(name)
        self.assert_served(load.finish())
        wait_until(lambda: self.production.ids().count(load.ids()[-1]), "production's log")
        shed = self.metrics().by("trafficmirror_shed_total", "reason")
        counted = {reason: count - before[1][reason] for reason, count in shed.items()}
        return load.ids(), self.opened() - before[0], {k: v for k, v in counted.items() if v}

    def at_shadow(self, ids, times=1):
        """Each of them so many times, sooner or later."""
        def counts():
            there = self.shadow.ids()
            return {there.count(name) for name in ids}

        wait_until(lambda: counts() == {times}, lambda: f"{times} times each: {counts()}")

    def try_limits(self, kept, change):
        """What `change(words, **limits)` puts in force, while the connections of `kept` run."""
        change("changed: percent 10", percent=10)
        ids, opened, shed = self.short("share")
        self.assertEqual(opened + shed["sampled"], 400)
        self.assertEqual(set(shed), {"sampled"})
        self.assertLess(opened, 100)
        wait_until(lambda: len(set(ids) & set(self.shadow.ids())) == opened, "those and no others")

        change("changed: percent not given, filter dst port 81", filter="dst port 81")
        self.assertEqual(self.short("filtered")[1:], (0, {"filtered": 400}))

        change("changed: filter not given, max-sessions 3", max_sessions=3)
        self.assertEqual(self.short("limited")[1:], (0, {"session_limit": 400}), "ten are open")

        line = change("changed: max-sessions not given, turns eager, max-lag 5000ms, over-lag catch-up",
                      turns="eager", max_lag="5s", over_lag="catch-up")
        ids, opened, shed = self.short("eager")
        self.assertEqual((opened, shed), (400, {}), line)
        self.at_shadow(ids)

        change("changed: copies 2, turns not given, max-lag not given, over-lag not given", copies=2)
        ids, opened, shed = self.short("twice")
        # And one more for each connection that was open.
        self.assertLessEqual(opened, 810)
        self.assertGreaterEqual(opened, 800)
        self.assertLessEqual(set(shed), {"mid_exchange"})
        self.at_shadow(ids, times=2)

        # All of that took nothing from the connections that were there.
        self.assert_served(kept.stop())
        wait_until(lambda: set(kept.ids()) <= set(self.shadow.ids()), "all of the connections kept")
        counted = self.metrics()
        self.assertEqual(counted.total("trafficmirror_streams_total"), 1)
        self.assertEqual(counted.total("trafficmirror_capture_drops_total"), 0)
        self.assert_sums_close(counted)
        closed = counted.by("trafficmirror_sessions_closed_total", "reason")
        self.assertLessEqual({reason for reason, count in closed.items() if count}, labtest.COMPLETE)
        self.assertTrue(self.sidecar.running() and self.intercept.running())

    def kept(self):
        kept = self.load("kept", mode="keepalive", rate=100, seconds=100)
        wait_until(lambda: self.metrics().total("trafficmirror_sessions_active") == 10, "ten sessions")
        return kept

    def test_the_sidecars_file(self):
        self.start(target=[self.target])
        self.try_limits(self.kept(), self.reload_own)
        self.assertEqual(self.metrics().by("trafficmirror_configurations_total", "result"),
                         {"taken": 5, "refused": 0})

    def test_the_intercepts_file(self):
        self.start(target=[self.target])

        def change(words, **limits):
            told = len(self.lines(self.sidecar, "changed by the intercept; in use: "))
            self.write(target=[self.target], **limits)
            line = self.reload_changed(self.intercept, words)
            wait_until(
                lambda: len(self.lines(self.sidecar, "changed by the intercept; in use: ")) > told,
                "the sidecar is told",
            )
            return line

        self.try_limits(self.kept(), change)

    def test_targets_and_their_names(self):
        lab = self.lab
        second = lab.nginx(lab.second)
        lab.resolve("shadow.test", [lab.shadow])
        self.start(target=["80=shadow.test:80"])
        kept = self.kept()
        wait_until(lambda: self.shadow.ids(), "requests at the first")
        # The file is as it was, and so is what the name means.
        self.reload(self.intercept, "the file of --config is read; it changes nothing")
        # The name has another address by now.
        lab.resolve("shadow.test", [lab.second])
        line = self.reload(self.intercept, "the file of --config is read; changed: ")
        self.assertIn(f"changed: target [{self.target_at(lab.second)}]", line)
        wait_until(lambda: second.ids(), "requests at the second")
        # Both, by address.
        both = [self.target, self.target_at(lab.second)]
        self.take(target=both)
        wait_until(lambda: self.lines(self.intercept, f"changed: target [{', '.join(both)}]"), "both")
        ids, opened, shed = self.short("both")
        self.assertEqual((opened, shed), (400, {}))
        wait_until(lambda: set(ids) <= {*self.shadow.ids(), *second.ids()}, "all at one of them")
        self.assertTrue(set(ids) & set(self.shadow.ids()) and set(ids) & set(second.ids()))
        self.assert_served(kept.stop())
        counted = self.metrics()
        self.assertEqual(counted.total("trafficmirror_streams_total"), 1)
        closed = counted.by("trafficmirror_sessions_closed_total", "reason")
        self.assertEqual(closed.pop("target_gone"), 10)
        self.assertLessEqual({reason for reason, count in closed.items() if count}, labtest.COMPLETE)
        # Until the new one's path is proven there is none.
        shed = counted.by("trafficmirror_shed_total", "reason")
        self.assertLessEqual({k for k, v in shed.items() if v}, {"mid_exchange", "no_target"})

    def test_what_the_intercept_says_goes_before(self):
        self.start(own={"percent": 100}, target=[self.target], percent=100)
        line = self.reload_own("changed: percent 10", percent=10)
        self.assertIn("in use: 100 % of the connections", line)
        self.assertEqual(self.short("all")[1:], (400, {}))
        self.take(target=[self.target])
        self.told("changed by the intercept; in use: 10 % of the connections")
        self.assertLess(self.short("share")[1], 100)

    def test_a_wrong_file_changes_nothing(self):
        self.start(own={"percent": 100}, target=[self.target], percent=100)
        kept = self.kept()
        programs = ((self.sidecar, "sidecar.yaml", {}), (self.intercept, "intercept.yaml",
                                                        {"target": [self.target]}))
        wrong = (
            ({"percent": 0}, "percent 0: is no percentage; write a number from 0.1 to 100"),
            ({"filter": "prot 80"}, "filter prot 80: is no pcap filter: can't parse filter expression"),
            ({"copies": 1001}, "copies 1001: is no number of copies"),
            ({"per-cent": 10}, "per-cent is not known; see --help"),
            ({"turns": ["wait", "off"]}, "turns takes one value, not a list"),
        )
        for process, name, others in programs:
            for number, (limits, words) in enumerate(wrong, 1):
                with self.subTest(program=process.name, words=words):
                    self.write(name, **others, **limits)
                    line = self.reload_changed(process, words)
                    self.assertRegex(line, rf"error --config \S+/{name} line \d: ")
                    self.assertTrue(line.endswith("; what was read before stays in use"), line)
            with open(self.lab.path(name), "w") as file:
                file.write("percent: [10\n")
            self.reload_changed(process, f"{name} line 2: ")
            self.write(name, **others, percent=100)
        self.assertEqual(self.metrics().total("trafficmirror_configurations_total", result="refused"), 6)
        ids, opened, shed = self.short("on")
        self.assertEqual((opened, shed), (400, {}))
        self.assert_served(kept.stop())
        self.assert_same_requests([*kept.ids(), *ids], self.shadow)
        self.assert_nothing_unmirrored(self.metrics())

    def test_what_needs_a_restart_is_named(self):
        self.start(target=[self.target])
        words = "these flags in it differ from those at the start, and need a restart: "
        self.write_own(percent=10, idle_timeout="9m", http="127.0.0.1:1")
        line = self.reload(self.sidecar, words)
        self.assertTrue(line.endswith(f"{words}http, idle-timeout"), line)
        self.told("the file of --config is read; changed: percent 10; in use: 10 %")
        self.take(target=[self.target], copies=2, source_ports="12000-12999")
        self.assertTrue(self.lines(self.intercept, f"{words}source-ports"))
        self.assertTrue(self.lines(self.intercept, "the file of --config is read; changed: copies 2"))
        # As it was: there is nothing to restart for.
        self.write_own(percent=10)
        self.reload(self.sidecar, "the file of --config is read; it changes nothing")
        self.assertEqual(len(self.lines(self.sidecar, words)), 1)

    def test_without_a_file(self):
        mirror = self.lab.mirror()
        for process in (mirror.sidecar, mirror.intercept):
            self.reload(process, "SIGHUP: there is no file of --config to read again")
        self.assertEqual(self.short("on")[1:], (400, {}))
        self.assertEqual(metrics(self.lab.production, SIDECAR_HTTP).total("trafficmirror_streams_total"), 1)

    def test_passed_on_by_stay(self):
        lab = self.lab
        lab.start_intercept(target=self.target)
        command = [*lab.sidecar_command(port=80, config=self.write_own(percent=0)), "--stay"]
        sidecar = lab.production.start(command, "sidecar")
        again = "it is started anew in 2 s (--stay)"
        wait_until(lambda: again in sidecar.output(), sidecar.output)
        self.write_own(percent=100)
        sidecar.signal(signal.SIGHUP)
        wait_until(lab.sidecar_ready, sidecar.output)
        self.write_own(percent=10)
        self.reload(sidecar, "the file of --config is read; changed: percent 10")
        self.assertEqual(sidecar.stop(), 0, sidecar.output())


if __name__ == "__main__":
    labtest.main()
