"""--stay: whatever becomes of the sidecar's work, its container runs until it is told to end."""

import contextlib
import json
import os
import signal
import time

import labtest
from lab import Lab, endpoint, wait_until


def status(pid, field):
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(field + ":"))


def worker_of(process):
    """Its one child; nothing while there is none."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        children = [int(pid) for pid in file.read().split()]
    return children[0] if len(children) == 1 else None


def gone(pid):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return status(pid, "State") == "Z"
    return True


class Stay(labtest.LabTest):
    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        self.production, self.shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
        self.target = f"80={endpoint(lab.shadow.ipv4, 80)}"

    def command(self, **options):
        return [*self.lab.sidecar_command(**{"port": 80, **options}), "--stay"]

    def start(self, ready=True, **options):
        lab = self.lab
        if not ready:
            return lab.production.start(self.command(**options), "sidecar")
        ready = lab.sidecar_ready
        return lab.start_ready(lab.production, self.command(**options), "sidecar", ready)

    def told(self, process, words):
        wait_until(lambda: words in process.output(), lambda: f"{words}: {process.output()}")

    def load(self, name):
        address = endpoint(self.lab.production.ipv4, 80)
        return self.lab.load(name, address, rate=200, seconds=2, connections=5, mode="close")

    def test_comes_back_after_a_kill(self):
        self.lab.start_intercept(target=self.target)
        sidecar = self.start()
        killed = worker_of(sidecar)
        self.assertEqual(status(sidecar.pid, "Threads"), "1", "it forks with threads about")
        os.kill(killed, signal.SIGKILL)
        self.told(sidecar, "was killed by signal 9 (Killed); it is started anew in 1 s (--stay)")
        wait_until(lambda: worker_of(sidecar) not in (None, killed), "a new process")
        wait_until(self.lab.sidecar_ready, "readiness")
        self.assertTrue(sidecar.running())
        running = self.load("again")
        summary = running.finish()
        self.assert_served(summary)
        self.assert_same_requests(running.ids(), self.shadow)

        worker = worker_of(sidecar)
        began = time.monotonic()
        self.assertEqual(sidecar.stop(), 0, sidecar.output())
        self.assertLess(time.monotonic() - began, 5)
        self.assertTrue(gone(worker))

    def test_stays_over_bad_usage(self):
        sidecar = self.start(ready=False, log_format="json", wrong="x")
        self.told(sidecar, "--wrong is not known")
        words = "the process that mirrors has ended with exit code 2; it is started anew in 1 s"
        self.told(sidecar, words)
        lines = [line for line in sidecar.output().splitlines() if words in line]
        self.assertEqual(json.loads(lines[0])["level"], "error")
        self.told(sidecar, "it is started anew in 2 s (--stay)")
        self.assertTrue(sidecar.running())
        sidecar.stop()

    def test_stays_when_told_to_end(self):
        file = self.lab.path("intercept.yaml")
        with open(file, "w") as to:
            to.write("stop-sidecars: true\n")
        self.lab.start_intercept(config=file)
        sidecar = self.start(ready=False)
        self.told(sidecar, "the intercept says that this sidecar is to end")
        self.told(sidecar, "the process that mirrors has ended in order; it is started anew in 60 s")
        self.assertTrue(sidecar.running())
        self.assertEqual(sidecar.stop(), 0, sidecar.output())

    def test_takes_its_process_along(self):
        self.lab.start_intercept(target=self.target)
        sidecar = self.start()
        worker = worker_of(sidecar)
        sidecar.kill()
        wait_until(lambda: gone(worker), "the worker's end")


if __name__ == "__main__":
    labtest.main()
