"""Redis and PostgreSQL hold the same data as production's when a benchmark has run."""

import labtest
from lab import NO_TLS, Lab, LabError, wait_until


class Redis(labtest.LabTest):
    def test_same_digest(self):
        with Lab() as lab:
            lab.redis(lab.production)
            lab.redis(lab.shadow)
            mirror = lab.mirror(port=6379)

            def digest(host):
                return host.run(["redis-cli", "-h", host.ipv4, "debug", "digest"]).stdout.strip()

            empty = digest(lab.production)
            benchmark = ["redis-benchmark", "-h", lab.production.ipv4, "-P", "16", "-r", "10000"]
            benchmark += ["-n", "100000", "-t", "set,incr,lpush,sadd", "-q"]
            lab.client.run(benchmark, seconds=120)
            wanted = digest(lab.production)
            self.assertNotEqual(wanted, empty)
            try:
                wait_until(lambda: digest(lab.shadow) == wanted, "the same digest", 30, 0.2)
            except LabError:
                pass  # the metrics below say why
            self.assert_nothing_unmirrored(mirror.metrics())
            self.assertEqual(digest(lab.shadow), wanted)
            self.assert_sums_close(mirror.metrics())


class Postgres(labtest.LabTest):
    def query(self, host, statement):
        command = ["psql", "-h", host.ipv4, "-U", "postgres", "-At", "-c", statement]
        return host.run(command, environment=NO_TLS).stdout.split()

    def test_same_rows(self):
        with Lab() as lab:
            for host in (lab.production, lab.shadow):
                lab.postgres(host)
                make = ["pgbench", "-i", "-q", "-s", "1", "-h", host.ipv4, "-U", "postgres"]
                host.run([*make, "postgres"], environment=NO_TLS)
            mirror = lab.mirror(port=5432)
            benchmark = ["pgbench", "-n", "-c", "8", "-t", "250", "-h", lab.production.ipv4]
            lab.client.run([*benchmark, "-U", "postgres", "postgres"], environment=NO_TLS)

            def history(host):
                return self.query(host, "select count(*) from pgbench_history")

            self.assertEqual(history(lab.production), ["2000"])
            try:
                wait_until(lambda: history(lab.shadow) == ["2000"], "the same history", 30, 0.2)
            except LabError:
                pass  # the metrics below say why
            self.assert_nothing_unmirrored(mirror.metrics())
            self.assertEqual(history(lab.shadow), ["2000"])
            for table, key, balance in (
                ("pgbench_accounts", "aid", "abalance"),
                ("pgbench_tellers", "tid", "tbalance"),
                ("pgbench_branches", "bid", "bbalance"),
            ):
                rows = f"select {key}, {balance} from {table} order by {key}"
                self.assertEqual(
                    self.query(lab.shadow, rows), self.query(lab.production, rows), table
                )
            self.assert_sums_close(mirror.metrics())


if __name__ == "__main__":
    labtest.main()
