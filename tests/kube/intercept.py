"""Answers as an intercept's probe server does, so that an operator can be told anything."""

import http.server
import json
import random
import re
import threading

PORT = 9464
BESIDE_PORT = 19465  # in pods of the shadow


class FakeIntercept:
    """On that address, or on one of loopback of its own. What it says may be set at any time."""

    def __init__(self, address=None, port=PORT):
        self.targets = []  # "8080=10.0.0.5:8080"
        self.problem = ""  # why the reply path does not hold
        self.sidecars = set()  # names of their pods
        self.sessions = 0  # of each sidecar
        self.exchanges = 0
        self.shed = 0
        self.replay = None  # how far those are that replay, {"packets": 1, "percent": 2}
        handler = type("InterceptHandler", (Handler,), {"intercept": self})
        self._server = None
        while self._server is None:
            # Others may have theirs on this machine.
            self.address = address or "127.{}.{}.{}".format(
                *(random.randrange(1, 255) for _ in range(3)))
            try:
                self._server = http.server.ThreadingHTTPServer((self.address, port), handler)
            except OSError:
                if address:
                    raise
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def configure(self, text):
        """What of intercept.yaml it follows; returns whether the sidecars have to stop."""
        self.targets = re.findall(r"\d+(?:/udp)?=[^\s\"',\]]+", text)
        return re.search(r"^stop-sidecars:\s*true", text, re.MULTILINE) is not None

    def is_ready(self):
        return not self.problem

    def status(self):
        verified = self.is_ready()
        sidecars = [
            {"name": name, "sessions": self.sessions, "sessions_opened": self.sessions,
             "exchanges": self.exchanges, "shed": {}, "closed": {}}
            for name in sorted(self.sidecars)
        ]
        for sidecar in sidecars if self.replay else ():
            sidecar["replay"] = self.replay
        return {
            "ready": verified,
            "message": self.problem,
            "reply_path": [
                {"target": target, "verified": verified, "message": self.problem}
                for target in self.targets
            ],
            "sidecars": sidecars,
            "totals": {
                "sessions": self.sessions * len(sidecars),
                "exchanges": self.exchanges,
                "shed": {"no_source_port": self.shed},
            },
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    intercept = None

    def do_GET(self):
        code, text = 200, "ok\n"
        if self.path == "/status":
            text = json.dumps(self.intercept.status())
        elif self.path == "/readyz" and not self.intercept.is_ready():
            code, text = 503, self.intercept.problem
        elif self.path not in ("/readyz", "/healthz"):
            code, text = 404, "no such page\n"
        self.send_response_only(code)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass
