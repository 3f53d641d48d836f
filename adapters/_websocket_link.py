"""One open WebSocket, of a server or of a client: messages in and out, all of it bounded. RFC 6455.

What the peer sends goes to its hearer, at most a window of it unsettled; then nothing more is read. The package
websockets says what is answered to control frames; data frames are cut by `_websocket_frames`. A link keeps no timer:
whoever holds it calls `sweep` about once a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from websockets.client import ClientProtocol
from websockets.server import ServerProtocol

from adapters._websocket_frames import CLOSE, POLICY_VIOLATION, TEXT, TOO_BIG, Fault, Frames
from gateway import Limits, link_fault

log = logging.getLogger("gateway.websocket")

WINDOW = 64
"""Messages of one link that are not settled; then it is not read until half of them are."""
_WINDOW_BODIES = 4
"""How many messages of the largest size may be unsettled."""
_CONTROLS = 200
"""Pings and pongs of one peer between two sweeps."""
_LINGER_S = 2.0
"""How long a peer that broke the protocol may go on sending: closed at once, it would never see why."""
_CLOSING_S = 5.0
"""How long a peer has to answer a close frame, and to take what was written before it."""
_WRITE_BUFFER = 256 * 1024
"""Bytes written and not yet taken by the peer; then it is not read until it has read."""

GOING_AWAY, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1011, 1013

_OPEN, _PARTING, _ENDED, _CLOSING, _DONE = range(5)
"""Ended: the connection is gone, and what came over it is still heard."""


class Hearer(Protocol):
    """Who gets the messages of links. What it is given counts as unsettled until it calls `link.settled`."""

    hears_rest: bool
    """Whether it wants what came over a link that has ended since: nobody will send it again."""

    @property
    def full(self) -> bool:
        """Whether links with something unsettled should wait before they hand over more."""
        ...

    def heard(self, link: Link, data: bytes, *, text: bool) -> None:
        """A message. Nothing here waits."""
        ...

    def missed(self, why: str) -> None:
        """A message, or what there was of it, came to nothing; `why` is a constant word such as "oversize"."""
        ...

    def gone(self, link: Link) -> None:
        """The link has ended."""
        ...


@dataclass(frozen=True)
class Pulse:
    """A ping after `interval_s` seconds of silence (None: never), and `timeout_s` seconds for a sign of life then."""

    interval_s: float | None
    timeout_s: float


class Link(asyncio.Protocol):
    """An open connection whose handshake is done."""

    def __init__(
        self,
        protocol: ServerProtocol | ClientProtocol,
        transport: asyncio.Transport,
        hearer: Hearer,
        *,
        limits: Limits,
        pulse: Pulse,
        facts: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        self.hearer = hearer
        self.headers = headers
        """Of the handshake: what the peer said of itself."""
        self.facts = {True: {**facts, "opcode": "text"}, False: {**facts, "opcode": "binary"}}
        """What its messages carry as transport, by whether they are text."""
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done once the connection is gone, with why."""
        self.unsettled = 0
        self.count = 0
        """Messages that came over it."""
        self.topics: frozenset[str] = frozenset()
        """What its peer asked to be told; empty: all."""
        self.slots: deque[Any] = deque()
        """For hearers that answer in the order of receipt."""
        self._protocol = protocol
        self._transport = transport
        self._limits = limits
        self._pulse = pulse
        self._server = isinstance(protocol, ServerProtocol)
        self._frames = Frames(masked=self._server, max_size=limits.message)
        self._most_bytes = _WINDOW_BODIES * limits.message
        self._unsettled_bytes = 0
        self._state = _OPEN
        self._out: list[bytes] = []
        self._scheduled = False
        self._paused = False  # what comes is kept and not looked at
        self._reading = True  # the transport reads
        self._parting = (GOING_AWAY, "")
        self._why: str | None = None
        self._controls = 0
        self._heard = True
        self._writable: asyncio.Future[None] | None = None  # the peer does not read what we write; done when it has
        self._lingers = False
        # Moments, in seconds by the clock of the sweeps.
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self._begun_at: float | None = None
        self._begun_count = 0
        self._stalled_at: float | None = None
        self._closing_at: float | None = None
        transport.set_write_buffer_limits(_WRITE_BUFFER)

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        if self._state == _DONE:
            return
        self._heard = True
        self._frames.feed(data)
        if not self._paused:
            self._read()
        elif self._reading and not self._transport.is_closing():
            # Not before more comes than there is room for: most of the time it is settled sooner.
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._state == _OPEN and self._paused and self.hearer.hears_rest:
            self._state = _ENDED
            self._writable = None
            self._schedule()
        else:
            self._end_heard()
        self._out.clear()
        if not self.lost.done():
            self.lost.set_result(self._why or self._said_by_peer(exc))
            self.hearer.gone(self)

    def _end_heard(self) -> None:
        if self._state < _CLOSING and self._frames.pending:
            self.hearer.missed("cut")
        self._done()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()
        self._paused = True

    def resume_writing(self) -> None:
        self._stalled_at = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        self._schedule()

    # Taking in

    def _read(self) -> None:
        frames, hearer = self._frames, self.hearer
        try:
            while (found := frames.next()) is not None:
                opcode, data = found
                if opcode >= CLOSE:
                    self._control(opcode, data)
                elif self._state == _CLOSING:
                    hearer.missed("closing")
                else:
                    self.unsettled += 1
                    self._unsettled_bytes += len(data)
                    self.count += 1
                    hearer.heard(self, data, text=opcode == TEXT)
                    if self._is_full() and self._state < _CLOSING:
                        self._paused = True
                if self._paused or self._state == _DONE:
                    return
            if self._state == _ENDED:
                self._end_heard()
        except Fault as fault:
            hearer.missed("oversize" if fault.code == TOO_BIG else "malformed")
            self.fail(fault.code, fault.reason)

    def _is_full(self) -> bool:
        return self.unsettled > 0 and (
            self.unsettled >= WINDOW or self._unsettled_bytes >= self._most_bytes or self.hearer.full
        )

    def _has_room(self) -> bool:
        """Half of the window is free and the route takes more; in a full route, none of ours is waiting."""
        left = self.unsettled
        return self._writable is None and (not left or (left <= WINDOW // 2 and not self._is_full()))

    def _control(self, opcode: int, frame: bytes) -> None:
        self._controls += 1
        if self._controls > _CONTROLS:
            raise Fault(POLICY_VIOLATION, "too many pings or pongs")
        protocol = self._protocol
        protocol.receive_data(frame)
        protocol.events_received()
        self._take_writes()
        if opcode == CLOSE:
            self._done()
            if self._server:
                # RFC 6455 section 7.1.1: the server closes first.
                self._transport.close()

    def settled(self, size_bytes: int) -> None:
        """One message of this size was settled."""
        self.unsettled -= 1
        self._unsettled_bytes -= size_bytes
        if self._paused or self._state == _PARTING:
            self._schedule()

    def _go_on(self) -> None:
        self._paused = False
        self._read()
        if not self._paused and not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _schedule(self) -> None:
        """Once for all that is written in this turn of the loop; and a worker that never waits can't starve it."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._out:
            self._flush()
        if self._state == _PARTING:
            if not self.unsettled:
                self.close(*self._parting)
        elif self._paused and self._has_room():
            self._go_on()

    # Sending

    @property
    def open(self) -> bool:
        """Whether what is sent now may reach the peer."""
        return self._state < _CLOSING and not self._transport.is_closing()

    @property
    def lag_bytes(self) -> int:
        """Bytes written and not yet taken by the operating system."""
        return self._transport.get_write_buffer_size()

    def send(self, data: bytes, *, text: bool) -> None:
        """Sends a message at the end of this turn of the loop. On a link that is closing: not at all."""
        if self._state < _CLOSING:
            if text:
                self._protocol.send_text(data)
            else:
                self._protocol.send_binary(data)
            self._out += self._protocol.data_to_send()
            self._schedule()

    def write(self, frame: bytes) -> None:
        """Sends a frame that is made already, at once. On a link that is closing: not at all."""
        if self._out:
            self._flush()
        if self.open:
            self._transport.write(frame)

    async def writable(self, timeout_s: float) -> None:
        """Returns once the operating system has taken all that was sent but a small rest, or the link has ended.

        Raises:
            TimeoutError: the peer did not read for so long.
        """
        if self._out:
            self._flush()
        writable = self._writable
        if writable is not None:
            waited, _ = await asyncio.wait(
                (writable, self.lost), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not waited:
                raise TimeoutError

    def _take_writes(self) -> None:
        # The empty one asks to end the stream: see `_done`.
        self._out += [data for data in self._protocol.data_to_send() if data]
        self._flush()

    def _flush(self) -> None:
        out = self._out
        # uvloop raises when a transport that the peer has closed is written to.
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    # Ending

    def part(self, code: int, reason: str) -> None:
        """Takes nothing more, and closes once all that was taken is settled."""
        if self._state == _OPEN:
            self._state = _PARTING
            self._parting = code, reason
            self._paused = True
            self._schedule()

    def close(self, code: int, reason: str) -> None:
        """Begins the closing handshake. What the peer sends from now on is not heard."""
        if self._state < _CLOSING:
            self._state = _CLOSING
            self._why = self._why or f"closed by us: {reason}"
            self._protocol.send_close(code, reason)
            self._take_writes()
            self._go_on()

    def fail(self, code: int, reason: str) -> None:
        """Ends the link for what the peer did. It is told why, and may go on sending for a moment."""
        if self._state == _DONE:
            return
        self._why = f"closed by us with {code}: {reason}"
        log.info("link failed", extra={"peer": self.facts[True].get("peer"), "code": code, "why": reason})
        self._protocol.fail(code, reason)
        self._take_writes()
        self._done()
        self._lingers = True
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def cut(self, why: str) -> None:
        """Ends the connection at once."""
        if not self.lost.done():
            self._why = self._why or why
            log.warning("link cut", extra={"peer": self.facts[True].get("peer"), "why": why})
            self._transport.abort()

    def _done(self) -> None:
        self._state = _DONE
        self._paused = False

    def _said_by_peer(self, exc: Exception | None) -> str:
        close = self._protocol.close_rcvd
        if close is not None:
            said = f" {close.reason!r}" if close.reason else ""
            return f"the peer closed the connection with {int(close.code)}{said}"
        return "the peer closed the connection" if exc is None else link_fault(exc)

    # Time

    def sweep(self, now_s: float) -> None:
        """Holds the peer to the limits of time. `now_s`: of any clock that never goes back."""
        self._controls = 0
        if self._state == _ENDED:
            pass
        elif self._state >= _CLOSING:
            self._closing_at = self._closing_at or now_s
            if now_s - self._closing_at > (_LINGER_S if self._lingers else _CLOSING_S):
                self._transport.abort()
        elif self._writable is not None:
            self._stalled_at = self._stalled_at or now_s
            if now_s - self._stalled_at > self._limits.frame:
                self.cut("it reads nothing of what is sent")
        else:
            self._check_life(now_s)
            if self._state == _OPEN:
                self._check_frame(now_s)

    def _check_life(self, now_s: float) -> None:
        if self._heard or not self._reading or not self._heard_at:
            self._heard = False
            self._heard_at = now_s
            self._pinged_at = None
        elif self._pulse.interval_s is None:
            pass
        elif self._pinged_at is not None:
            if now_s - self._pinged_at > self._pulse.timeout_s:
                self.fail(INTERNAL_ERROR, "no sign of life after a ping")
        elif now_s - self._heard_at >= self._pulse.interval_s:
            self._pinged_at = now_s
            self._protocol.send_ping(b"")
            self._take_writes()

    def _check_frame(self, now_s: float) -> None:
        if self._paused or not self._frames.pending:
            self._begun_at = None
        elif self._begun_at is None or self._begun_count != self.count:
            self._begun_at = now_s
            self._begun_count = self.count
        elif now_s - self._begun_at > self._limits.frame:
            self.hearer.missed("slow")
            self.fail(POLICY_VIOLATION, f"a message took more than {self._limits.frame:g} s")
