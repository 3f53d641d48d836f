"""The running inside of a route: its steps bound, its targets open, the stack round each send in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from gateway.config import Configured
from gateway.errors import MessageError
from gateway.formats import formats_with
from gateway.host import EngineHost, Services
from gateway.journal import JournalFullError
from gateway.language import Target
from gateway.layers import Breaker, Retry, guarded, limited, measured, retried
from gateway.links import Link
from gateway.memos import Memos
from gateway.message import Message
from gateway.notices import DeadLetters, Refusals
from gateway.observe import TargetMeters
from gateway.path import Path, Pattern, Trace
from gateway.ports import Clock, Send, Sink, Step
from gateway.workers import Workers

TAP_QUEUE = 1000
"""How many copies wait for one tap; more are dropped and counted."""

ROOM_S = 1.0
"""How long a step that remembers waits for room in the journal before it tries again."""


def _nothing() -> None:
    """Does nothing."""


class RunningTarget:
    """One target of a route, open: what it takes, what it makes of a message, and how it sends."""

    def __init__(self, settings: Target, path: Path, send: Send, breaker: Breaker | None, meters: TargetMeters) -> None:
        self.name = settings.name
        self.settings = settings
        self.path = path
        self.breaker = breaker
        self.meters = meters
        self.send = send
        """The whole stack: at most `concurrency` at once, circuit, meters, the open sink."""
        self._when = settings.when

    def takes(self, message: Message) -> bool:
        """Whether its `when` holds. Raises MessageError when that can't be said."""
        try:
            return self._when is None or self._when.holds(message)
        except MessageError as error:
            error.place = error.place or f"to.{self.name}.when"
            raise

    async def made_of(self, message: Message, trace: Trace | None = None) -> Sequence[Message]:
        """What it sends for this message: through its own steps."""
        path = self.path
        if path.empty:
            return (message,)
        if path.plain is not None:
            after = path.plain(message) if trace is None else path.plain.traced(message, trace)
            return () if after is None else (after,)
        return await path(message, trace)


class Inside:
    """Steps and targets of one generation of a route. `start` opens, `stop` closes."""

    def __init__(self, configured: Configured, services: Services) -> None:
        self.name = configured.name
        self.settings = configured.settings
        self.clock: Clock = services.clock
        self.formats = formats_with(self.settings.limits)
        self.largest = self.settings.limits.message
        """The largest body that the route takes, in bytes."""
        self.services = services
        self.meters = services.observed.route(self.name)
        self.dead_letters = DeadLetters(self.name, self.meters, services.clock)
        self.refusals = Refusals(self.name, services.clock)
        self.memos = Memos(services.journal)
        self.discarded: set[str] = set()
        """Messages in memory, and their children, of which nothing more is to begin: somebody discarded them."""
        self.calling = 0
        """How many calls of steps wait for their answer."""
        self.called: Callable[[], None] = _nothing
        """Is called whenever one has ended."""
        self._links: list[Link] = []
        self._taps: list[_Tap] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.accept = self.path(self.settings.accept, "accept")
        self.steps = self.path(self.settings.steps, "steps")
        self.targets = tuple(self._target(target) for target in self.settings.to)
        everybody = len(self.targets) == 1 or self.settings.match == "all"
        self.always = self.targets if everybody and all(target.when is None for target in self.settings.to) else ()
        """The targets of every message, when nothing is to be chosen; else none."""
        only = self.always[0] if len(self.always) == 1 else None
        self.only = only if only is not None and only.path.empty else None
        """The target of every message that goes out as it is, when there is just that one."""
        dead = self.settings.dead_letter
        self.dead_letter = None if dead is None else self._target(dead)

    def path(self, steps: Sequence[Step | Pattern], place: str) -> Path:
        """These steps, bound to this route."""
        return Path(steps, self, place)

    def call(self, sink: Sink, name: str) -> Send:
        """A send to a sink that this route holds open, tried as often as the route's `retry` says."""
        meters = self.services.observed.target(self.name, name)
        send = self._counted(measured(self._link(sink, name).send, meters, self.clock))
        retry = self.settings.retry or (Retry() if self.settings.ack == "stored" else Retry(attempts=1))
        return retried(send, retry, self.clock, self.services.luck, meters)

    def _counted(self, send: Send) -> Send:
        async def counted_send(message: Message) -> Message | None:
            self.calling += 1
            try:
                return await send(message)
            finally:
                self.calling -= 1
                self.called()

        return counted_send

    def tap(self, sink: Sink, name: str) -> Callable[[Message], None]:
        """A best-effort hand-over: one at a time, dropped and counted when the queue is full or the sink fails."""
        meters = self.services.observed.target(self.name, name)
        tap = _Tap(measured(self._link(sink, name).send, meters, self.clock), self._host(name), name)
        self._taps.append(tap)
        return tap.put

    def remember(self, place: str, window_s: float, most: int) -> Callable[[str, str], Awaitable[str]]:
        """A memory on disk of one place of this route. For a message that is stored it waits until there is room."""
        journal, scope = self.services.journal, f"{self.name}.{place}"
        if self.settings.ack != "stored":
            return self.memos.of(scope, window_s, most)

        async def remember(key: str, value: str) -> str:
            while True:
                with suppress(JournalFullError):
                    return await journal.remember(scope, key, value, window_s, most)
                await self.clock.sleep(ROOM_S)

        return remember

    def _target(self, settings: Target) -> RunningTarget:
        meters = self.services.observed.target(self.name, settings.name)
        breaker = Breaker(settings.circuit, self.clock, meters) if settings.circuit else None
        link = self._link(settings.sink, settings.name, wants_reply=self.settings.ack == "reply")
        send = measured(link.send, meters, self.clock)
        if breaker is not None:
            send = guarded(send, breaker)
        send = limited(send, self.settings.concurrency, self.discarded)
        return RunningTarget(settings, self.path(settings.steps, f"to.{settings.name}.steps"), send, breaker, meters)

    def _link(self, sink: Sink, name: str, *, wants_reply: bool = True) -> Link:
        host = self._host(name)
        host.wants_reply = wants_reply
        peer = self.services.observed.peer(self.name, name, "target", sink)
        link = Link(sink, host, peer, self.services.observed, self.services.luck)
        self._links.append(link)
        return link

    def _host(self, name: str) -> EngineHost:
        return EngineHost(self.services, self.name, name, self.settings.limits, self.formats)

    def start(self) -> None:
        """Begins to open everything; sends wait for it."""
        holds: list[tuple[str, Any]] = [("link", link.hold()) for link in self._links]
        holds += [("tap", tap.run()) for tap in self._taps]
        self._tasks = [asyncio.create_task(hold, name=f"{self.name}:{kind}") for kind, hold in holds]

    async def tried(self) -> None:
        """Returns once every link is open or was found away."""
        for link in self._links:
            await link.tried()

    async def stop(self) -> None:
        """Closes everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def chosen(inside: Inside, message: Message) -> Iterable[RunningTarget]:
    """The targets that take this message: all whose `when` holds, or the first.

    Raises:
        MessageError: none does, and the route does not say `unmatched: drop`.
    """
    settings, targets = inside.settings, inside.targets
    if len(targets) == 1 and targets[0].settings.when is None:
        return targets
    if settings.match == "first":
        for target in targets:
            if target.takes(message):
                return (target,)
        taken: list[RunningTarget] = []
    else:
        taken = [target for target in targets if target.takes(message)]
    if not taken and settings.unmatched == "dead_letter":
        raise MessageError("to: no target takes this message; give one a when: that does, or say unmatched: drop")
    return taken


class _Tap:
    def __init__(self, send: Send, host: EngineHost, name: str) -> None:
        self._send = send
        self._host = host
        self._name = name
        self._waiting = 0
        self._workers: Workers[Message] | None = None

    def put(self, message: Message) -> None:
        if self._workers is None or self._waiting >= TAP_QUEUE:
            self._host.dropped(1, f"{self._name} full")
            return
        self._waiting += 1
        self._workers.put(message)

    async def run(self) -> None:
        try:
            async with Workers(self._hand_over, count=1, name=self._name) as self._workers:
                await asyncio.get_running_loop().create_future()
        finally:
            self._workers = None

    async def _hand_over(self, message: Message) -> None:
        try:
            await self._send(message)
        except Exception:
            self._host.dropped(1, f"{self._name} failed")
        finally:
            self._waiting -= 1
