"""One connection of a tcp or mllp source: frames in, answers out in the order of receipt, all of it bounded."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any, cast

from adapters._sockets import facts, prepare
from gateway import MessageError

if TYPE_CHECKING:
    from adapters._stream import Intake

log = logging.getLogger("gateway.stream")

WINDOW = 64
"""Frames of one link taken and not yet answered; then it is not read until half of them are."""
_LINGER_S = 2.0
"""How long a peer that was refused may go on sending before its connection is closed."""
_WRITE_BUFFER = 256 * 1024
"""Bytes written and not yet taken by the peer; then it is not read until it has read."""
_NO_RETURN_S = 0.2
"""How long a frame that has its end is given to go on: a peer may leave 0D out, and wait for its answer."""
_NOISE = 2
"""Bytes before the first frame that need no word: a line end, or a NUL that asks whether we are there."""


class Slot:
    """A frame's place in the order of answers."""

    __slots__ = ("answer", "link")

    def __init__(self, link: Link, answer: bytes | None = None) -> None:
        self.link = link
        self.answer = answer


class Link(asyncio.Protocol):
    """One connection of a source: reads frames, keeps their order, answers, and bounds all that it holds."""

    def __init__(self, intake: Intake) -> None:
        self.facts: dict[str, Any] = {}
        """What its messages carry as transport: `peer`, `local` and, if shown, `certificate_subject`."""
        self.framer = intake.talk.framer()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """Done once the connection is gone, with the error that ended it, if any."""
        self._intake = intake
        self._talk = intake.talk
        self._transport: asyncio.Transport = asyncio.Transport()
        self._admitted: str | None = None
        self._slots: deque[Slot] = deque()
        self._out: list[bytes] = []
        self._payloads: Iterator[bytes] | None = None  # what is left of a read that met a full window
        self._unread: list[bytes] = []
        self._scheduled = False
        self._paused = False
        self._eof = False
        self._framed = False  # a frame has begun, or that none did was said
        self._garbled = 0  # frames of which that was said
        self._ending = False  # nothing is taken any more: answer what there is, then close
        self._frame_since_s: float | None = None
        self._stalled_since_s: float | None = None
        self._closed_since_s: float | None = None
        self._lingers = False
        self._lingering_since_s: float | None = None
        self._ended_bytes = 0

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        intake = self._intake
        self.facts = facts(transport)
        if intake.over:  # it was accepted in the last moment, or shook hands until after it
            self._ending = True
            self._transport.abort()
            return
        if intake.admission is not None:
            address = (transport.get_extra_info("peername") or ("",))[0]
            if not intake.admission.admit(address):
                self._ending = True
                self._transport.abort()
                return
            self._admitted = address
        intake.links.add(self)
        prepare(transport)
        self._transport.set_write_buffer_limits(_WRITE_BUFFER)

    def connection_lost(self, exc: Exception | None) -> None:
        intake = self._intake
        intake.links.discard(self)
        intake.watched.discard(self)
        if self._admitted is not None and intake.admission is not None:
            intake.admission.leave(self._admitted)
        if not self._ending and not self._eof and self.framer.pending:
            self._let_go_cut()
        self._ending = True
        self._stalled_since_s = None
        self._out.clear()
        if self._talk.answers:  # the sender was not answered and sends again
            self._slots.clear()
            self._payloads = None
            self._unread.clear()
        if not self.lost.done():
            self.lost.set_result(exc)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._payloads is not None or self._unread:
            self._unread.append(data)
        else:
            self._take(self.framer.feed(data))

    def eof_received(self) -> bool:
        self._eof = True
        if self._lingering_since_s is not None:
            return False
        if self._payloads is None and not self._unread:
            self._take_last()
        # Half closed: what was taken is still answered. TLS can't: its end closes both ways.
        return self._transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        self._stalled_since_s = self._intake.host.clock.monotonic()
        self._intake.watched.add(self)
        self._pause()

    def resume_writing(self) -> None:
        self._stalled_since_s = None
        self._go_on()

    # Taking in

    def _take(self, payloads: Iterator[bytes]) -> None:
        """Hands these over, as many as the window lets; the rest when there is room."""
        intake, slots, message_of = self._intake, self._slots, self._talk.message
        self._payloads = payloads
        begun = False
        try:
            for payload in payloads:
                begun = self._framed = True
                made = message_of(payload, self)
                if isinstance(made, bytes):
                    slots.append(Slot(self, made))
                    self._release()
                else:
                    slot = Slot(self)
                    slots.append(slot)
                    intake.put(slot, made)
                if slots and (len(slots) >= WINDOW or intake.taken >= intake.most_taken):
                    self._pause()
                    return
        except MessageError as error:
            self._break(error, "oversize" if error.code == "too_large" else "malformed")
            return
        self._payloads = None
        if self.framer.garbled > self._garbled:
            count, self._garbled = self.framer.garbled - self._garbled, self.framer.garbled
            intake.let_go("garbled", "frame: its length, checksum or end is wrong", self.facts["peer"], count)
        if self.framer.pending:
            self._framed = True
            if begun or self._frame_since_s is None:
                self._frame_since_s = intake.host.clock.monotonic()
                intake.watched.add(self)
            if self.framer.ended:
                asyncio.get_running_loop().call_later(_NO_RETURN_S, self._take_ended, self.framer.pending)
            return
        if self._frame_since_s is not None:
            self._frame_since_s = None
            self._unwatch()
        if not self._framed and self.framer.skipped > _NOISE:
            # Else it would look idle: it is heard by nobody, and hears nothing.
            self._framed = True
            text = f"{self.framer.skipped} bytes and no frame among them, expected the framing of this source"
            intake.let_go("unframed", text, self.facts["peer"])

    def _take_ended(self, pending: int) -> None:
        """Takes a frame that has its end, if nothing came behind it. While we read nothing, that says nothing."""
        if not self._ending and not self._paused and self.framer.ended and self.framer.pending == pending:
            payload = self.framer.eof()
            if payload is not None:
                self._take(iter((payload,)))

    def _take_last(self) -> None:
        """The peer sends no more: takes what the end completes, and closes once all is answered."""
        try:
            payload = self.framer.eof()
        except MessageError:
            self._let_go_cut()
        else:
            if payload is not None:
                self._take(iter((payload,)))
        self._end()

    def _let_go_cut(self) -> None:
        text = f"frame: the connection ended after {self.framer.pending} bytes of a frame, expected its end"
        self._intake.let_go("cut", text, self.facts["peer"])

    def _break(self, error: MessageError, why: str) -> None:
        """The stream can't be understood any more: refuses, if the peer is answered at all, and closes."""
        refusal = self._talk.refusal(error, self)
        if self._talk.answers:
            self._intake.host.refused(error.code, str(error), self.facts["peer"])
        else:
            text = "frame: the bytes are not of the framing of this source" if why == "malformed" else str(error)
            self._intake.let_go(why, text, self.facts["peer"])
        self._slots.append(Slot(self, refusal))
        self._lingers = bool(refusal) and self._transport.can_write_eof()
        if self._lingers:
            self._resume()
        self._end()

    def _end(self) -> None:
        self._ending = True
        self._payloads = None
        self._unread.clear()
        self._frame_since_s = None
        self._release()
        self._close_if_done()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _go_on(self) -> None:
        """Takes what waited, then reads again, as far as there is room."""
        while self._paused and self._has_room():
            if self._payloads is not None:
                self._take(self._payloads)
            elif self._unread:
                self._take(self.framer.feed(self._unread.pop(0)))
            elif self._ending:
                if self._frame_since_s is not None:  # it was lost, and this is what is left
                    self._let_go_cut()
                    self._frame_since_s = None
                    self._unwatch()
                return
            elif self._eof:
                self._take_last()
            else:
                self._resume()

    def _has_room(self) -> bool:
        """Half of the window is free and the route takes more; in a full route, none of ours is waiting."""
        left = len(self._slots)
        if self._stalled_since_s is not None:
            return False
        return not left or (left <= WINDOW // 2 and self._intake.taken < self._intake.most_taken)

    # Answering

    def say(self, answer: bytes) -> None:
        """Writes something more, framed, behind the answers of all that was taken so far; not once it is closing."""
        if not self.lost.done() and not self._ending:
            self._slots.append(Slot(self, answer))
            self.advance()

    def later(self, answer: Awaitable[bytes]) -> None:
        """Says something once it is known. Forgotten when the source stops."""
        self._intake.later(self, answer)

    def advance(self) -> None:
        """An answer is there: writes all whose turn it is."""
        self._release()
        if self._paused or self._ending:
            self._schedule()

    def _release(self) -> None:
        slots, out = self._slots, self._out
        while slots and (answer := slots[0].answer) is not None:
            slots.popleft()
            if answer:
                out.append(answer)
        if out:
            self._schedule()

    def _schedule(self) -> None:
        """Once for all answers of this turn of the loop; and a worker that never waits can't starve the loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._flush()
        if self._paused:
            self._go_on()
        if self._ending:
            self._close_if_done()

    def _flush(self) -> None:
        out = self._out
        # uvloop raises when a transport that the peer has closed is written to.
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    def _close_if_done(self) -> None:
        if self._out or (self._slots and self._talk.answers):
            return
        if self._lingers and not self._eof and not self._transport.is_closing():
            # To close now, with bytes unread, would reset the connection and take the refusal from the peer.
            self._lingers = False
            self._lingering_since_s = self._intake.host.clock.monotonic()
            self._intake.watched.add(self)
            self._transport.write_eof()
        elif self._lingering_since_s is None:
            self.close()

    # Ending

    def close(self) -> None:
        """Closes once what is answered is written; a peer that does not read it is cut after a while."""
        self._ending = True
        if self._closed_since_s is not None or self._transport.is_closing():
            return
        self._closed_since_s = self._intake.host.clock.monotonic()
        self._flush()
        self._transport.close()
        if not self.lost.done():
            self._intake.watched.add(self)

    def cut(self, why: str) -> None:
        """Ends the connection at once."""
        self._ending = True
        if not self.lost.done():
            peer = self.facts.get("peer")
            log.warning("link cut", extra={"route": self._intake.host.route, "peer": peer, "why": why})
            self._transport.abort()

    def check(self, now_s: float) -> None:
        """Called about once a second while watched: holds the peer to the limits of time."""
        most_s = self._intake.host.limits.frame
        if self._closed_since_s is not None:
            if now_s - self._closed_since_s > most_s:
                self.cut("reads no answers")
        elif self._lingering_since_s is not None:
            if now_s - self._lingering_since_s > _LINGER_S:
                self.close()
        elif self._stalled_since_s is not None:
            if now_s - self._stalled_since_s > most_s:
                self.cut("reads no answers")
        elif self._frame_since_s is not None:
            self._check_frame(now_s, most_s)
        else:
            self._unwatch()

    def _check_frame(self, now_s: float, most_s: float) -> None:
        assert self._frame_since_s is not None
        if self._paused:  # it is we who keep the peer waiting
            self._frame_since_s = now_s
        elif self.framer.ended and self.framer.pending == self._ended_bytes:
            self._ended_bytes = 0
            payload = self.framer.eof()
            if payload is not None:
                self._take(iter((payload,)))
        elif now_s - self._frame_since_s > most_s:
            error = MessageError(
                f"frame: {self.framer.pending} bytes and no end after {most_s:g} s, expected the whole frame by then",
                code="malformed",
            )
            self._break(error, "slow")
        else:
            self._ended_bytes = self.framer.pending if self.framer.ended else 0

    def _unwatch(self) -> None:
        reasons = (self._stalled_since_s, self._closed_since_s, self._lingering_since_s, self._frame_since_s)
        if reasons == (None, None, None, None):
            self._intake.watched.discard(self)
