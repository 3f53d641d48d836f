"""`memory`: hands messages over within the process. For tests of routes and for trying things out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pydantic import Field

from gateway import Deliver, Host, Message, Outcome, Send, Settings


class Box:
    """The two ends of one name: what a sink of that name received, and how to send through a source of that name."""

    def __init__(self, keep: int) -> None:
        self.received: deque[Message] = deque(maxlen=keep)
        self.failing: Exception | None = None
        """What sends raise from now on instead of taking the message; None: they take it."""
        self._deliver: Deliver | None = None

    async def send(self, message: Message) -> Outcome:
        """Hands a message to the source of this name.

        Raises:
            LookupError: no source of this name runs.
        """
        if self._deliver is None:
            raise LookupError("no source of this name runs")
        return await self._deliver(message)


_BOXES: dict[str, Box] = {}


def box(name: str, *, keep: int = 1000) -> Box:
    """The box of this name, made on first use."""
    return _BOXES.setdefault(name, Box(keep))


class Source(Settings):
    """Takes the messages that a test hands to the box of this name."""

    name: str = Field("memory", description="the name of the box")

    @property
    def answers(self) -> bool:
        """Who hands a message over sees its outcome."""
        return True

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Takes messages until cancelled."""
        mine = box(self.name)
        mine._deliver = deliver
        ready()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            mine._deliver = None


class Sink(Settings):
    """Keeps the last thousand messages in the box of this name. Delivered: when kept, in memory only."""

    name: str = Field("memory", description="the name of the box")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """A send that keeps the message, or raises what the box is told to."""
        mine = box(self.name)

        async def send(message: Message) -> None:
            if mine.failing is not None:
                raise mine.failing
            mine.received.append(message)

        yield send
