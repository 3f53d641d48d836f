"""A message of one target and no key is sent without a parcel; whatever becomes of the send, it is as with one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway import Message, MessageError, PeerError
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, replies, script
from tests.gateway.test_discard import held, memory_is_empty, numbers, states

ONE = "    steps: [{set: {type: changed}}]\n    to: {probe: {}, retry: {attempts: 3, first_wait: 10s}}\n"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


async def test_a_send_that_fails_is_tried_again_and_both_are_in_its_history(bench: Bench) -> None:
    async with bench.route(ONE) as route:
        script("out").does = raises(PeerError("away"))
        await post(route, {"n": 1})
        assert states(bench) == ["pending"]
        script("out").does = replies({"taken": 1})
        await bench.clock.advance(11)
        await settle(40)
        assert numbers() == [1, 1]
        assert [message.type for message in script("out").received] == ["changed"] * 2
        assert memory_is_empty(route)
    (record,) = bench.journal.records.values()
    assert record.state == "delivered"
    assert [(one.number, one.error) for one in record.attempts] == [(1, "away"), (2, None)]
    assert bench.observed.target("r", "probe").retried == 1


@pytest.mark.parametrize("error", [MessageError("no"), ZeroDivisionError("a bug")], ids=["refused", "bug"])
async def test_a_send_that_is_of_no_use_leaves_a_dead_letter_with_what_was_sent(bench: Bench, error: Exception) -> None:
    async with bench.route(ONE) as route:
        script("out").does = raises(error)
        await post(route, {"n": 1})
        assert memory_is_empty(route)
    (record,) = bench.journal.records.values()
    assert record.state == "dead"
    assert [(one.target, one.state, one.message.type) for one in record.deliveries] == [("probe", "dead", "changed")]
    assert [one.number for one in record.attempts] == [1]
    assert len(numbers()) == 1


async def test_the_target_for_dead_letters_gets_what_was_refused(bench: Bench) -> None:
    async with bench.route(ONE + "    dead_letter: {probe: {name: dead}, name: dlq}\n") as route:
        script("out").does = raises(MessageError("no"))
        await post(route, {"n": 1})
        assert numbers("dead") == [1]
        assert memory_is_empty(route)
    assert states(bench) == ["discarded"]


async def test_a_send_may_finish_while_its_route_stops_and_is_not_repeated(bench: Bench) -> None:
    release = held()
    async with bench.route(ONE) as route:
        await post(route, {"n": 1})
        stopping = asyncio.create_task(route.stop(30))
        await settle()
        release.set()
        await stopping
    assert states(bench) == ["delivered"]
    async with bench.route(ONE):
        await settle(40)
    assert numbers() == [1]


async def test_a_send_that_outlives_the_grace_of_a_stop_is_repeated_and_is_no_suspect(bench: Bench) -> None:
    held()
    async with bench.route(ONE) as route:
        await post(route, {"n": 1})
        assert numbers() == [1]
    (record,) = bench.journal.records.values()
    assert (record.state, record.claims) == ("stored", 0)
    script("out").does = lambda message: None
    async with bench.route(ONE):
        await settle(40)
    assert numbers() == [1, 1]
    assert states(bench) == ["delivered"]


async def test_behind_an_open_circuit_nothing_is_sent(bench: Bench) -> None:
    circuit = "    to: {probe: {}, retry: {attempts: 3, first_wait: 1s}, circuit: {failures: 1, reset_after: 10s}}\n"
    async with bench.route(circuit) as route:
        script("out").does = raises(PeerError("away"))
        await post(route, {"n": 1})
        await post(route, {"n": 2})
        assert numbers() == [1]
        script("out").does = lambda message: None
        for _ in range(4):
            await bench.clock.advance(11)
            await settle(40)
        assert sorted(numbers()) == [1, 1, 2]  # type: ignore[type-var]
        assert memory_is_empty(route)
    assert states(bench) == ["delivered"] * 2


async def test_what_has_expired_is_not_sent(bench: Bench) -> None:
    async with bench.route("    expire_after: 5s\n" + ONE) as route:
        await route.pause(0)
        await post(route, {"n": 1})
        await bench.clock.advance(6)
        route.resume()
        await settle(40)
        assert numbers() == []
        assert memory_is_empty(route)
    assert states(bench) == ["expired"]


async def test_a_filtered_message_and_one_whose_step_fails_are_not_sent(bench: Bench) -> None:
    steps = '    steps: [{filter: body.n > 1}, {map: {n: "{{ body.n }}", x: "{{ body.n / body.d }}"}}]\n    to: {probe: {}}\n'
    async with bench.route(steps) as route:
        for n, d in ((1, 1), (2, 0), (3, 1)):
            await post(route, {"n": n, "d": d})
        assert numbers() == [3]
        assert memory_is_empty(route)
    assert states(bench) == ["filtered", "dead", "delivered"]


async def test_ends_of_one_turn_are_handed_over_together_and_each_is_let_go(bench: Bench) -> None:
    async with bench.route("    steps: [{set: {type: changed}}]\n    to: {probe: {}}\n") as route:
        takes = [route.take(Message(raw=None, parsed={"n": n}), answers=True, type_="test") for n in range(10)]
        await asyncio.gather(*takes)
        await settle(40)
        assert [len(commit) for commit in bench.journal.commits if commit] == [10]
        assert memory_is_empty(route)
    assert states(bench) == ["delivered"] * 10
