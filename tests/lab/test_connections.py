"""A connection for each request: each of them reaches the shadow exactly once."""

import labtest
from lab import Lab, wait_until


class Connections(labtest.LabTest):
    def test_each_connection_is_mirrored(self):
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            mirror = lab.mirror()
            summary = self.mirror_requests(
                lab,
                mirror,
                production,
                shadow,
                "short",
                rate=500,
                seconds=labtest.seconds(20),
                connections=200,
                mode="close",
            )

            def finished():
                reasons = mirror.metrics().by("trafficmirror_sessions_closed_total", "reason")
                return reasons.get("finished", 0) == summary["connections_opened"]

            wait_until(finished, "a finished session for each connection", 15)
            self.assert_sums_close(mirror.metrics())


if __name__ == "__main__":
    labtest.main()
