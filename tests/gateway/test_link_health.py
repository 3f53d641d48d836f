"""A target without a connection to lose shows as down while its sends fail, and as up once one succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from adapters import memory
from gateway import Host, PeerError, Send
from gateway.links import FAILURES_DOWN, Link
from gateway.observe import Observed
from gateway.testing import FakeHost, ManualClock, arriving, settle, until


async def test_sends_that_fail_in_a_row_show_until_one_succeeds() -> None:
    host = FakeHost(clock=ManualClock())
    observed = Observed(host.clock)
    peer = observed.peer("r", "t", "target")
    link = Link(memory.Sink(name="health"), host, peer, observed, lambda: 1.0)
    holding = asyncio.create_task(link.hold())
    await settle()
    box = memory.box("health")
    box.failing = PeerError("connection refused")
    states = []
    for _ in range(FAILURES_DOWN):
        states.append(peer.state)
        with pytest.raises(PeerError):
            await link.send(arriving(host))
    assert states == ["up"] * FAILURES_DOWN
    assert (peer.state, peer.reason) == ("down", "connection refused")
    assert not observed.ready()
    box.failing = None
    await link.send(arriving(host))
    assert peer.state == "up"
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


class _Opening(memory.Sink):
    """A sink that can't be opened until it is told to."""

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        state = memory.box(self.name)
        state.tries = getattr(state, "tries", 0) + 1  # type: ignore[attr-defined]
        if state.failing is not None:
            raise state.failing
        async with super().open(host) as send:
            yield send


async def test_a_send_has_a_link_that_waits_tried_at_once() -> None:
    host = FakeHost(clock=ManualClock())
    observed = Observed(host.clock)
    box = memory.box("opening")
    box.failing = PeerError("connection refused", wait_s=30.0)
    link = Link(_Opening(name="opening"), host, observed.peer("r", "t", "target"), observed, lambda: 1.0)
    holding = asyncio.create_task(link.hold())
    await settle()
    with pytest.raises(PeerError, match=r"^not connected: connection refused$"):
        await link.send(arriving(host))  # too soon after the try that failed
    await host.clock.advance(2)  # type: ignore[attr-defined]
    box.failing = None
    await link.send(arriving(host, b"1"))
    assert [message.body for message in box.received] == [b"1"]
    assert box.tries == 2  # type: ignore[attr-defined]
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def test_failures_are_forgiven_when_nobody_asks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.links.DOUBT_S", 0.02)
    host = FakeHost(clock=ManualClock())
    observed = Observed(host.clock)
    peer = observed.peer("r", "t", "target")
    link = Link(memory.Sink(name="forgiven"), host, peer, observed, lambda: 1.0)
    holding = asyncio.create_task(link.hold())
    await settle()
    memory.box("forgiven").failing = PeerError("busy")
    for _ in range(FAILURES_DOWN):
        with pytest.raises(PeerError):
            await link.send(arriving(host))
    assert peer.state == "down"
    await until(lambda: peer.state == "up")
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
