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
from gateway.journal import Journal
from gateway.limits import Limits
from gateway.links import Shares
from gateway.message import Formats, Principal
from gateway.observe import Observed
from gateway.ports import Clock, Credentials, Shared

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What all routes of one process have in common."""

    name: str
    data: Path
    journal: Journal
    observed: Observed
    clock: Clock = field(default_factory=SystemClock)
    shares: Shares = field(default_factory=Shares)
    luck: Callable[[], float] = random.random


class EngineHost:
    """The Host of one component of one route."""

    def __init__(self, services: Services, route: str, target: str, limits: Limits, formats: Formats) -> None:
        self.route = route
        self.target = target
        self.limits = limits
        self.data = services.data
        self.clock = services.clock
        self.formats = formats
        self._services = services
        self._drops = services.observed.route(route).dropped

    def share(self, what: Shared[T]) -> AbstractAsyncContextManager[T]:
        """The one open instance of `what` in this process."""
        return self._services.shares.lease(what, self)

    async def identify(self, credentials: Credentials) -> Principal:
        """Nobody is known yet: components that take credentials check them by their own settings."""
        raise MessageError("identity: no identities are configured; remove the credentials", code="unauthenticated")

    def dropped(self, count: int, why: str) -> None:
        """Counts what an at-most-once component had to let go."""
        self._drops[why] = self._drops.get(why, 0) + count
