"""WebSocket peers of tests: a running source, a raw client that speaks frame by frame, a server of our choosing."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from adapters._listener import Listener, Listening
from adapters.websocket import Source
from gateway import Address, Limits, Message
from gateway.ports import Clock
from gateway.settings import ListenAt, ServerTls
from gateway.testing import FakeHost, Inbox, running
from tests.adapters.raw_http import Peer, peer

HERE = Address("127.0.0.1", 0)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE


def frame(opcode: Opcode, payload: bytes = b"", *, final: bool = True, mask: bool = True) -> bytes:
    """As a client sends it; `mask=False`: as a server does."""
    return Frame(opcode, payload, final).serialize(mask=mask)


class Ears:
    """A running websocket source."""

    def __init__(
        self, at: ListenAt, listening: Listening, inbox: Inbox, host: FakeHost, task: asyncio.Task[None]
    ) -> None:
        self.at = at
        self.listening = listening
        self.inbox = inbox
        self.host = host
        self.task = task

    @property
    def address(self) -> Address:
        return self.listening.address

    def client(self, path: str = "/live", **settings: Any) -> connect:
        """A client of the package websockets: `async with ears.client() as client`."""
        scheme = "wss" if "ssl" in settings else "ws"
        return connect(f"{scheme}://{self.address}{path}", proxy=None, **settings)


@asynccontextmanager
async def ears(
    outcome: Callable[[Message], Any] | None = None,
    *,
    limits: Limits | None = None,
    clock: Clock | None = None,
    tls: ServerTls | None = None,
    **settings: Any,
) -> AsyncIterator[Ears]:
    """A websocket source on a free port, at `/live` unless said otherwise; `outcome`: see `gateway.testing.Inbox`."""
    host = FakeHost(limits=limits, clock=clock)
    at = ListenAt(HERE, tls)
    source = Source.model_validate({"listen": at, "path": "/live", **settings})
    inbox = Inbox(host, outcome)
    async with host.share(Listener(at)) as listening, running(source, inbox, host) as task:
        yield Ears(at, listening, inbox, host, task)


def handshake(path: str = "/live", *, leave_out: str = "", **headers: str) -> bytes:
    """The request that opens a WebSocket; `sec_websocket_key="…"` sets a header."""
    fields = {
        "host": "gateway",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    fields.pop(leave_out, None)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


class RawClient:
    """A client that sends what it likes."""

    def __init__(self, link: Peer) -> None:
        self.link = link

    async def send(self, data: bytes) -> None:
        await self.link.send(data)

    async def frame(self) -> tuple[int, bytes]:
        """The opcode and payload of the next frame."""
        async with asyncio.timeout(5):
            first, length = await self.link.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self.link.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.link.reader.readexactly(8))
            return first & 0x0F, await self.link.reader.readexactly(length)

    async def close_code(self) -> int:
        """The code of the close frame that comes, whatever comes before it."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return int(struct.unpack("!H", payload[:2])[0])

    async def closed(self) -> bool:
        """Whether the other side closes, whatever it says before."""
        with suppress(ConnectionError):
            await self.link.rest()
        return True


@asynccontextmanager
async def raw(address: Address, path: str = "/live") -> AsyncIterator[RawClient]:
    """A raw client whose handshake is done."""
    async with peer(address) as link:
        await link.send(handshake(path))
        status, _ = await link.head()
        assert status == 101
        yield RawClient(link)


class Server:
    """A server of the package websockets."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: list[ServerConnection] = []
        self.heard: list[str | bytes] = []


@asynccontextmanager
async def server(
    on_message: Callable[[ServerConnection, str | bytes], Awaitable[None]] | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A server that keeps what it hears; `on_message` may answer."""
    one = Server()

    async def serving(connection: ServerConnection) -> None:
        one.connections.append(connection)
        async for message in connection:
            one.heard.append(message)
            if on_message is not None:
                await on_message(connection, message)

    async with serve(serving, "127.0.0.1", 0, **settings) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        scheme = "wss" if "ssl" in settings else "ws"
        one.url = f"{scheme}://127.0.0.1:{port}/feed"
        yield one


@asynccontextmanager
async def plain_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server that answers as it likes; `accepting(await asked(reader))` is a good handshake."""
    ends: list[asyncio.StreamWriter] = []

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        await serve(reader, writer)

    listening = await asyncio.start_server(serving, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/feed"
    finally:
        listening.close()
        for end in ends:
            end.transport.abort()


async def asked(reader: asyncio.StreamReader) -> str:
    """The key of the handshake that a client sends."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))


def accepting(key: str) -> bytes:
    """A good answer to the handshake with this key."""
    lines = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n"
    return f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode()


async def close_code(client: ClientConnection) -> int | None:
    """The code that a client is closed with."""
    async with asyncio.timeout(5):
        await client.wait_closed()
    return client.close_code
