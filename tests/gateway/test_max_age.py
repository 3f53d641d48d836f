"""`max_age`: a message that its target does not take is dead once it is that old, whatever holds its next try back."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import PeerError
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


def states(bench: Bench) -> list[str]:
    return [record.state for record in bench.journal.records.values()]


RETRY = "retry: {attempts: 99, first_wait: 40s, max_wait: 5m, max_age: 1m}"


async def test_the_last_try_is_at_the_end_of_its_age(bench: Bench) -> None:
    async with bench.route(f"    to: {{probe: {{}}, {RETRY}}}\n") as route:
        script("out").does = raises(PeerError("away"))
        await post(route)
        await bench.clock.advance(40)
        await bench.clock.advance(19)
        assert (len(script("out").received), states(bench)) == (2, ["pending"])
        await bench.clock.advance(1.1)
        assert (len(script("out").received), states(bench)) == (3, ["dead"])
    assert bench.dead == ["away"]


async def test_what_its_peer_wants_later_than_it_may_be_tried_is_dead(bench: Bench) -> None:
    async with bench.route(f"    to: {{probe: {{}}, {RETRY}}}\n") as route:
        script("out").does = raises(PeerError("busy", wait_s=120))
        await post(route)
        assert (len(script("out").received), states(bench)) == (1, ["dead"])
    assert bench.dead == ["busy"]


async def test_an_open_circuit_keeps_no_message_beyond_its_age(bench: Bench) -> None:
    circuit = "circuit: {failures: 1, reset_after: 10m}"
    async with bench.route(f"    to: {{probe: {{}}, {circuit}, {RETRY}}}\n") as route:
        script("out").does = raises(PeerError("away"))
        await post(route)
        await post(route)
        await bench.clock.advance(59)
        assert states(bench) == ["pending"] * 2
        await bench.clock.advance(1.1)
        await settle(40)
        assert (len(script("out").received), states(bench)) == (1, ["dead"] * 2)
    assert bench.dead == ["away", "the target's circuit is open: others failed before it"]
