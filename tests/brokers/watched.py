"""Proxies that read along: which deliveries of a broker a client has acknowledged, seen on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import pamqp.frame
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from adapters._mqtt_packets import Packets, Version, read_publish
from tests.brokers.proxy import Proxy

NOBODY = 1
"""A port where nobody listens."""


class Watch(Protocol):
    """What one connection said, in both directions."""

    def up(self, data: bytes) -> None: ...

    def down(self, data: bytes) -> None: ...


class MqttWatch:
    """PUBLISH down, PUBACK up."""

    def __init__(self, version: Version, acknowledged: list[bytes]) -> None:
        self._version = version
        self._acknowledged = acknowledged
        self._open: dict[int, bytes] = {}
        self._up, self._down = Packets(), Packets()

    def up(self, data: bytes) -> None:
        for first, body in self._up.feed(data):
            if first == 0x40:
                self._acknowledged.append(self._open.pop(int.from_bytes(body[:2], "big")))

    def down(self, data: bytes) -> None:
        for first, body in self._down.feed(data):
            if first & 0xF0 == 0x30:
                publish = read_publish(first, body, self._version)
                self._open[publish.packet_id] = publish.body


class AmqpWatch:
    """Basic.Deliver down, Basic.Ack up."""

    def __init__(self, acknowledged: list[bytes]) -> None:
        self._acknowledged = acknowledged
        self._open: dict[int, bytes] = {}
        self._arriving: tuple[int, int, bytes] = (0, 0, b"")
        self._rest = {"up": b"", "down": b""}

    def up(self, data: bytes) -> None:
        for frame in self._frames("up", data):
            if isinstance(frame, spec.Basic.Ack):
                tags = [tag for tag in self._open if tag <= frame.delivery_tag] if frame.multiple else []
                for tag in tags or [frame.delivery_tag]:
                    self._acknowledged.append(self._open.pop(tag))

    def down(self, data: bytes) -> None:
        for frame in self._frames("down", data):
            tag, size, body = self._arriving
            match frame:
                case spec.Basic.Deliver():
                    self._arriving = frame.delivery_tag or 0, -1, b""
                    continue
                case ContentHeader():
                    self._arriving = tag, frame.body_size, b""
                case ContentBody():
                    self._arriving = tag, size, body + frame.value
                case _:
                    continue
            tag, size, body = self._arriving
            if size == len(body):
                self._open[tag] = body

    def _frames(self, way: str, data: bytes) -> list[Any]:
        rest = self._rest[way] + data
        found = []
        if rest.startswith(b"AMQP"):
            rest = rest[8:]
        while len(rest) >= 8 and len(rest) >= (size := int.from_bytes(rest[3:7], "big") + 8):
            found.append(pamqp.frame.unmarshal(rest[:size])[2])
            rest = rest[size:]
        self._rest[way] = rest
        return found


class WatchedProxy(Proxy):
    """A proxy with a new watch for each connection, whose broker can be away."""

    def __init__(self, target_port: int, watching: Callable[[], Watch]) -> None:
        super().__init__(target_port)
        self._there = target_port
        self._watching = watching
        self._watch: ContextVar[Watch] = ContextVar("watch")  # each connection has a task, and so a context of its own

    async def lose(self) -> None:
        """The broker is gone, for all who come through here."""
        self._target_port = NOBODY
        self.cut()

    async def come_back(self) -> None:
        """The broker is there again."""
        self._target_port = self._there

    @asynccontextmanager
    async def running(self) -> AsyncIterator[WatchedProxy]:
        async with super().running():
            yield self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watch = self._watching()
        reader.read = _seen(reader.read, watch.up)  # type: ignore[method-assign,assignment]
        self._watch.set(watch)
        await super()._connected(reader, writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        if gate is self._down:
            reader.read = _seen(reader.read, self._watch.get().down)  # type: ignore[method-assign,assignment]
        await super()._pass(reader, writer, gate)


def _seen(read: Callable[[int], Any], look: Callable[[bytes], None]) -> Callable[[int], Any]:
    async def reads(count: int = -1) -> bytes:
        data: bytes = await read(count)
        if data:
            look(data)
        return data

    return reads
