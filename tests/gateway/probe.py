"""`probe`, a plug-in of the tests: a source that the test feeds, and a sink that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from typing import Literal

import pytest
from pydantic import Field

from gateway import ConfigError, Deliver, Host, Message, PeerError, Send, Settings, registry

Does = Callable[[Message], Message | Awaitable[Message | None] | None]


class Script:
    """What the sink of one name received, and what it does with each message."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.hosts: list[Host] = []
        self.does: Does = lambda message: None
        self.opened = 0

    @property
    def trees(self) -> list[object]:
        return [message.tree for message in self.received]


SCRIPTS: dict[str, Script] = {}
FEEDS: dict[str, Deliver] = {}
RUNS: list[str] = []
"""What sources did, in order: `+name` and `-name`."""
BROKEN: set[str] = set()
"""Names of sources that can't run as configured."""


def script(name: str) -> Script:
    return SCRIPTS.setdefault(name, Script())


class Source(Settings):
    """Hands over what the test gives it."""

    name: str = Field("in", description="its name")
    answering: bool = Field(default=True, description="whether it answers")
    port: int = Field(0, description="a setting to change")
    claim: tuple[str, ...] = Field((), description="what it needs for itself alone")
    away: bool = Field(default=False, description="whether its peer is away")
    silent: bool = Field(default=False, description="whether its peer is there and says nothing")

    @property
    def answers(self) -> bool:
        return self.answering

    @property
    def claims(self) -> tuple[str, ...]:
        return self.claim

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        if self.name in BROKEN:
            raise ConfigError(f"probe {self.name}: it is broken")
        if self.away:
            raise PeerError(f"probe {self.name}: its peer is away")
        if self.silent:
            await asyncio.get_running_loop().create_future()
        FEEDS[self.name] = deliver
        RUNS.append(f"+{self.name}")
        ready()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            RUNS.append(f"-{self.name}")
            del FEEDS[self.name]


class Sink(Settings):
    """Does with each message what the script of its name says."""

    name: str = Field("out", description="its name")
    at_most_once: Literal["", "nobody answers"] = Field("", description="what a note says")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        mine = script(self.name)
        mine.opened += 1
        mine.hosts.append(host)

        async def send(message: Message) -> Message | None:
            mine.received.append(message)
            done = mine.does(message)
            return await done if isinstance(done, Awaitable) else done

        yield send


def plug_in(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    """Makes `probe` (and more: word=module) known, as an installed plug-in would be. Everything begins empty."""
    for kept in (SCRIPTS, FEEDS, BROKEN):
        kept.clear()
    RUNS.clear()
    modules = {"probe": "tests.gateway.probe", **more}
    entries = tuple(EntryPoint(name, value, "gateway.adapters") for name, value in modules.items())
    monkeypatch.setattr(registry, "plugged", lambda group: entries if group == "adapters" else ())


def raises(error: BaseException) -> Does:
    def does(_: Message) -> None:
        raise error

    return does


def replies(tree: object, **fields: object) -> Does:
    return lambda message: Message(raw=None, parsed=tree, formats=message.formats, **fields)  # type: ignore[arg-type]
