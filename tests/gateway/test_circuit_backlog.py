"""What waits in the journal while circuits are open stays there: none of it can be sent, however much it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import PeerError, delivery
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, script
from tests.gateway.test_review_delivery import held_back, numbers, states

SETTINGS = "    to: {probe: {}, retry: {attempts: 99}, circuit: {failures: 1, reset_after: 10s}}\n"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    monkeypatch.setattr(delivery, "BATCH", 4)
    return Bench(tmp_path)


def moves(bench: Bench) -> int:
    return sum(len(commit) for commit in bench.journal.commits)


async def test_while_a_probe_takes_long_the_backlog_is_not_moved_about(bench: Bench) -> None:
    async with bench.route(SETTINGS) as route:
        script("out").does = raises(PeerError("away"))
        for n in range(20):
            await post(route, {"n": n})
        release = held_back()
        await bench.clock.advance(10.1)
        assert len(numbers()) == 2
        before = moves(bench)
        for _ in range(40):
            await bench.clock.advance(0.1)
        assert moves(bench) - before <= 5 * 4
        release.set()
        await settle(20)
        for _ in range(20):
            await bench.clock.advance(0.1)
        assert len(numbers()) == 21
        assert set(numbers()) == set(range(20))
    assert states(bench) == ["delivered"] * 20


async def test_a_circuit_that_closes_lets_the_backlog_go_at_once(bench: Bench) -> None:
    async with bench.route(SETTINGS) as route:
        script("out").does = raises(PeerError("away"))
        for n in range(20):
            await post(route, {"n": n})
        script("out").does = lambda message: None
        await bench.clock.advance(11)
        await settle(200)
        await bench.clock.advance(0.2)
        await settle(200)
    assert states(bench) == ["delivered"] * 20
