"""Connections that were open before the sidecar are adopted at their next exchange."""

import labtest
from lab import Lab

CONNECTIONS = 50


class Connection:
    """A kept-alive connection, driven by hand."""

    def __init__(self, lab):
        self._socket = lab.client.connect(lab.production.ipv4, 80)

    def send(self, text):
        self._socket.sendall(text.encode())

    def answer(self):
        answer = b""
        while b"\r\n\r\nproduction\n" not in answer:
            more = self._socket.recv(4096)
            if not more:
                raise EOFError("production closed the connection")
            answer += more

    def get(self, name):
        self.send(f"GET /?id={name} HTTP/1.1\r\nHost: production\r\n\r\n")
        self.answer()

    def close(self):
        self._socket.close()


class Adoption(labtest.LabTest):
    def open_connections(self, lab):
        connections = [Connection(lab) for _ in range(CONNECTIONS)]
        for connection in connections:
            self.addCleanup(connection.close)
        return connections

    def test_next_requests_arrive(self):
        with Lab() as lab:
            lab.nginx(lab.production)
            shadow = lab.nginx(lab.shadow)
            connections = self.open_connections(lab)
            for number, connection in enumerate(connections):
                connection.get(f"before-{number}")
            mirror = lab.mirror()
            names = []
            for turn in range(3):
                for number, connection in enumerate(connections):
                    names.append(f"after-{turn}-{number}")
                    connection.get(names[-1])
            self.assert_same_requests(names, shadow)
            metrics = mirror.metrics()
            self.assertEqual(metrics.total("trafficmirror_sessions_active"), CONNECTIONS)
            self.assert_sums_close(metrics)

    def test_half_a_request_is_not_mirrored(self):
        with Lab() as lab:
            lab.nginx(lab.production)
            shadow = lab.nginx(lab.shadow)
            connections = self.open_connections(lab)
            for number, connection in enumerate(connections):
                connection.get(f"before-{number}")
                connection.send("GET /?id=half HTTP/1.1\r\nHost: ")
            mirror = lab.mirror()
            names = []
            for number, connection in enumerate(connections):
                connection.send("production\r\n\r\n")
                connection.answer()
                names.append(f"after-{number}")
                connection.get(names[-1])
            # The shadow has seen the whole requests, and nothing of those that had begun before.
            self.assert_same_requests(names, shadow)
            self.assert_sums_close(mirror.metrics())


if __name__ == "__main__":
    labtest.main()
