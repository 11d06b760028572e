"""Mutual TLS between the programs: what is refused is said, and rotation loses nothing."""

import os
import time

import labtest
from lab import INTERCEPT_GRPC, INTERCEPT_HTTP, SIDECAR_HTTP, Lab, endpoint, metrics, wait_until

SIDECAR = "spiffe://trafficmirror/shop/checkout/sidecar"
INTERCEPT = "checkout.intercept.trafficmirror"


class Authority:
    """A CA whose certificates the `openssl` command makes."""

    def __init__(self, lab, name):
        self.lab = lab
        self.certificate = lab.path(f"{name}.crt")
        self._key = lab.path(f"{name}.key")
        self._openssl(f"/CN={name}", self._key, self.certificate)

    def _openssl(self, subject, key, certificate, *options):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", subject]
        self.lab.client.run([*command, "-keyout", key, "-out", certificate, *options])

    def issue(self, name, directory):
        """A certificate with that name in tls.crt, its key in tls.key."""
        kind = "URI" if ":" in name else "DNS"
        options = ["-CA", self.certificate, "-CAkey", self._key]
        options += ["-addext", "basicConstraints=critical,CA:FALSE"]
        options += ["-addext", f"subjectAltName={kind}:{name}"]
        key, certificate = os.path.join(directory, "tls.key"), os.path.join(directory, "tls.crt")
        self._openssl("/CN=trafficmirror", key, certificate, *options)


class Secret:
    """Files that change all at once, as kubelet changes those of a mounted Secret."""

    def __init__(self, lab, name):
        self._lab = lab
        self._directory = lab.path(name)
        self._versions = 0
        os.makedirs(self._directory)

    def write(self, issuer, name, authorities):
        self._versions += 1
        version = os.path.join(self._directory, f"version-{self._versions}")
        os.mkdir(version)
        issuer.issue(name, version)
        with open(os.path.join(version, "ca.crt"), "w") as bundle:
            for authority in authorities:
                with open(authority.certificate) as file:
                    bundle.write(file.read())
        link = os.path.join(self._directory, "next")
        os.symlink(version, link)
        os.replace(link, os.path.join(self._directory, "data"))

    def path(self, name):
        return os.path.join(self._directory, "data", name)

    def flags(self, peer):
        return {
            "tls_certificate": self.path("tls.crt"),
            "tls_key": self.path("tls.key"),
            "tls_ca": self.path("ca.crt"),
            "tls_peer": peer,
        }

    def environment(self):
        variables = {"CERTIFICATE": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"}
        values = {}
        for variable, name in variables.items():
            with open(self.path(name)) as file:
                values[f"TRAFFICMIRROR_TLS_{variable}"] = file.read()
        return values


class Tls(labtest.LabTest):
    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        self.production, self.shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
        self.old, self.new = Authority(lab, "old"), Authority(lab, "new")
        self.of_sidecar, self.of_intercept = Secret(lab, "sidecar"), Secret(lab, "intercept")
        self.of_sidecar.write(self.old, SIDECAR, [self.old])
        self.of_intercept.write(self.old, INTERCEPT, [self.old])

    def start_intercept(self):
        target = f"80={endpoint(self.lab.shadow.ipv4, 80)}"
        return self.lab.start_intercept(target=target, **self.of_intercept.flags(SIDECAR))

    def readiness(self):
        return self.lab.production.get(SIDECAR_HTTP, "/readyz")[1]

    def refused(self, reason):
        counted = metrics(self.lab.intercept, INTERCEPT_HTTP)
        return counted.total("trafficmirror_refused_streams_total", reason=reason)

    def handshake(self, *options):
        """What `openssl s_client` says of a handshake with the intercept."""
        address = endpoint(self.lab.intercept.ipv4, INTERCEPT_GRPC)
        command = ["openssl", "s_client", "-connect", address, "-alpn", "h2", *options]
        # Without what HTTP/2 says, which is no text.
        script = '"$@" 2>&1 | LC_ALL=C tr -cd "[:print:]\\n"'
        return self.lab.client.run(["sh", "-c", script, "sh", *command], input="").stdout

    def test_rotation_under_load_loses_nothing(self):
        lab = self.lab
        sidecar = {**self.of_sidecar.flags(INTERCEPT)}
        mirror = lab.mirror(sidecar=sidecar, intercept=self.of_intercept.flags(SIDECAR))
        for process in (mirror.sidecar, mirror.intercept):
            self.assertNotIn("plain text", process.output())

        seconds = labtest.seconds(10)
        running = lab.load(
            "rotated",
            endpoint(lab.production.ipv4, 80),
            rate=1000,
            seconds=seconds,
            connections=20,
        )
        both = [self.old, self.new]
        steps = [(self.old, both), (self.new, both), (self.new, [self.new])]
        for issuer, trusted in steps:
            time.sleep(seconds / 5)  # under load, not before or behind it
            self.of_intercept.write(issuer, INTERCEPT, trusted)
            self.of_sidecar.write(issuer, SIDECAR, trusted)
            # Somebody without a certificate: a handshake, so that the intercept reads its files.
            self.assertEqual("issuer=CN = new" in self.handshake(), issuer is self.new)
        self.assertTrue(running.process.running(), "the load ended before the rotation")
        summary = running.finish(seconds + 30)
        self.assert_served(summary)
        self.assert_same_requests(running.ids(), self.shadow)
        counted = mirror.metrics()
        self.assert_nothing_unmirrored(counted)
        self.assertEqual(counted.total("trafficmirror_streams_total"), 1, "the stream was dropped")

        # A sidecar that comes now shows and trusts what is new.
        self.assertEqual(mirror.sidecar.stop(), 0)
        lab.start_sidecar(port=80, **sidecar)
        self.mirror_requests(
            lab, mirror, self.production, self.shadow, "again", rate=200, seconds=2, connections=5
        )

    def test_environment(self):
        lab = self.lab
        self.start_intercept()
        command = lab.sidecar_command(port=80, tls_peer=INTERCEPT)
        environment = self.of_sidecar.environment()
        lab.start_ready(
            lab.production, command, "sidecar", lab.sidecar_ready, environment=environment
        )

    def test_identity_of_an_environment_is_replaced_down_the_stream(self):
        lab = self.lab
        handed = Secret(lab, "handed")
        handed.write(self.old, SIDECAR, [])
        intercept_flags = {
            "target": f"80={endpoint(lab.shadow.ipv4, 80)}",
            "sidecar_tls_certificate": handed.path("tls.crt"),
            "sidecar_tls_key": handed.path("tls.key"),
            **self.of_intercept.flags(SIDECAR),
        }
        intercept = lab.start_intercept(**intercept_flags)
        command = lab.sidecar_command(port=80, tls_peer=INTERCEPT)
        environment = self.of_sidecar.environment()
        sidecar = lab.start_ready(
            lab.production, command, "sidecar", lab.sidecar_ready, environment=environment
        )

        def counted(host, port, name, result):
            return metrics(host, port).total(name, result=result)

        def taken():
            return counted(lab.production, SIDECAR_HTTP, "trafficmirror_identities_total", "taken")

        def wait_for_taken(count):
            wait_until(lambda: taken() == count, lambda: f"{taken()} of {count} identities")

        wait_for_taken(1)  # another than that of its environment
        address = endpoint(lab.production.ipv4, 80)
        running = lab.load("rotated", address, rate=500, seconds=60, connections=20)
        both = [self.old, self.new]
        self.of_intercept.write(self.old, INTERCEPT, both)
        wait_for_taken(2)
        handed.write(self.new, SIDECAR, [])
        wait_for_taken(3)
        self.of_intercept.write(self.new, INTERCEPT, [self.new])
        wait_for_taken(4)
        self.assertIn("issuer=CN = new", self.handshake())

        # What does not fit is sent to nobody.
        with open(handed.path("tls.key"), "w") as key:
            key.write("nonsense")
        name = "trafficmirror_sidecar_identities_total"
        wait_until(
            lambda: counted(lab.intercept, INTERCEPT_HTTP, name, "refused") == 1, "it is refused"
        )
        self.assertIn("holds no private key in PEM", intercept.output())
        self.assertEqual(counted(lab.intercept, INTERCEPT_HTTP, name, "taken"), 3)
        handed.write(self.new, SIDECAR, [])
        wait_for_taken(5)

        # The stream that was there has seen all of it.
        self.assert_served(running.stop())
        self.assert_same_requests(running.ids(), self.shadow)
        mirrored = metrics(lab.production, SIDECAR_HTTP)
        self.assert_nothing_unmirrored(mirrored)
        self.assertEqual(mirrored.total("trafficmirror_streams_total"), 1)

        # The next one needs what was sent: of the environment's CA the intercept knows no more.
        intercept.stop()
        lab.start_intercept(**intercept_flags)
        wait_until(lab.sidecar_ready, self.readiness)
        for process in (sidecar, intercept):
            self.assertNotIn("PRIVATE KEY", process.output())

    def test_refused_and_said(self):
        lab = self.lab
        intercept = self.start_intercept()
        without_tls = lab.start_sidecar(ready=False, port=80)
        wait_until(lambda: "does it want TLS?" in self.readiness(), self.readiness)
        self.assertIn("the stream is plain text", without_tls.output())
        without_tls.stop()
        self.assertGreater(self.refused("handshake"), 0)
        self.assertIn("it does not speak TLS", intercept.output())

        self.of_sidecar.write(self.old, SIDECAR + "/other", [self.old])
        other = lab.start_sidecar(ready=False, port=80, **self.of_sidecar.flags(INTERCEPT))
        wait_until(lambda: "refused by the intercept" in self.readiness(), self.readiness)
        self.assertIn(f"not that of {SIDECAR} (--tls-peer) but of {SIDECAR}/other", self.readiness())
        self.assertGreater(self.refused("identity"), 0)
        self.assertIn(" is refused: its certificate is not that of", intercept.output())
        self.assertIn("refused by the intercept", other.output())

        self.of_sidecar.write(self.old, SIDECAR, [self.new])
        wait_until(lambda: "no CA of --tls-ca has signed it" in self.readiness(), self.readiness)
        wait_until(lambda: self.refused("hung_up") > 0, "the intercept's count")
        self.assertNotIn("grpc:", other.output())  # one line, ours, says it

        # Put right while it runs: the next attempt takes what the files hold then.
        self.of_sidecar.write(self.old, SIDECAR, [self.old])
        wait_until(lab.sidecar_ready, self.readiness)

    def test_nothing_below_tls_1_2(self):
        intercept = self.start_intercept()
        certificate = ["-cert", self.of_sidecar.path("tls.crt")]
        certificate += ["-key", self.of_sidecar.path("tls.key")]
        self.assertIn("Protocol  : TLSv1.2", self.handshake(*certificate, "-tls1_2"))
        weak = ["-cipher", "DEFAULT@SECLEVEL=0"]
        self.assertIn("Cipher is (NONE)", self.handshake(*certificate, *weak, "-tls1_1"))
        wait_until(lambda: "no TLS from 1.2 on" in intercept.output(), intercept.output)


if __name__ == "__main__":
    labtest.main()
