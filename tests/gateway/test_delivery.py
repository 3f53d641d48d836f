"""Stored messages: each target once, in order per key, also when targets fail and the process starts again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.memory import box
from gateway import Accepted, Deferred, Message, MessageError, PeerError, Refused
from gateway.config import load
from gateway.host import Services
from gateway.observe import Observed
from gateway.route import Route
from gateway.testing import ManualClock, settle
from tests.memory_journal import MemoryJournal


class Bench:
    """One stored route from memory to memory, on a clock that tests move."""

    def __init__(self, folder: Path, yaml: str) -> None:
        self.clock = ManualClock()
        self.journal = MemoryJournal(self.clock)
        (folder / "routes.yaml").write_text(yaml)
        self._config = load(folder / "routes.yaml")
        self._folder = folder

    @asynccontextmanager
    async def running(self, **more: Any) -> AsyncIterator[Route]:
        observed = Observed(self.clock)
        services = Services("test", self._folder, self.journal, observed, self.clock, luck=lambda: 1.0, **more)
        route = Route(self._config.routes["r"], services)
        await route.start()
        await settle()
        try:
            yield route
        finally:
            await route.stop(0)

    def states(self) -> list[str]:
        return [record.state for record in self.journal.records.values()]


def sent(name: str) -> list[Any]:
    return [message.tree for message in box(name).received]


async def post(route: Route, tree: Any, **fields: Any) -> Any:
    outcome = await route.take(Message(raw=None, parsed=tree, **fields), answers=True, type_="test")
    await settle()
    return outcome


@pytest.fixture(autouse=True)
def empty_boxes() -> None:
    for name in ("in", "a", "b"):
        box(name).received.clear()
        box(name).failing = None


ONE = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    to: {memory: {name: a}}
"""
TWO = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    order_by: body.k
    steps:
      - set: {type: changed}
    to:
      - {memory: {name: a}, name: a, retry: {attempts: 3, first_wait: 10s}}
      - {memory: {name: b}, name: b}
"""


async def test_a_stored_message_is_accepted_and_delivered_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE)
    async with bench.running() as route:
        outcome = await post(route, {"n": 1})
    assert isinstance(outcome, Accepted)
    assert sent("a") == [{"n": 1}]
    assert bench.states() == ["delivered"]


async def test_a_journal_without_room_defers_the_sender_and_stores_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE)
    async with bench.running() as route:
        bench.journal.full = True
        outcome = await post(route, {"n": 1})
    assert isinstance(outcome, Deferred)
    assert bench.states() == []
    assert sent("a") == []


async def test_only_the_target_that_failed_is_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = PeerError("away")
        await post(route, {"k": "x", "n": 1})
        assert (sent("a"), len(sent("b"))) == ([], 1)
        assert bench.states() == ["pending"]
        box("a").failing = None
        await bench.clock.advance(10.1)
        await settle()
        assert sent("a") == [{"k": "x", "n": 1}]
        assert len(sent("b")) == 1
    assert bench.states() == ["delivered"]


@pytest.mark.parametrize("empty", [None, ""])
async def test_a_message_without_a_value_to_order_by_holds_nobody_back(tmp_path: Path, empty: str | None) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = PeerError("away")
        await post(route, {"k": empty, "n": 1})
        box("a").failing = None
        await post(route, {"k": empty, "n": 2})
        assert sent("a") == [{"k": empty, "n": 2}]


async def test_a_failing_message_holds_back_its_key_and_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = PeerError("away")
        await post(route, {"k": "x", "n": 1})
        box("a").failing = None
        await post(route, {"k": "x", "n": 2})
        await post(route, {"k": "y", "n": 3})
        await post(route, {"k": "x", "n": 4})
        assert sent("a") == [{"k": "y", "n": 3}]
        assert [tree["n"] for tree in sent("b")] == [1, 2, 3, 4]
        await bench.clock.advance(10.1)
        await settle(100)
        assert [tree["n"] for tree in sent("a")] == [3, 1, 2, 4]
        await post(route, {"k": "x", "n": 5})
        assert [tree["n"] for tree in sent("a")] == [3, 1, 2, 4, 5]
    assert set(bench.states()) == {"delivered"}


async def test_a_long_lane_is_not_asked_for_one_by_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    claims: list[int] = []
    claim = bench.journal.claim

    async def counted(route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        claims.append(len(deliveries))
        await claim(route, messages, deliveries)

    async with bench.running() as route:
        bench.journal.claim = counted  # type: ignore[method-assign]
        box("a").failing = PeerError("away")
        for number in range(100):
            await post(route, {"k": "x", "n": number})
        box("a").failing = None
        await bench.clock.advance(10.1)
        await settle(400)
    assert [tree["n"] for tree in sent("a")] == list(range(100))
    assert (sum(claims), len(claims)) == (100, 4)
    assert set(bench.states()) == {"delivered"}


async def test_when_the_first_of_a_lane_fails_those_given_out_with_it_wait_behind_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = PeerError("away")
        for number in range(10):
            await post(route, {"k": "x", "n": number})
        await bench.clock.advance(10.1)
        await settle(100)
        assert (sent("a"), await bench.journal.lanes("r")) == ([], {("a", "x"): 10})
        assert not any(any(record.delivery_claims.values()) for record in bench.journal.records.values())
        box("a").failing = None
        await bench.clock.advance(20.1)
        await settle(400)
        assert [tree["n"] for tree in sent("a")] == list(range(10))
    assert set(bench.states()) == {"delivered"}


async def test_order_is_kept_across_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = PeerError("away")
        for n in range(5):
            await post(route, {"k": "x", "n": n})
    box("a").failing = None
    async with bench.running() as route:
        await post(route, {"k": "x", "n": 5})
        await bench.clock.advance(10.1)
        await settle(200)
    assert [tree["n"] for tree in sent("a")] == [0, 1, 2, 3, 4, 5]
    assert set(bench.states()) == {"delivered"}


async def test_what_uses_up_its_attempts_is_a_dead_letter_and_its_lane_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = PeerError("away")
        await post(route, {"k": "x", "n": 1})
        await post(route, {"k": "x", "n": 2})
        for wait_s in (10.1, 20.1):
            await bench.clock.advance(wait_s)
            await settle(50)
        record = next(iter(bench.journal.records.values()))
        assert record.state == "dead"
        assert [attempt.number for attempt in record.attempts if attempt.target == "a"] == [1, 2, 3]
        box("a").failing = None
        await bench.clock.advance(60)
        await settle(50)
    assert sent("a") == [{"k": "x", "n": 2}]
    assert bench.states() == ["dead", "delivered"]


async def test_what_a_target_refuses_is_dead_with_what_it_would_have_received(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO)
    async with bench.running() as route:
        box("a").failing = MessageError("no")
        await post(route, {"k": "x", "n": 1})
    (record,) = bench.journal.records.values()
    assert record.state == "dead"
    assert {(d.target, d.state, d.message.type) for d in record.deliveries} == {
        ("a", "dead", "changed"),
        ("b", "delivered", "changed"),
    }


async def test_a_step_that_fails_makes_a_dead_letter_with_its_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE.replace("    to:", "    steps:\n      - map: {x: '{{ body.nothing }}'}\n    to:"))
    async with bench.running() as route:
        assert isinstance(await post(route, {"n": 1}), Accepted)
    (record,) = bench.journal.records.values()
    assert (record.state, record.reason and record.reason.place) == ("dead", "steps.0.map")


async def test_a_filtered_message_is_recorded_as_filtered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE.replace("    to:", "    steps:\n      - filter: body.n > 1\n    to:"))
    async with bench.running() as route:
        await post(route, {"n": 1})
    assert bench.states() == ["filtered"]


async def test_what_accept_refuses_is_refused_to_its_sender_and_not_stored(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE.replace("    to:", "    accept:\n      - filter: body.n > 1\n    to:"))
    async with bench.running() as route:
        outcome = await post(route, {"n": 1})
    assert isinstance(outcome, Refused)
    assert bench.states() == []


async def test_more_than_memory_holds_waits_in_the_journal_and_all_arrive_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE.replace("    to:", "    limits: {in_memory: 4}\n    concurrency: 1\n    to:"))
    async with bench.running() as route:
        for n in range(50):
            await route.take(Message(raw=None, parsed={"n": n}), answers=True, type_="test")
        await settle(2000)
    assert [tree["n"] for tree in sent("a")] == list(range(50))
    assert set(bench.states()) == {"delivered"}


async def test_a_message_that_never_ends_is_quarantined_and_the_others_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE)
    async with bench.running() as route:
        await post(route, {"n": 1})
    (record,) = bench.journal.records.values()
    record.state, record.claims = "stored", 5
    box("a").received.clear()
    async with bench.running() as route:
        await settle(100)
        await post(route, {"n": 2})
    assert bench.states() == ["dead", "delivered"]
    assert record.reason is not None
    assert record.reason.kind == "poison"
    assert sent("a") == [{"n": 2}]


async def test_a_dead_letter_goes_to_the_target_that_the_route_names_and_stays_when_that_is_away(
    tmp_path: Path,
) -> None:
    yaml = ONE.replace(
        "    to: {memory: {name: a}}", "    to: {memory: {name: a}}\n    dead_letter: {memory: {name: b}, name: dlq}"
    )
    bench = Bench(tmp_path, yaml)
    async with bench.running() as route:
        box("a").failing = MessageError("no")
        await post(route, {"n": 1})
        box("b").failing = PeerError("away")
        await post(route, {"n": 2})
    assert bench.states() == ["discarded", "dead"]
    assert [message.context["error"]["text"] for message in box("b").received] == ["no"]


async def test_what_the_steps_of_a_target_refuse_goes_to_the_target_for_dead_letters(tmp_path: Path) -> None:
    yaml = TWO.replace("name: b}\n", "name: b, steps: [{map: {x: '{{ body.y }}'}}]}\n").replace(
        "    to:", "    dead_letter: {memory: {name: in}, name: dlq}\n    to:"
    )
    bench = Bench(tmp_path, yaml)
    async with bench.running() as route:
        await post(route, {"k": "x", "n": 1})
        assert (sent("a"), sent("b"), sent("in")) == ([{"k": "x", "n": 1}], [], [{"k": "x", "n": 1}])
        box("in").failing = PeerError("away")
        await post(route, {"k": "x", "n": 2})
    assert [message.context["error"]["place"] for message in box("in").received] == ["to.b.steps.0.map"]
    assert bench.states() == ["discarded", "dead"]


async def test_dead_letters_are_counted_and_logged_but_not_without_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, ONE)
    async with bench.running() as route:
        box("a").failing = MessageError("no")
        for n in range(15):
            await post(route, {"n": n})
        await bench.clock.advance(1)
        await post(route, {"n": 15})
        assert route.inside.meters.dead == 16
    told = [record for record in caplog.records if record.getMessage().startswith("dead letter")]
    assert [record.getMessage() for record in told].count("dead letter") == 11
    assert [record.more for record in told if record.getMessage() == "dead letters"] == [5]  # type: ignore[attr-defined]
    assert told[0].reason == "no"  # type: ignore[attr-defined]


async def test_what_a_step_refuses_goes_to_the_target_for_dead_letters(tmp_path: Path) -> None:
    yaml = ONE.replace(
        "    to:",
        "    steps:\n      - map: {x: '{{ body.y }}'}\n    dead_letter: {memory: {name: b}, name: dlq}\n    to:",
    )
    bench = Bench(tmp_path, yaml)
    async with bench.running() as route:
        await post(route, {"n": 1})
    assert bench.states() == ["discarded"]
    assert sent("b") == [{"n": 1}]
