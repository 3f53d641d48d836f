"""What the engine lends to its components, and what it shares among its routes."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gateway.clock import SystemClock
from gateway.errors import MessageError
from gateway.journal import FINAL, Journal
from gateway.limits import Limits
from gateway.links import Shares
from gateway.message import Accepted, Formats, Outcome, Principal, Refused
from gateway.notices import Refusals
from gateway.observe import Observed
from gateway.ports import Clock, Credentials, Shared

T = TypeVar("T")

FIRST_LOOK_S, MOST_LOOK_S = 0.02, 2.0
"""How soon, and how rarely, the journal is asked what became of a message."""


class Alone:
    """The right to run a message that may kill the process: one at a time in all routes, so that it can be named."""

    def __init__(self) -> None:
        self._holder: object | None = None
        self._waiting: dict[object, Callable[[], None]] = {}

    def begin(self, who: object, again: Callable[[], None]) -> bool:
        """Whether it is their turn. If not, `again` is called when it is worth asking again."""
        if self._holder not in (None, who):
            self._waiting[who] = again
            return False
        self._holder = who
        return True

    def end(self, who: object) -> None:
        """If it was their turn, it is over."""
        if self._holder is who:
            self._holder = None
            waiting, self._waiting = self._waiting, {}
            for again in waiting.values():
                again()


@dataclass(frozen=True)
class Services:
    """What all routes of one process have in common."""

    name: str
    data: Path
    journal: Journal
    observed: Observed
    clock: Clock = field(default_factory=SystemClock)
    shares: Shares = field(default_factory=Shares)
    alone: Alone = field(default_factory=Alone)
    luck: Callable[[], float] = random.random


class EngineHost:
    """The Host of one component of one route."""

    def __init__(self, services: Services, route: str, target: str, limits: Limits, formats: Formats) -> None:
        self.route = route
        self.target = target
        self.wants_reply = True
        self.limits = limits
        self.data = services.data
        self.clock = services.clock
        self.formats = formats
        self._services = services
        self._meters = services.observed.route(route)
        self._refusals = Refusals(route, services.clock)

    def share(self, what: Shared[T]) -> AbstractAsyncContextManager[T]:
        """The one open instance of `what` in this process."""
        return self._services.shares.lease(what, self)

    async def identify(self, credentials: Credentials) -> Principal:
        """Nobody is known yet: components that take credentials check them by their own settings."""
        raise MessageError("identity: no identities are configured; remove the credentials", code="unauthenticated")

    async def settled(self, message_id: str, wait_s: float) -> Outcome | None:
        """What became of a stored message, looked up at growing intervals."""
        deadline = self.clock.monotonic() + wait_s
        pause_s = FIRST_LOOK_S
        while True:
            detail = await self._services.journal.find(message_id)
            if detail is None:
                return None
            row = detail.row
            if row.state in ("delivered", "filtered"):
                return Accepted(message_id)
            if row.state in FINAL:
                if row.reason is None:
                    return Refused(message_id, f"it is {row.state}")
                return Refused(message_id, row.reason.for_sender, detail=row.reason.text)
            if self.clock.monotonic() >= deadline:
                return None
            await self.clock.sleep(pause_s)
            pause_s = min(pause_s * 2, MOST_LOOK_S)

    def refused(self, code: str, reason: str, peer: str) -> None:
        """Counts and logs what was refused before it was a message."""
        self._meters.received += 1
        self._meters.refused += 1
        self._refusals.note_unread(code, reason, peer)

    def dropped(self, count: int, why: str) -> None:
        """Counts what an at-most-once component had to let go."""
        drops = self._meters.dropped
        drops[why] = drops.get(why, 0) + count
