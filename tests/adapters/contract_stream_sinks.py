"""Benches of sinks that speak over a stream: http, tcp and mllp."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from adapters import http, mllp, tcp
from gateway import Message, Sink
from gateway.testing import SinkBench
from tests.adapters.test_mllp import adt, framed
from tests.adapters.test_mllp_sink import ack, control_id
from tests.ports import free_port


class ServedBench(SinkBench):
    """A sink that connects to a server of the bench."""

    confirms = True
    connects = True

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.bodies_seen: list[bytes] = []
        self.open: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self.go = asyncio.Event()
        self.go.set()
        self._server: asyncio.Server | None = None

    @abstractmethod
    async def take(self, reader: asyncio.StreamReader) -> bytes:
        """Reads the next message, notes it, and returns what is said to it."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        await self.come_back()
        try:
            yield self
        finally:
            await self.lose()

    async def come_back(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**22)

    async def lose(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._hang_up()

    async def leave(self) -> None:
        await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = [task for task in self.open.values() if task is not None]
        for writer, task in list(self.open.items()):
            writer.transport.abort()
            if task is not None:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open[writer] = asyncio.current_task()
        try:
            while True:
                said = await self.take(reader)
                await self.go.wait()
                writer.write(said)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            del self.open[writer]
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def hold(self) -> None:
        self.go.clear()

    def release(self) -> None:
        self.go.set()

    def received(self) -> list[bytes]:
        return list(self.bodies_seen)


class Http(ServedBench):
    """http, with a pool of connections."""

    connects = False  # a pool: connections are made when they are needed
    ordered = False
    headers = True
    stable_ids = True
    refuses = True

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[dict[str, str]] = []

    def sink(self) -> Sink:
        return http.Sink.model_validate(
            {
                "url": f"http://127.0.0.1:{self.port}/orders",
                "headers": {"X-Check": "{{ headers['x-check'] | default('') }}"},
            }
        )

    async def take(self, reader: asyncio.StreamReader) -> bytes:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        head = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(head.get("content-length", "0")))
        self.heads.append(head)
        self.bodies_seen.append(body)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    def received_headers(self) -> dict[str, str]:
        return self.heads[-1]

    def ids(self) -> list[str]:
        return [head["idempotency-key"] for head in self.heads]

    def uncarried(self) -> Message:
        return self.message(b"{}", {"x-check": "two\r\nlines"})


class TcpReply(ServedBench):
    """tcp with lengths, and a reply to each message."""

    def sink(self) -> Sink:
        return tcp.Sink.model_validate(
            {
                "connect": f"127.0.0.1:{self.port}",
                "framing": {"length": {"bytes": 4}},
                "reply": {"accepted": "OK"},
                "timeout": "2s",
            }
        )

    async def take(self, reader: asyncio.StreamReader) -> bytes:
        length = int.from_bytes(await reader.readexactly(4), "big")
        self.bodies_seen.append(await reader.readexactly(length))
        return b"\0\0\0\x02OK"


class TcpWritten(TcpReply):
    """tcp with lines and without replies: delivered when written."""

    confirms = False
    binary = False
    refuses = True

    def sink(self) -> Sink:
        return tcp.Sink.model_validate({"connect": f"127.0.0.1:{self.port}", "timeout": "2s"})

    async def take(self, reader: asyncio.StreamReader) -> bytes:
        self.bodies_seen.append((await reader.readuntil(b"\n"))[:-1])
        return b""

    def uncarried(self) -> Message:
        return self.message(b"two\nlines")


class Mllp(ServedBench):
    """mllp, over one connection."""

    carries = False
    refuses = True

    def sink(self) -> Sink:
        return mllp.Sink.model_validate({"connect": f"127.0.0.1:{self.port}", "timeout": "2s"})

    def body(self, number: int) -> bytes:
        return adt(f"M{number}")

    async def take(self, reader: asyncio.StreamReader) -> bytes:
        frame = await reader.readuntil(b"\x1c\r")
        self.bodies_seen.append(frame[1:-2])
        assert framed(frame[1:-2]) == frame
        return ack("AA", control_id(frame))

    def uncarried(self) -> Message:
        return self.message(b"no HL7")


class MllpEach(Mllp):
    """mllp, a connection for each message."""

    connects = False

    def sink(self) -> Sink:
        return mllp.Sink.model_validate({"connect": f"127.0.0.1:{self.port}", "timeout": "2s", "keep_open": False})


BENCHES: list[type[SinkBench]] = [Http, TcpReply, TcpWritten, Mllp, MllpEach]
