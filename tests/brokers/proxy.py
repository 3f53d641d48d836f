"""A TCP proxy between us and a broker, for the faults that a broker itself does not offer on demand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on until told otherwise. `port` stays the same; `accepted` counts the connections so far."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._server: asyncio.Server
        self.accepted = 0
        self.bytes_up = 0
        self.resume()

    @property
    def port(self) -> int:
        """Where to connect to."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def resume(self) -> None:
        """Passes on again, what was held first."""
        self._up.set()
        self._down.set()

    def stall(self) -> None:
        """Passes nothing on, in both directions: a half-open connection, whose peer is silent but there."""
        self._up.clear()
        self._down.clear()

    def hold_answers(self) -> None:
        """Passes on what we send, and holds what the broker answers: confirms that never come."""
        self._down.clear()

    def cut(self) -> None:
        """Resets all connections."""
        for pair in tuple(self._pairs):
            for writer in pair:
                _reset(writer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listens for as long as the context lasts."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            self.resume()
            self.cut()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, far_writer, self._up))
                tasks.create_task(self._pass(far_reader, writer, self._down))
        finally:
            self._pairs.discard(pair)
            for each in pair:
                _reset(each)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # uvloop's word for a closed transport
            while data := await reader.read(65_536):
                await gate.wait()
                if gate is self._up:
                    self.bytes_up += len(data)
                writer.write(data)
                await writer.drain()
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    if writer.is_closing():
        return
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def proxied(target_port: int) -> AsyncIterator[Proxy]:
    """A running proxy to this port of 127.0.0.1."""
    async with Proxy(target_port).running() as proxy:
        yield proxy
