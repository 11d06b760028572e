"""`make demo`: a live production nginx, mirrored onto a shadow nginx, watched second by second.

Every figure that is printed was measured in the run that prints it.
"""

import argparse
import collections
import os
import sys
import time

from lab import Lab, LabError, endpoint, wait_until

UPLOAD_BYTES = 64 * 1024
LOADS = {
    "kept-alive": {"rate": 400, "connections": 20},
    "short": {"rate": 100, "connections": 50, "mode": "close"},
    "upload": {"rate": 20, "connections": 4, "body_bytes": UPLOAD_BYTES, "path": "/upload"},
}
NAMES = {
    "kept-alive": "kept-alive connections",
    "short": "a new connection for each",
    "upload": f"uploads of {UPLOAD_BYTES // 1024} KiB",
}
COLUMNS = "{:>7}  {:>12}  {:>12}  {:>10}  {:>6}  {:>15}  {:>13}"


class Tail:
    """The lines that a file has gained since the last look."""

    def __init__(self, path):
        self._file = open(path)
        self._part = ""

    def lines(self):
        *lines, self._part = (self._part + self._file.read()).split("\n")
        return [line.split() for line in lines]

    def close(self):
        self._file.close()


def bold(text):
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\033[1m{text}\033[0m"
    return text


def say(text=""):
    print(text, flush=True)


def heading(text):
    say()
    say(bold(text))


def milliseconds(seconds):
    """Of nginx, which counts whole ones."""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "<1 ms"


def p99(values):
    values = sorted(values)
    return values[max(0, -(-len(values) * 99 // 100) - 1)]


def table_head():
    say(COLUMNS.format("", "production", "mirrored", "sessions", "", "shadow latency", "shadow behind"))
    say(COLUMNS.format("second", "requests", "requests", "active", "shed", "p99", "production p99"))
    say("  " + "─" * 90)


def run_phase(lab, phase, production, shadow, seconds, mirror):
    """Drives the loads and prints a line each second; returns {kind: load}, all ended."""
    tails = Tail(production.log_file), Tail(shadow.log_file)
    for tail in tails:
        tail.lines()  # those of the phase before
    address = endpoint(lab.production.ipv4, production.port)
    loads = {
        kind: lab.load(f"{phase}-{kind}", address, seconds=seconds, **options)
        for kind, options in LOADS.items()
    }
    served_at = {}
    tick, second = time.monotonic(), 0
    while any(load.process.running() for load in loads.values()):
        second += 1
        tick += 1.0
        time.sleep(max(0.0, tick - time.monotonic()))  # the rhythm of the table, no more
        served, mirrored = tails[0].lines(), tails[1].lines()
        if not served and not mirrored:
            continue  # the loads are about to end
        served_at.update((line[0], float(line[1])) for line in served)
        sessions = shed = latency = behind = "-"
        if mirror is not None:
            metrics = mirror.metrics()
            sessions = f"{metrics.total('trafficmirror_sessions_active'):.0f}"
            shed = f"{metrics.total('trafficmirror_shed_total'):.0f}"
        if mirrored:
            latency = milliseconds(p99([float(line[2]) for line in mirrored]))
            late = [float(x[1]) - served_at[x[0]] for x in mirrored if x[0] in served_at]
            behind = milliseconds(p99(late)) if late else "-"
        count = len(mirrored) if mirror is not None else "-"
        say(COLUMNS.format(second, len(served), count, sessions, shed, latency, behind))
    for tail in tails:
        tail.close()
    return loads


def compare(answered, production, shadow, uploads):
    """What differs between the two servers, in words; an empty list if nothing does."""
    wanted = set(answered)
    sizes = {r.id: r.bytes for r in production.requests() if r.id in wanted}
    received = [r for r in shadow.requests() if r.id in wanted]
    foreign = [r for r in shadow.requests() if r.id not in wanted]
    counts = collections.Counter(r.id for r in received)
    findings = []
    missing = len(wanted - set(counts))
    repeated = sum(count > 1 for count in counts.values())
    different = sum(sizes.get(r.id) != r.bytes for r in received)
    bodies = [sink.bodies() for sink in uploads]
    unequal = sum(bodies[1].get(n) != bodies[0].get(n) for n in wanted if n in bodies[0])
    for count, what in (
        (missing, "did not reach the shadow"),
        (repeated, "reached the shadow more than once"),
        (len(foreign), "at the shadow were never answered by production"),
        (different, "differ in their length"),
        (unequal, "differ in the SHA-256 of their body"),
    ):
        if count:
            findings.append(f"{count:,} requests {what}")
    return findings


def demo(seconds):
    say()
    say(bold("trafficmirror demo"))
    say("  Four hosts on this machine, each a network namespace behind one router:")
    say("  client ─► production (nginx)      copies: sidecar ─► intercept ─► shadow (nginx)")
    rates = ", ".join(f"{LOADS[kind]['rate']}/s {NAMES[kind]}" for kind in LOADS)
    say(f"  The load: {rates}.")
    with Lab(last_words=False) as lab:
        sinks, servers = [], []
        for host in (lab.production, lab.shadow):
            sink = lab.sink(host, unix=lab.path(f"{host.name}.socket"))
            sinks.append(sink)
            servers.append(lab.nginx(host, upload=lab.path(f"{host.name}.socket")))
        production, shadow = servers

        heading(f"1. Without a mirror, {seconds:g} s")
        table_head()
        without = run_phase(lab, "without", production, shadow, seconds, None)
        before = {kind: load.finish() for kind, load in without.items()}

        heading(f"2. With the mirror, the same load, {seconds:g} s")
        mirror = lab.mirror(port=production.port)
        table_head()
        mirrored = run_phase(lab, "with", production, shadow, seconds, mirror)
        after = {kind: load.finish() for kind, load in mirrored.items()}

        answered = [name for load in mirrored.values() for name in load.ids()]
        try:
            wait_until(lambda: len(shadow.ids()) >= len(answered), "the shadow", 10)
        except LabError:
            pass  # what is missing is said below
        metrics = mirror.metrics()
        codes = mirror.stop()
        for server in servers:
            server.stop()
        return summary(answered, before, after, production, shadow, sinks, metrics, codes)


def summary(answered, before, after, production, shadow, sinks, metrics, codes):
    findings = compare(answered, production, shadow, sinks)
    failed = sum(figures["failed"] for figures in after.values())
    wanted = sum(figures["requests"] for figures in after.values())
    uploads = after["upload"]["ok"]
    received = len(shadow.ids())

    heading("What happened")
    say(f"  While it was mirrored, production answered {len(answered):,} of {wanted:,} requests; {failed:,} failed.")
    say(f"  The shadow served {received:,} requests.")
    if findings:
        say("  They are not the same ones:")
        for finding in findings:
            say(f"    {finding}")
        closed = metrics.by("trafficmirror_sessions_closed_total", "reason")
        shed = metrics.by("trafficmirror_shed_total", "reason")
        for what, reasons in (("sessions closed", closed), ("shed", shed)):
            counted = ", ".join(f"{reason} {n:.0f}" for reason, n in sorted(reasons.items()) if n)
            say(f"    {what}: {counted or 'none'}")
    else:
        say("  They are the same ones: each id once, none missing, equal lengths,")
        say(f"  and the bodies of {uploads:,} uploads have equal SHA-256 on both servers.")
    opened = metrics.total("trafficmirror_sessions_opened_total")
    shed = metrics.total("trafficmirror_shed_total")
    drops = metrics.total("trafficmirror_capture_drops_total")
    say(f"  {opened:,.0f} sessions were opened, {shed:,.0f} shed; capture dropped {drops:,.0f} packets.")

    heading("Production's latency, as the client saw it")
    row = "  {:<28}{:>14}{:>14}{:>16}{:>14}"
    say(row.format("", "p50 without", "p50 with", "p99 without", "p99 with"))
    for kind in LOADS:
        a, b = before[kind], after[kind]
        figures = [f"{x:,} µs" for x in (a["p50_us"], b["p50_us"], a["p99_us"], b["p99_us"])]
        say(row.format(NAMES[kind], *figures))
    cores = len(os.sched_getaffinity(0))
    say(f"  Client, both servers and the mirror share this machine's {cores} processors, so that \"with\"")
    say("  also pays for the shadow's own work, which elsewhere is another machine's.")
    say()
    if any(codes):
        say(f"  The programs ended with exit codes {codes[0]} (sidecar) and {codes[1]} (intercept).")
    say("  Next: README.md says how to mirror a service of your own.")
    say()
    return 1 if findings or failed or any(codes) else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, help="the folder of the programs")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("demo: needs root, because it makes network namespaces")
    os.environ["TRAFFICMIRROR_BIN"] = options.bin
    try:
        total = float(os.environ.get("DEMO_SECONDS", "20"))
        if total < 2:
            raise ValueError
    except ValueError:
        sys.exit("demo: DEMO_SECONDS has to be a number of at least 2")
    try:
        return demo(total / 2)
    except LabError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        say()
        return 130


if __name__ == "__main__":
    sys.exit(main())
