"""An HTTP/1.1 server that reads each request whole and writes `ID LENGTH SHA-256` of it to a file.

It answers 200, on request late: `--delay 0.2`. With `--one-at-a-time` the delay is what a request takes, and the next one
waits for it.
"""

import argparse
import asyncio
import hashlib
import re

HEAD_LIMIT = 65536


class Connection(asyncio.Protocol):
    """One connection. Pipelined requests are answered in turn."""

    free_at = 0.0  # the only one who serves

    def __init__(self, log, delay, one_at_a_time):
        self._log = log
        self._delay = delay
        self._one_at_a_time = one_at_a_time
        self._head = bytearray()
        self._left = 0  # of the body in hand
        self._length = 0
        self._digest = None
        self._id = ""
        self._keep = True
        self._answers = 0  # that wait for their time
        self._ended = False  # the client says no more

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        while data:
            if self._digest is None:
                # Kept until it is whole; what follows it is the body, or the next request.
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    if len(self._head) > HEAD_LIMIT:
                        self._transport.abort()
                    return
                data = bytes(self._head[end + 4 :])
                self._begin(bytes(self._head[:end]).decode("latin-1"))
                self._head.clear()
            body, data = data[: self._left], data[self._left :]
            self._digest.update(body)
            self._left -= len(body)
            if self._left == 0:
                self._finish()

    def _begin(self, head):
        found = re.match(r"\S+ \S*[?&]id=([^&\s]+)", head)
        length = re.search(r"^content-length:\s*(\d+)", head, re.I | re.M)
        self._id = found.group(1) if found else "-"
        self._length = self._left = int(length.group(1)) if length else 0
        self._keep = not re.search(r"^connection:\s*close", head, re.I | re.M)
        if re.match(r"\S+ \S+ HTTP/1\.0", head):
            self._keep = False
        self._digest = hashlib.sha256()

    def _finish(self):
        self._log.write(f"{self._id} {self._length} {self._digest.hexdigest()}\n")
        self._log.flush()
        self._digest = None
        self._answers += 1
        if self._one_at_a_time:
            loop = asyncio.get_running_loop()
            Connection.free_at = max(Connection.free_at, loop.time()) + self._delay
            loop.call_at(Connection.free_at, self._answer, self._keep)
        elif self._delay > 0:
            asyncio.get_running_loop().call_later(self._delay, self._answer, self._keep)
        else:
            self._answer(self._keep)

    def _answer(self, keep):
        self._answers -= 1
        connection = "" if keep else "Connection: close\r\n"
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n{connection}\r\nok\n"
        self._transport.write(answer.encode())
        if not keep or (self._ended and self._answers == 0):
            self._transport.close()

    def eof_received(self):
        self._ended = True
        return self._answers > 0  # what is owed is still sent


async def serve(options):
    loop = asyncio.get_running_loop()
    with open(options.log, "a") as log:

        def connection():
            return Connection(log, options.delay, options.one_at_a_time)

        if options.unix:
            server = await loop.create_unix_server(connection, options.unix)
        else:
            server = await loop.create_server(connection, ["0.0.0.0", "::"], options.port, backlog=4096)
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--unix")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--log", required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
