"""Databases whose users have other passwords at the shadow hold the same rows when a load has run."""

import os
import shutil

import labtest
from lab import NO_TLS, SIDECAR_HTTP, Lab, LabError, endpoint, metrics, wait_until

PASSWORDS = {"production": "of production's", "shadow": "of the shadow's"}


class LoginTest(labtest.LabTest):
    protocol = port = None

    def start_mirror(self, passwords=None, in_environment=False, **sidecar):
        """With the shadow's password of the user `app`, or these, in a file or in the environment."""
        if passwords is None:
            passwords = {"app": PASSWORDS["shadow"]}
        lines = [f'  {user}: "{password}"' for user, password in passwords.items()]
        yaml = "\n".join([f"{self.protocol}:", *lines, ""])
        if in_environment:
            sidecar["environment"] = {"TRAFFICMIRROR_CREDENTIALS": yaml}
        else:
            path = sidecar["credentials"] = self.lab.path("credentials.yaml")
            with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(yaml)
        protocol = f"{self.port}={self.protocol}"
        self.mirror = self.lab.mirror(port=self.port, sidecar={"protocol": protocol, **sidecar})

    def counted(self):
        return metrics(self.lab.production, SIDECAR_HTTP)

    def closed(self):
        """{reason: count} of the sessions that have ended."""
        closed = self.counted().by("trafficmirror_sessions_closed_total", "reason")
        return {reason: count for reason, count in closed.items() if count}

    def all_ended(self):
        counted = self.counted()
        return counted.total("trafficmirror_sessions_active") == 0 and counted

    def assert_same(self, rows, what):
        """What rows(host) returns of the shadow is what it does of production."""
        wanted = rows(self.lab.production)
        try:
            wait_until(lambda: rows(self.lab.shadow) == wanted, what, 20, 0.2)
        except LabError:
            pass  # the metrics below say why
        try:
            self.assert_nothing_unmirrored(self.counted())
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.mirror.sidecar.output()}") from None
        self.assertEqual(rows(self.lab.shadow), wanted, what)


class Postgres(LoginTest):
    protocol, port = "postgresql", 5432
    TABLES = {
        "pgbench_history": "tid, bid, aid, delta",
        "pgbench_accounts": "aid, abalance",
        "pgbench_tellers": "tid, tbalance",
        "pgbench_branches": "bid, bbalance",
    }

    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        for host in (lab.production, lab.shadow):
            lab.postgres(host)
            self.query(host, "create user app superuser")
            make = ["pgbench", "-i", "-q", "-s", "1", "-h", host.ipv4, "-U", "app"]
            host.run([*make, "postgres"], environment=NO_TLS)

    def query(self, host, statement):
        command = ["psql", "-h", host.ipv4, "-U", "postgres", "-At", "-c", statement, "postgres"]
        return host.run(command, environment=NO_TLS).stdout.split()

    def ask(self, host, method, password=None):
        """From here on the user `app` has to log in so."""
        self.query(host, f"alter system set password_encryption = '{self.encryption(method)}'")
        self.query(host, "select pg_reload_conf()")
        wait_until(
            lambda: self.query(host, "show password_encryption") == [self.encryption(method)],
            "the encryption",
        )
        password = password or PASSWORDS[host.name]
        self.query(host, "alter user app password '{}'".format(password.replace("'", "''")))
        path = self.lab.path("postgres", host.name, "pg_hba.conf")
        with open(path, "w") as file:
            file.write(f"host all app all {method}\nhost all postgres all trust\n")
        self.query(host, "select pg_reload_conf()")
        wait_until(
            lambda: self.query(host, "select auth_method from pg_hba_file_rules limit 1")
            == [method],
            "the way to log in",
        )

    @staticmethod
    def encryption(method):
        return "md5" if method == "md5" else "scram-sha-256"

    def run_pgbench(self, *options, check=True):
        command = ["pgbench", "-n", "-h", self.lab.production.ipv4, "-U", "app", *options]
        environment = {**NO_TLS, "PGPASSWORD": PASSWORDS["production"]}
        return self.lab.client.run([*command, "postgres"], check=check, environment=environment)

    def assert_same_rows(self):
        wait_until(self.all_ended, "all sessions end", 20)
        for table, columns in self.TABLES.items():
            self.assert_same(
                lambda host: self.query(host, f"select {columns} from {table} order by {columns}"),
                table,
            )
        self.assert_sums_close(self.counted())

    def test_ways_to_log_in(self):
        lab = self.lab
        self.start_mirror()
        ways = [
            ("scram-sha-256", "scram-sha-256", "simple"),
            ("md5", "scram-sha-256", "extended"),
            ("scram-sha-256", "md5", "prepared"),
            ("trust", "scram-sha-256", "prepared"),
            ("scram-sha-256", "trust", "simple"),
            ("md5", "password", "extended"),
        ]
        for number, (production, shadow, mode) in enumerate(ways, 1):
            with self.subTest(production=production, shadow=shadow, mode=mode):
                self.ask(lab.production, production)
                self.ask(lab.shadow, shadow)
                self.run_pgbench("-M", mode, "-c", "8", "-t", "50")
                history = self.query(lab.production, "select count(*) from pgbench_history")
                self.assertEqual(history, [str(400 * number)])
                self.assert_same_rows()

    def test_a_login_for_each_transaction(self):
        for host in (self.lab.production, self.lab.shadow):
            self.ask(host, "scram-sha-256")
        self.start_mirror()
        self.run_pgbench("-C", "-c", "8", "-t", "50")
        self.assert_same_rows()
        self.assertGreaterEqual(self.closed()["finished"], 400)

    def test_passwords_in_the_environment(self):
        for host in (self.lab.production, self.lab.shadow):
            self.ask(host, "scram-sha-256")
        self.start_mirror(in_environment=True)
        self.run_pgbench("-c", "2", "-t", "10")
        self.assert_same_rows()
        self.assertNotIn(PASSWORDS["shadow"], self.mirror.sidecar.output())

    def test_production_refuses_tls(self):
        for host in (self.lab.production, self.lab.shadow):
            self.ask(host, "scram-sha-256")
        self.start_mirror()
        command = ["psql", "-h", self.lab.production.ipv4, "-U", "app", "-c", "create table a ()"]
        environment = {"PGSSLMODE": "prefer", "PGPASSWORD": PASSWORDS["production"]}
        self.lab.client.run([*command, "postgres"], environment=environment)
        wait_until(self.all_ended, "all sessions end", 20)
        self.assert_same(lambda host: self.query(host, "select 'a'::regclass"), "the table")

    def assert_ends_as(self, reason, words):
        self.run_pgbench("-c", "2", "-t", "10")
        wait_until(self.all_ended, "all sessions end", 20)
        self.assertEqual(set(self.closed()), {reason})
        self.assertIn(words, self.mirror.sidecar.output())
        self.assertNotIn("secret", self.mirror.sidecar.output())
        self.assert_sums_close(self.counted())

    def test_a_wrong_password(self):
        self.ask(self.lab.shadow, "scram-sha-256")
        self.start_mirror({"app": "no secret of anybody's"})
        self.assert_ends_as(
            "login_rejected", 'password authentication failed for user "app" (28P01)'
        )

    def test_no_credentials(self):
        self.ask(self.lab.shadow, "scram-sha-256")
        self.start_mirror({"somebody": "secret"})
        self.assert_ends_as(
            "no_credentials", "it asks for a password of user app: name it in --credentials"
        )


class PostgresWithTls(LoginTest):
    protocol, port = "postgresql", 5432

    def test_production_takes_up_tls(self):
        self.lab = lab = self.enterContext(Lab())
        certificate, key = lab.path("server.crt"), lab.path("server.key")
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"]
        lab.production.run([*make, "-out", certificate, "-keyout", key])
        for file in (certificate, key):
            shutil.chown(file, "postgres", "postgres")
        lab.postgres(lab.production, ssl="on", ssl_cert_file=certificate, ssl_key_file=key)
        lab.postgres(lab.shadow)
        self.start_mirror()
        query = ["psql", "-h", lab.production.ipv4, "-U", "postgres", "-c", "select 1", "postgres"]
        lab.client.run(query, environment={"PGSSLMODE": "require"})
        wait_until(self.all_ended, "all sessions end", 20)
        self.assertEqual(self.closed(), {"login_encrypted": 1})
        self.assertIn("production's client speaks TLS", self.mirror.sidecar.output())


class MariaDB(LoginTest):
    protocol, port = "mysql", 3306

    def setUp(self):
        self.lab = lab = self.enterContext(Lab())
        self.root = {}
        for host in (lab.production, lab.shadow):
            self.root[host] = lab.mariadb(host)
            password = PASSWORDS[host.name].replace("'", "''")
            self.query(host, f"create user app@'%' identified by '{password}'")
            self.query(host, "grant all on test.* to app@'%'")

    def query(self, host, statement):
        return host.run([*self.root[host], statement, "-N", "test"]).stdout.split("\n")

    def sysbench(self, host, password, *words):
        command = ["sysbench", *words[:1], f"--mysql-host={host.ipv4}", "--mysql-user=app"]
        command += [f"--mysql-password={password}", "--mysql-db=test", "--mysql-ssl=off"]
        return self.lab.client.run([*command, *words[1:]]).stdout

    def run_sysbench(self, name, *options):
        options = ["--table-size=500", "--threads=8", "--time=0", *options]
        self.sysbench(self.lab.production, PASSWORDS["production"], name, *options, "run")

    def assert_same_rows(self):
        wait_until(self.all_ended, "all sessions end", 20)
        for columns in ("id, k", "c, pad"):
            rows = f"select {columns} from sbtest1 order by {columns}"
            self.assert_same(lambda host: self.query(host, rows), columns)
        self.assert_sums_close(self.counted())

    def prepare(self):
        for host in (self.lab.production, self.lab.shadow):
            self.sysbench(host, PASSWORDS[host.name], "oltp_insert", "--table-size=500", "prepare")
            self.query(host, "update sbtest1 set k = id, c = '', pad = ''")

    def test_same_rows(self):
        self.prepare()
        self.start_mirror()
        for mode in ("disable", "auto"):
            with self.subTest(prepared_statements=mode):
                self.run_sysbench("oltp_update_index", "--events=800", f"--db-ps-mode={mode}")
                self.assert_same_rows()

    def test_a_login_for_each_query(self):
        self.prepare()
        self.start_mirror()
        command = ["mariadb-slap", "--no-defaults", "-h", self.lab.production.ipv4, "-u", "app"]
        command += [f"-p{PASSWORDS['production']}", "--create-schema=test", "--no-drop"]
        command += ["-q", "update sbtest1 set k = k + 1 where id <= 10", "--detach=1"]
        self.lab.client.run([*command, "--concurrency=8", "--number-of-queries=400"])
        self.assert_same_rows()
        self.assertGreaterEqual(self.closed()["finished"], 400)

    def test_a_wrong_password(self):
        self.prepare()
        self.start_mirror({"app": "no secret of anybody's"})
        self.run_sysbench("oltp_update_index", "--events=20")
        wait_until(self.all_ended, "all sessions end", 20)
        self.assertEqual(set(self.closed()), {"login_rejected"})
        self.assertIn("Access denied for user 'app'", self.mirror.sidecar.output())
        self.assert_sums_close(self.counted())


if __name__ == "__main__":
    labtest.main()
