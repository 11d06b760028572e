"""The shadow's packets reach the intercept alone, and the intercept's kernel answers none."""

import labtest
from lab import RST, Capture, Lab, endpoint, wait_until

ICMP = (1, 58)


class Isolation(labtest.LabTest):
    def watch(self, family):
        with Lab() as lab:
            lab.nginx(lab.production)
            shadow = lab.nginx(lab.shadow)
            mirror = lab.mirror(family=family)
            from_shadow = {lab.shadow.ipv4, lab.shadow.ipv6}
            from_intercept = {lab.intercept.ipv4, lab.intercept.ipv6}

            def strange_at_client(packet):
                return packet.source in from_shadow | from_intercept

            def strange_at_production(packet):
                return packet.source in from_shadow

            def strange_at_shadow(packet):
                # Every connection here ends in order, so that a RST can only be the kernel's.
                return packet.source in from_intercept and (
                    packet.flags & RST or packet.protocol in ICMP
                )

            captures = [
                Capture(lab.client, strange_at_client),
                Capture(lab.production, strange_at_production),
                Capture(lab.shadow, strange_at_shadow),
            ]
            address = endpoint(lab.production.address(family), 80)
            running = {"seconds": min(labtest.seconds(5), 5)}
            loads = [
                lab.load("kept", address, rate=200, connections=10, **running),
                lab.load("short", address, rate=100, connections=50, mode="close", **running),
                lab.load("body", address, rate=20, connections=5, body_bytes=200_000, **running),
            ]
            for load in loads:
                self.assert_served(load.finish())
            self.assert_same_requests([name for load in loads for name in load.ids()], shadow)
            wait_until(
                lambda: mirror.metrics().total("trafficmirror_sessions_active") == 0,
                "the end of all sessions",
            )
            for capture in captures:
                offences = [packet.text for packet in capture.stop()]
                self.assertGreater(capture.packets, 100, f"{capture.host.name} saw no traffic")
                self.assertEqual(offences[:5], [], f"at {capture.host.name}: {len(offences)}")

    def test_ipv4(self):
        self.watch(4)

    def test_ipv6(self):
        self.watch(6)


if __name__ == "__main__":
    labtest.main()
