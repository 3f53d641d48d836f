"""What tcp and mllp sinks share: connections that carry one request at a time, and end when they can't be trusted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from adapters._frames import Framer
from adapters._sockets import dial, lost, prepare
from gateway import Address, ClientTls, MessageError, PeerError

_UNDECIDED_S = 0.5
"""How long a frame that has its end waits for a byte that could make it go on."""
_GOODBYE_S = 1.0
_HARDLY_S = 1.0
"""The age up to which a closed TLS connection was refused rather than used."""


class Exchange(asyncio.Protocol):
    """One client connection. At most one request waits for its reply, as replies don't say to what they belong.

    It ends by itself, with `lost`, when a reply is late (it must never be taken for the next one's), when the peer
    says what nobody asked for, and when the peer closes. A caller that is cancelled gives up its reply only: the
    connection is free again once that reply has come and is discarded.
    """

    def __init__(self, framer: Framer | None, who: str) -> None:
        """framer: of the replies; None: there are none, and what the peer says is not listened to."""
        self.lost: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()
        """Done once the connection is of no more use, with the reason."""
        self.freed: Callable[[], None] = lambda: None
        """Called when the reply of the request under way has come."""
        self._framer = framer
        self._who = who
        self._transport: asyncio.Transport = asyncio.Transport()
        self._reply: asyncio.Future[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._made_at_s = 0.0
        self._skipped = 0  # when the last request was written
        self._answered = False

    async def ask(self, data: bytes, *, timeout_s: float) -> bytes:
        """Writes a framed request and returns the payload of the reply. Only when free.

        Raises:
            PeerError: reconnect=True: no reply within `timeout_s` seconds (too_late=True), or the connection ended.
        """
        if self.lost.done():
            raise _again(self.lost.result())
        loop = asyncio.get_running_loop()
        self._reply = reply = loop.create_future()
        self._skipped = self._framer.skipped if self._framer is not None else 0
        self._timer = loop.call_later(timeout_s, self._too_late, timeout_s)
        self._transport.write(data)
        payload: bytes = await reply
        return payload

    async def write(self, data: bytes, *, timeout_s: float) -> None:
        """Writes, and returns once the operating system has taken all but a small rest.

        Raises:
            PeerError: reconnect=True: the connection ended, or the peer did not read for `timeout_s` seconds.
        """
        if self.lost.done():
            raise _again(self.lost.result())
        self._transport.write(data)
        if self._writable is not None:
            waited, _ = await asyncio.wait(
                (self._writable, self.lost), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not waited:
                self.end(PeerError(f"{self._who}: the peer read nothing for {timeout_s:g} s", reconnect=True))
        if self.lost.done():
            raise _again(self.lost.result())

    def end(self, error: PeerError) -> None:
        """Ends the connection at once, for this reason. The first reason stays."""
        if not self.lost.done():
            self.lost.set_result(error)
        if self._timer is not None:
            self._timer.cancel()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(_again(self.lost.result()))
        self._reply = None
        self._transport.abort()

    async def close(self) -> None:
        """Lets what is written go out, for a second at most, and closes."""
        self._transport.close()
        await asyncio.wait((self._gone,), timeout=_GOODBYE_S)
        self.end(PeerError(f"{self._who}: the sink was closed", reconnect=True))

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._made_at_s = asyncio.get_running_loop().time()
        prepare(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        age_s = asyncio.get_running_loop().time() - self._made_at_s
        if exc is None and age_s < _HARDLY_S and self._transport.get_extra_info("sslcontext") is not None:
            # In TLS 1.3 a client hears after its handshake, if at all, that its certificate was asked for.
            text = "the peer closed the connection right after the handshake; does it ask for a client certificate?"
            self.end(PeerError(f"{self._who}: {text}", reconnect=True))
        self.end(lost(self._who, exc, answered=self._answered))
        self.resume_writing()
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        framer = self._framer
        if framer is None or self.lost.done():
            return
        try:
            for payload in framer.feed(data):
                self._heard(payload)
        except MessageError as error:
            self.end(PeerError(f"{self._who}: the reply can't be understood: {error}", reconnect=True))
            return
        if framer.ended:
            asyncio.get_running_loop().call_later(_UNDECIDED_S, self._decide, framer, framer.pending)
        elif framer.pending and self._reply is None:
            self._unasked(framer.pending)

    def eof_received(self) -> None:
        if self._framer is not None:
            self._take_end(self._framer)

    def _take_end(self, framer: Framer) -> None:
        try:
            payload = framer.eof()
        except MessageError:
            return  # a cut reply is no reply
        if payload is not None:
            self._heard(payload)

    def _heard(self, payload: bytes) -> None:
        reply = self._reply
        if reply is None:
            self._unasked(len(payload))
            return
        self._reply = None
        self._answered = True
        if self._timer is not None:
            self._timer.cancel()
        if not reply.done():  # cancelled: nobody wants it any more
            reply.set_result(payload)
        self.freed()

    def _decide(self, framer: Framer, pending: int) -> None:
        if framer.ended and framer.pending == pending:
            self._take_end(framer)

    def _unasked(self, count: int) -> None:
        if not self.lost.done():
            text = f"{self._who}: the peer sent {count} bytes that nobody had asked for; is the framing right?"
            self.end(PeerError(text, reconnect=True))

    def _too_late(self, timeout_s: float) -> None:
        framer = self._framer
        count = framer.pending + framer.skipped - self._skipped if framer is not None else 0
        but = f", but {count} bytes that are no whole frame: is the framing right?" if count else ""
        text = f"{self._who}: no reply within {timeout_s:g} s{but}; the connection is closed, so that none comes late"
        self.end(PeerError(text, reconnect=True, too_late=True))


def _again(error: PeerError) -> PeerError:
    """The same error for one more caller: a traceback belongs to one raise."""
    return PeerError(
        str(error),
        reconnect=error.reconnect,
        wait_s=error.wait_s,
        too_late=error.too_late,
        answered=error.answered,
    )


class Exchanges:
    """Some open exchanges with one peer, lent to one sender at a time, in the order of asking."""

    def __init__(self) -> None:
        self.all: list[Exchange] = []
        self._free: deque[Exchange] = deque()
        self._waiting: deque[asyncio.Future[Exchange]] = deque()

    async def ask(self, data: bytes, *, timeout_s: float) -> bytes:
        """As `Exchange.ask`, on the next exchange that is free. Time spent waiting for it is not counted."""
        exchange = self._free.popleft() if self._free else await self._next()
        return await exchange.ask(data, timeout_s=timeout_s)

    async def write(self, data: bytes, *, timeout_s: float) -> None:
        """As `Exchange.write`, on each in turn."""
        self.all.append(self.all.pop(0))
        await self.all[-1].write(data, timeout_s=timeout_s)

    async def _next(self) -> Exchange:
        turn: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back(turn.result())
            raise

    def give_back(self, exchange: Exchange) -> None:
        """This exchange is free."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(exchange)
                return
        self._free.append(exchange)

    def end(self, error: PeerError) -> None:
        """Ends all of them; who waits for one hears why."""
        for exchange in self.all:
            exchange.end(error)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(_again(error))


@asynccontextmanager
async def exchanges(
    address: Address,
    tls: ClientTls | None,
    framer: Callable[[], Framer | None],
    *,
    count: int,
    timeout_s: float,
    who: str,
) -> AsyncIterator[Exchanges]:
    """`count` connections to one peer, for as long as the context lasts. The loss of one ends it for all.

    Raises:
        PeerError: out of the context: there is no connection, or (reconnect=True) one was lost, idle or not.
        ConfigError: a file of `tls` can't be used.
    """
    held = Exchanges()
    try:
        for _ in range(count):
            _, exchange = await dial(lambda: Exchange(framer(), who), address, tls, timeout_s=timeout_s, who=who)
            exchange.freed = lambda exchange=exchange: held.give_back(exchange)  # type: ignore[misc]
            held.all.append(exchange)
            held.give_back(exchange)
        async with ended_with([exchange.lost for exchange in held.all]):
            yield held
    finally:
        for exchange in held.all:
            await exchange.close()
        held.end(PeerError(f"{who}: the connection was closed", reconnect=True))


@asynccontextmanager
async def ended_with(losses: list[asyncio.Future[PeerError]]) -> AsyncIterator[None]:
    """A context that is cancelled when the first of these is done.

    Raises:
        PeerError: out of the context: that loss.
    """

    async def watch() -> None:
        done, _ = await asyncio.wait(losses, return_when=asyncio.FIRST_COMPLETED)
        raise _again(done.pop().result())

    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(), name="link-watch")
            yield
            watching.cancel()
    except BaseExceptionGroup as group:
        # One thing happened; the group is how the watch ends the context.
        raise group.exceptions[0] from None
