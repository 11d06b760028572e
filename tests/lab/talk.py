"""Two sides that do not take turns: each says what it has to say in a rhythm of its own.

  talk.py serve websocket --port 80 --log FILE
  talk.py speak websocket --connect HOST:PORT --connections 10 --seconds 5

`websocket` is RFC 6455; `lines` is a server that greets, and then speaks in lines, and a client
that does. The server writes `NAME TIME SHA-256` of each message it has read, TIME on the clock that
all processes of a machine share. The client prints the names of what it has sent.

  talk.py pipeline --connect HOST:PORT --connections 4 --depth 8 --seconds 5 --path /

sends HTTP/1.1 requests, each when the one `depth` before it is answered, so at depth 1 each waits
for the answer before; their ids are the names.
"""

import argparse
import asyncio
import base64
import hashlib
import os
import random
import re
import struct
import time

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
# Between two messages of one side, on the average.
PAUSE = 0.01 / float(os.environ.get("LAB_RATE", 1))


def sizes(chance):
    """Mostly small; some need the longer forms of a length, and several segments."""
    while True:
        yield chance.choice([0, 10, 100, 100, 125, 126, 1000, 3000, chance.choice([100, 70000])])


class WebSocket:
    """Frames. A client masks what it sends, a server does not."""

    def __init__(self, reader, writer, client):
        self.reader = reader
        self.writer = writer
        self._client = client

    @classmethod
    async def connect(cls, reader, writer):
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /talk HTTP/1.1\r\nHost: talk\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ") and cls.accept(key).encode() in head, head
        return cls(reader, writer, client=True)

    @classmethod
    async def listen(cls, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = re.search(r"^sec-websocket-key: (\S+)", head, re.I | re.M).group(1)
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {cls.accept(key)}\r\n\r\n".encode()
        )
        return cls(reader, writer, client=False)

    @staticmethod
    def accept(key):
        return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()

    def send(self, payload, opcode=BINARY):
        length = len(payload)
        mask_bit = 128 if self._client else 0
        if length < 126:
            head = struct.pack("!BB", 128 | opcode, mask_bit | length)
        elif length < 65536:
            head = struct.pack("!BBH", 128 | opcode, mask_bit | 126, length)
        else:
            head = struct.pack("!BBQ", 128 | opcode, mask_bit | 127, length)
        if self._client:
            mask = os.urandom(4)
            head += mask
            payload = self.masked(payload, mask)
        self.writer.write(head + payload)

    async def receive(self):
        """The next message, or None once the other side has closed."""
        while True:
            first, second = await self.reader.readexactly(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            assert bool(second & 128) != self._client, "clients mask, servers do not"
            mask = await self.reader.readexactly(4) if second & 128 else bytes(4)
            payload = self.masked(await self.reader.readexactly(length), mask)
            if first & 15 == CLOSE:
                return None
            if first & 15 == PING:
                self.send(payload, PONG)
            elif first & 15 != PONG:
                return payload

    @staticmethod
    def masked(payload, mask):
        length = len(payload)
        pad = (mask * (length // 4 + 1))[:length]
        return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(length, "big")

    def finish(self):
        self.send(b"", CLOSE)


class Lines:
    """A line is a message. The client ends by closing its side."""

    def __init__(self, reader, writer, client):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, reader, writer):
        await reader.readline()
        return cls(reader, writer, client=True)

    @classmethod
    async def listen(cls, reader, writer):
        writer.write(b"220 at your service\n")
        return cls(reader, writer, client=False)

    def send(self, payload):
        self.writer.write(payload.replace(b"\n", b" ") + b"\n")

    async def receive(self):
        line = await self.reader.readline()
        return line[:-1] if line.endswith(b"\n") else None

    def finish(self):
        self.writer.write_eof()


PROTOCOLS = {"websocket": WebSocket, "lines": Lines}


async def serve(options):
    chance = random.Random()  # production and shadow say different things at different times
    lengths = sizes(chance)

    async def chatter(talk):
        while True:
            await asyncio.sleep(chance.expovariate(1 / PAUSE))
            talk.send(chance.randbytes(next(lengths)))
            await talk.writer.drain()

    with open(options.log, "a") as log:

        async def connection(reader, writer):
            talk = await PROTOCOLS[options.protocol].listen(reader, writer)
            chatting = asyncio.create_task(chatter(talk))
            try:
                while (message := await talk.receive()) is not None:
                    name = message.split(b" ", 1)[0].decode()
                    digest = hashlib.sha256(message).hexdigest()
                    log.write(f"{name} {time.monotonic():.6f} {digest}\n")
                    log.flush()
            except (asyncio.IncompleteReadError, ConnectionError):
                log.write(f"broken {time.monotonic():.6f} -\n")
                log.flush()
            finally:
                chatting.cancel()
            talk.finish()
            writer.close()

        server = await asyncio.start_server(
            connection, ["0.0.0.0", "::"], options.port, limit=1 << 20
        )
        await server.serve_forever()


async def speak(options):
    chance = random.Random(77)
    lengths = sizes(chance)

    async def hear(talk):
        while await talk.receive() is not None:
            pass

    async def converse(number):
        reader, writer = await asyncio.open_connection(*address(options.connect), limit=1 << 20)
        talk = await PROTOCOLS[options.protocol].connect(reader, writer)
        hearing = asyncio.create_task(hear(talk))
        end = time.monotonic() + options.seconds
        count = 0
        while time.monotonic() < end:
            await asyncio.sleep(chance.expovariate(1 / PAUSE))
            for _ in range(chance.choice([1, 1, 1, 5])):
                name = f"{number}-{count}"
                talk.send(f"{name} ".encode() + chance.randbytes(next(lengths)))
                print(name)
                count += 1
            await writer.drain()
        talk.finish()
        await hearing
        writer.close()

    await asyncio.gather(*(converse(number) for number in range(options.connections)))


async def pipeline(options):
    end = time.monotonic() + options.seconds

    async def connection(number):
        reader, writer = await asyncio.open_connection(*address(options.connect), limit=1 << 22)
        asked = answered = 0
        while True:
            while asked < answered + options.depth and time.monotonic() < end:
                name = f"{number}-{asked}"
                writer.write(f"GET {options.path}?id={name} HTTP/1.1\r\nHost: talk\r\n\r\n".encode())
                print(name)
                asked += 1
            if answered == asked:
                break
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = int(re.search(rb"^content-length: (\d+)", head, re.I | re.M).group(1))
            while length > 0:
                length -= len(await reader.read(length))
            answered += 1
        writer.close()

    await asyncio.gather(*(connection(number) for number in range(options.connections)))


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("protocol", choices=PROTOCOLS)
    serving.add_argument("--port", type=int, required=True)
    serving.add_argument("--log", required=True)
    serving.set_defaults(run=serve)
    speaking = commands.add_parser("speak")
    speaking.add_argument("protocol", choices=PROTOCOLS)
    speaking.set_defaults(run=speak)
    pipelining = commands.add_parser("pipeline")
    pipelining.add_argument("--depth", type=int, default=8)
    pipelining.add_argument("--path", default="/")
    pipelining.set_defaults(run=pipeline)
    for command in (speaking, pipelining):
        command.add_argument("--connect", required=True)
        command.add_argument("--connections", type=int, default=10)
        command.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    asyncio.run(options.run(options))


if __name__ == "__main__":
    main()
