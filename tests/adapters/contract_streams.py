"""Benches of sources that speak over a stream: http, tcp and mllp, as servers and as clients."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from adapters import http, mllp, tcp
from gateway import Source
from gateway.testing import SourceBench, until
from tests.adapters.test_mllp import adt, framed
from tests.ports import free_port


class Peer:
    """One connection of the peer: what it sent and waits for, and the answers as they come."""

    def __init__(self, bench: StreamBench, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._bench = bench
        self._reader = reader
        self.writer = writer
        self.waiting: deque[bytes] = deque()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                taken = await self._bench.answer(self._reader)
                (self._bench.taken if taken else self._bench.turned_away).append(self.waiting.popleft())

    async def close(self, *, abort: bool) -> None:
        if abort:
            self.writer.transport.abort()
        self.writer.close()
        self.reading.cancel()
        await asyncio.gather(self.reading, self.writer.wait_closed(), return_exceptions=True)


class StreamBench(SourceBench):
    """A source at the end of a stream, and its peer."""

    acknowledges = True
    pushes_back = True

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.peer: Peer | None = None
        self.sent: list[bytes] = []
        self.taken: list[bytes] = []
        self.turned_away: list[bytes] = []

    def accepted(self) -> list[bytes]:
        return list(self.taken)

    def refused(self) -> list[bytes]:
        return list(self.turned_away)

    @abstractmethod
    def frame(self, body: bytes, headers: dict[str, str]) -> bytes:
        """What the peer writes."""

    @abstractmethod
    async def answer(self, reader: asyncio.StreamReader) -> bool:
        """Reads the next answer: whether it says that the message is safe."""

    @abstractmethod
    async def connection(self) -> Peer:
        """The connection that the peer has or makes."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        try:
            yield self
        finally:
            await self.leave()

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.sent.append(body)
        peer = await self.connection()
        peer.waiting.append(body)
        with suppress(OSError):
            peer.writer.write(self.frame(body, headers or {}))
            await peer.writer.drain()

    async def send_again(self) -> None:
        missing = [body for body in self.sent if body not in self.taken]
        if self.peer is not None:
            missing = [body for body in missing if body not in self.peer.waiting]
        for body in missing:
            await self.send(body)

    async def leave(self) -> None:
        peer, self.peer = self.peer, None
        if peer is not None:
            await peer.close(abort=False)


class Calling(StreamBench):
    """The source is the server: the peer connects when it has something to send."""

    async def connection(self) -> Peer:
        while self.peer is None or self.peer.reading.done():
            await self.leave()
            with suppress(OSError):
                self.peer = Peer(self, *await asyncio.open_connection("127.0.0.1", self.port, limit=2**22))
            await asyncio.sleep(0)
        return self.peer

    async def lose(self) -> None:
        peer, self.peer = self.peer, None
        if peer is not None:
            await peer.close(abort=True)

    async def come_back(self) -> None:
        """It connects when it has something to send."""


class Called(StreamBench):
    """The source is the client: the peer is a server that sends to who connected last."""

    connects = True
    _server: asyncio.Server | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        await self.come_back()
        try:
            yield self
        finally:
            await self.lose()

    async def connection(self) -> Peer:
        await until(lambda: self.peer is not None and not self.peer.reading.done())
        assert self.peer is not None
        return self.peer

    async def come_back(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=2**22)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.peer is not None:
            await self.peer.close(abort=False)
        self.peer = Peer(self, reader, writer)

    async def lose(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        peer, self.peer = self.peer, None
        if peer is not None:
            await peer.close(abort=True)


class Http(Calling):
    """http: pipelined requests over one connection."""

    headers = True

    def source(self) -> Source:
        return http.Source.model_validate({"listen": f"127.0.0.1:{self.port}"})

    def frame(self, body: bytes, headers: dict[str, str]) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body

    async def answer(self, reader: asyncio.StreamReader) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        (length,) = [int(line.split(":")[1]) for line in lines if line.startswith("content-length:")]
        await reader.readexactly(length)
        return lines[0].split(" ")[1] == "202"


class _Length:
    """Frames with their length in four bytes before them."""

    framing: Any = {"length": {"bytes": 4}}

    def frame(self, body: bytes, headers: dict[str, str]) -> bytes:
        return len(body).to_bytes(4, "big") + body

    async def answer(self, reader: asyncio.StreamReader) -> bool:
        length = int.from_bytes(await reader.readexactly(4), "big")
        return (await reader.readexactly(length)).startswith(b"OK ")


class TcpServer(_Length, Calling):
    """tcp that listens and answers."""

    def source(self) -> Source:
        return tcp.Source.model_validate({"listen": f"127.0.0.1:{self.port}", "framing": self.framing, "answer": {}})


class TcpClient(_Length, Called):
    """tcp that connects out and answers."""

    def source(self) -> Source:
        return tcp.Source.model_validate({"connect": f"127.0.0.1:{self.port}", "framing": self.framing, "answer": {}})


class TcpSilent(_Length, Calling):
    """tcp that listens and never answers."""

    acknowledges = False

    def source(self) -> Source:
        return tcp.Source.model_validate({"listen": f"127.0.0.1:{self.port}", "framing": self.framing})


class TcpLine(Calling):
    """tcp with lines, the default."""

    binary = False
    empty = False

    def source(self) -> Source:
        return tcp.Source.model_validate({"listen": f"127.0.0.1:{self.port}", "answer": {}})

    def frame(self, body: bytes, headers: dict[str, str]) -> bytes:
        return body + b"\n"

    async def answer(self, reader: asyncio.StreamReader) -> bool:
        return (await reader.readuntil(b"\n")).startswith(b"OK ")


class _Hl7:
    """HL7 messages in MLLP frames."""

    def body(self, number: int) -> bytes:
        return adt(f"M{number}")

    def frame(self, body: bytes, headers: dict[str, str]) -> bytes:
        if not body.startswith(b"MSH"):
            body = adt("LARGE", more=f"|{body.decode()}")
        return framed(body)

    async def answer(self, reader: asyncio.StreamReader) -> bool:
        return b"\rMSA|AA|" in await reader.readuntil(b"\x1c\r")


class MllpServer(_Hl7, Calling):
    """mllp that listens."""

    carries = False

    def source(self) -> Source:
        return mllp.Source.model_validate({"listen": f"127.0.0.1:{self.port}"})


class MllpClient(_Hl7, Called):
    """mllp that connects out."""

    carries = False

    def source(self) -> Source:
        return mllp.Source.model_validate({"connect": f"127.0.0.1:{self.port}"})


BENCHES: list[type[SourceBench]] = [Http, TcpServer, TcpClient, TcpSilent, TcpLine, MllpServer, MllpClient]
