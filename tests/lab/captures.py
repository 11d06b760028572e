"""Capture files, read and written."""

import random
import struct

NANOSECONDS = 0xA1B23C4D
RAW_IP = 101
SYN, FIN, PSH, ACK = 2, 1, 8, 16


def read(path):
    """[(seconds, captured bytes, length)] of a pcap file of this machine's byte order."""
    with open(path, "rb") as file:
        magic, *_ = struct.unpack("=IHHIIII", file.read(24))
        unit = 1e9 if magic == NANOSECONDS else 1e6
        packets = []
        while header := file.read(16):
            seconds, fraction, captured, length = struct.unpack("=IIII", header)
            packets.append((seconds + fraction / unit, file.read(captured), length))
        return packets


class Writer:
    """Writes pcap with nanoseconds, raw IP."""

    def __init__(self, path, snap_length=262144):
        self._file = open(path, "wb", buffering=1 << 20)
        self._file.write(struct.pack("=IHHIIII", NANOSECONDS, 2, 4, 0, 0, snap_length, RAW_IP))
        self.bytes = 24

    def write(self, seconds, packet, length=None):
        whole = int(seconds)
        nanoseconds = round((seconds - whole) * 1e9)
        header = struct.pack("=IIII", whole, nanoseconds, len(packet), length or len(packet))
        self._file.write(header)
        self._file.write(packet)
        self.bytes += 16 + len(packet)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


class Connection:
    """A client's connection in a capture: what it sends stands there whole, of what it gets only the headers.

    Checksums are as the kernel leaves them for the hardware to complete."""

    def __init__(self, writer, client, server="10.1.0.1", server_port=80, clock=None, segment=1448):
        self._writer = writer
        self._ends = [(self._address(client[0]), client[1]), (self._address(server), server_port)]
        self._next = [random.getrandbits(32), random.getrandbits(32)]
        self._clock = clock
        self._segment = segment

    @staticmethod
    def _address(text):
        return bytes(map(int, text.split(".")))

    def _packet(self, who, flags, payload=b"", length=None):
        length = len(payload) if length is None else length
        (source, sport), (destination, dport) = self._ends[who], self._ends[1 - who]
        total = 40 + length
        pseudo = sum(struct.unpack("!4H", source + destination)) + 6 + 20 + length
        while pseudo > 0xFFFF:
            pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
        acknowledged = self._next[1 - who] if flags & ACK else 0
        ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, 64, 6, 0) + source + destination
        tcp = struct.pack(
            "!HHIIBBHHH", sport, dport, self._next[who], acknowledged, 5 << 4, flags, 0xFFFF, pseudo, 0
        )
        self._writer.write(self._clock(), ip + tcp + payload, total)
        self._next[who] = (self._next[who] + length + bool(flags & (SYN | FIN))) & 0xFFFFFFFF

    def open(self):
        self._packet(0, SYN)
        self._packet(1, SYN | ACK)
        self._packet(0, ACK)

    def ask(self, request, answer=100):
        for begin in range(0, len(request), self._segment):
            part = request[begin : begin + self._segment]
            self._packet(0, ACK | (PSH if begin + self._segment >= len(request) else 0), part)
        self._packet(1, ACK | PSH, length=answer)
        self._packet(0, ACK)

    def close(self):
        self._packet(0, FIN | ACK)
        self._packet(1, FIN | ACK)
        self._packet(0, ACK)


class Clock:
    """Goes on by a step with each packet."""

    def __init__(self, begin=1_700_000_000.0, step=0.0001):
        self._begin = begin
        self._step = step
        self._ticks = 0

    def __call__(self):
        self._ticks += 1
        return self._begin + self._ticks * self._step


def request(name, body_bytes=0, headers=""):
    """An HTTP request with an id, as nginx and the sink log it."""
    if body_bytes == 0:
        return f"GET /?id={name} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode()
    head = f"POST /?id={name} HTTP/1.1\r\nHost: a\r\nContent-Length: {body_bytes}\r\n{headers}\r\n"
    return head.encode() + bytes(body_bytes)


def client(number):
    return f"192.0.{number // 250 % 250}.{number % 250 + 1}", 20000 + number // 62500


def generate(path, connections, requests=1, body_bytes=0, segment=1448, together=1, prefix="generated"):
    """So many connections, `together` of them open at a time; returns the ids and the file's size."""
    clock = Clock()
    ids = []
    with Writer(path) as writer:
        for first in range(0, connections, together):
            group = [
                Connection(writer, client(number), clock=clock, segment=segment)
                for number in range(first, min(first + together, connections))
            ]
            for connection in group:
                connection.open()
            for _ in range(requests):
                for connection in group:
                    ids.append(f"{prefix}-{len(ids)}")
                    connection.ask(request(ids[-1], body_bytes))
            for connection in group:
                connection.close()
        return ids, writer.bytes
