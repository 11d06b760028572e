"""The commands of docs/, as they stand there: only addresses and paths are the lab's."""

import http.client
import os
import random
import re
import time

import labtest
from lab import HERE, SIDECAR_HTTP, Lab, endpoint, wait_until

DOCS = os.path.join(HERE, "..", "..", "docs")
HOSTS = ("client", "production", "shadow", "intercept", "cold")


class Page:
    """A page, whose blocks that begin with "```sh HOST" are commands of that host. With " &" behind
    it they run on."""

    def __init__(self, lab, name, paths=()):
        self._lab = lab
        with open(os.path.join(DOCS, name)) as file:
            text = file.read()
        names = {"10.0.1.4": "production", "10.0.2.5": "shadow", "10.0.2.9": "intercept"}
        places = {address: getattr(lab, host).ipv4 for address, host in names.items()}
        for place, its in {**places, **dict(paths)}.items():
            text = text.replace(place, its)
        blocks = re.findall(r"^ *```(\w+)(?: (\w+)( &)?)?\n(.*?)^ *```$", text, re.M | re.S)
        self.commands = [block[1:] for block in blocks if block[0] == "sh"]
        self.others = [block[3] for block in blocks if block[0] != "sh"]

    def run(self, host, start):
        """The next commands, which are those of a host and begin so."""
        its, background, text = self.commands.pop(0)
        lines = "\n".join(line.strip() for line in text.splitlines())
        assert its == host and lines.startswith(start), f"the page's next commands are:\n{text}"
        path = {"PATH": f"{os.path.abspath(self._lab.binaries)}:{os.environ['PATH']}"}
        where = getattr(self._lab, host)
        if background:
            return where.start(["bash", "-c", f"exec {lines}"], f"page-{host}", path)
        return where.run(["bash", "-ec", lines], environment=path, seconds=120)


class Docs(labtest.LabTest):
    def ask_for_things(self, server, count, seed):
        """Asks a server for so many of 400 things; returns how long each took, in milliseconds."""
        took = []
        numbers = random.Random(seed)
        with self.lab.client.network():
            connection = http.client.HTTPConnection(server.ipv4, 80, timeout=10)
            for _ in range(count):
                began = time.monotonic()
                connection.request("GET", f"/thing/{numbers.randrange(400)}")
                answer = connection.getresponse()
                answer.read()
                self.assertEqual(answer.status, 200)
                took.append((time.monotonic() - began) * 1000)
            connection.close()
        return sorted(took)

    def start_caching(self, host, page_configuration):
        """An nginx as the page has it, and its store, which takes 20 ms for each answer."""
        directory = self.lab.path(host.name)
        os.makedirs(f"{directory}/cache")
        configuration = page_configuration.replace("/var/log/nginx", directory)
        configuration = configuration.replace("/var/cache/items", f"{directory}/cache/items")
        configuration = configuration.replace("http://store", "http://127.0.0.1:8081")
        with open(f"{directory}/nginx.conf", "w") as file:
            file.write(f"user root; worker_processes 1; daemon off; pid {directory}/pid;\n")
            file.write(f"events {{}}\nhttp {{\nkeepalive_requests 100000;\n{configuration}}}\n")
        command = ["nginx", "-p", directory, "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"]
        store = self.lab.sink(host, 8081, delay=0.02, name=f"store-{host.name}")
        self.lab.start_ready(host, command, f"nginx-{host.name}", lambda: host.accepts(80))
        return store

    def hits(self, host, first):
        """How many of the requests from that number on were hits, in percent."""
        with open(self.lab.path(host.name, "cache.log")) as file:
            lines = file.read().split()[first:]
        return 100 * lines.count("HIT") / len(lines)

    def lines(self, host):
        with open(self.lab.path(host.name, "cache.log")) as file:
            return len(file.readlines())

    def test_pre_warming(self):
        self.lab = lab = self.enterContext(Lab(HOSTS))
        page = Page(lab, "pre-warming.md", {"/var/log/nginx": lab.path("shadow")})
        configuration = Page(lab, "pre-warming.md").others[0]
        stores = {h: self.start_caching(h, configuration) for h in (lab.production, lab.shadow, lab.cold)}
        page.run("intercept", "trafficmirror-intercept")
        wait_until(lab.intercept_ready, "the intercept")
        sidecar = page.run("production", "trafficmirror-sidecar")
        wait_until(lab.sidecar_ready, "the sidecar")

        self.ask_for_things(lab.production, 3000, seed=1)
        wait_until(lambda: self.lines(lab.shadow) == 3000, "the requests at the shadow")
        printed = page.run("shadow", "tail").stdout
        self.assertGreater(int(re.fullmatch(r"(\d+) % hits\n", printed).group(1)), 95)
        self.assertEqual(sidecar.stop(), 0)
        self.assertEqual(page.commands, [])

        # The traffic is switched: to the new version, and to one like it that was not warmed.
        for host, first in ((lab.cold, 0), (lab.shadow, 3000)):
            asked = len(stores[host].ids())
            took = self.ask_for_things(host, 500, seed=2)
            hits = self.hits(host, first)
            asked = len(stores[host].ids()) - asked
            print(
                f"{host.name}: {hits:.0f} % hits, {asked} asked of the store,"
                f" p50 {took[250]:.1f} ms, p99 {took[495]:.1f} ms"
            )
            if host is lab.cold:
                self.assertLess(hits, 60)
            else:
                self.assertGreater(hits, 98)

    def test_stress(self):
        self.lab = lab = self.enterContext(Lab())
        page = Page(lab, "stress.md")
        lab.nginx(lab.production)
        shadow = lab.sink(lab.shadow, delay=0.004, one_at_a_time=True)
        recording = page.run("production", "trafficmirror-sidecar")
        wait_until(lambda: lab.production.get(SIDECAR_HTTP, "/healthz")[0] == 200, "the sidecar")
        load = lab.load("peak", endpoint(lab.production.ipv4, 80), rate=100, seconds=12, connections=20)
        self.assert_served(load.finish())
        self.assertEqual(recording.stop(), 0)

        page.run("intercept", "trafficmirror-intercept")
        wait_until(lab.intercept_ready, "the intercept")
        printed = page.run("production", "for speed in 1 2x 4x 8x").stdout
        print(printed)
        reports = dict(re.findall(r"^--speed (\w+)\n(.*?)(?=^--speed|\Z)", printed, re.M | re.S))
        self.assertEqual(list(reports), ["1", "2x", "4x", "8x"])
        shed = {speed: "lag_limit" in report for speed, report in reports.items()}
        self.assertEqual(shed, {"1": False, "2x": False, "4x": True, "8x": True})
        before = len(shadow.ids())
        printed = page.run("production", "trafficmirror-sidecar").stdout
        print(printed)
        self.assertEqual(page.commands, [])
        self.assertIn("shed       none", printed)
        self.assertEqual(len(shadow.ids()) - before, 3 * 1200)


if __name__ == "__main__":
    labtest.main()
