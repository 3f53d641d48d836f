"""`channel`: links routes inside the gateway, publish/subscribe."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, assert_never

from pydantic import Field

from gateway import (
    Accepted,
    Deferred,
    Deliver,
    Host,
    Message,
    MessageError,
    Outcome,
    PeerError,
    Refused,
    Send,
    Settings,
)

PARTLY_DONE = 10_000
"""For how many messages a sink remembers which readers have them already."""


class _Channel(Settings):
    """A channel's readers, shared by all who name it."""

    name: str = Field(description="the channel's name")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[dict[str, Deliver]]:
        """The readers by route."""
        yield {}


class Source(Settings):
    """Reads a channel: each message that a route of this gateway sends to it. Several routes may read one channel."""

    nameless: ClassVar[str] = "name"
    name: str = Field(min_length=1, description="the channel's name")

    @property
    def answers(self) -> bool:
        """The route that sends sees the outcome."""
        return True

    @property
    def claims(self) -> tuple[str, ...]:
        """A channel needs nothing for itself alone."""
        return ()

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Reads until cancelled."""
        async with host.share(_Channel(name=self.name)) as readers:
            readers[host.route] = deliver
            ready()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                if readers.get(host.route) is deliver:
                    del readers[host.route]


class Sink(Settings):
    """Publishes to a channel. Delivered: when every reader has accepted; a retry reaches only those that had not.

    Each reader gets the message under an id of its own, derived from the message's: what is sent again after a crash
    is known to it, and taken once. A message that had been delivered, and that somebody replays, comes to every
    reader again, under a new id and with the first one as its cause.
    """

    nameless: ClassVar[str] = "name"
    name: str = Field(min_length=1, description="the channel's name")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """A send to all readers."""
        done: OrderedDict[tuple[str, int], set[str]] = OrderedDict()

        async with host.share(_Channel(name=self.name)) as readers:

            async def send(message: Message) -> Message | None:
                if not readers:
                    raise PeerError(f"channel {self.name}: no route reads it now")
                name = message.id, message.again
                had = done.get(name, set())
                missing = [(route, deliver) for route, deliver in readers.items() if route not in had]
                if len(missing) == 1:
                    outcomes = [await missing[0][1](self._copy(message, missing[0][0]))]
                else:
                    outcomes = list(
                        await asyncio.gather(*(deliver(self._copy(message, route)) for route, deliver in missing))
                    )
                for (route, _), outcome in zip(missing, outcomes, strict=True):
                    if isinstance(outcome, Accepted):
                        had.add(route)
                if all(isinstance(outcome, Accepted) for outcome in outcomes):
                    done.pop(name, None)
                    return _reply(outcomes)
                done[name] = had
                if len(done) > PARTLY_DONE:
                    done.popitem(last=False)
                raise self._error(outcomes)

            yield send

    def _copy(self, message: Message, reader: str) -> Message:
        place = f"channel.{self.name}.{reader}"
        child = message.child(place)
        if message.again:
            child = child.child(place, message.again)
            child.again = 0
        child.transport = {"channel": self.name}
        child.key = None
        child.context = {}
        return child

    def _error(self, outcomes: list[Outcome]) -> PeerError | MessageError:
        """The worst of the outcomes: while any reader may still take it, it is tried again."""
        refused: MessageError | None = None
        for outcome in outcomes:
            match outcome:
                case Deferred():
                    return PeerError(f"channel {self.name}: {outcome.full}", wait_s=outcome.wait_s)
                case Refused():
                    text = f"channel {self.name}: {outcome.full}"
                    # The reader has said already what a sender may hear: what is wrong with the body, say.
                    refused = refused or MessageError(text, code=outcome.code, told=outcome.reason)
                case Accepted():
                    pass
                case other:
                    assert_never(other)
        return refused or PeerError(f"channel {self.name}: no reader took it")


def _reply(outcomes: list[Outcome]) -> Message | None:
    replies = [outcome.reply for outcome in outcomes if isinstance(outcome, Accepted) and outcome.reply is not None]
    return replies[0] if len(replies) == 1 else None
