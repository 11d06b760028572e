#!/usr/bin/env python3
"""What mirroring costs: CPU of sidecar and intercept a request, for each way, each load and in turn.

  bench/rates.py [--bin build/bin] [--seconds 10] [--rounds 3]

Every request has an id of its own; the share that reached the shadow is counted in the servers' logs. The runs of one
round follow each other on the same machine, since one number alone says little: the fewer requests come at once, the more
each costs.
"""

import argparse
import collections
import os
import statistics
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "tests", "lab"))

from lab import Lab, LabError, endpoint, wait_until  # noqa: E402

LOADS = {
    "kept alive, 2,000/s": {"rate": 2000, "connections": 50},
    "kept alive, 10,000/s": {"rate": 10000, "connections": 100},
    "a connection for each, 500/s": {"rate": 500, "connections": 100, "mode": "close"},
    "a connection for each, 2,500/s": {"rate": 2500, "connections": 500, "mode": "close"},
}
WAYS = {
    "ring": {},
    "pcap": {"capture": "pcap"},
    "ring, direct": {"delivery": "direct"},
    "ring, direct-link": {"delivery": "direct-link"},
}
Run = collections.namedtuple("Run", "complete sidecar intercept memory drops p99")


def run(binaries, sidecar, load, seconds):
    with Lab(binaries=binaries) as lab:
        production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
        mirror = lab.mirror(sidecar=sidecar)
        programs = (mirror.sidecar, mirror.intercept)
        before = [program.cpu_seconds() for program in programs]
        target = endpoint(lab.production.address(), production.port)
        loading = lab.load("load", target, seconds=seconds, **load)
        summary = loading.finish(seconds + 60)
        wanted = set(loading.ids())
        try:
            wait_until(lambda: wanted <= set(shadow.ids()), "the shadow's log", 15)
        except LabError:
            pass  # the share says so
        cpu = [
            (program.cpu_seconds() - start) * 1e6 / summary["ok"]
            for program, start in zip(programs, before)
        ]
        memory = sum(program.peak_memory() for program in programs) / 1e6
        drops = mirror.metrics().total("trafficmirror_capture_drops_total")
        complete = len(wanted & set(shadow.ids())) / len(wanted)
        return Run(complete, *cpu, memory, drops, summary["p99_us"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default=os.path.join(here, "..", "build", "bin"))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"medians of {options.rounds} rounds of {options.seconds:g} s each\n")
    print("| load | way | reached the shadow | CPU µs a request: sidecar + intercept | peak RSS MB | drops |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, load in LOADS.items():
        runs = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way, done in runs.items():
                done.append(run(os.path.abspath(options.bin), WAYS[way], load, options.seconds))
        for way, done in runs.items():
            middle = Run(*(statistics.median(column) for column in zip(*done)))
            least = min(one.complete for one in done)
            print(
                f"| {name} | {way} | {least:.2%} | {middle.sidecar:.0f} + {middle.intercept:.0f} "
                f"| {middle.memory:.0f} | {middle.drops:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
