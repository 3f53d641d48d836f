"""An AMQP 0-9-1 link: aiormq opens, asks and closes it; the frames of messages pass it by (see _amqp_wire).

Nothing here reconnects: a lost link or channel ends its context, and the engine opens it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiormq
from aiormq.connection import TransportFactory
from yarl import URL

from adapters._amqp_wire import Channel, Wire
from gateway import PeerError

# Adapters raise and layers log: the library would log each lost link again, with a traceback.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

LARGEST_BODY_BYTES = 64 * 1024**2
"""What a route may take at most."""
_CLOSE_WITHIN_S = 2.0


class _Connection(aiormq.Connection):
    # Two missed heartbeats mean a dead peer: AMQP 0-9-1 section 4.2.7. The library waits for three.
    HEARTBEAT_GRACE_MULTIPLIER = 2


class Link:
    """An open connection. Channels are made from it; it ends when the broker goes away."""

    def __init__(self, wire: Wire, connection: aiormq.Connection, within_s: float) -> None:
        self._wire = wire
        self._connection = connection
        self._within_s = within_s

    @property
    def where(self) -> str:
        """The broker and its vhost, as error texts name them."""
        return self._wire.where

    @asynccontextmanager
    async def channel(
        self, *, confirm_within_s: float = 30.0, max_body_bytes: int = LARGEST_BODY_BYTES
    ) -> AsyncIterator[Channel]:
        """A channel with publisher confirms, for as long as the context lasts. Larger bodies than that are cut.

        Raises:
            PeerError: out of the context: the broker closed the channel, or the link was lost.
        """
        try:
            async with asyncio.timeout(self._within_s):
                inner = await self._connection.channel(publisher_confirms=False)
        except (aiormq.AMQPError, RuntimeError, OSError) as error:
            raise PeerError(self._reason(error), reconnect=True) from error
        channel = Channel(self._wire, inner, confirm_within_s, max_body_bytes)
        self._wire.channels[channel.number] = channel
        if self._wire.lost.done():
            channel.lose(self._wire.lost.result())
        try:
            async with ends_with(channel.lost):
                async with self.asking(channel):
                    await inner.confirm_delivery()
                yield channel
        finally:
            self._wire.flush()
            channel.lose(f"{self.where}: the channel is closed")
            try:
                if not self._wire.lost.done():
                    await _closed(inner.close())
            finally:
                self._wire.channels.pop(channel.number, None)

    @asynccontextmanager
    async def asking(self, channel: Channel) -> AsyncIterator[None]:
        """Bounds what is asked of the broker in the context, and words what it answers.

        Raises:
            PeerError: the broker said no, said nothing in time, or went away.
        """
        try:
            async with asyncio.timeout(self._within_s):
                yield
        except (aiormq.AMQPError, aiormq.exceptions.ChannelInvalidStateError, OSError) as error:
            raise PeerError(self._reason(error, channel), reconnect=True) from error

    def _reason(self, error: BaseException, channel: Channel | None = None) -> str:
        for lost in (channel.lost if channel else None, self._wire.lost):
            if lost is not None and lost.done():
                return lost.result()
        if isinstance(error, TimeoutError):
            return f"{self.where}: the broker did not answer within {self._within_s:g} s"
        said = str(error)
        return f"{self.where}: {'the link was closed meanwhile' if said == '(None, None)' else said}"


@asynccontextmanager
async def open_link(
    url: URL, *, vhost: str, tls: ssl.SSLContext | None, server_name: str | None, name: str, within_s: float
) -> AsyncIterator[Link]:
    """A connection for as long as the context lasts. `url` carries user, password, host, port and heartbeat.

    Raises:
        PeerError: it could not be opened; or, out of the context, it was lost.
    """
    where = f"{url.scheme}://{url.host}:{url.port}{'' if vhost == '/' else '/' + vhost}"
    wire = Wire(where)
    connection = _Connection(
        url, transport_factory=_Sockets(wire, tls, server_name), client_properties={"connection_name": name}
    )
    connection.vhost = vhost
    try:
        with _opening(wire, user=url.user or "", vhost=vhost, within_s=within_s):
            async with asyncio.timeout(within_s):
                await connection.connect()
    except BaseException:
        # Cancelled at the very end of it, the library's connection is open and nobody's.
        if not connection.is_closed:
            await _closed(connection.close())
        raise
    wire.frame_max = connection.connection_tune.frame_max or wire.frame_max
    try:
        async with ends_with(wire.lost):
            yield Link(wire, connection, within_s)
    finally:
        wire.flush()
        try:
            await _closed(connection.close())
        finally:
            wire.transport.abort()


async def _closed(closing: Awaitable[None]) -> None:
    """Waits for an orderly close, not for long: the peer may be gone."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await closing


class _Sockets(TransportFactory):
    """Opens the socket for aiormq, with our wire on it."""

    def __init__(self, wire: Wire, tls: ssl.SSLContext | None, server_name: str | None) -> None:
        self._wire = wire
        self._tls = tls
        self._server_name = server_name

    async def create(self, url: URL, **_options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        wire, host = self._wire, url.host or ""
        transport, _ = await loop.create_connection(
            lambda: wire,
            host,
            url.port or 0,
            ssl=self._tls,
            server_hostname=(self._server_name or host) if self._tls else None,
        )
        wire.writer = asyncio.StreamWriter(transport, wire, wire.reader, loop)
        return wire.reader, wire.writer


@asynccontextmanager
async def ends_with(lost: asyncio.Future[str]) -> AsyncIterator[None]:
    """Cancels the body when `lost` is done, also while it only waits, and raises the reason as PeerError."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    ended = left = False

    def end(_: asyncio.Future[str]) -> None:
        nonlocal ended
        if not left:  # a callback that is scheduled already can't be taken back
            ended = True
            task.cancel()

    if lost.done():
        raise PeerError(lost.result(), reconnect=True)
    lost.add_done_callback(end)
    try:
        yield
    except asyncio.CancelledError:
        if ended and task.uncancel() <= before:
            raise PeerError(lost.result(), reconnect=True) from None
        raise
    except BaseException:
        if ended:
            await _came_too_late(task, before)
        raise
    else:
        if ended:
            await _came_too_late(task, before)
            raise PeerError(lost.result(), reconnect=True)
    finally:
        left = True
        lost.remove_done_callback(end)


async def _came_too_late(task: asyncio.Task[Any], before: int) -> None:
    # Our cancellation may be under way still: it must not hit what follows. Anybody else's must.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    if task.uncancel() > before:
        raise asyncio.CancelledError


@contextmanager
def _opening(wire: Wire, *, user: str, vhost: str, within_s: float) -> Iterator[None]:
    try:
        yield
    except (aiormq.AMQPError, OSError, EOFError) as error:
        if wire.refused is None:
            reason = _words(error, within_s)
        else:
            code, text = wire.refused
            reason = _REFUSALS.get(code, "the broker closed the connection ({text})")
            reason = reason.format(user=user, vhost=vhost, text=text)
        raise PeerError(f"{wire.where}: {reason}", reconnect=True) from error


_REFUSALS = {
    403: "user {user!r} was refused; check username and password",
    530: "vhost {vhost!r} was refused to user {user!r} ({text}); check both, and the user's permissions there",
}


def _words(error: BaseException, within_s: float) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the broker's certificate was refused ({cause.verify_message}); see tls.ca and tls.server_name, "
                "or renew it"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({cause.reason}); does the broker speak TLS there, and ask for a certificate of ours?"
        cause = cause.__cause__
    match error:
        case aiormq.exceptions.AuthenticationError():
            return "the broker takes no user name and password (mechanism PLAIN); turn it on there"
        case aiormq.AMQPError():
            return "what answered does not speak AMQP 0-9-1, or hung up; is it a TLS port (amqps://)?"
        case TimeoutError():
            return f"no answer within {within_s:g} s; is a broker there, and reachable from here?"
        case ConnectionRefusedError():
            return "nothing listens there (connection refused); is the broker running?"
        case OSError():
            return f"no connection ({error.strerror or error}); check host and port"
        case _:
            return f"no connection ({error})"
