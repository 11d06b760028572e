#!/usr/bin/env python3
"""One connection's bulk upload through the mirror: does the shadow keep up, and what does it cost?

  bench/bulk.py [--bin build/bin] [--mib 1024] [--rounds 1]

The client sends a stream of bytes to a server that does nothing but receive and hash them, once as fast as it goes and
once at 1 Gbit/s. Production without a mirror tells what this machine reaches.
"""

import argparse
import os
import re
import statistics
import sys
import time

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "tests", "lab"))

from lab import Lab, LabError, wait_until  # noqa: E402

MIB = 1 << 20
GIGABIT = 125e6

# What is hashed is read elsewhere, in a thread that needs no interpreter lock: it keeps up with production.
SINK = """
import hashlib, socket, sys, time
listener = socket.create_server(("0.0.0.0", 80))
print("ready", flush=True)
connection, _ = listener.accept()
buffer, digest, length = bytearray(1 << 20), hashlib.sha1(), 0
while count := connection.recv_into(buffer):
    digest.update(memoryview(buffer)[:count])
    length += count
print("done", length, digest.hexdigest(), time.monotonic(), flush=True)
connection.close()
"""

CLIENT = """
import random, socket, sys, time
address, mib, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
block = random.Random(1).randbytes((1 << 20) + 256)
connection = socket.create_connection((address, 80))
began = time.monotonic()
for number in range(mib):
    data = memoryview(block)[number % 256 :][: 1 << 20]
    for at in range(0, len(data), 65536):
        due = began + (number * len(data) + at) / rate if rate else 0
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        connection.sendall(data[at : at + 65536])
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
print(began, time.monotonic())
"""


class Run:
    def __init__(self, binaries, mib, rate, mirrored):
        with Lab(binaries=binaries) as lab:
            servers = {}
            for host in [lab.production, lab.shadow] if mirrored else [lab.production]:
                command = [sys.executable, "-c", SINK]
                server = lab.start(host, command, f"sink-{host.name}")
                wait_until(lambda server=server: "ready" in server.output(), "the sink")
                servers[host.name] = server
            programs = []
            if mirrored:
                # Nothing connects to a sink but what is mirrored: the path's proof does not reach accept().
                mirror = lab.mirror()
                programs = [mirror.sidecar, mirror.intercept]
            cpu = [program.cpu_seconds() for program in programs]
            client = [sys.executable, "-c", CLIENT, lab.production.ipv4, str(mib), str(rate)]
            began, ended = map(float, lab.client.run(client, seconds=600).stdout.split())
            self.rate = mib * MIB / (ended - began)
            if not mirrored:
                return
            production = self.result(servers["production"])
            wait_until(
                lambda: "done" in servers["shadow"].output()
                or mirror.metrics().total("trafficmirror_sessions_active") == 0,
                "the shadow's end",
                300,
            )
            time.sleep(0.2)
            shadow = self.result(servers["shadow"])
            metrics = mirror.metrics()
            closed = metrics.by("trafficmirror_sessions_closed_total", "reason")
            shed = metrics.by("trafficmirror_shed_total", "reason")
            self.complete = bool(shadow) and shadow[:2] == production[:2]
            self.behind = float(shadow[2]) - float(production[2]) if self.complete else float("nan")
            self.lost = [f"{int(n)} {reason}" for reason, n in closed.items() if n and reason != "finished"]
            self.lost += [f"{int(n)} {reason}" for reason, n in shed.items() if n]
            drops = metrics.total("trafficmirror_capture_drops_total")
            self.lost += [f"{int(drops)} packets dropped"] if drops else []
            self.retransmits = metrics.total("trafficmirror_retransmits_total")
            gigabytes = metrics.total("trafficmirror_payload_bytes_total", direction="to_shadow") / 1e9
            self.cpu = [(p.cpu_seconds() - before) / gigabytes for p, before in zip(programs, cpu)]
            self.memory = [program.peak_memory() / 1e6 for program in programs]

    @staticmethod
    def result(server):
        found = re.search(r"done (\d+) (\w+) (\S+)", server.output())
        return found.groups() if found else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default=os.path.join(here, "..", "build", "bin"))
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    binaries = os.path.abspath(options.bin)
    alone = [Run(binaries, options.mib, 0, False).rate / 1e6 for _ in range(options.rounds)]
    print(f"{options.mib} MiB on one connection; without a mirror {statistics.median(alone):.0f} MB/s\n")
    print("| pace | production MB/s | shadow got all | not mirrored | behind at the end, s | sent again "
          "| CPU s a GB: sidecar + intercept | peak RSS MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rate in (("1 Gbit/s", GIGABIT), ("as fast as it goes", 0)):
        for _ in range(options.rounds):
            run = Run(binaries, options.mib, rate, True)
            print(
                f"| {name} | {run.rate / 1e6:.0f} | {'yes' if run.complete else 'no'} "
                f"| {', '.join(run.lost) or 'nothing'} | {run.behind:.2f} | {run.retransmits:.0f} "
                f"| {run.cpu[0]:.2f} + {run.cpu[1]:.2f} | {run.memory[0]:.0f} + {run.memory[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"bulk: {error}")
