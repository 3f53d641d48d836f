"""The socket of an AMQP 0-9-1 link, cut into frames, and its channels as messages see them.

aiormq makes a task for each delivery, three reads for each frame and a lock for each publish. Here the bytes are cut
into frames once: what belongs to messages (publish, deliver, ack, nack, return) is handled at once, all else goes on
to aiormq.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from itertools import takewhile
from typing import cast

from aiormq.abc import AbstractChannel

from adapters import _amqp_frames as frames
from adapters._amqp_frames import Delivery, Properties, Returned
from gateway import MessageError, PeerError

_WRITE_AHEAD_BYTES = 1024**2
_FRAME_BYTES = 131_072
"""The largest frame until the broker has named its own: RabbitMQ's default."""
_ALIVE_EVERY_S = 1.0


class Wire(asyncio.StreamReaderProtocol):
    """The socket: cuts what arrives into frames and gives each to its channel or to aiormq; writes once a loop turn."""

    def __init__(self, where: str) -> None:
        loop = asyncio.get_running_loop()
        self._now_s = loop.time
        self._soon = loop.call_soon
        self.where = where
        self.reader = asyncio.StreamReader(loop=loop)
        super().__init__(self.reader, loop=loop)
        self.channels: dict[int, Channel] = {}
        self.lost: asyncio.Future[str] = loop.create_future()
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self.blocked_by = ""
        self.refused: tuple[int, str] | None = None
        self.transport: asyncio.Transport
        self.writer: asyncio.StreamWriter
        self._rest = b""
        self._spoke = self._foreign = False
        self.frame_max = _FRAME_BYTES
        self._fed_at_s = 0.0
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self.transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.lose(f"the connection was lost ({error})" if error else "the connection was closed")

    def eof_received(self) -> bool | None:
        self.lose("the broker closed the connection")
        return super().eof_received()

    def lose(self, text: str) -> None:
        """Ends the link and all that use it, with this reason. The first reason stays."""
        if self.lost.done():
            return
        text = f"{self.where}: {text}"
        self.lost.set_result(text)
        self.unblocked.set()
        for channel in tuple(self.channels.values()):
            channel.lose(text)

    def data_received(self, data: bytes) -> None:
        if self._foreign:
            super().data_received(data)
            return
        buffer = self._rest + data if self._rest else data
        try:
            at, ours = self._cut(buffer)
        except (struct.error, IndexError, ValueError) as error:
            self.lose(f"sent what is not AMQP 0-9-1 ({error})")
            self.transport.abort()
            return
        self._rest = buffer[at:] if at else buffer
        if ours:
            self._stay_alive()

    def _cut(self, buffer: bytes) -> tuple[int, bool]:
        at, end, ours = 0, len(buffer), False
        unpack, channels = frames.head.unpack_from, self.channels
        while end - at >= frames.FRAME_OVERHEAD_BYTES:
            kind, number, size = unpack(buffer, at)
            stop = at + size + frames.FRAME_OVERHEAD_BYTES
            if kind not in (frames.METHOD, frames.HEADER, frames.BODY, frames.HEARTBEAT):
                if self._spoke:
                    raise ValueError(f"a frame of type {kind}")
                # Not AMQP, or another version of it: aiormq ends it.
                self._foreign = True
                super().data_received(buffer[at:])
                return end, ours
            if size > self.frame_max:
                raise ValueError(f"a frame of {size} bytes")
            if stop > end:
                break
            if buffer[stop - 1] != frames.FRAME_END:
                raise ValueError("a frame without its end")
            channel = channels.get(number)
            if channel is not None and channel.take(kind, buffer, at + 7, stop - 1):
                ours = True
            else:
                if number == 0 and kind == frames.METHOD:
                    self._look(buffer, at + 7)
                super().data_received(buffer[at:stop])
            at = stop
            self._spoke = True
        return at, ours

    def _look(self, buffer: bytes, at: int) -> None:
        match frames.method_id.unpack_from(buffer, at)[0]:
            case frames.CONNECTION_CLOSE:
                code, text = self.refused = frames.read_close(buffer, at + 4)
                self.lose(f"the broker closed the connection ({code} {text})")
            case frames.CONNECTION_BLOCKED:
                self.blocked_by = frames.read_short(buffer, at + 4)[0]
                self.unblocked.clear()
            case frames.CONNECTION_UNBLOCKED:
                self.unblocked.set()

    def _stay_alive(self) -> None:
        # aiormq judges by the frames it sees, and a broker that sends messages need send no heartbeats.
        now_s = self._now_s()
        if now_s - self._fed_at_s > _ALIVE_EVERY_S:
            self._fed_at_s = now_s
            super().data_received(frames.HEARTBEAT_FRAME)

    @property
    def ready(self) -> bool:
        """Whether the broker takes what is published, and keeps up."""
        return self.unblocked.is_set() and self.transport.get_write_buffer_size() <= _WRITE_AHEAD_BYTES

    async def until_ready(self) -> None:
        """Returns once it does.

        Raises:
            OSError: the link was lost.
        """
        while not self.lost.done() and not self.ready:
            await self.unblocked.wait()
            await self.writer.drain()

    def write(self, data: bytes) -> None:
        """Writes whole frames, joined with all others of this turn of the loop."""
        if not self._out:
            self._soon(self.flush)
        self._out.append(data)

    def flush(self) -> None:
        """Hands what was written to the socket."""
        out, self._out = self._out, []
        if out and not self.transport.is_closing():
            self.transport.write(b"".join(out))


class Channel:
    """One channel: publishes with confirms, and hands what its one consumer gets to `taken`, at once.

    Of a body over `max_body_bytes` that many and one are kept: enough to know that it is too large, and no more.
    """

    def __init__(self, wire: Wire, inner: AbstractChannel, timeout_s: float, max_body_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire = wire
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes
        self.rpc = inner
        self.number = inner.number
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.taken: Callable[[Delivery], None] = lambda delivery: None
        self.most_unsettled: int | None = None
        """Deliveries without an ack or nack, of which a broker that keeps to the prefetch never sends so many."""
        self._unsettled = 0
        self._content: Delivery | Returned | None = None
        self._pieces: list[bytes] = []
        self._missing = self._room = 0
        self._tag = 0
        self._unconfirmed: dict[int, tuple[asyncio.Future[None], str, float]] = {}
        self._returned: dict[int, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    def lose(self, text: str) -> None:
        """Ends the channel; what waits for a confirm hears of it. The first reason stays."""
        if self.lost.done():
            return
        self.lost.set_result(text)
        if self._timer is not None:
            self._timer.cancel()
        for confirm, _, _ in self._unconfirmed.values():
            if not confirm.done():
                confirm.set_exception(PeerError(text, reconnect=True))
        self._unconfirmed.clear()

    # --- what arrives

    def take(self, kind: int, buffer: bytes, at: int, end: int) -> bool:
        """Handles the payload of a frame if it belongs to a message. Else it is aiormq's."""
        if kind == frames.METHOD:
            return self._take_method(frames.method_id.unpack_from(buffer, at)[0], buffer, at + 4)
        if self._content is None:
            return False
        if kind == frames.HEADER:
            self._missing = frames.body_size.unpack_from(buffer, at)[2]
            self._room = self._max_body_bytes + 1
            self._content.properties = _properties(buffer, at + 12, end)
        elif kind == frames.BODY:
            self._missing -= end - at
            if self._room > 0:
                self._pieces.append(buffer[at : min(end, at + self._room)])
                self._room -= end - at
        else:
            return False
        if self._missing <= 0:
            self._take_whole(self._content)
        return True

    def _take_method(self, method: int, buffer: bytes, at: int) -> bool:
        match method:
            case frames.BASIC_DELIVER:
                self._content = frames.read_deliver(buffer, at)
            case frames.BASIC_ACK:
                self._confirm(*frames.tag_and_bits.unpack_from(buffer, at), refused=False)
            case frames.BASIC_NACK:
                self._confirm(*frames.tag_and_bits.unpack_from(buffer, at), refused=True)
            case frames.BASIC_RETURN:
                self._content = Returned(frames.read_close(buffer, at)[1], Properties())
            case frames.CHANNEL_CLOSE:
                code, text = frames.read_close(buffer, at)
                self.lose(f"{self._wire.where}: the broker closed the channel ({code} {text})")
                return False
            case frames.BASIC_CANCEL:
                self.lose(f"{self._wire.where}: the broker cancelled the consumer; was its queue deleted?")
                return False
            case _:
                return False
        return True

    def _take_whole(self, content: Delivery | Returned) -> None:
        pieces, self._pieces, self._content = self._pieces, [], None
        if isinstance(content, Delivery):
            content.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._unsettled += 1
            if self.most_unsettled is not None and self._unsettled > self.most_unsettled:
                self.lose(f"{self._wire.where}: the broker sends far more than the prefetch; it must keep to basic.qos")
            else:
                self.taken(content)
            return
        for tag, (_, message_id, _) in self._unconfirmed.items():
            if message_id == content.properties.message_id and tag not in self._returned:
                self._returned[tag] = content.text
                break

    # --- what goes out

    def settle(self, frame: bytes) -> None:
        """Writes an ack or a nack, unless the channel is lost: then the broker has the message back already."""
        if not self.lost.done():
            self._unsettled -= 1
            self._wire.write(frame)

    async def room(self) -> None:
        """Returns when something may be published: at once unless the broker blocks or does not keep up.

        Raises:
            PeerError: the link is lost, or there was no room in time. Nothing was sent.
        """
        if self.lost.done():
            raise PeerError(self.lost.result(), reconnect=True)
        if self._wire.ready:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._wire.until_ready()
        except TimeoutError as error:
            raise PeerError(self._too_late("nothing could be sent")) from error
        except OSError as error:
            raise PeerError(f"{self._wire.where}: the connection was lost ({error})", reconnect=True) from error
        if self.lost.done():
            raise PeerError(self.lost.result(), reconnect=True)

    def publish(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, mandatory: bool
    ) -> asyncio.Future[None]:
        """Sends a message; the future is done when the broker has confirmed it. `room` comes first.

        The future raises PeerError when it is refused, can't be routed, is not confirmed in time, or the link is lost.

        Raises:
            MessageError: AMQP can't carry it.
        """
        try:
            whole = frames.publish(
                self.number,
                exchange,
                routing_key,
                frames.written(properties),
                body,
                mandatory=mandatory,
                frame_max=self._wire.frame_max,
            )
        except (ValueError, UnicodeEncodeError) as error:
            raise MessageError(f"amqp: {error}") from error
        confirm: asyncio.Future[None] = self._loop.create_future()
        if self.lost.done():
            confirm.set_exception(PeerError(self.lost.result(), reconnect=True))
            return confirm
        self._tag += 1
        self._unconfirmed[self._tag] = confirm, properties.message_id or "", self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s / 8, self._expire)
        self._wire.write(whole)
        return confirm

    def _confirm(self, tag: int, bits: int, *, refused: bool) -> None:
        if bits & 1:  # and all before it; 0: all that there are
            for earlier in tuple(takewhile(lambda one: one <= tag or not tag, self._unconfirmed)):
                self._confirm_one(earlier, refused=refused)
        else:
            self._confirm_one(tag, refused=refused)

    def _confirm_one(self, tag: int, *, refused: bool) -> None:
        found = self._unconfirmed.pop(tag, None)
        returned = self._returned.pop(tag, None) if self._returned else None
        if found is None or found[0].done():
            return
        if returned is not None:
            found[0].set_exception(
                PeerError(
                    f"{self._wire.where}: no queue took the message ({returned}); bind one, or say mandatory: false"
                )
            )
        elif refused:
            found[0].set_exception(
                PeerError(f"{self._wire.where}: the broker refused the message (basic.nack); is its queue full?")
            )
        else:
            found[0].set_result(None)

    def _expire(self) -> None:
        """One timer for all: it looks at what waits, eight times within the time that one may wait."""
        now_s = self._loop.time()
        for tag, (confirm, _, until_s) in tuple(self._unconfirmed.items()):
            if until_s > now_s:
                continue
            del self._unconfirmed[tag]
            if not confirm.done():  # else its sender gave up
                confirm.set_exception(PeerError(self._too_late("no confirm came"), too_late=True))
        self._timer = self._loop.call_later(self._timeout_s / 8, self._expire) if self._unconfirmed else None

    def _too_late(self, what: str) -> str:
        text = f"{self._wire.where}: {what} within {self._timeout_s:g} s"
        if self._wire.unblocked.is_set():
            return text
        return f"{text}: the broker blocks publishers ({self._wire.blocked_by}); relieve it and it goes on by itself"


def _properties(buffer: bytes, at: int, end: int) -> Properties:
    try:
        return frames.read_properties(buffer, at, end)
    except (ValueError, IndexError, struct.error):
        # One sender's broken header must not end the link, again and again, for all the others.
        return Properties(headers=dict(frames.UNREADABLE))
