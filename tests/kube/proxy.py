"""What stands between an operator and the API server: it sees each request, counts writes, and
kills the operator at one of them."""

import collections
import http.client
import http.server
import os
import signal
import socket
import ssl
import threading
import urllib.parse

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
# Of a connection, not of a request.
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}

Request = collections.namedtuple("Request", "method path watch status")


def changes_the_world(method, path):
    """Whether it is a write of something that stays: neither an Event nor the leader's Lease."""
    return method in WRITES and not {"events", "leases"} & set(path.split("/"))


class Proxy:
    """Takes plain HTTP on loopback and asks the API server over TLS, with the token that it is
    given. Watches pass as they come."""

    def __init__(self, server):
        self._upstream = server.client.url
        self._context = ssl.create_default_context(cafile=server.path("ca.crt"))
        self._lock = threading.Lock()
        self._requests = []
        self._writes = 0
        self._trap = None
        self._trapped = threading.Event()
        handler = type("ProxyHandler", (Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def requests(self):
        """Those that were answered, or whose watch has begun, so far."""
        with self._lock:
            return list(self._requests)

    def writes(self):
        """How many came so far that change the world."""
        with self._lock:
            return self._writes

    # --- a trap ---------------------------------------------------------------------------------

    def kill_at(self, number, process, after=False):
        """Kills `process` at the write of that number (1 is the next one) that changes the world:
        before it is passed on, or after the server has answered. Nothing is answered then."""
        with self._lock:
            self._trapped.clear()
            self._trap = (self._writes + number, process, after)

    def trapped(self, seconds=0.0):
        """Whether it was killed, waiting for that so long."""
        return self._trapped.wait(seconds)

    def disarm(self):
        with self._lock:
            self._trap = None
            self._trapped.clear()

    # --- of the handlers ------------------------------------------------------------------------

    def connect(self):
        parts = urllib.parse.urlsplit(self._upstream)
        return http.client.HTTPSConnection(parts.hostname, parts.port, context=self._context)

    def arrived(self, method, path):
        """Counts it. Returns what to call once it was answered, where that is to be a trap; raises
        ConnectionAbortedError where it must not be passed on."""
        if not changes_the_world(method, path):
            return None
        with self._lock:
            if self._trapped.is_set():
                raise ConnectionAbortedError
            self._writes += 1
            if self._trap is None or self._writes != self._trap[0]:
                return None
            _, process, after = self._trap
            if after:
                return lambda: self._spring(process)
            self._spring(process)
            raise ConnectionAbortedError

    def _spring(self, process):
        os.kill(process.pid, signal.SIGKILL)
        self._trapped.set()

    def answered(self, method, path, watch, status):
        with self._lock:
            self._requests.append(Request(method, path, watch, status))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy = None

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream = self.proxy.connect()

    def finish(self):
        self._upstream.close()
        super().finish()

    def handle(self):
        try:
            super().handle()
        except (OSError, http.client.HTTPException):
            pass  # either side has gone

    def pass_on(self):
        path, _, query = self.path.partition("?")
        watch = "true" in urllib.parse.parse_qs(query).get("watch", ())
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        trap = self.proxy.arrived(self.command, path)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_HEADERS}
        self._upstream.request(self.command, self.path, body, headers)
        answer = self._upstream.getresponse()
        if watch:
            self.proxy.answered(self.command, path, watch, answer.status)
            threading.Thread(target=self._end_with_client, daemon=True).start()
            self._answer_in_pieces(answer)
            return
        content = answer.read()
        if trap is not None:
            trap()
            raise ConnectionAbortedError
        self.proxy.answered(self.command, path, watch, answer.status)
        self._begin(answer)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _begin(self, answer):
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_HEADERS:
                self.send_header(name, value)

    def _answer_in_pieces(self, answer):
        self._begin(answer)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _end_with_client(self):
        """Lets a watch end when the one who asked for it has gone."""
        upstream = self._upstream.sock
        try:
            gone = not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            gone = True
        try:
            if gone:
                upstream.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

    def log_message(self, *_):
        pass
