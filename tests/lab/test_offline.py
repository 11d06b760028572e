"""Captures: what a sidecar or tcpdump records is replayed later, and the shadow gets the same requests."""

import collections
import glob
import gzip
import os
import re
import signal
import subprocess
import time

import captures
import labtest
from lab import Lab, endpoint, metrics, wait_until, SIDECAR_HTTP

KIB, MIB = 1 << 10, 1 << 20
# A replay sends nothing of its own.
WITHOUT_NET_RAW = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]


class Replayed:
    """What came of a replay: its report, and what the shadow got of it."""

    def __init__(self, code, out, err, seconds, requests):
        self.code = code
        self.report = out
        self.err = err
        self.seconds = seconds
        self.requests = requests

    @property
    def ids(self):
        return collections.Counter(request.id for request in self.requests)

    def number(self, pattern):
        found = re.search(pattern, self.report)
        return int(found.group(1)) if found else 0

    def __str__(self):
        return f"exit code {self.code}\n{self.report}\n{self.err}"


class OfflineTest(labtest.LabTest):
    maxDiff = None

    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        self.shadow = lab.nginx(lab.shadow)
        self.start_intercept()

    def start_intercept(self, **options):
        target = f"80={endpoint(self.lab.shadow.ipv4, 80)}"
        self.intercept = self.lab.start_intercept(target=target, **options)

    def replay(self, path, seconds=120, command=(), **options):
        before = len(self.shadow.requests())
        words = [*command, *self.lab.replay_command(port=80, pcap=path, **options)]
        began = time.monotonic()
        result = self.lab.production.run([*WITHOUT_NET_RAW, *words], check=False, seconds=seconds)
        took = time.monotonic() - began
        # nginx writes its lines within 20 ms.
        wait_until(self.shadow_is_quiet, "the end of the shadow's log")
        requests = self.shadow.requests()[before:]
        return Replayed(result.returncode, result.stdout, result.stderr, took, requests)

    def shadow_is_quiet(self):
        before = len(self.shadow.ids())
        time.sleep(0.3)
        return len(self.shadow.ids()) == before

    @staticmethod
    def is_still(path):
        before = os.path.getsize(path)
        time.sleep(0.5)
        return os.path.getsize(path) == before

    def assert_replayed(self, replayed, ids, times=1):
        """Each of these reached the shadow so many times, and nothing was left over or shed."""
        self.assertEqual(replayed.code, 0, str(replayed))
        wanted = collections.Counter({name: times for name in ids})
        difference = {"missing": wanted - replayed.ids, "too many": replayed.ids - wanted}
        self.assertEqual({k: dict(v.most_common(3)) for k, v in difference.items() if v}, {}, str(replayed))
        self.assertIn("shed       none", replayed.report)

    def assert_refused(self, replayed, words):
        self.assertEqual(replayed.code, 2, str(replayed))
        self.assertEqual(len(replayed.err.splitlines()), 1, replayed.err)
        self.assertIn(words, replayed.err)
        self.assertEqual(replayed.report, "")

    def generate(self, name="generated", **options):
        path = self.lab.path(f"{name}.pcap")
        ids, size = captures.generate(path, prefix=name, **options)
        return path, ids, size


class RecordAndReplay(OfflineTest):
    def test_the_same_requests_as_live(self):
        lab = self.lab
        production = lab.nginx(lab.production)
        recorded, dumped = lab.path("recorded.pcap"), lab.path("dumped.pcap")
        sidecar = lab.start_sidecar(port=80, record=recorded)
        command = ["tcpdump", "-i", "eth0", "-s", "0", "-B", "65536", "-Z", "root"]
        command += ["--immediate-mode", "-U", "-w", dumped, "tcp port 80"]
        tcpdump = lab.production.start(command, "tcpdump")
        wait_until(lambda: "listening on" in tcpdump.output(), tcpdump.output)
        live_shadow = len(self.shadow.ids())
        loads = [
            lab.load(f"live{i}", endpoint(lab.production.ipv4, 80), seconds=4, **load)
            for i, load in enumerate((
                {"rate": labtest.rate(500), "connections": 20},
                {"rate": labtest.rate(100), "connections": 20, "mode": "close"},
                {"rate": 10, "connections": 4, "body_bytes": 300 * KIB, "pacing": labtest.PACING},
            ))
        ]
        for load in loads:
            self.assert_served(load.finish())
        ids = [name for load in loads for name in load.ids()]
        wait_until(lambda: len(self.shadow.ids()) - live_shadow >= len(ids), "the live shadow's log")
        self.assertEqual(sorted(self.shadow.ids()[live_shadow:]), sorted(ids))
        lengths = {request.id: request.bytes for request in production.requests()}
        counted = metrics(lab.production, SIDECAR_HTTP)
        self.assert_nothing_unmirrored(counted)
        opened = counted.total("trafficmirror_sessions_opened_total")
        self.assertEqual(sidecar.stop(), 0)
        # What it has not read when it is told to end, it does not write.
        wait_until(lambda: self.is_still(dumped), "tcpdump has read all")
        tcpdump.signal(signal.SIGINT)
        tcpdump.wait()
        self.assertIn("\n0 packets dropped by kernel", tcpdump.output())

        packets = captures.read(recorded)
        span = packets[-1][0] - packets[0][0]
        self.assertGreater(span, 3)
        # Requests are whole, of responses there are the headers.
        self.assertTrue(any(len(captured) < length for _, captured, length in packets))
        for path, options, least, most in (
            (recorded, {"speed": "max"}, 0, None),
            (recorded, {}, span, span + 5),
            (dumped, {"speed": "4x"}, span / 4, span),
        ):
            with self.subTest(path=os.path.basename(path), **options):
                replayed = self.replay(path, **options)
                self.assert_replayed(replayed, ids)
                self.assertEqual({r.id: r.bytes for r in replayed.requests}, lengths)
                self.assertEqual(replayed.number(r"sessions +(\d+) opened"), opened)
                self.assertIn("not replayed: nothing", replayed.report)
                self.assertGreaterEqual(replayed.seconds, least)
                if most is not None:
                    self.assertLess(replayed.seconds, most, "the pace of the capture")

    def test_rotates_and_records_without_a_stream(self):
        lab = self.lab
        self.intercept.stop()
        lab.nginx(lab.production)
        path = lab.path("rotated.pcap")
        with open(path, "w") as file:
            file.write("an earlier one")
        options = {"record": path, "record_size": "1Mi", "record_files": 3}
        sidecar = lab.start_sidecar(ready=False, port=80, **options)
        wait_until(lambda: lab.production.get(SIDECAR_HTTP, "/healthz")[0] == 200, "/healthz")
        with open(path + ".1") as file:
            self.assertEqual(file.read(), "an earlier one")
        upload = lab.load("upload", endpoint(lab.production.ipv4, 80), rate=4, seconds=3,
                          connections=1, body_bytes=MIB, pacing=labtest.PACING)
        self.assert_served(upload.finish())

        def written():
            counted = metrics(lab.production, SIDECAR_HTTP)
            return counted.total("trafficmirror_record_packets_total") == counted.total(
                "trafficmirror_capture_packets_total"
            )

        wait_until(written, "all is recorded")
        counted = metrics(lab.production, SIDECAR_HTTP)
        # Whole requests, though there is nobody to mirror them to.
        self.assertGreater(counted.total("trafficmirror_record_bytes_total"), 12 * MIB)
        self.assertEqual(counted.total("trafficmirror_record_drops_total"), 0)
        self.assertEqual(sidecar.stop(), 0)
        files = sorted(glob.glob(path + "*"))
        self.assertEqual(files, [path, path + ".1", path + ".2"])
        for file in files:
            self.assertLessEqual(os.path.getsize(file), MIB)
            self.assertTrue(captures.read(file))
        for older, newer in ((path + ".2", path + ".1"), (path + ".1", path)):
            self.assertLess(captures.read(older)[-1][0], captures.read(newer)[0][0])
            self.assertGreater(os.path.getsize(older), MIB - 70 * KIB)

    def test_a_full_disk_ends_recording_and_not_mirroring(self):
        lab = self.lab
        production = lab.nginx(lab.production)
        disk = lab.path("disk")
        os.mkdir(disk)
        script = f'mount -t tmpfs -o size=1m tmpfs {disk} && exec "$@"'
        command = lab.sidecar_command(port=80, record=f"{disk}/full.pcap")
        sidecar = lab.start_ready(
            lab.production, ["sh", "-c", script, "sh", *command], "sidecar", lab.sidecar_ready
        )
        upload = lab.load("upload", endpoint(lab.production.ipv4, 80), rate=4, seconds=2,
                          connections=1, body_bytes=MIB, pacing=labtest.PACING)
        self.assert_served(upload.finish())
        self.assert_same_requests(upload.ids(), self.shadow)
        counted = metrics(lab.production, SIDECAR_HTTP)
        self.assert_nothing_unmirrored(counted)
        self.assertEqual(counted.total("trafficmirror_record_failures_total"), 1)
        self.assertGreater(counted.total("trafficmirror_record_drops_total"), 0)
        lines = [line for line in sidecar.output().splitlines() if "--record" in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("No space left on device: nothing more is recorded", lines[0])
        self.assertTrue(production.ids())


class Replay(OfflineTest):
    def test_loops(self):
        path, ids, _ = self.generate(connections=50, requests=4)
        replayed = self.replay(path, loop=3, speed="max")
        self.assert_replayed(replayed, ids, times=3)
        self.assertEqual(replayed.number(r"sessions +(\d+) opened"), 150)
        self.assertIn("3 of 3 rounds", replayed.report)

    def test_loops_over_connections_that_stay_open(self):
        clock = captures.Clock()
        path = self.lab.path("open.pcap")
        with captures.Writer(path) as writer:
            kept = captures.Connection(writer, captures.client(1), clock=clock)
            kept.open()
            for i in range(3):
                kept.ask(captures.request(f"open-{i}"))
        replayed = self.replay(path, loop=2, speed="max")
        self.assert_replayed(replayed, [f"open-{i}" for i in range(3)], times=2)
        self.assertIn("2 opened: 2 capture_ended", replayed.report)

    def test_parts(self):
        path, ids, _ = self.generate(connections=200)
        # 1,800 packets, one each 0.1 ms; the second half begins with the 101st connection.
        middle = 1_700_000_000 + 0.0001 * 900.5
        fraction = f"{middle % 1:.5f}"[1:]
        first = self.replay(path, speed="max", until="90ms")
        second = self.replay(path, speed="max", **{"from": f"2023-11-14T23:13:20{fraction}+01:00"})
        self.assert_replayed(first, ids[:100])
        self.assert_replayed(second, ids[100:])
        self.assertIn("900 packets outside --from and --until", second.report)

    def test_from_a_pipe_that_is_packed(self):
        path, ids, _ = self.generate(connections=20)
        with open(path, "rb") as plain, gzip.open(path + ".gz", "wb") as packed:
            packed.write(plain.read())
        replayed = self.replay("-", command=["sh", "-c", f'"$@" <{path}.gz', "sh"])
        self.assert_replayed(replayed, ids)

    def test_follows_a_pipe_that_is_still_written(self):
        path, ids, _ = self.generate(connections=20)
        script = f'(head -c 1000 {path}; sleep 4; tail -c +1001 {path}) | "$@"'
        replayed = self.replay("-", command=["sh", "-c", script, "sh"])
        self.assert_replayed(replayed, ids)
        self.assertIn("waiting for the file", replayed.err)

    def test_says_by_its_exit_code_that_it_was_stopped(self):
        path, report = self.lab.path("late.pcap"), self.lab.path("report")
        with captures.Writer(path) as writer:
            for hour in (0, 1):
                clock = captures.Clock(begin=1_700_000_000.0 + 3600 * hour)
                connection = captures.Connection(writer, captures.client(hour), clock=clock)
                connection.open()
                connection.ask(captures.request(f"hour-{hour}"))
                connection.close()
        command = self.lab.replay_command(port=80, pcap=path, report=report)
        replaying = self.lab.production.start(command, "sidecar")
        wait_until(lambda: self.shadow.ids() == ["hour-0"], replaying.output)
        self.assertEqual(replaying.stop(), 1)
        with open(report) as file:
            text = file.read()
        self.assertIn("stopped before its end", text)
        self.assertIn(text, replaying.output())

    def test_stops_though_nothing_comes(self):
        read, write = os.pipe()
        self.addCleanup(os.close, write)
        command = self.lab.replay_command(port=80, pcap="-")
        with open(self.lab.path("silent.log"), "w") as log:
            silent = self.lab.spawn(self.lab.production, command, stdin=read, stdout=log, stderr=log)
        os.close(read)
        time.sleep(0.5)
        silent.send_signal(signal.SIGTERM)
        self.assertEqual(silent.wait(5), 1, "nothing was replayed")

    def test_waits_for_the_intercept(self):
        self.intercept.stop()
        path, ids, _ = self.generate(connections=20)
        command = self.lab.replay_command(port=80, pcap=path)
        waiting = self.lab.production.start(command, "sidecar")
        wait_until(lambda: "waiting for the intercept" in waiting.output(), waiting.output)
        self.start_intercept()
        self.assertEqual(waiting.wait(20), 0, waiting.output())
        self.assert_same_requests(ids, self.shadow)

    def test_waits_for_source_ports(self):
        self.intercept.stop()
        self.start_intercept(source_ports="10000-10511")
        path, ids, _ = self.generate(connections=3000, together=50)
        self.assert_replayed(self.replay(path, speed="max"), ids)
        self.assert_replayed(self.replay(path, speed="max", max_sessions=50), ids)
        # More at a time than there are ports: those that find none are shed, and counted.
        path, ids, _ = self.generate("many", connections=600, together=600)
        replayed = self.replay(path, speed="max")
        opened = replayed.number(r"sessions +(\d+) opened")
        self.assertEqual(replayed.number(r"shed +(\d+) no_source_port"), 600 - opened, str(replayed))
        self.assertEqual(replayed.ids, collections.Counter(replayed.ids.keys()))
        self.assertEqual(len(replayed.ids), opened)
        self.assertGreater(opened, 500)
        self.assertLess(replayed.seconds, 15, "it waits for room once, not for each connection")

    def test_waits_for_a_slow_shadow_in_little_memory(self):
        lab = self.lab
        self.shadow.stop()
        slow = lab.sink(lab.shadow, delay=0.02)
        path, ids, size = self.generate(connections=40, requests=10, body_bytes=64 * KIB, together=20)
        self.assertGreater(size, 24 * MIB)
        command = lab.replay_command(port=80, pcap=path, speed="max", memory_limit="2Mi")
        replaying = lab.production.start(command, "sidecar")
        peak = 0
        while replaying.running():
            counted = lab.production.get(SIDECAR_HTTP, "/metrics")[1]
            held = re.search(r"^trafficmirror_memory_bytes (\S+)", counted, re.M)
            peak = max(peak, float(held.group(1)) if held else 0)
            time.sleep(0.02)
        self.assertEqual(replaying.wait(), 0, replaying.output())
        self.assertIn("shed       none", replaying.output())
        self.assertEqual(sorted(slow.ids()), sorted(ids))
        self.assertEqual({length for length, _ in slow.bodies().values()}, {64 * KIB})
        self.assertGreater(peak, MIB, "it read ahead")
        self.assertLessEqual(peak, 2 * MIB)

    def test_in_constant_memory(self):
        path, ids, size = self.generate(connections=100, requests=5, body_bytes=64 * KIB, together=20)
        rounds = 4 if labtest.rate(1) < 1 else 8
        command = self.lab.replay_command(port=80, pcap=path, speed="max", loop=rounds, memory_limit="8Mi")
        replaying = self.lab.production.start(command, "sidecar")
        peak = 0
        while replaying.running():
            try:
                peak = max(peak, replaying.peak_memory())
            except (OSError, AttributeError):
                break  # it has just ended
            time.sleep(0.02)
        self.assertEqual(replaying.wait(), 0, replaying.output())
        self.assertGreater(rounds * size, 120 * MIB)
        wait_until(lambda: len(self.shadow.ids()) >= rounds * len(ids), "the shadow's log")
        counts = collections.Counter(self.shadow.ids())
        self.assertEqual(counts, collections.Counter({name: rounds for name in ids}))
        if labtest.rate(1) == 1:  # a sanitizer takes memory of its own
            self.assertLess(peak, 100 * MIB)


class BadInput(OfflineTest):
    def cut(self, path, size):
        with open(path, "rb") as file:
            data = file.read()
        with open(path, "wb") as file:
            file.write(data[:size])
        return path

    def test_nothing_to_read(self):
        path = self.lab.path("bad.pcap")
        whole, _, _ = self.generate(connections=1)
        with open(whole, "rb") as file:
            capture = file.read()
        for content, words in (
            (b"", "truncated dump file"),
            (b"GET / HTTP/1.1\r\nHost: production\r\n\r\n", "unknown file format"),
            (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR and the rest of an image", "unknown file format"),
            (gzip.compress(b"\x89PNG\r\n\x1a\n"), "unknown file format"),
            (gzip.compress(capture)[:20], "its gzip data end too soon"),
            (self.zstd(capture)[:20], "its zstd data end too soon"),
            (capture[:30], "can't be read on behind packet 0: truncated dump file"),
            (b"PK\x03\x04 and so on, as no capture begins", "unknown file format"),
            (b"\xd4\xc3\xb2\xa1\x02\x00", "truncated dump file"),
            (b"\x1f\x8b\x08\x00garbage garbage garbage", "gzip data"),
            (b"\x28\xb5\x2f\xfdgarbage garbage garbage", "zstd data"),
        ):
            with self.subTest(words):
                with open(path, "wb") as file:
                    file.write(content)
                self.assert_refused(self.replay(path), words)
        self.assert_refused(self.replay(self.lab.path("nowhere")), "No such file or directory")
        self.assert_refused(self.replay(self.lab.directory), "Is a directory")

    def test_corrupt_from_the_first_packet_on(self):
        path, _, _ = self.generate(connections=1)
        with open(path, "r+b") as file:
            file.seek(24 + 8)
            file.write(b"\xff" * 8)
        self.assert_refused(self.replay(path), "can't be read on behind packet 0")

    def test_truncated(self):
        path, ids, size = self.generate(connections=100)
        replayed = self.replay(self.cut(path, size // 2), speed="max")
        self.assertEqual(replayed.code, 0, str(replayed))
        self.assertIn("the rest of the file: ", replayed.report)
        self.assertIn("truncated dump file", replayed.report)
        self.assertIn(len(replayed.ids), (49, 50, 51))
        self.assertEqual(set(replayed.ids), set(ids[: len(replayed.ids)]))

    def zstd(self, data):
        return subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout

    def test_packed_and_cut(self):
        path, ids, _ = self.generate(connections=100, body_bytes=64 * KIB)
        with open(path, "rb") as file:
            data = file.read()
        for packed, words in (
            (gzip.compress(data), "its gzip data end too soon"),
            (self.zstd(data), "its zstd data end too soon"),
        ):
            with self.subTest(words):
                with open(path, "wb") as file:
                    file.write(packed[: len(packed) // 2])
                replayed = self.replay(path, speed="max")
                self.assertEqual(replayed.code, 0, str(replayed))
                self.assertRegex(replayed.report, rf"the rest of the file: .* behind packet \d+: {words}")
                self.assertIn("shed       none", replayed.report)
                self.assertEqual(set(replayed.ids), set(ids[: len(replayed.ids)]))
                self.assertGreater(len(replayed.ids), 10)
                self.assertLess(len(replayed.ids), 100)

    def test_a_capture_without_packets(self):
        path = self.lab.path("empty.pcap")
        with captures.Writer(path):
            pass
        replayed = self.replay(path)
        self.assertEqual(replayed.code, 1, str(replayed))
        self.assertIn("Not replayed\n  the file holds no packets\n", replayed.report)

    def test_corrupt_in_the_middle(self):
        path, ids, size = self.generate(connections=100)
        packed = path + ".gz"
        with open(path, "rb") as file:
            data = bytearray(gzip.compress(file.read()))
        data[len(data) // 2 :] = b"\x55" * (len(data) - len(data) // 2)
        with open(packed, "wb") as file:
            file.write(data)
        replayed = self.replay(packed, speed="max", loop=2)
        self.assertEqual(replayed.code, 0, str(replayed))
        self.assertIn("the rest of the file: ", replayed.report)
        self.assertEqual(set(replayed.ids), set(ids[: len(replayed.ids)]))
        self.assertEqual(set(replayed.ids.values()), {2})

    def test_says_what_is_missing(self):
        path = self.lab.path("missing.pcap")
        clock = captures.Clock()

        class Lossy(captures.Writer):
            lose = ()
            cut = ()
            count = 0

            def write(self, seconds, packet, length=None):
                if self.count not in self.lose:
                    length = length or len(packet)
                    super().write(seconds, packet[:60] if self.count in self.cut else packet, length)
                self.count += 1

        def add(writer, name, number, lose=(), cut=()):
            writer.count, writer.lose, writer.cut = 0, lose, cut
            connection = captures.Connection(writer, captures.client(number), clock=clock)
            connection.open()
            for i in range(3):
                connection.ask(captures.request(f"{name}-{i}", headers="X: " + "x" * 200 + "\r\n"))
            connection.close()

        # Packets of each: 0-2 the handshake, 3-5, 6-8, 9-11 the exchanges, 12-14 the end.
        with Lossy(path) as writer:
            add(writer, "whole", 1)
            add(writer, "middle", 2, lose=range(3))
            add(writer, "gap", 3, lose=[6])
            add(writer, "cut", 4, cut=[9])
        replayed = self.replay(path, speed="max")
        self.assertEqual(replayed.code, 0, str(replayed))
        report = replayed.report
        self.assertIn("1 connection whose start is not in the capture", report)
        self.assertIn("2 sessions reset where bytes are missing", report)
        self.assertIn("1 packet of clients that the capture cut short", report)
        wanted = {"whole-0", "whole-1", "whole-2", "middle-1", "middle-2", "gap-0", "cut-0", "cut-1"}
        self.assertLessEqual({"whole-0", "whole-1", "whole-2"}, set(replayed.ids), report)
        # Nothing but what came before; in a session that is reset, not all of it need arrive.
        self.assertLessEqual(set(replayed.ids), wanted | {"gap-2"}, report)
        self.assertNotIn("middle-0", replayed.ids)
        self.assertIn("middle-2", replayed.ids)

    def test_nothing_of_ours(self):
        path, _, _ = self.generate(connections=3)
        target = f"81={endpoint(self.lab.shadow.ipv4, 80)}"
        self.intercept.stop()
        self.lab.start_intercept(target=target)
        command = self.lab.replay_command(port=81, pcap=path, speed="max")
        result = self.lab.production.run(command, check=False)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("27 packets of other ports", result.stdout)


if __name__ == "__main__":
    labtest.main()
