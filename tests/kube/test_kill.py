"""kill -9 of the operator behind each of its writes, all through a mirror's life: the world that comes
of it is that of an operator which nobody kills."""

import unittest

import kubetest
from apiserver import ApiServer, wait_until
from kubelet import Kubelet
from operator_process import (MIRRORS, NAMESPACE, Mirror, Operator, install, intercepts_of,
                              make_shadow, workload)
from proxy import Proxy
from rest import differences

OURS = "trafficmirror-"
# A server's or a random value: what tells two runs apart that came to the same.
NOT_COMPARED = {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
                "selfLink", "lastTransitionTime", "observedGeneration", "startedAt", "message",
                "counted", "stoppingSince"}


def setUpModule():
    global server, mirror, kubelet, proxy
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    install(server)
    make_shadow(server)
    server.client.create(workload("checkout", "shop", {"app": "checkout"}))
    mirror = Mirror(server)
    mirror.consent()
    kubelet = Kubelet(server.client)
    unittest.addModuleCleanup(kubelet.close)
    proxy = Proxy(server)
    unittest.addModuleCleanup(proxy.close)


class Lives:
    """An operator that is started again whenever it was killed."""

    def __init__(self, kill):
        self.kill = kill
        self.deaths = 0
        self._start()

    def _start(self):
        self.operator = Operator(server, url=proxy.url)
        if self.kill:
            proxy.kill_at(1, self.operator.process, after=True)

    def wait_until(self, condition, what):
        def after_each_death():
            if proxy.trapped():
                self.operator.process.wait()
                self.operator.log.close()
                self.deaths += 1
                self._start()
            return condition()

        wait_until(after_each_death, what, 120, 0.02)

    def end(self):
        proxy.disarm()
        with self.operator:
            pass


def without_chance(thing):
    if isinstance(thing, dict):
        return {key: without_chance(value) for key, value in thing.items()
                if key not in NOT_COMPARED}
    return [without_chance(one) for one in thing] if isinstance(thing, list) else thing


def world():
    """What operators have made for mirrors, comparable with that of another life."""
    found = {}
    for resource in ("apps/v1/deployments", "v1/services", "v1/configmaps", "v1/secrets",
                     "v1/serviceaccounts", "networking.k8s.io/v1/networkpolicies",
                     "policy/v1beta1/poddisruptionbudgets", MIRRORS):
        for thing in server.client.list(resource):
            namespace, name = thing["metadata"]["namespace"], thing["metadata"]["name"]
            if namespace == NAMESPACE or not (name.startswith(OURS) or resource == MIRRORS):
                continue
            thing = without_chance(thing)
            if resource == "v1/secrets":
                thing["data"] = sorted(thing["data"])
                thing["metadata"].get("annotations", {}).pop("trafficmirror.dev/applied", None)
            found[f"{resource} {namespace}/{name}"] = thing
    return found


class Killed(unittest.TestCase):
    def live(self, expected=None):
        """A mirror's life: (the worlds at its rests, how often the operator was killed). With
        `expected` it is killed behind each write, and comes to each of those worlds."""
        life = Lives(kill=expected is not None)
        worlds = {}

        def rest(name, condition):
            quiet = {"writes": -1, "looks": 0}

            def comes_to_nothing_more():
                writes = proxy.writes()
                quiet["looks"] = quiet["looks"] + 1 if quiet["writes"] == writes else 0
                quiet["writes"] = writes
                return condition() and quiet["looks"] > 100

            def comes_to_the_same():
                return not differences(expected[name], world())

            life.wait_until(
                comes_to_the_same if expected else comes_to_nothing_more,
                lambda: f"{name}: {differences((expected or {}).get(name, {}), world())}")
            worlds[name] = world()

        def replicas():
            return [one["spec"]["replicas"] for one in intercepts_of(server)]

        mirror.apply()
        rest("attached", lambda: mirror.condition("ReplyPathVerified") == ("True", "Verified"))
        mirror.patch({"intercept": {"replicas": 2}, "replicate": {"percent": 50}})
        rest("changed", lambda: replicas() == [2])
        mirror.patch({"paused": True})
        rest("paused", lambda: not replicas())
        mirror.patch({"paused": False})
        rest("resumed", lambda: mirror.condition("ReplyPathVerified") == ("True", "Verified"))
        mirror.delete()
        rest("deleted", lambda: not mirror.exists())
        life.end()
        return worlds, life.deaths

    def test_behind_each_write(self):
        unkilled, deaths = self.live()
        self.assertEqual(deaths, 0)
        self.assertEqual(unkilled["deleted"], {})
        self.assertNotEqual(unkilled["attached"], unkilled["changed"])
        before = proxy.writes()
        _, deaths = self.live(expected=unkilled)
        # Each write was its operator's last; that of the very last may not have been noticed.
        self.assertGreaterEqual(deaths, proxy.writes() - before - 1)
        self.assertGreater(deaths, 30)
        print(f"{deaths} deaths ... ", end="", flush=True)


if __name__ == "__main__":
    kubetest.main()
