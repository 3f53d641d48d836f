"""A target without a connection to lose shows as down while its sends fail, and as up once one succeeds."""

from __future__ import annotations

import asyncio

import pytest

from adapters import memory
from gateway import PeerError
from gateway.links import FAILURES_DOWN, Link
from gateway.observe import Observed
from gateway.testing import FakeHost, ManualClock, arriving, settle


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
