#!/usr/bin/env python3
"""What many TrafficMirrors cost the operator and the API server: 500 of them and 5,000 pods on a real
API server, without kubelets, so that no intercept ever runs.

  bench/operator_scale.py [--bin build/bin] [--mirrors 500] [--pods 5000] [--rest 60]

Prints how long it takes until every mirror has all of its objects and a status, the operator's peak
memory, and what it asks the API server for while nothing happens. Fails where that takes two minutes,
200 MiB, or anything at rest but watches, a status and the Lease.
"""

import argparse
import collections
import concurrent.futures
import os
import sys
import time

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(here, "..", "tests", part) for part in ("lab", "kube")]

from apiserver import ApiServer, NoBinaries, find_binaries, wait_until  # noqa: E402
from operator_process import MIRRORS, Operator, install, intercepts_of  # noqa: E402
from proxy import Proxy  # noqa: E402

NAMESPACES = 50
LONGEST, MOST = 120, 200 << 20


def mirror(number, namespace):
    return {
        "apiVersion": "trafficmirror.dev/v1alpha1", "kind": "TrafficMirror",
        "metadata": {"name": f"mirror-{number}", "namespace": namespace},
        "spec": {
            "source": {"selector": {"matchLabels": {"app": f"app-{number}"}}, "ports": [8080]},
            "shadow": {"namespace": f"{namespace}-shadow", "service": {"name": f"app-{number}"}},
        },
    }


def pod(number, app, namespace):
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "namespace": namespace,
                     "labels": {"app": f"app-{app}"}},
        "spec": {"containers": [{"name": "app", "image": "example.org/app:1",
                                 "ports": [{"containerPort": 8080}]}]},
    }


def fill(server, mirrors, pods):
    for number in range(NAMESPACES):
        name = f"shop-{number}"
        server.namespace(name)
        server.namespace(f"{name}-shadow")
        server.kubectl("annotate", "namespace", f"{name}-shadow",
                       f"trafficmirror.dev/accept-from={name}")
    things = [mirror(number, f"shop-{number % NAMESPACES}") for number in range(mirrors)]
    for number in range(pods):
        app = number % mirrors
        things.append(pod(number, app, f"shop-{app % NAMESPACES}"))
    server.client.resource_of("v1", "Pod")  # asked for once, not by each thread
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(server.client.create, things))


def converged(server, mirrors):
    def is_judged(one):
        status = one.get("status", {})
        return (status.get("observedGeneration") == one["metadata"]["generation"]
                and status.get("attached") == "0/10")

    return (len(intercepts_of(server, "")) == mirrors
            and all(is_judged(one) for one in server.client.list(MIRRORS)))


def peak_memory(process):
    with open(f"/proc/{process.pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def kind_of(request):
    if request.watch:
        return "watches"
    resource = request.path.rstrip("/").split("/")
    if request.method == "PATCH" and resource[-1] == "status":
        return "status"
    return "Lease" if "leases" in resource else f"{request.method} {request.path}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--mirrors", type=int, default=500)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--rest", type=float, default=60)
    options = parser.parse_args()
    os.environ["TRAFFICMIRROR_BIN"] = options.bin
    try:
        find_binaries()
    except NoBinaries as error:
        print(f"SKIPPED: {error}")
        return
    with ApiServer() as server:
        install(server)
        fill(server, options.mirrors, options.pods)
        begin = time.monotonic()
        with Operator(server) as operator:
            wait_until(lambda: converged(server, options.mirrors), "all mirrors", 600, 1)
            seconds = time.monotonic() - begin
            memory = peak_memory(operator.process)
        proxy = Proxy(server)
        with Operator(server, url=proxy.url) as operator:
            wait_until(lambda: any("leases" in one.path for one in proxy.requests()), "the Lease", 60)
            time.sleep(20)  # until it has looked at all of them
            before = len(proxy.requests())
            time.sleep(options.rest)
            asked = collections.Counter(kind_of(one) for one in proxy.requests()[before:])
            memory = max(memory, peak_memory(operator.process))
        proxy.close()
    print(f"{options.mirrors} TrafficMirrors, {options.pods} pods: all made and judged within "
          f"{seconds:.1f} s; the operator's peak memory {memory / (1 << 20):.0f} MiB; in "
          f"{options.rest:.0f} s at rest: "
          + ", ".join(f"{count} {kind}" for kind, count in sorted(asked.items())))
    if seconds > LONGEST or memory > MOST or set(asked) - {"watches", "status", "Lease"}:
        sys.exit("that is too much")


if __name__ == "__main__":
    main()
