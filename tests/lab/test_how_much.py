"""How much of production's traffic is mirrored: a share of the connections, or each several times."""

import collections

import labtest
from lab import Lab, endpoint, wait_until

REQUESTS = 3  # on each connection


class HowMuch(labtest.LabTest):
    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        self.production, self.shadow = (
            lab.nginx(host, keepalive_requests=REQUESTS) for host in (lab.production, lab.shadow))

    def load(self, name, count, rate, **options):
        """So many connections with REQUESTS requests each."""
        rate = labtest.rate(rate)
        running = self.lab.load(name, endpoint(self.lab.production.ipv4, 80), mode="keepalive",
                                rate=rate, seconds=count * REQUESTS / rate, **options)
        self.assert_served(running.finish(count * REQUESTS / rate + 60))
        wait_until(lambda: len(self.production.ids()) >= len(running.ids()), "production's log")

    def connections(self):
        """The ids of each connection's requests, as production has them in its log."""
        under_way = collections.defaultdict(list)
        for request in self.production.requests():
            its = under_way[request.address, request.port]
            its.append(request.id)
            if len(its) == REQUESTS:
                yield its
                under_way[request.address, request.port] = []

    def test_a_share_of_the_connections(self):
        mirror = self.lab.mirror(sidecar={"percent": 30})
        self.load("share", 20000, 4500, connections=50)
        metrics = mirror.metrics()
        sampled = metrics.total("trafficmirror_shed_total", reason="sampled")
        opened = metrics.total("trafficmirror_sessions_opened_total")
        self.assertEqual(labtest.unmirrored(metrics), sampled, "nothing else is missing")
        self.assertGreaterEqual(opened + sampled, 20000)
        self.assertAlmostEqual(100 * opened / (opened + sampled), 30, delta=2)

        wait_until(lambda: mirror.metrics().total("trafficmirror_sessions_active") == 0,
                   "the sessions' ends")
        mirrored = collections.Counter(self.shadow.ids())
        self.assertEqual(set(mirrored.values()), {1})
        parts = [sum(name in mirrored for name in ids) for ids in self.connections()]
        whole = parts.count(REQUESTS)
        self.assertEqual(parts.count(0) + whole, len(parts), "each is mirrored whole or not at all")
        self.assertAlmostEqual(100 * whole / len(parts), 30, delta=2)
        print(f"\n{len(parts)} connections, {100 * whole / len(parts):.1f} % of them mirrored, all whole")

    def test_copies(self):
        mirror = self.lab.mirror(sidecar={"copies": 3})
        self.load("thrice", 200, 600, connections=5)
        wanted = {name: 3 for name in self.production.ids()}
        wait_until(lambda: len(self.shadow.ids()) >= 3 * len(wanted), "all of them at the shadow")
        requests = self.shadow.requests()
        self.assertEqual(collections.Counter(request.id for request in requests), wanted)
        self.assertEqual(len({(request.id, request.address, request.port) for request in requests}),
                         len(requests), "each copy has a source of its own")
        metrics = mirror.metrics()
        self.assert_nothing_unmirrored(metrics)
        self.assert_sums_close(metrics)


if __name__ == "__main__":
    labtest.main()
