"""The shadow sees its clients' true addresses, or those of a pool, and its replies go to the intercept alone."""

import ipaddress
import json
import os
import signal

import labtest
from lab import INTERCEPT_GRPC, INTERCEPT_HTTP, SIDECAR_HTTP, Capture, Lab, endpoint, metrics, wait_until

POOLS = {4: "198.18.0.0/15", 6: "fd00:beef::/64"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def set_rp_filter(lab, host, value):
    for interfaces in ("all", "default", "eth0"):
        lab._sysctl(host, f"net/ipv4/conf/{interfaces}/rp_filter", value)


def client_address(mode, family):
    return f"pool={POOLS[family]}" if mode == "pool" else mode


def network_state(host):
    """All of a host's network that an intercept might change."""
    commands = [
        "ip -o link | cut -d' ' -f2- | sed 's/state .*//'",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all | sed 's/expires [0-9]*sec//'",
        "nft list ruleset",
        "sysctl -a 2>/dev/null | grep -E '^net\\.ipv[46]\\.(conf\\.(all|default|eth0|lo)\\.|ip_|tcp_fwmark|fwmark)'",
    ]
    return {command: host.run(["sh", "-c", command], check=False).stdout for command in commands}


class ClientAddresses(labtest.LabTest):
    def mirror(self, lab, mode, family=4, intercept=None, sidecar=None):
        """With the intercept in the shadow's own network namespace."""
        target = f"80={endpoint(LOOPBACK[family], 80)}"
        options = {"client_address": client_address(mode, family), **(intercept or {})}
        program = lab.start_intercept(host=lab.shadow, target=target, **options)
        at = endpoint(lab.shadow.ipv4, INTERCEPT_GRPC)
        return program, lab.start_sidecar(port=80, intercept=at, **(sidecar or {}))

    def metrics(self, lab):
        return metrics(lab.production, SIDECAR_HTTP)

    def load(self, lab, *names, family=4, **options):
        """Kept connections, new ones or bodies, by their names, at the same time; the ids."""
        address = endpoint(lab.production.address(family), 80)
        kinds = {
            "short": {"mode": "close", "connections": 50},
            "body": {"rate": 20, "connections": 4, "body_bytes": 200_000},
        }
        loads = []
        for name in names:
            kind = {"seconds": 1, "rate": 100, "connections": 20, **kinds.get(name, {}), **options}
            loads.append(lab.load(name, address, **kind))
        for load in loads:
            self.assert_served(load.finish())
        return [name for load in loads for name in load.ids()]

    def assert_addresses(self, mode, family, production, shadow, names):
        """What the shadow's access log says of each request's client, against production's."""
        wait_until(lambda: set(names) <= {r.id for r in production.requests()}, "production's log")
        true = {r.id: (r.address, r.port) for r in production.requests()}
        seen = {r.id: (r.address, r.port) for r in shadow.requests() if r.id in true}
        self.assertEqual(set(seen), set(true))
        if mode == "preserve":
            self.assertEqual(seen, true)
        else:
            network = ipaddress.ip_network(POOLS[family])
            for address, _ in seen.values():
                self.assertIn(ipaddress.ip_address(address), network)
            self.assertGreater(len({address for address, _ in seen.values()}), 5)

    def goes_through(self, mode, family, rp_filter):
        with Lab() as lab:
            set_rp_filter(lab, lab.shadow, rp_filter)
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            captures = []
            for host in (lab.client, lab.production):
                of_shadow = {lab.shadow.ipv4, lab.shadow.ipv6}

                def strange(packet, host=host, of_shadow=of_shadow):
                    return packet.source in of_shadow and packet.sport == 80

                captures.append(Capture(host, strange))
            at_shadow = Capture(lab.shadow, lambda packet: packet.sent and packet.sport == 80)
            self.mirror(lab, mode, family)
            names = self.load(lab, "kept", "short", "body", family=family)
            self.assert_same_requests(names, shadow)
            self.assert_addresses(mode, family, production, shadow, names)
            counted = self.metrics(lab)
            self.assert_sums_close(counted)
            self.assert_nothing_unmirrored(counted)
            for capture in [*captures, at_shadow]:
                self.assertEqual([p.text for p in capture.stop()][:5], [], capture.host.name)

    def test_the_shadow_sees_true_addresses(self):
        for family, rp_filter in ((4, 0), (4, 1), (4, 2), (6, 0)):
            with self.subTest(family=family, rp_filter=rp_filter):
                self.goes_through("preserve", family, rp_filter)

    def test_the_shadow_sees_those_of_a_pool(self):
        for family, rp_filter in ((4, 0), (4, 1), (4, 2), (6, 0)):
            with self.subTest(family=family, rp_filter=rp_filter):
                self.goes_through("pool", family, rp_filter)

    def test_replies_are_routed_to_an_intercept_elsewhere(self):
        for mode in ("preserve", "pool"):
            for family in (4, 6):
                for rp_filter in (0, 1, 2) if family == 4 else (0,):
                    with self.subTest(mode=mode, family=family, rp_filter=rp_filter):
                        self.is_routed(mode, family, rp_filter)

    def join(self, lab):
        """A link between shadow and intercept, by which the shadow reaches clients and the pool."""
        lab._ip(
            lab.shadow,
            [
                f"link add side type veth peer name side netns /proc/self/fd/{lab.intercept.fd}",
                "addr add 10.88.0.2/24 dev side",
                "addr add fd88::2/64 dev side nodad",
                "link set side up",
            ],
        )
        lab._ip(
            lab.intercept,
            [
                "addr add 10.88.0.1/24 dev side",
                "addr add fd88::1/64 dev side nodad",
                "link set side up",
            ],
        )
        for host in (lab.shadow, lab.intercept):
            link = ["ip", "link", "show", "side"]
            wait_until(lambda h=host: "state UP" in h.run(link).stdout, "the link")

    def route_clients(self, lab, family):
        """What a user writes on the shadow's host: client addresses, and the proofs', lead back."""
        via = "10.88.0.1" if family == 4 else "fd88::1"
        proof = "192.0.2.0/24" if family == 4 else "2001:db8::/32"
        clients = "10.77.1.0/24" if family == 4 else "fd77:1::/64"
        lab._ip(
            lab.shadow,
            [f"route add {network} via {via}" for network in (POOLS[family], proof, clients)],
        )

    def is_routed(self, mode, family, rp_filter):
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            self.join(lab)
            self.route_clients(lab, family)
            set_rp_filter(lab, lab.shadow, rp_filter)
            # What it does not drop would be forwarded to the clients.
            lab._sysctl(lab.intercept, "net/ipv4/ip_forward", 1)
            lab._sysctl(lab.intercept, "net/ipv6/conf/all/forwarding", 1)
            before = network_state(lab.intercept)

            def of_shadow(packet):
                return packet.sport == 80 and packet.source in (
                    "10.88.0.2",
                    "fd88::2",
                    lab.shadow.ipv4,
                    lab.shadow.ipv6,
                )

            captures = [Capture(host, of_shadow) for host in (lab.client, lab.intercept)]
            target = endpoint("10.88.0.2" if family == 4 else "fd88::2", 80)
            program = lab.start_intercept(
                interface="side",
                target=f"80={target}",
                client_address=client_address(mode, family),
                reply_path="route",
            )
            lab.start_sidecar(port=80)
            names = self.load(lab, "kept", "short", family=family)
            self.assert_same_requests(names, shadow)
            self.assert_addresses(mode, family, production, shadow, names)
            self.assert_nothing_unmirrored(self.metrics(lab))
            for capture in captures:
                self.assertEqual([p.text for p in capture.stop()][:5], [], capture.host.name)
            # Other connections of this host with the shadow are its own.
            self.assertTrue(lab.intercept.accepts(80, target.rsplit(":", 1)[0].strip("[]")))
            self.assertEqual(program.stop(), 0)
            self.assertEqual(network_state(lab.intercept), before)

    def test_a_session_goes_on_from_the_same_address(self):
        """The shadow closes after each ten requests, production never does."""
        with Lab() as lab:
            production = lab.nginx(lab.production)
            shadow = lab.nginx(lab.shadow, keepalive_requests=10)
            self.mirror(lab, "preserve")
            names = self.load(lab, "kept", rate=200, connections=4, seconds=2)
            self.assert_same_requests(names, shadow)
            self.assert_addresses("preserve", 4, production, shadow, names)
            closed = self.metrics(lab).by("trafficmirror_sessions_closed_total", "reason")
            self.assertGreater(closed.get("shadow_closed", 0), 10)

    def test_a_member_works_while_a_name_lists_it_and_leaves_the_rest_to_another(self):
        """As beside each shadow pod of a cluster: one elsewhere, without a target, tells the
        sidecars what to do."""
        name = "intercept.test"
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            before = network_state(lab.shadow)
            file = lab.path("intercept.yaml")

            def tell(text):
                with open(file + ".new", "w") as new:
                    new.write(f"target: []\n{text}\n")
                os.replace(file + ".new", file)

            tell("max-sessions: 3")
            lab.resolve(name, (lab.intercept,))
            lab.start_intercept(config=file)
            program = lab.start_intercept(
                ready=False,
                host=lab.shadow,
                target="80=127.0.0.1:80",
                client_address="preserve",
                member_of=name,
            )
            sidecar = lab.start_sidecar(port=80, intercept=f"{name}:{INTERCEPT_GRPC}")
            self.not_ready(lab.shadow, f"{name} has no address of this host yet")
            self.assertEqual(network_state(lab.shadow), before)

            lab.resolve(name, (lab.intercept, lab.shadow))
            wait_until(lambda: lab.intercept_ready(lab.shadow), "the member", 15)
            its_stream = endpoint(lab.shadow.ipv4, INTERCEPT_GRPC)
            wait_until(lambda: self.metrics(lab).by("trafficmirror_stream_up", "intercept").get(
                its_stream), "the stream to it", 20)
            self.load(lab, "limited")
            shed = self.metrics(lab).by("trafficmirror_shed_total", "reason")
            self.assertGreater(shed.get("session_limit", 0), 0, "the member's word counted")
            tell("max-sessions: 1000")
            wait_until(lambda: "1000 sessions at most" in sidecar.output(), "that it is told")
            names = self.load(lab, "kept", "short")
            wait_until(lambda: set(names) <= set(shadow.ids()), "the shadow's log")
            wait_until(lambda: set(names) <= {r.id for r in production.requests()}, "production's")
            true = {r.id: (r.address, r.port) for r in production.requests() if r.id in names}
            seen = {r.id: (r.address, r.port) for r in shadow.requests() if r.id in names}
            self.assertEqual(seen, true)

            lab.resolve(name, (lab.intercept,))
            self.assertEqual(program.wait(20), 0, program.output())
            self.assertEqual(network_state(lab.shadow), before)
            self.assertTrue(lab.sidecar_ready(), "it has the other one")
            tell("stop-sidecars: true")
            self.assertEqual(sidecar.wait(20), 0)

    def test_ordinary_traffic_is_not_touched(self):
        for mode in ("preserve", "pool"):
            with self.subTest(mode=mode), Lab() as lab:
                lab.nginx(lab.production)
                shadow = lab.nginx(lab.shadow)
                # From the very client whose address the shadow sees in mirrored sessions, too.
                old = lab.client.connect(lab.shadow.ipv4, 80)
                self.addCleanup(old.close)
                program, _ = self.mirror(lab, mode)
                names = self.load(lab, "mirrored")
                self.assert_same_requests(names, shadow)

                def is_ordinary(lab=lab, old=old):
                    old.sendall(b"GET /?id=old HTTP/1.1\r\nHost: shadow\r\n\r\n")
                    self.assertIn(b"200 OK", old.recv(4096))
                    for host in (lab.client, lab.intercept, lab.shadow):
                        for family in (4, 6):
                            status, body = host.get(80, "/?id=probe", lab.shadow.address(family))
                            self.assertEqual((status, body), (200, "shadow\n"), host.name)
                    status, body = lab.shadow.get(80, "/?id=out", lab.production.ipv4)
                    self.assertEqual((status, body), (200, "production\n"), "its own, outwards")

                is_ordinary()
                program.kill()
                is_ordinary()

    def test_a_killed_run_is_replaced_and_leaves_nothing(self):
        for mode in ("preserve", "pool"):
            with self.subTest(mode=mode), Lab() as lab:
                production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
                before = network_state(lab.shadow)
                at_shadow = Capture(lab.shadow, lambda packet: packet.sent and packet.sport == 80)
                program, _ = self.mirror(lab, mode)
                self.load(lab, "before")
                running = lab.load(
                    "while", endpoint(lab.production.ipv4, 80), seconds=2, rate=100, connections=20
                )
                wait_until(lambda: any(n.startswith("while") for n in shadow.ids()), "mirroring")
                program.kill()
                self.assertNotEqual(network_state(lab.shadow), before)
                program = lab.start_intercept(
                    host=lab.shadow,
                    target="80=127.0.0.1:80",
                    client_address=client_address(mode, 4),
                )
                self.assert_served(running.finish())
                wait_until(lambda lab=lab: lab.sidecar_ready(), "the stream")
                names = self.load(lab, "after")
                wait_until(lambda: set(names) <= set(shadow.ids()), "the shadow's log")
                self.assertEqual(program.stop(), 0)
                self.assertEqual(network_state(lab.shadow), before)
                self.assertEqual([p.text for p in at_shadow.stop()][:5], [])

    def test_what_was_removed_is_put_back(self):
        for remove in (
            ["ip", "link", "delete", "trafficmirror0"],
            ["ip", "rule", "delete", "priority", "7443"],
            ["ip", "route", "flush", "table", "7443"],
            ["nft", "flush", "ruleset"],
        ):
            with self.subTest(remove=remove), Lab() as lab:
                lab.nginx(lab.production)
                shadow = lab.nginx(lab.shadow)
                program, _ = self.mirror(lab, "preserve")
                lab.shadow.run(remove)
                wait_until(lambda p=program: "put back" in p.output(), "it is put back")
                wait_until(lambda lab=lab: lab.intercept_ready(lab.shadow), "the proof")
                wait_until(lambda lab=lab: lab.sidecar_ready(), "the stream")
                names = self.load(lab, "after")
                wait_until(lambda: set(names) <= set(shadow.ids()), "the shadow's log")

    def not_ready(self, host, words):
        def says():
            status, body = host.get(9464, "/readyz")
            return status != 200 and words in body

        def found():
            return f"not '{words}' but {host.get(9464, '/readyz')}"

        wait_until(says, found, 15)

    def test_a_failing_proof_names_its_cause(self):
        with self.subTest("rp_filter, in the shadow's namespace"), Lab() as lab:
            lab.nginx(lab.shadow)
            set_rp_filter(lab, lab.shadow, 1)
            lab.start_intercept(
                host=lab.shadow, target="80=127.0.0.1:80", client_address="preserve"
            )
            lab._sysctl(lab.shadow, "net/ipv4/conf/trafficmirror1/src_valid_mark", 0)
            lab.shadow.run(["nft", "flush", "ruleset"])  # so that it is proven again
            self.not_ready(lab.shadow, "rp_filter drops what comes in through trafficmirror1")
        with self.subTest("no route, in the shadow's namespace"), Lab() as lab:
            lab.nginx(lab.shadow)
            lab.shadow.run(["ip", "route", "delete", "default"])
            lab.start_intercept(
                ready=False, host=lab.shadow, target="80=127.0.0.1:80", client_address="preserve"
            )
            self.not_ready(lab.shadow, "it needs a default route")
        with self.subTest("a firewall in the shadow's namespace"), Lab() as lab:
            lab.nginx(lab.shadow)
            self.drop(lab.shadow, "input", "ip saddr 192.0.2.1 drop")
            lab.start_intercept(
                ready=False, host=lab.shadow, target="80=127.0.0.1:80", client_address="preserve"
            )
            self.not_ready(lab.shadow, "something drops what comes in through trafficmirror1")
        routed = {"ready": False, "client_address": "preserve", "reply_path": "route"}
        for what, rp_filter in (("no route", 0), ("rp_filter", 1)):
            with self.subTest(what, on="the shadow's host"), Lab() as lab:
                lab.nginx(lab.shadow)
                self.join(lab)
                set_rp_filter(lab, lab.shadow, rp_filter)
                lab.start_intercept(interface="side", target="80=10.88.0.2:80", **routed)
                self.not_ready(lab.intercept, "10.88.0.2:80 answers 10.88.0.1 and not 192.0.2.1")
        with self.subTest("forged sources are dropped"), Lab() as lab:
            lab.nginx(lab.shadow)
            self.join(lab)
            self.route_clients(lab, 4)
            self.drop(lab.intercept, "output", "ip saddr 192.0.2.1 drop")
            lab.start_intercept(interface="side", target="80=10.88.0.2:80", **routed)
            self.not_ready(lab.intercept, "this host lets no packet from a client's address leave")

    def drop(self, host, hook, rule):
        host.run(["nft", "add table inet lab"])
        host.run(["nft", f"add chain inet lab c {{ type filter hook {hook} priority 0; }}"])
        host.run(["nft", f"add rule inet lab c {rule}"])

    def test_a_small_pool_sheds_what_it_has_no_room_for(self):
        with Lab() as lab:
            lab.nginx(lab.production)
            shadow = lab.nginx(lab.shadow)
            program, _ = self.mirror(
                lab,
                "pool",
                intercept={"client_address": "pool=198.18.0.7/32", "source_ports": "10000-10010"},
            )
            self.load(lab, "many", connections=20)
            wait_until(
                lambda: self.metrics(lab).by("trafficmirror_shed_total", "reason").get("no_source_port"),
                "what is shed",
            )
            wait_until(lambda: "widen the pool of --client-address" in program.output(), "its log")
            self.assertEqual({r.address for r in shadow.requests()} - {"10.77.3.2"}, {"198.18.0.7"})

    def test_a_target_of_udp_in_a_changed_file_changes_nothing(self):
        with Lab() as lab:
            lab.nginx(lab.production)
            shadow = lab.nginx(lab.shadow)
            path = lab.path("intercept.yaml")

            def write(*targets):
                with open(path + ".new", "w") as file:
                    file.write(f"interface: eth0\nclient-address: preserve\ntarget: [{', '.join(targets)}]\n")
                os.replace(path + ".new", path)

            write("80=127.0.0.1:80")
            intercept = lab.start_intercept(host=lab.shadow, config=path)
            lab.start_sidecar(port=80, intercept=endpoint(lab.shadow.ipv4, INTERCEPT_GRPC))
            write("80=127.0.0.1:80", "53/udp=127.0.0.1:53")
            words = "error the target 53/udp=127.0.0.1:53 is of UDP, which is mirrored with --client-address " \
                "masquerade alone; what was read before stays in use\n"
            wait_until(lambda: words in intercept.output(), intercept.output)
            status = json.loads(lab.shadow.get(INTERCEPT_HTTP, "/status")[1])
            targets = [each["target"] for each in status["reply_path"]]
            self.assertEqual(targets, [f"80={lab.shadow.ipv4}:80"])
            self.assert_same_requests(self.load(lab, "kept", "short"), shadow)
            self.assert_nothing_unmirrored(self.metrics(lab))
            self.assertEqual(intercept.output().count("is of UDP"), 1)

    def test_mistakes_are_one_line(self):
        with Lab() as lab:
            for options, words in (
                ({"client_address": "preserved"}, "there is no such mode"),
                ({"client_address": "pool=198.18.0.1/15"}, "is no network"),
                ({"client_address": "pool=10.77.0.0/16"}, "which is an address of this host"),
                ({"client_address": "preserve", "target": "80=10.77.2.2:80"}, "is not in this network"),
                ({"client_address": "preserve", "target": "53/udp=127.0.0.1:53"}, "is of UDP"),
                ({"reply_path": "route"}, "is for --client-address preserve and pool"),
            ):
                command = lab.intercept_command(**{"target": "80=127.0.0.1:80", **options})
                result = lab.shadow.run(command, check=False)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)


if __name__ == "__main__":
    labtest.main()
