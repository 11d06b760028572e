"""Several intercepts behind one name, which come and go: sessions are spread over them."""

import collections
import json

import labtest
from lab import INTERCEPT_GRPC, INTERCEPT_HTTP, SIDECAR_HTTP, Lab, endpoint, metrics, wait_until

NAME = "intercept.test"
CONNECTIONS = 30


class Replicas(labtest.LabTest):
    def metrics(self):
        return metrics(self.lab.production, SIDECAR_HTTP)

    def totals(self, host):
        """What an intercept says that sidecars have counted, and it was told."""
        status, text = host.get(INTERCEPT_HTTP, "/status")
        self.assertEqual(status, 200)
        return json.loads(text)["totals"]

    def streams(self):
        """The hosts to which the sidecar says that it has a stream, or would have one."""
        said = self.metrics().by("trafficmirror_stream_up", "intercept")
        return {address: bool(up) for address, up in said.items()}

    def await_streams(self, *hosts):
        wanted = {endpoint(host.ipv4, INTERCEPT_GRPC): True for host in hosts}
        wait_until(lambda: self.streams() == wanted, lambda: f"streams: {self.streams()}", 20)

    def assert_told_all(self, hosts, gone):
        """What intercepts were told, and one that is gone was, is in sum what the sidecar counts."""
        def counted():
            counters = self.metrics()
            return {
                "sessions": counters.total("trafficmirror_sessions_active"),
                "sessions_opened": counters.total("trafficmirror_sessions_opened_total"),
                "closed": nonzero(counters.by("trafficmirror_sessions_closed_total", "reason")),
                "shed": nonzero(counters.by("trafficmirror_shed_total", "reason")),
            }

        def told():
            each = [*(self.totals(host) for host in hosts), *gone]
            return {
                "sessions": sum(totals["sessions"] for totals in each),
                "sessions_opened": sum(totals["sessions_opened"] for totals in each),
                "closed": sum((collections.Counter(t["closed"]) for t in each), collections.Counter()),
                "shed": sum((collections.Counter(t["shed"]) for t in each), collections.Counter()),
            }

        wait_until(lambda: told() == counted(), lambda: f"told {told()}, counted {counted()}", 10)

    def served(self, server, load):
        """Its requests, by id."""
        prefix = f"{load}-"
        return {r.id: r for r in server.requests() if r.id.startswith(prefix)}

    def test_sessions_are_spread_and_one_that_goes_takes_only_its_own(self):
        hosts = ("client", "production", "shadow", "intercept", "second", "third", "fourth")
        self.lab = lab = self.enterContext(Lab(hosts))
        first, second, third, fourth = lab.intercept, lab.second, lab.third, lab.fourth
        production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
        address = endpoint(lab.production.ipv4, 80)
        target = f"80={endpoint(lab.shadow.ipv4, 80)}"
        programs = {}
        for host in (first, second, third):
            programs[host] = lab.start_intercept(host=host, target=target)
        lab.resolve(NAME, (first, second, third))
        # Whatever becomes of one: there is always a stream to another.
        lab.start_sidecar(port=80, intercept=f"{NAME}:{INTERCEPT_GRPC}", give_up_after="3s")
        self.await_streams(first, second, third)

        # Each has a third of the sessions, about.
        short = lab.load("short", address, rate=300, seconds=2, connections=20, mode="close")
        self.assert_served(short.finish())
        self.assert_same_requests(short.ids(), shadow)
        self.assert_nothing_unmirrored(self.metrics())
        by = collections.Counter(r.address for r in self.served(shadow, "short").values())
        for host in (first, second, third):
            self.assertGreater(by[host.ipv4], 600 / 3 * 0.7, by)
        wait_until(lambda: not self.metrics().total("trafficmirror_sessions_active"), "their end")
        self.assert_told_all((first, second, third), [])
        exchanges = [self.totals(host)["exchanges"] for host in (first, second, third)]
        self.assertEqual(sum(exchanges), 600, exchanges)

        # One is killed under load.
        kept = lab.load("kept", address, rate=300, seconds=120, connections=CONNECTIONS)
        wait_until(lambda: len(self.served(shadow, "kept")) > 10 * CONNECTIONS, "requests at the shadow")
        self.assert_told_all((first, second, third), [])
        totals_of_third = self.totals(third)
        its = totals_of_third["sessions"]
        self.assertGreater(its, 0)
        self.assertLess(its, CONNECTIONS)
        programs[third].kill()
        wait_until(lambda: self.streams()[endpoint(third.ipv4, INTERCEPT_GRPC)] is False, "the loss")
        closed = self.metrics().by("trafficmirror_sessions_closed_total", "reason")
        self.assertEqual(closed["stream_lost"], its)

        # A fourth comes, and the third is forgotten.
        programs[fourth] = lab.start_intercept(host=fourth, target=target)
        lab.resolve(NAME, (first, second, fourth))
        self.await_streams(first, second, fourth)
        before = labtest.unmirrored(self.metrics())
        later = lab.load("later", address, rate=300, seconds=2, connections=20, mode="close")
        self.assert_served(later.finish())
        self.assert_served(kept.stop())
        all_later = set(later.ids())
        wait_until(lambda: all_later <= set(self.served(shadow, "later")), "all later ones", 5)
        self.assertEqual(labtest.unmirrored(self.metrics()), before)
        by = collections.Counter(r.address for r in self.served(shadow, "later").values())
        self.assertEqual(set(by), {first.ipv4, second.ipv4, fourth.ipv4})
        self.assertGreater(by[fourth.ipv4], 600 / 3 * 0.7, by)

        # The sessions of the others have every request, by one connection from first to last.
        ids = collections.defaultdict(list)  # of each of production's connections
        for request in self.served(production, "kept").values():
            ids[request.port].append(request.id)
        mirrored = self.served(shadow, "kept")
        affected = 0
        for connection in ids.values():
            if any(mirrored[i].address == third.ipv4 for i in connection if i in mirrored):
                affected += 1
                continue
            self.assertEqual([i for i in connection if i not in mirrored], [])
            self.assertEqual(len({(mirrored[i].address, mirrored[i].port) for i in connection}), 1)
        self.assertEqual(affected, its)
        self.assertEqual(len(ids), CONNECTIONS)
        everything = shadow.ids()
        self.assertEqual(len(set(everything)), len(everything), "more than once at the shadow")

        # And the sums close.
        wait_until(lambda: not self.metrics().total("trafficmirror_sessions_active"), "the end of all", 15)
        self.assert_sums_close(self.metrics())
        self.assert_told_all((first, second, fourth), [{**totals_of_third, "sessions": 0}])
        self.assertTrue(programs[first].running() and lab.sidecar_ready())


def nonzero(counts):
    return collections.Counter({name: count for name, count in counts.items() if count})


if __name__ == "__main__":
    labtest.main()
