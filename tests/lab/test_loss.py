"""A bad network between intercept and shadow: each request still arrives, and only once."""

import labtest
from lab import Lab, endpoint, wait_until

MIB = 1 << 20
RATE = 200


class Loss(labtest.LabTest):
    def start(self, lab):
        self.production, self.shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
        self.mirror = lab.mirror()

    def lose(self, lab, per_mille):
        lab.lose(lab.intercept, lab.shadow, per_mille)
        lab.lose(lab.shadow, lab.intercept, per_mille)

    def compare(self, lab, connections=50):
        """Keep-alive and one request a connection, at the same time."""
        loads = [
            lab.load(
                mode,
                endpoint(lab.production.ipv4, self.production.port),
                rate=RATE,
                seconds=labtest.seconds(6),
                connections=connections,
                mode=mode,
            )
            for mode in ("keepalive", "close")
        ]
        for load in loads:
            self.assert_served(load.finish())
        self.assert_same_requests([name for load in loads for name in load.ids()], self.shadow, 30)
        # Some are still to be closed, which may take a retransmission or five.
        wait_until(
            lambda: self.mirror.metrics().total("trafficmirror_sessions_active") == 0,
            "the end of all sessions",
            30,
        )
        metrics = self.mirror.metrics()
        self.assert_sums_close(metrics)
        self.assert_nothing_unmirrored(metrics)
        return metrics

    def test_one_in_a_hundred_lost(self):
        with Lab() as lab:
            self.start(lab)
            self.lose(lab, 10)
            metrics = self.compare(lab)
            self.assertGreater(metrics.total("trafficmirror_retransmits_total"), 0)

    def test_one_in_twenty_lost(self):
        with Lab() as lab:
            self.start(lab)
            self.lose(lab, 50)
            metrics = self.compare(lab)
            self.assertGreater(metrics.total("trafficmirror_retransmits_total"), 0)

    def test_late_and_out_of_order(self):
        """20 ms each way, and every tenth packet overtaken by those behind it."""
        with Lab() as lab:
            lab.delay(lab.intercept, lab.shadow, milliseconds=20, held=100, held_milliseconds=10)
            self.start(lab)
            self.compare(lab)

    def test_late_out_of_order_and_lost(self):
        with Lab() as lab:
            lab.delay(lab.intercept, lab.shadow, milliseconds=20, held=100, held_milliseconds=10)
            self.start(lab)
            self.lose(lab, 10)
            self.compare(lab)


class Upload(labtest.LabTest):
    def upload(self, lab, size, deadline):
        production, shadow = lab.sink(lab.production), lab.sink(lab.shadow)
        # Production reads it at once. What TCP has not brought through the bad network by then waits
        # in memory, and that is all of it.
        mirror = lab.mirror(sidecar={"memory_limit": f"{2 * size}"})
        for hosts in ((lab.intercept, lab.shadow), (lab.shadow, lab.intercept)):
            lab.lose(*hosts, 10)
        load = lab.load(
            "upload",
            endpoint(lab.production.ipv4, 80),
            rate=1,
            seconds=1,
            connections=1,
            body_bytes=size,
            pacing=labtest.PACING,
        )
        self.assert_served(load.finish())
        try:
            wait_until(lambda: shadow.ids(), "the upload at the shadow", deadline)
        finally:
            self.assert_nothing_unmirrored(mirror.metrics())  # says why, where it did not come
        self.assertEqual(shadow.bodies(), production.bodies())

    def test_upload_of_64_mib(self):
        with Lab() as lab:
            self.upload(lab, 64 * MIB, 60)

    def test_upload_out_of_order(self):
        """Reordering that is no loss, over a path with a round trip."""
        with Lab() as lab:
            lab.delay(lab.intercept, lab.shadow, milliseconds=2, held=20, held_milliseconds=1)
            self.upload(lab, 8 * MIB, 60)


if __name__ == "__main__":
    labtest.main()
