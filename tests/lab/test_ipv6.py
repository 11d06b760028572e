"""The HTTP cases over IPv6."""

import labtest
from lab import Lab


class IPv6(labtest.LabTest):
    def mirror_over_ipv6(self, name, **load):
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            mirror = lab.mirror(family=6)
            load["seconds"] = labtest.seconds(20)
            self.mirror_requests(lab, mirror, production, shadow, name, family=6, **load)

    def test_kept_alive(self):
        self.mirror_over_ipv6("kept", rate=2000, connections=50)

    def test_a_connection_for_each(self):
        self.mirror_over_ipv6("short", rate=500, connections=200, mode="close")


if __name__ == "__main__":
    labtest.main()
