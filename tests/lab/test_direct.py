"""The sidecar sends to the shadow itself, and the intercept returns the shadow's headers."""

import labtest
from lab import Lab, endpoint, wait_until

CLOSE_REASONS = "trafficmirror_sessions_closed_total"
MISSING = "answers nothing of what is sent to it directly"


class Direct(labtest.LabTest):
    def start(self, delivery="direct", family=4, **sidecar):
        self.lab = self.enterContext(Lab())
        self.production, self.shadow = self.lab.nginx(self.lab.production), self.lab.nginx(self.lab.shadow)
        self.mirror = self.lab.mirror(family=family, sidecar={"delivery": delivery, **sidecar})

    def load(self, name, **options):
        return self.lab.load(name, endpoint(self.lab.production.ipv4, 80), **options)

    def at_shadow(self):
        """Connections that the shadow holds from the intercept, in whatever state."""
        command = ["ss", "-Htn", "state", "connected", "exclude", "time-wait", "sport = :80"]
        lines = self.lab.shadow.run(command).stdout.splitlines()
        return [line for line in lines if self.lab.intercept.ipv4 in line]

    def rules(self, host, chain):
        """Puts an nftables chain into a host."""
        host.run(["nft", "-f", "-"], input=f"table inet t {{\nchain c {{\n{chain}\n}}\n}}\n")

    def assert_direct(self):
        metrics = self.mirror.metrics()
        self.assertGreater(metrics.total("trafficmirror_injected_packets_total"), 0)
        self.assertEqual(metrics.total("trafficmirror_inject_errors_total"), 0)
        # Of the intercept's own there are but the proofs of the path.
        self.assertLess(
            self.mirror.intercept_metrics().total("trafficmirror_injected_packets_total"), 20
        )

    def assert_each_request_arrives(self, delivery, family):
        self.start(delivery, family)
        common = {"family": family, "rate": labtest.rate(1000), "seconds": labtest.seconds(4)}
        both = (self.lab, self.mirror, self.production, self.shadow)
        self.mirror_requests(*both, "kept", connections=20, **common)
        common["rate"] = labtest.rate(300)
        self.mirror_requests(*both, "short", connections=20, mode="close", **common)
        self.assert_direct()
        addresses = {r.address for r in self.shadow.requests()}
        self.assertEqual(addresses, {self.lab.intercept.address(family)})

    def test_each_request_arrives(self):
        self.assert_each_request_arrives("direct", 4)

    def test_each_request_arrives_ipv6(self):
        self.assert_each_request_arrives("direct", 6)

    def test_each_request_arrives_by_the_link(self):
        self.assert_each_request_arrives("direct-link", 4)

    def test_each_request_arrives_by_the_link_ipv6(self):
        self.assert_each_request_arrives("direct-link", 6)

    def test_uploads_are_cut_to_the_path(self):
        # What is captured are super-packets of up to 64 KiB. Production's own link may be narrower
        # than the intercept's.
        for delivery, family, mtu in (("direct", 4, 1400), ("direct", 6, 1400), ("direct-link", 4, 1500)):
            with self.subTest(delivery=delivery, family=family), Lab() as lab:
                lab.production.run(["ip", "link", "set", "eth0", "mtu", str(mtu)])
                production, shadow = lab.sink(lab.production), lab.sink(lab.shadow)
                mirror = lab.mirror(family=family, sidecar={"delivery": delivery})
                load = lab.load(
                    "upload",
                    endpoint(lab.production.ipv4, 80),
                    rate=labtest.rate(20),
                    seconds=labtest.seconds(3),
                    connections=4,
                    body_bytes=300_000,
                    pacing=labtest.PACING,
                )
                self.assert_served(load.finish())
                self.assert_same_requests(load.ids(), shadow)
                self.assertEqual(shadow.bodies(), production.bodies())
                self.assert_nothing_unmirrored(mirror.metrics())
                self.assertEqual(mirror.metrics().total("trafficmirror_inject_errors_total"), 0)

    def test_a_network_that_drops_foreign_sources_is_named(self):
        self.start(response_timeout="6s")
        own = f"ip saddr {self.lab.production.ipv4}"
        self.rules(
            self.lab.router,
            "type filter hook forward priority 0;"
            f' iifname "production" {own} accept; iifname "production" meta nfproto ipv4 drop',
        )
        load = self.load("load", rate=100, seconds=60, connections=10)
        wait_until(lambda: MISSING in self.mirror.sidecar.output(), "the line", 15)
        line = next(x for x in self.mirror.sidecar.output().splitlines() if MISSING in x)
        self.assertIn(f"the shadow at {self.lab.shadow.ipv4}:80 ", line)
        self.assertIn("--delivery intercept", line)
        self.assert_served(load.stop())
        self.assertEqual(self.shadow.ids(), [])

        # And when it lets them pass: all that comes is mirrored.
        self.lab.router.run(["nft", "delete", "table", "inet", "t"])
        wait_until(lambda: self.mirror.metrics().total("trafficmirror_sessions_active") == 0, "the rest", 20)
        later = self.load("later", rate=100, seconds=1, connections=10)
        self.assert_served(later.finish())
        wait_until(lambda: set(later.ids()) <= set(self.shadow.ids()), "all of them at the shadow")

    def test_a_firewall_that_sees_one_side_is_named_and_the_link_passes_it_by(self):
        chain = "type filter hook output priority 0; meta l4proto tcp ct state invalid drop"
        for delivery in ("direct", "direct-link"):
            with self.subTest(delivery):
                self.start(delivery)
                # It is to see the neighbour first, which the kernel finds out.
                first = self.load("first", rate=50, seconds=1, connections=2)
                self.assert_served(first.finish())
                self.assert_same_requests(first.ids(), self.shadow)
                self.rules(self.lab.production, chain)
                load = self.load("load", rate=50, seconds=60, connections=5)
                if delivery == "direct":
                    wait_until(lambda: MISSING in self.mirror.sidecar.output(), "the line", 15)
                    errors = self.mirror.metrics().by("trafficmirror_inject_errors_total", "reason")
                    self.assertGreater(errors["not_permitted"], 0)
                    self.assert_served(load.stop())
                else:
                    wait_until(lambda: len(self.shadow.ids()) > 150, "requests at the shadow", 15)
                    self.assert_served(load.stop())
                    self.assert_same_requests([*first.ids(), *load.ids()], self.shadow)

    def test_a_sidecar_that_is_killed_leaves_nothing_open(self):
        self.start()
        load = self.load("load", rate=200, seconds=60, connections=20)
        wait_until(lambda: len(self.shadow.ids()) > 400, "requests at the shadow")
        wait_until(lambda: len(self.at_shadow()) == 20, self.at_shadow)
        self.mirror.sidecar.kill()
        wait_until(lambda: not self.at_shadow(), self.at_shadow, 5)
        reset = self.mirror.intercept_metrics().by("trafficmirror_sessions_reset_total", "reason")
        self.assertEqual(reset["stream_ended"], 20)
        self.assert_served(load.stop())

    def test_a_sidecar_that_ends_resets_what_is_open(self):
        self.start()
        load = self.load("load", rate=200, seconds=60, connections=20)
        wait_until(lambda: len(self.shadow.ids()) > 400, "requests at the shadow")
        self.assertEqual(self.mirror.sidecar.stop(), 0)
        wait_until(lambda: not self.at_shadow(), self.at_shadow, 5)
        self.assert_served(load.stop())

    def test_a_shadow_that_refuses(self):
        self.start()
        self.shadow.stop()
        load = self.load("load", rate=50, seconds=2, connections=5, mode="close")
        self.assert_served(load.finish())
        closed = self.mirror.metrics().by(CLOSE_REASONS, "reason")
        self.assertGreater(closed["shadow_refused"], 0)
        self.assertNotIn(MISSING, self.mirror.sidecar.output())

    def test_wrong_flags(self):
        with Lab() as lab:
            for words, options in (
                ("--delivery-interface says nothing without", {"delivery_interface": "eth0"}),
                ("--delivery-interface none", {"delivery": "direct-link", "delivery_interface": "none"}),
                ("--delivery", {"delivery": "forged"}),
            ):
                command = lab.sidecar_command(port=80, **options)
                result = lab.production.run(command, check=False, seconds=15)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
                self.assertIn(words, result.stderr)


if __name__ == "__main__":
    labtest.main()
