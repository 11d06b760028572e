"""What an operator meets: one line that names what is wrong, exit codes, nothing left behind."""

import os
import signal
import socket

import labtest
from lab import (
    INTERCEPT_GRPC,
    INTERCEPT_HTTP,
    SIDECAR_HTTP,
    Lab,
    endpoint,
    wait_until,
)

WITHOUT_NET_RAW = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]
WITHOUT_NET_ADMIN = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]


class CommandLine(labtest.LabTest):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(Lab())
        cls.target = f"80={endpoint(cls.lab.shadow.ipv4, 80)}"
        cls.lab.nginx(cls.lab.shadow)

    def sidecar(self, **options):
        return self.lab.sidecar_command(**{"port": 80, **options})

    def intercept(self, **options):
        return self.lab.intercept_command(**{"target": self.target, **options})

    def assert_refused(self, host, command, *words):
        """Exit code 2, and one line on stderr that has these words."""
        result = host.run(command, check=False, seconds=15)
        self.assertEqual(result.returncode, 2, result.stderr)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        for word in words:
            self.assertIn(word, lines[0])

    def taken(self, host, port):
        with host.network():
            listener = socket.create_server(("0.0.0.0", port))
        self.addCleanup(listener.close)

    def test_wrong_flag(self):
        lab = self.lab
        self.assert_refused(lab.production, [*self.sidecar(), "--wrong"], "--wrong")
        self.assert_refused(lab.intercept, [*self.intercept(), "--wrong"], "--wrong")

    def test_stay_is_no_key_of_the_file(self):
        path = self.lab.path("stay.yaml")
        with open(path, "w") as file:
            file.write("stay: true\n")
        words = "line 1: stay can only be given as a flag"
        self.assert_refused(self.lab.production, self.sidecar(config=path), words)

    def test_sidecars_identity_wants_its_key_and_tls(self):
        words = "--sidecar-tls-key is missing"
        command = self.intercept(sidecar_tls_certificate="/nowhere")
        self.assert_refused(self.lab.intercept, command, words)
        command = self.intercept(sidecar_tls_certificate="/nowhere", sidecar_tls_key="/nowhere")
        self.assert_refused(self.lab.intercept, command, "needs TLS on the stream")

    def test_wrong_values(self):
        lab = self.lab
        self.assert_refused(lab.production, self.sidecar(port=70000), "--port")
        self.assert_refused(lab.production, self.sidecar(capture="tape"), "--capture")
        self.assert_refused(lab.production, self.sidecar(idle_timeout="soon"), "--idle-timeout")
        self.assert_refused(lab.production, self.sidecar(memory_limit="much"), "--memory-limit")
        self.assert_refused(lab.production, self.sidecar(turns="later"), "--turns")
        self.assert_refused(lab.production, self.sidecar(max_lag="0s"), "--max-lag")
        self.assert_refused(lab.production, self.sidecar(over_lag="drop"), "--over-lag")
        self.assert_refused(lab.production, self.sidecar(max_rate=0), "--max-rate")
        self.assert_refused(lab.production, self.sidecar(filter="prot 80"), "--filter")
        self.assert_refused(lab.production, self.sidecar(protocol="80=ftp"), "--protocol")
        command = self.sidecar(protocol="81=mysql")
        self.assert_refused(lab.production, command, "--protocol 81", "--port")
        self.assert_refused(lab.intercept, self.intercept(filter="prot 80"), "--filter")
        self.assert_refused(lab.intercept, self.intercept(target="80"), "--target")
        self.assert_refused(lab.intercept, self.intercept(source_ports="9-1"), "--source-ports")
        command = self.intercept(client_address="preserved")
        self.assert_refused(lab.intercept, command, "--client-address")

    def test_wrong_credentials(self):
        path = self.lab.path("credentials.yaml")
        command = self.sidecar(credentials=path)
        self.assert_refused(self.lab.production, command, "--credentials", "--protocol")
        command = self.sidecar(credentials=path, protocol="80=postgresql")
        self.assert_refused(self.lab.production, command, path, "can't be read")
        for text, words in (
            ("postgresql:\n  app: [secret]\n", "line 2: behind a user there has to be a password"),
            ("postgresql: secret\n", "line 1: behind a protocol there has to be a map"),
            ("ftp:\n  app: secret\n", "line 1: a key has to be a protocol, postgresql or mysql"),
            ("[secret]\n", "line 1: it has to be a map of protocols"),
            ("a: {secret\n", "it is no YAML"),
            ("mysql: {a: b}\npostgresql:\n  a: b\n  a: c\n", "line 4: this user is there twice"),
        ):
            with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(text)
            self.assert_refused(self.lab.production, command, path, words)

        self.assert_refused(self.lab.production, self.sidecar(
            credentials=self.lab.directory, protocol="80=postgresql"), "--credentials", "Is a directory")

    def test_wrong_credentials_in_the_environment(self):
        variable = "TRAFFICMIRROR_CREDENTIALS"
        wrong = ["env", f"{variable}=postgresql:\n  app: [secret]"]
        command = [*wrong, *self.sidecar()]
        self.assert_refused(self.lab.production, command, variable, "nothing without --protocol")
        command = [*wrong, *self.sidecar(protocol="80=postgresql")]
        words = f"{variable} line 2: behind a user there has to be a password"
        self.assert_refused(self.lab.production, command, words)

    def test_empty_names(self):
        """As of a script's variable that is not set: no live traffic in place of a replay."""
        for name in ("pcap", "record", "credentials", "interface", "tls-certificate"):
            self.assert_refused(self.lab.production, self.sidecar(**{name: ""}), f"--{name} : is empty")
        self.assert_refused(self.lab.intercept, self.intercept(interface=""), "--interface : is empty")

    def test_a_file_that_can_not_be_read_again(self):
        """It is read once, and is not taken for an empty one later."""
        lab = self.lab
        script = f'exec "$@" --config /dev/stdin <<end\ntarget: {self.target}\nend\n'
        command = ["sh", "-c", script, "sh", *lab.intercept_command()]
        intercept = lab.start_ready(lab.intercept, command, "intercept", lab.intercept_ready)
        intercept.signal(signal.SIGHUP)
        words = "SIGHUP: there is no file of --config to read again"
        wait_until(lambda: words in intercept.output(), intercept.output)
        self.assertTrue(lab.intercept_ready())
        self.assertEqual(intercept.stop(), 0, intercept.output())

    def test_unknown_interface(self):
        lab = self.lab
        self.assert_refused(lab.production, self.sidecar(interface="eth7"), "eth7")
        self.assert_refused(lab.intercept, self.intercept(interface="eth7"), "eth7")

    def test_taken_port(self):
        lab = self.lab
        self.taken(lab.production, SIDECAR_HTTP)
        self.assert_refused(lab.production, self.sidecar(), str(SIDECAR_HTTP))
        for port in (INTERCEPT_HTTP, INTERCEPT_GRPC):
            self.taken(lab.intercept, port)
            self.assert_refused(lab.intercept, self.intercept(), str(port))
            self.doCleanups()

    def test_missing_capability(self):
        lab = self.lab
        self.assert_refused(lab.production, [*WITHOUT_NET_RAW, *self.sidecar()], "CAP_NET_RAW")
        self.assert_refused(lab.intercept, [*WITHOUT_NET_RAW, *self.intercept()], "CAP_NET_RAW")
        command = [*WITHOUT_NET_ADMIN, *self.intercept()]
        self.assert_refused(lab.intercept, command, "CAP_NET_ADMIN")

    def test_help_and_version(self):
        for command in (self.sidecar(), self.intercept()):
            for flag in ("--help", "--version"):
                result = self.lab.client.run([command[0], flag])
                self.assertTrue(result.stdout)
                self.assertEqual(result.stderr, "")

    def kernel_state(self):
        host = self.lab.intercept
        return {
            name: host.run(command).stdout
            for name, command in (
                ("tables", ["nft", "list", "ruleset"]),
                ("rules", ["ip", "rule"]),
                ("rules of IPv6", ["ip", "-6", "rule"]),
                ("routes", ["ip", "route", "show", "table", "all"]),
                ("links", ["ip", "-o", "link"]),
                ("ports", ["cat", "/proc/sys/net/ipv4/ip_local_reserved_ports"]),
            )
        }

    def test_sigterm_leaves_nothing(self):
        before = self.kernel_state()
        lab = self.lab
        intercept = lab.start_intercept(target=self.target)
        sidecar = lab.start_sidecar(port=80)
        self.assertIn("trafficmirror", self.kernel_state()["tables"])
        self.assertEqual(sidecar.stop(), 0, sidecar.output())
        self.assertEqual(intercept.stop(), 0, intercept.output())
        self.assertEqual(self.kernel_state(), before)

    def test_sigterm_before_ready(self):
        # There is no intercept: the sidecar is alive, says that it is not ready, and ends in order.
        lab = self.lab
        sidecar = lab.start_sidecar(ready=False, port=80)
        wait_until(lambda: lab.production.get(SIDECAR_HTTP, "/healthz")[0] == 200, "/healthz")
        self.assertEqual(lab.production.get(SIDECAR_HTTP, "/readyz")[0], 503)
        self.assertEqual(sidecar.stop(), 0, sidecar.output())

    def test_next_start_cleans_up_after_sigkill(self):
        before = self.kernel_state()
        lab = self.lab
        killed = lab.start_intercept(target=self.target, source_ports="11000-11999")
        self.assertIn("11000", self.kernel_state()["tables"])
        killed.kill()
        intercept = lab.start_intercept(target=self.target, source_ports="12000-12999")
        tables = self.kernel_state()["tables"]
        self.assertIn("12000", tables)
        self.assertNotIn("11000", tables)
        self.assertEqual(intercept.stop(), 0, intercept.output())
        self.assertEqual(self.kernel_state(), before)


if __name__ == "__main__":
    labtest.main()
