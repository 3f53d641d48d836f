"""Generators for what wrk does not speak: lines, MLLP and MQTT with answers, WebSocket without.

One thread, plain sockets and epoll: as little as possible, so that the measured side is the limit.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.bodies import ADMISSION, LINE, ORDER

_HANDSHAKE = (
    b"GET /in HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_BATCH = 64
_MQTT_PER_S = 2_000
MQTT_TOPIC = "bench/orders"
_PATIENCE_S = 20.0


class Talk(NamedTuple):
    """What is said, and what ends each answer."""

    request: bytes
    answer_end: bytes


TALKS = {
    "line": Talk(LINE + b"\n", b"\n"),
    "mllp": Talk(b"\x0b" + ADMISSION + b"\x1c\r", b"\x1c\r"),
}


class Asking:
    """One connection that has `window` requests under way."""

    def __init__(self, port: int, talk: Talk, window: int) -> None:
        self._talk = talk
        self._window = window
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = 0
        self.last = 0.0
        self._half = False

    def begin(self) -> None:
        """Sends the first window."""
        self.last = time.perf_counter()
        self.socket.sendall(self._talk.request * self._window)

    def read(self, *, on: bool) -> int:
        """Reads answers, sends as many requests anew if it is to go `on`, and returns how many there were."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the peer closed the connection")
        end = self._talk.answer_end
        count = data.count(end)
        if len(end) == 2:
            count += self._half and data[:1] == end[1:]
            self._half = data[-1:] == end[:1]
        if count and on:
            self.socket.sendall(self._talk.request * count)
        self.answers += count
        return count


def ask(talk: Talk, port: int, connections: int, window: int, seconds: float) -> dict[str, float]:
    """Requests and answers over some connections for about so long."""
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        by_fd = {}
        for _ in range(connections):
            one = Asking(port, talk, window)
            stack.callback(one.socket.close)
            by_fd[one.socket.fileno()] = one
            epoll.register(one.socket, select.EPOLLIN)
        return _asked(epoll, by_fd, connections * window, seconds)


def _asked(epoll: select.epoll, by_fd: dict[int, Asking], under_way: int, seconds: float) -> dict[str, float]:
    waits: list[float] = []
    began = now = time.perf_counter()
    for one in by_fd.values():
        one.begin()
    left = under_way
    while left:
        on = now - began < seconds
        events = epoll.poll(_PATIENCE_S)
        if not events:
            raise TimeoutError(f"no answer for {_PATIENCE_S:g} s")
        for fd, _ in events:
            one = by_fd[fd]
            count = one.read(on=on)
            now = time.perf_counter()
            if count:
                waits.append(now - one.last)
                one.last = now
                if not on:
                    left -= count
    waits.sort()
    answers = sum(one.answers for one in by_fd.values())
    return {"count": answers, "seconds": now - began, "p99_ms": waits[len(waits) * 99 // 100] * 1e3, "errors": 0}


def flood(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Sends orders as WebSocket messages as fast as they are taken; ends with a closing handshake on each."""
    batch = _frame(1, ORDER) * _BATCH
    epoll = select.epoll()
    by_fd: dict[int, tuple[socket.socket, list[int]]] = {}
    for _ in range(connections):
        one = _opened(port)
        by_fd[one.fileno()] = (one, [0])
        epoll.register(one, select.EPOLLOUT)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for fd, _ in epoll.poll(1.0):
            link, sent = by_fd[fd]
            sent[0] += link.send(batch[sent[0] % len(batch) :])
    count = 0
    for link, sent in by_fd.values():
        link.settimeout(_PATIENCE_S)
        link.sendall(batch[sent[0] % len(batch) :] + _frame(8, struct.pack(">H", 1000)))
        count += (sent[0] // len(batch) + 1) * _BATCH
    for link, _ in by_fd.values():
        while link.recv(65536):  # its end says that all before it was read
            pass
    return {"count": count, "seconds": time.perf_counter() - began, "errors": 0}


def publish(port: int, connections: int, window: int, seconds: float) -> dict[str, float]:
    """Publishes orders to an MQTT broker with QoS 1, on each connection a window at a time.

    At a rate that subscribers follow: what the broker can't hand on it would drop.
    """
    links = []
    for number in range(connections):
        link = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        name = f"bench-{number}".encode()
        link.sendall(_packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c" + struct.pack(">H", len(name)) + name))
        _exactly(link, 4)  # CONNACK
        links.append(link)
    topic = struct.pack(">H", len(MQTT_TOPIC)) + MQTT_TOPIC.encode()
    batch = b"".join(_packet(0x32, topic + struct.pack(">H", 1 + index) + ORDER) for index in range(window))
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for link in links:
            link.sendall(batch)
        for link in links:
            _exactly(link, 4 * window)  # PUBACKs
            count += window
        time.sleep(max(0.0, count / _MQTT_PER_S - (time.perf_counter() - began)))
    for link in links:
        link.sendall(_packet(0xE0, b""))
        link.close()
    return {"count": count, "seconds": time.perf_counter() - began, "errors": 0}


def _packet(head: int, rest: bytes) -> bytes:
    """An MQTT packet, MQTT 3.1.1 section 2."""
    length, size = b"", len(rest)
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | (0x80 if size else 0)])
        if not size:
            return bytes([head]) + length + rest


def _exactly(link: socket.socket, size: int) -> None:
    while size:
        got = len(link.recv(min(size, 65536)))
        if not got:
            raise ConnectionError("the broker closed the connection")
        size -= got


def _opened(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port))
    link.sendall(_HANDSHAKE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += link.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(f"no WebSocket: {answer[:80]!r}")
    link.settimeout(0)
    return link


def _frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame, RFC 6455 section 5.2."""
    key = os.urandom(4)
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
    return bytes([0x80 | opcode]) + length + key + masked


def main() -> None:
    """Arguments: the kind, the port, connections, window, seconds."""
    kind, port, connections, window, seconds = sys.argv[1:]
    if kind == "websocket":
        found = flood(int(port), int(connections), float(seconds))
    elif kind == "mqtt":
        found = publish(int(port), int(connections), int(window), float(seconds))
    else:
        found = ask(TALKS[kind], int(port), int(connections), int(window), float(seconds))
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
