"""Kept-alive HTTP: each of the requests reaches the shadow exactly once."""

import labtest
from lab import Lab


class KeepAlive(labtest.LabTest):
    def test_each_request_arrives_once(self):
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            mirror = lab.mirror()
            self.mirror_requests(
                lab,
                mirror,
                production,
                shadow,
                "kept",
                rate=2000,
                seconds=labtest.seconds(20),
                connections=50,
            )


if __name__ == "__main__":
    labtest.main()
