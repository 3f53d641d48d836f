"""The checker's own targets: an HTTP server and a TCP server that record what comes, and fail on demand."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Literal, cast

from httptools import HttpRequestParser

from tests.reliability.ledger import LINK_S, Fault, Kind, Ledger, Receipt

Act = Literal["accept", "busy", "later", "never", "slow", "cut", "hang"]
"""What a target does with a message: accepts it, says 503 or 429 with Retry-After (TCP: ERR), says 422 (TCP: NO), accepts
it late, accepts it and cuts the connection before it answers, or accepts it and never answers."""

SLOW_S = 0.3
TIMEOUT_S = 2.0
"""How long the gateway waits for an answer, as it is configured."""
NOTICED_S = 1.0
"""How soon after a link was cut or timed out the gateway must have given up what it takes along."""


def always(_uid: str | None) -> Act:
    """Every message is accepted."""
    return "accept"


def moody(luck: random.Random, bad: float = 0.1) -> Callable[[str | None], Act]:
    """So many of all messages meet a fault of some kind."""

    def act(_uid: str | None) -> Act:
        if luck.random() >= bad:
            return "accept"
        (chosen,) = luck.choices(("busy", "later", "slow", "cut", "hang"), (50, 10, 20, 19, 1))
        return cast("Act", chosen)

    return act


class Target:
    """One target on one port, which stays the same while the target is down."""

    shared_fate = False
    """Whether the gateway gives all of its connections up when one of them is lost."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.name = name
        self.ledger = ledger
        self.act: Callable[[str | None], Act] = always
        """Set it to make the target misbehave."""
        self.port = 0
        self.open: dict[asyncio.Transport, Receipt | None] = {}
        """The connections, with what came last over each."""
        self._ending: list[tuple[Fault, set[asyncio.Transport]]] = []
        self._server: asyncio.Server | None = None

    def protocol(self) -> asyncio.Protocol:
        """One connection."""
        raise NotImplementedError

    async def up(self) -> None:
        """Listens."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.protocol, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Listens no more and cuts all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for transport in list(self.open):
            transport.abort()
        await asyncio.sleep(0)

    def opened(self, transport: asyncio.BaseTransport) -> asyncio.Transport:
        """A connection was made."""
        made = cast("asyncio.Transport", transport)
        self.open[made] = None
        return made

    def closed(self, transport: asyncio.Transport) -> None:
        """A connection has ended: faults of links end with the last connection that they take along."""
        self.open.pop(transport, None)
        for pair in list(self._ending):
            fault, left = pair
            left.discard(transport)
            if not left:
                fault.ended_s = min(fault.ended_s, time.monotonic() + LINK_S)
                self._ending.remove(pair)

    def _link_fault(self, what: str, transport: asyncio.Transport, lasts_s: float) -> None:
        fault = self.ledger.fault(f"a link to {self.name} {what}", self.name, lasts_s + NOTICED_S)
        self._ending.append((fault, set(self.open) if self.shared_fate else {transport}))

    def handle(self, body: bytes, answer: Callable[[Act], None], transport: asyncio.Transport) -> None:
        """Records one message and answers it."""
        uid = uid_of(body)
        act = self.act(uid)
        kind: Kind = "accepted"
        if act in ("busy", "later", "never"):
            kind = "refused"
        elif act in ("cut", "hang"):
            kind = "cut"
            self._link_fault(act, transport, TIMEOUT_S if act == "hang" else 0.0)
        receipt = self.ledger.received(self.name, uid, body, kind)
        if (before := self.open.get(transport)) is not None:
            before.known_s = receipt.at_s
        if transport in self.open:
            self.open[transport] = receipt

        def say() -> None:
            if not transport.is_closing():
                receipt.answered_s = time.monotonic()
                answer(act)

        if act == "cut":
            transport.abort()
        elif act == "slow":
            asyncio.get_running_loop().call_later(SLOW_S, say)
        elif act != "hang":
            say()


def uid_of(body: bytes) -> str | None:
    """The id in a body of ours; None: it is not one."""
    try:
        return str(json.loads(body)["uid"])
    except (ValueError, KeyError, TypeError):
        return None


class HttpTarget(Target):
    """Answers POST."""

    def protocol(self) -> asyncio.Protocol:
        return _Http(self)


_ANSWERS = {
    "accept": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "slow": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "busy": b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
    "never": b"HTTP/1.1 422 Unprocessable Content\r\ncontent-length: 0\r\n\r\n",
    "later": b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
}


class _Http(asyncio.Protocol):
    def __init__(self, target: Target) -> None:
        self._target = target
        self._parser = HttpRequestParser(self)
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._target.opened(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._target.closed(self._transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = bytes(self._body), bytearray()
        self._target.handle(body, self._answer, self._transport)

    def _answer(self, act: Act) -> None:
        self._transport.write(_ANSWERS[act])


class TcpTarget(Target):
    """Lines, each answered OK or ERR."""

    shared_fate = True

    def protocol(self) -> asyncio.Protocol:
        return _Tcp(self)


class _Tcp(asyncio.Protocol):
    def __init__(self, target: Target) -> None:
        self._target = target
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._target.opened(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._target.closed(self._transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            self._target.handle(line, self._answer, self._transport)

    def _answer(self, act: Act) -> None:
        self._transport.write({"accept": b"OK\n", "slow": b"OK\n", "never": b"NO\n"}.get(act, b"ERR\n"))
