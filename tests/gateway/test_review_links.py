"""A component whose own wait is cancelled: that says nothing of the task it runs in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway import Deferred, Message
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


async def test_a_sink_whose_own_wait_is_cancelled_failed_an_attempt(bench: Bench) -> None:
    async def lost(_: Message) -> None:
        inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    script("out").does = lost
    settings = "    order_by: body.k\n    to: {probe: {}, retry: {first_wait: 10s}}\n"
    async with bench.route(settings) as route:
        await post(route, {"n": 1, "k": "x"})
        script("out").does = lambda message: None
        await post(route, {"n": 2, "k": "x"})
        await bench.clock.advance(11)
        await settle(40)
        assert [tree["n"] for tree in script("out").trees] == [1, 1, 2]  # type: ignore[index]
        assert [record.state for record in bench.journal.records.values()] == ["delivered", "delivered"]


async def test_a_route_that_has_stopped_lets_go_who_waited_at_its_gate(bench: Bench) -> None:
    async with bench.route("    to: {probe: {}}\n") as route:
        await route.drain(0)
        early = asyncio.create_task(post(route, {"n": 1}, answers=False))
        await settle()
        assert not early.done()
        await route.halt(0)
        assert isinstance(await early, Deferred)
        assert isinstance(await post(route, {"n": 2}, answers=False), Deferred)
