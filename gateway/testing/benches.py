"""Benches: what contract checks need of a component, and how its test plays the peer.

Subclass `SourceBench` or `SinkBench`, say in class attributes what the component is (`needs` of the checks look at
them), and write the methods that those checks call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

from gateway.limits import Limits
from gateway.message import Message, Tree
from gateway.ports import Format, Sink, Source
from gateway.testing.fakes import FakeHost

Check = Callable[[Any], Awaitable[None]]
"""A contract check: takes a running bench, raises AssertionError when the component does not keep the contract."""

C = TypeVar("C", bound=Check)

IN_FLIGHT = 8
"""How many messages the route of a bench takes at once."""


def needs(*features: str) -> Callable[[C], C]:
    """Marks a check as one for benches that have these attributes on, such as `acknowledges`."""

    def marked(check: C) -> C:
        check.needs = features  # type: ignore[attr-defined]
        return check

    return marked


def checks_for(bench: type[SourceBench | SinkBench | FormatBench], checks: Sequence[Check]) -> list[Check]:
    """Those of the checks that a bench of this class can be put to."""
    return [check for check in checks if all(getattr(bench, name) for name in getattr(check, "needs", ()))]


class _Bench:
    """What benches of sources and sinks have in common."""

    largest: ClassVar[int] = 1024**2
    """Bytes of the largest body that it carries, as far as the checks go."""
    binary: ClassVar[bool] = True
    """Whether a body may be any bytes."""
    empty: ClassVar[bool] = True
    """Whether a body may be empty."""
    ordered: ClassVar[bool] = True
    """Whether messages keep the order in which they were sent."""
    carries: ClassVar[bool] = True
    """Whether it carries bodies as they are."""
    lossy: ClassVar[bool] = False
    """Whether messages may get lost on the way (UDP)."""
    headers: ClassVar[bool] = False
    """Whether it carries headers."""
    batch: ClassVar[int] = 500
    """How many messages a batch has."""

    def __init__(self) -> None:
        self.host = FakeHost(limits=Limits(in_flight=IN_FLIGHT, message="2MiB"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        """The bench with its peer, for as long as the context lasts. Yields the bench itself."""
        yield self

    def body(self, number: int) -> bytes:
        """The body of the message of this number, different for each."""
        return b'{"n":%d}' % number

    def bodies(self) -> dict[str, bytes]:
        """Bodies to carry as they are, by what they are."""
        found = {"UTF-8": "grüße, 世界 🌍".encode(), "large": b"x" * self.largest}
        if self.binary:
            found["binary"] = bytes(range(256))
        if self.empty:
            found["empty"] = b""
        return found

    async def leave(self) -> None:
        """The peer lets go of what it holds on its side, once the component was stopped."""

    async def lose(self) -> None:
        """The peer is gone, as when it crashed: its connections are reset and it can't be reached."""
        raise NotImplementedError

    async def come_back(self) -> None:
        """The peer is there again, at the same address, with what it should not have forgotten."""
        raise NotImplementedError


class SourceBench(_Bench):
    """What the checks need of one source."""

    acknowledges: ClassVar[bool] = False
    """Whether the peer is told when a message was accepted."""
    connects: ClassVar[bool] = False
    """Whether it holds a connection to its peer, whose loss ends `run`."""
    has_peer: ClassVar[bool] = True
    """Whether there is somebody outside who may be lost."""
    bounds: ClassVar[bool] = True
    """Whether it bounds what it hands over at once; in-process sources leave that to the gate of the route."""
    pushes_back: ClassVar[bool] = False
    """Whether its peer is kept from sending while nothing is taken."""
    window: ClassVar[int] = IN_FLIGHT
    """How many messages it hands over at once at most."""

    def source(self) -> Source:
        """The source, aimed at the peer of this bench. Equal settings each time."""
        raise NotImplementedError

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends one message to the running source; returns once it is on its way, not when it is answered."""
        raise NotImplementedError

    def accepted(self) -> list[bytes]:
        """The bodies of which the peer was told that they are safe, in the order in which it was told."""
        raise NotImplementedError

    def refused(self) -> list[bytes]:
        """The bodies of which the peer was told that they were not taken: refused, or not now."""
        return []

    async def send_again(self) -> None:
        """The peer sends again, of what it sent, what it was not told to be safe."""
        raise NotImplementedError


class SinkBench(_Bench):
    """What the checks need of one sink."""

    confirms: ClassVar[bool] = False
    """Whether delivered means that the peer said so."""
    connects: ClassVar[bool] = False
    """Whether it holds a connection to its peer, whose loss is noticed while idle."""
    has_peer: ClassVar[bool] = True
    """Whether there is somebody outside who may be lost, which a send hears of."""
    refuses: ClassVar[bool] = False
    """Whether there are messages that it can't carry: see `uncarried`."""
    stable_ids: ClassVar[bool] = False
    """Whether the peer can see the stable id: see `ids`."""

    def sink(self) -> Sink:
        """The sink, aimed at the peer of this bench. Equal settings each time."""
        raise NotImplementedError

    def message(self, body: bytes, headers: dict[str, str] | None = None) -> Message:
        """A message for it with this body. headers: what the peer should see, by whatever the sink sends them."""
        return Message(raw=body, formats=self.host.formats, headers=headers or {})

    def received(self) -> list[bytes]:
        """The bodies that the peer has received so far, in order, repeated ones too."""
        raise NotImplementedError

    def received_headers(self) -> dict[str, str]:
        """The headers of the last message that the peer has received."""
        raise NotImplementedError

    def ids(self) -> list[str]:
        """The stable ids that the peer has received so far."""
        raise NotImplementedError

    def hold(self) -> None:
        """From now on the peer takes what comes and confirms nothing."""
        raise NotImplementedError

    def release(self) -> None:
        """The peer confirms what it held back, and what comes."""
        raise NotImplementedError

    def uncarried(self) -> Message:
        """A message that the sink can't carry."""
        raise NotImplementedError


class FormatBench:
    """What the checks need of one format."""

    exact: ClassVar[bool] = True
    """Whether the bytes of a tree are always the same."""
    limited: ClassVar[bool] = False
    """Whether depth is limited: see `deep`."""

    def format(self) -> Format:
        """The format with the settings under test."""
        raise NotImplementedError

    def trees(self) -> Sequence[Tree]:
        """Trees that it carries: each must come back as it was."""
        raise NotImplementedError

    def malformed(self) -> Sequence[bytes]:
        """Bytes that are not of this format."""
        return ()

    def foreign(self) -> Sequence[Tree]:
        """Trees that it can't carry."""
        return ()

    def deep(self, levels: int) -> bytes:
        """Bytes whose tree is nested so deeply."""
        raise NotImplementedError
