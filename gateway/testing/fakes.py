"""Fakes of what the engine lends to a component: clock, host, deliver; and small helpers for tests."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from gateway.clock import SystemClock
from gateway.errors import MessageError
from gateway.formats import formats_with
from gateway.limits import Limits
from gateway.links import Shares
from gateway.message import Accepted, Formats, Message, Outcome, Principal
from gateway.ports import Clock, Credentials, Deliver, Send, Shared, Sink, Source

T = TypeVar("T")


class ManualClock:
    """A clock that moves only when told. `sleep` returns once `advance` has gone far enough."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self._now_s = now_s
        self.set_by_s = 0.0
        """How far somebody has set the machine's clock, forward or back: its wall time alone jumps by that."""
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.slept: list[float] = []

    @property
    def sleeping(self) -> int:
        """How many wait for it now."""
        return len(self._sleepers)

    def time(self) -> float:
        return self._now_s + self.set_by_s

    def monotonic(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + seconds, wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Moves time forward, waking who is due, and lets them run."""
        self._now_s += seconds
        due = [wake for at, wake in self._sleepers if at <= self._now_s]
        self._sleepers = [(at, wake) for at, wake in self._sleepers if at > self._now_s]
        for wake in due:
            if not wake.done():
                wake.set_result(None)
        await settle()


async def settle(rounds: int = 20) -> None:
    """Lets all tasks that can run do so. Not a wait for the outside world: for that use `until`."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Returns once `condition` holds; for what happens outside of this process or loop.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"did not happen within {timeout_s} s: {condition}")
        await asyncio.sleep(0.005)


class FakeHost:
    """A Host for one component alone: shares as the engine does, knows the principals it is given."""

    def __init__(
        self,
        *,
        route: str = "test",
        target: str = "target",
        limits: Limits | None = None,
        data: Path | None = None,
        clock: Clock | None = None,
        principals: dict[tuple[str | None, str | None], Principal] | None = None,
    ) -> None:
        self.route = route
        self.target = target
        self.wants_reply = True
        self.limits = limits or Limits()
        self.data = data or self._folder()
        self.clock: Clock = clock or SystemClock()
        self.formats: Formats = formats_with(self.limits)
        self.drops: dict[str, int] = {}
        self.refusals: list[tuple[str, str]] = []
        self.outcomes: dict[str, Outcome | None] = {}
        self._principals = principals or {}
        self._shares = Shares()  # the engine's own: who fakes it makes races that no component has to live with

    def _folder(self) -> Path:
        """A folder of its own, gone with this host."""
        folder = tempfile.mkdtemp(prefix="gateway-test-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def share(self, what: Shared[T]) -> AbstractAsyncContextManager[T]:
        return self._shares.lease(what, self)

    async def identify(self, credentials: Credentials) -> Principal:
        try:
            return self._principals[credentials.username, credentials.password]
        except KeyError:
            raise MessageError("identity: these credentials are not known here", code="unauthenticated") from None

    async def settled(self, message_id: str, wait_s: float) -> Outcome | None:
        """What the test says in `outcomes` became of this message; nothing said: it was delivered."""
        return self.outcomes.get(message_id, Accepted(message_id))

    def refused(self, code: str, reason: str, peer: str) -> None:
        self.refusals.append((code, reason))

    def dropped(self, count: int, why: str) -> None:
        self.drops[why] = self.drops.get(why, 0) + count


class Inbox:
    """A Deliver that keeps what it gets, as the gate of a route would stamp it, and answers as told.

    outcome: called with each message; may be async, to hold an acknowledgement back.
    """

    def __init__(
        self, host: FakeHost, outcome: Callable[[Message], Outcome | Awaitable[Outcome]] | None = None
    ) -> None:
        self._host = host
        self._outcome = outcome or (lambda message: Accepted(message.id))
        self.messages: list[Message] = []
        self._arrived = asyncio.Event()

    async def __call__(self, message: Message) -> Outcome:
        self._keep(message)
        outcome = self._outcome(message)
        return await outcome if isinstance(outcome, Awaitable) else outcome

    def _keep(self, message: Message) -> None:
        message.formats = self._host.formats
        self.messages.append(message)
        self._arrived.set()

    async def wait(self, count: int, *, timeout_s: float = 10.0) -> list[Message]:
        """The first `count` messages, once they have come."""
        async with asyncio.timeout(timeout_s):
            while len(self.messages) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.messages[:count]


class OfferInbox(Inbox):
    """An Inbox that takes what it is offered, as a route that stores does. What was offered waits for `settle`.

    takes: whether it takes an offer; what it does not take is handed over to it as usual.
    """

    def __init__(self, host: FakeHost, takes: Callable[[Message], bool] = lambda message: True) -> None:
        super().__init__(host)
        self.offers = 0
        """Offers that were taken."""
        self._takes = takes
        self._unsettled: list[tuple[Message, Callable[[Outcome], None]]] = []

    def offer(self, message: Message, then: Callable[[Outcome], None]) -> bool:
        if not self._takes(message):
            return False
        self._keep(message)
        self.offers += 1
        self._unsettled.append((message, then))
        return True

    def settle(self) -> int:
        """What was offered is safe: tells it, the last first. How many these were."""
        unsettled, self._unsettled = self._unsettled, []
        for message, then in reversed(unsettled):
            then(Accepted(message.id, stored=True))
        return len(unsettled)


@asynccontextmanager
async def running(source: Source, deliver: Deliver, host: FakeHost) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a source until the context ends; entered once the source is ready."""
    ready = asyncio.Event()
    task = asyncio.create_task(source.run(host, deliver, ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    waiting.cancel()
    try:
        if task.done():
            await task
        if not ready.is_set():
            raise AssertionError("the source did not become ready within 20 s")
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


def opened(sink: Sink, host: FakeHost) -> AbstractAsyncContextManager[Send]:
    """A sink, open for as long as the context lasts."""
    return sink.open(host)


def arriving(host: FakeHost, raw: bytes = b"{}", **fields: Any) -> Message:
    """A message as it is inside a route: with formats lent."""
    return Message(raw=raw, formats=host.formats, **fields)
