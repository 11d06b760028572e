"""What is mapped where: several ports of production, and several endpoints for one of them."""

import labtest
from lab import Lab, endpoint, wait_until

HOSTS = ("client", "production", "shadow", "second", "intercept")
RATE = 300


class Endpoints(labtest.LabTest):
    def setUp(self):
        self.lab = lab = self.enterContext(Lab(HOSTS))
        lab.nginx(lab.production), lab.nginx(lab.production, 81, name="other-production")
        self.first, self.second = lab.nginx(lab.shadow), lab.nginx(lab.second)
        self.other = lab.nginx(lab.shadow, 8081, name="other-shadow")
        target = [
            f"80={endpoint(lab.shadow.ipv4, 80)}",
            f"80={endpoint(lab.second.ipv4, 80)}",
            f"81={endpoint(lab.shadow.ipv4, 8081)}",
        ]
        self.mirror = lab.mirror([80, 81], intercept={"target": target})

    def load(self, name, seconds, port=80):
        address = endpoint(self.lab.production.ipv4, port)
        running = self.lab.load(
            name, address, mode="close", rate=RATE, connections=20, seconds=seconds)
        self.assert_served(running.finish(seconds + 30))
        wait_until(self.all_ended, "the sessions' ends", 15)
        return set(running.ids())

    def all_ended(self):
        return self.mirror.metrics().total("trafficmirror_sessions_active") == 0

    def test_each_port_has_its_own(self):
        answered, others = self.load("port-80", 2), self.load("port-81", 1, port=81)
        first, second = (answered & set(server.ids()) for server in (self.first, self.second))
        self.assertEqual(first | second, answered)
        self.assertFalse(first & second)
        self.assertGreater(min(len(first), len(second)), len(answered) / 4)
        self.assertEqual(sorted(self.other.ids()), sorted(others))
        self.assert_nothing_unmirrored(self.mirror.metrics())

    def test_one_that_refuses_is_left_out_and_tried_again(self):
        self.second.stop()
        answered = self.load("down", 4)
        missing = answered - set(self.first.ids())
        metrics = self.mirror.metrics()
        refused = metrics.total("trafficmirror_sessions_closed_total", reason="shadow_refused")
        self.assertEqual(labtest.unmirrored(metrics), refused)
        # A connection that was refused before its request came is mirrored by the other.
        self.assertLessEqual(len(missing), refused)
        # Once a second, and before the first answer as many as came meanwhile.
        self.assertGreaterEqual(refused, 3)
        self.assertLess(refused, len(answered) / 20)

        self.second.start()
        self.load("tried", 2)
        answered = self.load("back", 2)
        its = answered & set(self.second.ids())
        self.assertGreater(len(its), len(answered) / 4)
        self.assertEqual(its | answered & set(self.first.ids()), answered)
        self.assert_sums_close(self.mirror.metrics())


if __name__ == "__main__":
    labtest.main()
