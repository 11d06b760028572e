"""Bodies of a byte to 16 MiB: both servers read the same bytes."""

import labtest
from lab import Lab, LabError, endpoint, wait_until

KIB, MIB = 1 << 10, 1 << 20
# Bytes of a body, requests a second.
BODIES = [(1, 20), (64 * KIB, 20), (MIB, 4), (16 * MIB, 1)]


class Bodies(labtest.LabTest):
    def compare(self, mtu):
        with Lab(mtu=mtu) as lab:
            production, shadow = lab.sink(lab.production), lab.sink(lab.shadow)
            mirror = lab.mirror()
            for size, rate in BODIES:
                load = lab.load(
                    f"body{size}",
                    endpoint(lab.production.ipv4, 80),
                    rate=rate,
                    seconds=3,
                    connections=2,
                    body_bytes=size,
                    pacing=labtest.PACING,
                )
                self.assert_served(load.finish())
            sent = production.bodies()
            self.assertEqual(len(sent), sum(rate * 3 for _, rate in BODIES))
            self.assertEqual({length for length, _ in sent.values()}, {size for size, _ in BODIES})
            try:
                wait_until(lambda: len(shadow.bodies()) >= len(sent), "the shadow's bodies", 30)
            except LabError:
                pass  # what is missing is said below
            received = shadow.bodies()
            for name, body in sent.items():
                self.assertEqual(received.get(name), body, name)
            self.assertEqual(len(shadow.ids()), len(sent), "requests at the shadow")
            self.assert_sums_close(mirror.metrics())
            self.assert_nothing_unmirrored(mirror.metrics())

    def test_mtu_1500(self):
        self.compare(1500)

    def test_mtu_9000(self):
        self.compare(9000)


if __name__ == "__main__":
    labtest.main()
