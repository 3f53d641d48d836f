"""What tcp and mllp sources share: the links that take frames in, and the workers that hand them over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol

from adapters._admission import Admission
from adapters._frames import Framer
from adapters._handover import offer_of
from adapters._link import Link, Slot
from adapters._sockets import dial, listen, lost
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

__all__ = ["Intake", "Link", "Talk"]

log = logging.getLogger("gateway.stream")

_SWEEP_S = 1.0
_GOODBYE_S = 1.0


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


class Intake:
    """Runs a source: `listen` or `connect`. What its links have in common is here."""

    def __init__(self, host: Host, deliver: Deliver, talk: Talk) -> None:
        self.host = host
        self.talk = talk
        self.admission: Admission | None = None
        self.over = False
        """It stops: links that come now are nobody's."""
        self.links: set[Link] = set()
        self.watched: set[Link] = set()
        """Links with an unfinished frame, or with bytes that the peer does not read."""
        self.taken = 0
        """Messages handed over and not yet settled."""
        self.most_taken = 2 * host.limits.in_flight
        self._tasks = asyncio.TaskGroup()
        self._later: set[asyncio.Task[None]] = set()
        self._let_go = 0  # what became no message since that was last told, and why the last of it did not
        self._let_go_why = self._let_go_peer = ""
        self._idle = asyncio.Event()  # set when nothing is taken any more; whoever waits for it clears it first
        self._deliver = deliver
        self._workers = Workers(self._work, count=host.limits.in_flight, name=f"{host.route}:from")
        self._offer = offer_of(deliver, self._workers) if talk.answers else None

    async def listen(self, at: ListenAt, ready: Callable[[], None], *, who: str) -> None:
        """Serves whoever connects, within the limits, until cancelled. `who` begins the sentences of errors.

        Raises:
            ConfigError: the address can't be had, or the certificate can't be used.
        """
        self.admission = Admission(self.host.limits, self.host.clock)
        fault: Exception
        async with self._taking(), AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(listen(lambda: Link(self), at, self.host, who=who))
            except (PeerError, ConfigError) as error:
                fault = error
            else:
                ready()
                await asyncio.Event().wait()
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
        async with self._workers, asyncio.TaskGroup() as self._tasks:
            sweeping = self._tasks.create_task(self._sweep(), name=f"{self.host.route}:sweep")
            try:
                yield
            finally:
                sweeping.cancel()
                for waiting in self._later:
                    waiting.cancel()
                await self._close_links()
                self._tell_let_go()

    def later(self, link: Link, answer: Awaitable[bytes]) -> None:
        """Says something on a link once it is known."""
        task = self._tasks.create_task(self._said_later(link, answer), name=f"{self.host.route}:later")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _said_later(self, link: Link, answer: Awaitable[bytes]) -> None:
        try:
            link.say(await answer)
        except Exception:  # one link's answer must not end the source that serves them all
            log.exception("answer failed", extra={"route": self.host.route})

    def put(self, slot: Slot, message: Message) -> None:
        """Hands over, in the order of the calls."""
        self.taken += 1
        offer = self._offer
        if offer is None or not offer(message, partial(self._told, slot, message)):
            self._workers.put((slot, message))

    def let_go(self, why: str, text: str, peer: str, count: int = 1) -> None:
        """Counts what became no message, as `why`; the log has its text, nothing of a body in it, once a second."""
        self.host.dropped(count, why)
        self._let_go += count
        self._let_go_why, self._let_go_peer = text, peer

    async def _settled(self) -> None:
        """Returns once everything that was taken is settled."""
        while self.taken:
            self._idle.clear()
            await self._idle.wait()

    async def _work(self, item: tuple[Slot, Message]) -> None:
        slot, message = item
        outcome = await self._deliver(message)
        if not self.talk.answers:
            while type(outcome) is Deferred:
                await self.host.clock.sleep(outcome.wait_s)
                outcome = await self._deliver(message)
        self._told(slot, message, outcome)

    def _told(self, slot: Slot, message: Message, outcome: Outcome) -> None:
        """The outcome is known."""
        self.taken -= 1
        if not self.taken:
            self._idle.set()
        if self.over:  # the links are closed, answered as far as they were
            return
        link = slot.link
        try:
            slot.answer = self.talk.answer(message, outcome, link)
            link.advance()
        except MessageError as error:
            log.warning("answer not sent", extra={"route": self.host.route, "reason": str(error)})
            link.cut("the answer can't be said in its framing")
        except Exception:  # one link's answer must not end what serves them all
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
            self._tell_let_go()

    def _tell_let_go(self) -> None:
        if self._let_go:
            count, self._let_go = self._let_go, 0
            extra = {"route": self.host.route, "count": count, "reason": self._let_go_why, "peer": self._let_go_peer}
            log.warning("bytes dropped", extra=extra)

    async def _close_links(self) -> None:
        self.over = True
        for link in list(self.links):
            link.close()
        gone = [link.lost for link in self.links]
        if gone:
            await asyncio.wait(gone, timeout=_GOODBYE_S)
        for link in list(self.links):
            link.cut("stopped")
