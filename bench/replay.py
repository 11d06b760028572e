#!/usr/bin/env python3
"""A capture of 1 GiB replayed as fast as it goes: how long does it take, and how much memory?

  bench/replay.py [--bin build/bin] [--mib 1024]

The capture is made of whole connections, 50 at a time, and goes to nginx. Whether each request arrived once is counted.
"""

import argparse
import collections
import os
import sys
import time

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "tests", "lab"))

import captures  # noqa: E402
from lab import Lab, LabError, endpoint, wait_until  # noqa: E402

MIB = 1 << 20
TOGETHER, REQUESTS = 50, 20


def make(path, mib, body_bytes, header_bytes):
    """Connections until the file is that large; returns the ids and the size."""
    clock, ids, number = captures.Clock(), [], 0
    headers = f"X: {'x' * header_bytes}\r\n" if header_bytes else ""
    with captures.Writer(path) as writer:
        while writer.bytes < mib * MIB:
            group = []
            for _ in range(TOGETHER):
                group.append(captures.Connection(writer, captures.client(number), clock=clock))
                number += 1
            for connection in group:
                connection.open()
            for _ in range(REQUESTS):
                for connection in group:
                    ids.append(f"r-{len(ids)}")
                    connection.ask(captures.request(ids[-1], body_bytes, headers))
            for connection in group:
                connection.close()
        return ids, writer.bytes


def run(binaries, mib, name, body_bytes, header_bytes):
    with Lab(binaries=binaries) as lab:
        path = lab.path("replayed.pcap")
        ids, size = make(path, mib, body_bytes, header_bytes)
        shadow = lab.nginx(lab.shadow)
        intercept = lab.start_intercept(target=f"80={endpoint(lab.shadow.ipv4, 80)}")
        command = lab.replay_command(port=80, pcap=path, speed="max")
        cpu_before, began = intercept.cpu_seconds(), time.monotonic()
        replaying = lab.production.start(command, "sidecar")
        peak, cpu = 0, 0
        while replaying.running():
            try:
                peak, cpu = max(peak, replaying.peak_memory()), max(cpu, replaying.cpu_seconds())
            except (OSError, AttributeError):
                break  # it has just ended
            time.sleep(0.02)
        code, took = replaying.wait(), time.monotonic() - began
        wait_until(lambda: len(shadow.ids()) >= len(ids) or code, "the shadow's log")
        counts = collections.Counter(shadow.ids())
        once = sum(counts[name] == 1 for name in ids)
        report = replaying.output()
        print(
            f"| {name} | {size / MIB:.0f} MiB | {took:.1f} | {size / took / 1e6:.0f} | {len(ids)} "
            f"| {100 * once / len(ids):.2f} % | {peak / 1e6:.0f} + {intercept.peak_memory() / 1e6:.0f} "
            f"| {cpu:.1f} + {intercept.cpu_seconds() - cpu_before:.1f} |",
            flush=True,
        )
        if code or once < len(ids) or "not replayed: nothing" not in report:
            print(report)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default=os.path.join(here, "..", "build", "bin"))
    parser.add_argument("--mib", type=int, default=1024)
    options = parser.parse_args()
    binaries = os.path.abspath(options.bin)
    print("| requests | capture | s | MB/s | requests | arrived once | peak RSS MB: sidecar + intercept "
          "| CPU s: sidecar + intercept |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    run(binaries, options.mib, "POST of 64 KiB", 64 << 10, 0)
    run(binaries, options.mib, "GET of 1 KiB", 0, 900)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"replay: {error}")
