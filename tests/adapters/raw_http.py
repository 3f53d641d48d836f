"""A peer that speaks HTTP byte by byte, and an http source to speak it to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from adapters._listener import Listener, Listening
from adapters._request import Request
from adapters.http import Source
from gateway import Address, Limits, Outcome
from gateway.message import Message
from gateway.ports import Clock
from gateway.settings import ListenAt, ServerTls
from gateway.testing import FakeHost, Inbox, running

HERE = Address("127.0.0.1", 0)


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Peer:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The next status line and headers."""
        async with asyncio.timeout(5):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [line.split(": ", 1) for line in lines[1:-2]]
        return int(lines[0].split(" ")[1]), dict(fields)

    async def response(self, *, bodiless: bool = False) -> Response:
        """The next response."""
        status, headers = await self.head()
        length = 0 if bodiless else int(headers.get("content-length", "0"))
        async with asyncio.timeout(5):
            return Response(status, headers, await self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """All that comes until the other side closes."""
        async with asyncio.timeout(5):
            return await self.reader.read()

    async def exchange(self, data: bytes) -> Response:
        await self.send(data)
        return await self.response()

    async def closed(self) -> bool:
        """Whether the other side closes without a word more."""
        try:
            return await self.rest() == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def peer(address: Address, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


class Desk:
    """A running http source."""

    def __init__(self, listening: Listening, inbox: Inbox, host: FakeHost, task: asyncio.Task[None]) -> None:
        self.listening = listening
        self.inbox = inbox
        self.host = host
        self.task = task

    @property
    def address(self) -> Address:
        return self.listening.address

    async def ask(self, data: bytes) -> Response:
        """The answer to these bytes on a connection of their own."""
        async with peer(self.address) as one:
            return await one.exchange(data)


@asynccontextmanager
async def desk(
    outcome: Callable[[Message], Any] | None = None,
    *,
    limits: Limits | None = None,
    clock: Clock | None = None,
    tls: ServerTls | None = None,
    **settings: Any,
) -> AsyncIterator[Desk]:
    """An http source on a free port, at `/orders` unless said otherwise; `outcome`: see `gateway.testing.Inbox`."""
    host = FakeHost(limits=limits, clock=clock)
    at = ListenAt(HERE, tls)
    source = Source.model_validate({"listen": at, "path": "/orders", **settings})
    inbox = Inbox(host, outcome)
    async with host.share(Listener(at)) as listening, running(source, inbox, host) as task:
        yield Desk(listening, inbox, host, task)


@asynccontextmanager
async def listener(
    *, limits: Limits | None = None, clock: Clock | None = None, tls: ServerTls | None = None
) -> AsyncIterator[Listening]:
    """A listener on a free port, nothing mounted."""
    host = FakeHost(limits=limits, clock=clock)
    async with host.share(Listener(ListenAt(HERE, tls))) as listening:
        yield listening


def post(body: bytes = b"{}", *, path: str = "/orders", extra: str = "", method: str = "POST") -> bytes:
    """A good request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode("latin-1") + body


class Held:
    """An outcome for `desk` that comes when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Message, asyncio.Future[Outcome]]] = []

    async def __call__(self, message: Message) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiting.append((message, future))
        return await future


class Kept:
    """A handler that keeps its requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> None:
        request.taken = True
        self.requests.append(request)
