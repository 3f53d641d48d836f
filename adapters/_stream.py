"""What tcp and mllp sources share: links that take frames in, hand them over, and answer in the order of receipt."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

from adapters._admission import Admission
from adapters._frames import Framer
from adapters._sockets import dial, facts, listen, lost, prepare
from gateway import (
    Address,
    ClientTls,
    ConfigError,
    Deferred,
    Deliver,
    Host,
    ListenAt,
    Message,
    MessageError,
    Outcome,
    PeerError,
    Workers,
)

log = logging.getLogger("gateway.stream")

WINDOW = 64
"""Frames of one link taken and not yet answered; then it is not read until half of them are."""
_SWEEP_S = 1.0
_GOODBYE_S = 1.0
_WRITE_BUFFER = 256 * 1024
"""Bytes written and not yet taken by the peer; then it is not read until it has read."""


class Talk(Protocol):
    """What a source says on its links: how payloads become messages, and outcomes answers. Nothing here waits."""

    answers: bool
    """Whether outcomes are answered. If not, a deferred message is delivered again until it is not deferred."""

    def framer(self) -> Framer:
        """A framer for a new link."""
        ...

    def message(self, payload: bytes, link: Link) -> Message | bytes:
        """The message of a payload; or, when there is nothing to deliver, the answer to it, framed (b"": none).

        Raises:
            MessageError: the link is of no more use: `refusal` is written and it is closed.
        """
        ...

    def answer(self, message: Message, outcome: Outcome, link: Link) -> bytes:
        """What is written when the outcome is known and all earlier frames are answered, framed; b"": nothing.

        Raises:
            MessageError: it can't be framed. The connection is cut, as its order of answers is broken.
        """
        ...

    def refusal(self, error: MessageError, link: Link) -> bytes:
        """What is written before a link is closed for a frame that broke the framing or a limit; b"": nothing."""
        ...


class _Slot:
    """A frame's place in the order of answers."""

    __slots__ = ("answer", "link", "message")

    def __init__(self, link: Link, message: Message | None, answer: bytes | None = None) -> None:
        self.link = link
        self.message = message
        self.answer = answer


class Intake:
    """Runs a source: `listen` or `connect`. What its links have in common is here."""

    def __init__(self, host: Host, deliver: Deliver, talk: Talk) -> None:
        self.host = host
        self.talk = talk
        self.admission: Admission | None = None
        self.links: set[Link] = set()
        self.watched: set[Link] = set()
        """Links with an unfinished frame, or with bytes that the peer does not read."""
        self.taken = 0
        """Messages handed over and not yet settled."""
        self.most_taken = 2 * host.limits.in_flight
        self._idle = asyncio.Event()  # set when nothing is taken any more; whoever waits for it clears it first
        self._deliver = deliver
        self._workers = Workers(self._work, count=host.limits.in_flight, name=f"{host.route}:from")

    async def listen(self, at: ListenAt, ready: Callable[[], None], *, who: str) -> None:
        """Serves whoever connects, within the limits, until cancelled. `who` begins the sentences of errors.

        Raises:
            PeerError: the address can't be had.
            ConfigError: the certificate can't be used.
        """
        self.admission = Admission(self.host.limits, self.host.clock)
        fault: Exception
        async with self._taking():
            try:
                server = await listen(lambda: Link(self), at, self.host.limits, who=who)
            except (PeerError, ConfigError) as error:
                fault = error
            else:
                ready()
                try:
                    await asyncio.Event().wait()
                finally:
                    server.close()
        raise fault

    async def connect(
        self, address: Address, tls: ClientTls | None, ready: Callable[[], None], *, timeout_s: float, who: str
    ) -> None:
        """Connects, and takes what the peer sends, until cancelled or the connection is gone.

        Raises:
            PeerError: there is no connection, or none any more.
            ConfigError: a file of `tls` can't be used.
        """
        fault: Exception
        async with self._taking():
            try:
                _, link = await dial(lambda: Link(self), address, tls, timeout_s=timeout_s, who=who)
            except (PeerError, ConfigError) as error:
                fault = error
            else:
                ready()
                await asyncio.wait((link.lost,))
                if not self.talk.answers:  # nobody will send it again
                    await self._settled()
                fault = lost(who, link.lost.result())
        raise fault

    @asynccontextmanager
    async def _taking(self) -> AsyncIterator[None]:
        """Takes messages for as long as the context lasts. Then links are closed, answered as far as they are."""
        async with self._workers, asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(self._sweep(), name=f"{self.host.route}:sweep")
            try:
                yield
            finally:
                sweeping.cancel()
                await self._close_links()

    def put(self, slot: _Slot) -> None:
        """Hands over."""
        self.taken += 1
        self._workers.put(slot)

    async def _settled(self) -> None:
        """Returns once everything that was taken is settled."""
        while self.taken:
            self._idle.clear()
            await self._idle.wait()

    async def _work(self, slot: _Slot) -> None:
        message, link, talk = slot.message, slot.link, self.talk
        assert message is not None
        outcome = await self._deliver(message)
        if not talk.answers:
            while type(outcome) is Deferred:
                await self.host.clock.sleep(outcome.wait_s)
                outcome = await self._deliver(message)
        self.taken -= 1
        if not self.taken:
            self._idle.set()
        try:
            slot.answer = talk.answer(message, outcome, link)
            link.advance()
        except MessageError as error:
            log.warning("answer not sent", extra={"route": self.host.route, "reason": str(error)})
            link.cut("the answer can't be said in its framing")
        except Exception:  # one link's answer must not end the worker that serves them all
            log.exception("answer failed", extra={"route": self.host.route, "message_id": message.id})
            link.cut("bug")

    async def _sweep(self) -> None:
        clock = self.host.clock
        while True:
            await clock.sleep(_SWEEP_S)
            now = clock.monotonic()
            for link in list(self.watched):
                link.check(now)
            if self.admission is not None and self.admission.refused:
                count, self.admission.refused = self.admission.refused, 0
                log.warning("connections refused", extra={"route": self.host.route, "count": count})

    async def _close_links(self) -> None:
        for link in list(self.links):
            link.close()
        gone = [link.lost for link in self.links]
        if gone:
            await asyncio.wait(gone, timeout=_GOODBYE_S)
        for link in list(self.links):
            link.cut("stopped")


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
        self._slots: deque[_Slot] = deque()
        self._out: list[bytes] = []
        self._payloads: Iterator[bytes] | None = None  # what is left of a read that met a full window
        self._unread: list[bytes] = []
        self._paused = False
        self._eof = False
        self._ending = False  # nothing is taken any more: answer what there is, then close
        self._frame_since_s: float | None = None
        self._stalled_since_s: float | None = None
        self._closed_since_s: float | None = None
        self._ended_bytes = 0

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        intake = self._intake
        self.facts = facts(transport)
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
            intake.host.dropped(1, "cut")
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
                begun = True
                made = message_of(payload, self)
                if isinstance(made, bytes):
                    slots.append(_Slot(self, None, made))
                    self._release()
                else:
                    slot = _Slot(self, made)
                    slots.append(slot)
                    intake.put(slot)
                if slots and (len(slots) >= WINDOW or intake.taken >= intake.most_taken):
                    self._pause()
                    return
        except MessageError as error:
            self._break(error, "oversize" if error.code == "too_large" else "malformed")
            return
        self._payloads = None
        if self.framer.pending:
            if begun or self._frame_since_s is None:
                self._frame_since_s = intake.host.clock.monotonic()
                intake.watched.add(self)
        elif self._frame_since_s is not None:
            self._frame_since_s = None
            self._unwatch()

    def _take_last(self) -> None:
        """The peer sends no more: takes what the end completes, and closes once all is answered."""
        try:
            payload = self.framer.eof()
        except MessageError:
            self._intake.host.dropped(1, "cut")
        else:
            if payload is not None:
                self._take(iter((payload,)))
        self._end()

    def _break(self, error: MessageError, why: str) -> None:
        """The stream can't be understood any more: refuses, if the peer is answered at all, and closes."""
        refusal = self._talk.refusal(error, self)
        if not self._talk.answers:
            self._intake.host.dropped(1, why)
        self._slots.append(_Slot(self, None, refusal))
        self._pause()
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

    def _go_on(self) -> None:
        """Takes what waited, then reads again, as far as there is room."""
        while self._paused and self._has_room():
            if self._payloads is not None:
                self._take(self._payloads)
            elif self._unread:
                self._take(self.framer.feed(self._unread.pop(0)))
            elif self._ending:
                return
            elif self._eof:
                self._take_last()
            else:
                self._paused = False
                if not self._transport.is_closing():
                    self._transport.resume_reading()

    def _has_room(self) -> bool:
        """Half of the window is free and the route takes more; in a full route, none of ours is waiting."""
        left = len(self._slots)
        if self._stalled_since_s is not None:
            return False
        return not left or (left <= WINDOW // 2 and self._intake.taken < self._intake.most_taken)

    # Answering

    def advance(self) -> None:
        """An answer is there: writes all whose turn it is."""
        self._release()
        if self._paused:
            self._go_on()
        if self._ending:
            self._close_if_done()

    def _release(self) -> None:
        slots, out = self._slots, self._out
        flushing = bool(out)
        while slots and (answer := slots[0].answer) is not None:
            slots.popleft()
            if answer:
                out.append(answer)
        if out and not flushing:  # once for all answers of this turn of the loop
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        out = self._out
        # uvloop raises when a transport that the peer has closed is written to.
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        if self._ending:
            self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._out and (not self._slots or not self._talk.answers):
            self.close()

    # Ending

    def close(self) -> None:
        """Closes once what is answered is written; a peer that does not read it is cut after a while."""
        self._ending = True
        if self._closed_since_s is not None or self._transport.is_closing():
            return
        self._closed_since_s = self._intake.host.clock.monotonic()
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()
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
        if self._stalled_since_s is None and self._closed_since_s is None and self._frame_since_s is None:
            self._intake.watched.discard(self)
