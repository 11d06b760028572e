"""What the tests of the lab have in common."""

import argparse
import collections
import os
import sys
import unittest

from lab import LabError, endpoint, wait_until

SKIPPED = 77

# A session that ended so has given the shadow every byte that production received.
COMPLETE = {"finished", "production_reset"}


def seconds(usual):
    return float(os.environ.get("LAB_SECONDS", usual))


def rate(usual):
    """What the programs have to keep up with: less where they are built to find faults, not for speed."""
    return usual * float(os.environ.get("LAB_RATE", 1))


# Bytes a second on a connection: a network's rate. Without one a client on this machine sends some
# gigabytes a second, and a busy machine keeps the capture from a processor for as long as that takes
# to overrun its ring.
PACING = round(rate(100_000_000))


def unmirrored(metrics):
    """How many sessions and exchanges the sidecar says were not, or not wholly, mirrored."""
    closed = metrics.by("trafficmirror_sessions_closed_total", "reason")
    incomplete = sum(count for reason, count in closed.items() if reason not in COMPLETE)
    return incomplete + metrics.total("trafficmirror_shed_total")


def some(items):
    items = sorted(items)
    return f"{len(items)}: {', '.join(map(str, items[:5]))}{' …' if len(items) > 5 else ''}"


class LabTest(unittest.TestCase):
    def assert_served(self, summary):
        """Production has answered each request."""
        self.assertGreater(summary["requests"], 0)
        self.assertEqual(summary["failed_by"], {}, "production failed requests")
        self.assertEqual(summary["ok"], summary["requests"])

    def assert_same_requests(self, answered, shadow, deadline=15.0):
        """The shadow has each of these ids exactly once, and no other."""
        wanted = set(answered)
        self.assertEqual(len(wanted), len(answered), "ids are not unique")
        try:
            wait_until(lambda: len(shadow.ids()) >= len(wanted), "the shadow's log", deadline)
        except LabError:
            pass  # what is missing is said below
        counts = collections.Counter(shadow.ids())
        missing = wanted - set(counts)
        foreign = set(counts) - wanted
        repeated = [name for name, count in counts.items() if count > 1]
        differences = {
            "missing at the shadow": missing,
            "at the shadow only": foreign,
            "more than once at the shadow": repeated,
        }
        found = [f"{what}, {some(names)}" for what, names in differences.items() if names]
        self.assertEqual(found, [])

    def assert_sums_close(self, metrics):
        """opened = active + closed over all reasons."""
        opened = metrics.total("trafficmirror_sessions_opened_total")
        active = metrics.total("trafficmirror_sessions_active")
        closed = metrics.by("trafficmirror_sessions_closed_total", "reason")
        self.assertEqual(opened, active + sum(closed.values()), f"active {active}, closed {closed}")

    def assert_nothing_unmirrored(self, metrics):
        closed = metrics.by("trafficmirror_sessions_closed_total", "reason")
        shed = metrics.by("trafficmirror_shed_total", "reason")
        counted = {"closed": closed, "shed": shed}
        self.assertEqual(unmirrored(metrics), 0, counted)
        self.assertEqual(metrics.total("trafficmirror_capture_drops_total"), 0)

    def mirror_requests(self, lab, mirror, production, shadow, name, family=4, **load):
        """Drives a load at production; the shadow gets the same requests. Returns the summary."""
        shadow_before = set(shadow.ids())
        running = lab.load(name, endpoint(lab.production.address(family), production.port), **load)
        summary = running.finish(load["seconds"] + 30)
        self.assert_served(summary)
        answered = running.ids()
        try:
            self.assert_same_requests([*shadow_before, *answered], shadow)
        except AssertionError:
            # The counters say why.
            self.assert_nothing_unmirrored(mirror.metrics())
            raise
        # A server may write its line behind the answer.
        wait_until(lambda: set(answered) <= set(production.ids()), "production's log")
        metrics = mirror.metrics()
        self.assert_sums_close(metrics)
        self.assert_nothing_unmirrored(metrics)
        return summary


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--bin", help="the folder of the programs")
    options, rest = parser.parse_known_args()
    if options.bin:
        os.environ["TRAFFICMIRROR_BIN"] = options.bin
    if os.geteuid() != 0:
        print("SKIPPED: needs root")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
