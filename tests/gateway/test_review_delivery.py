"""What happens to stored messages at the edges: cancelled waits, bugs of components, changes from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway import Message, MessageError, PeerError, delivery
from gateway.jobs import Lane
from gateway.journal import Change
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, replies, script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


def numbers(name: str = "out") -> list[object]:
    return [tree["n"] for tree in script(name).trees]  # type: ignore[index]


def states(bench: Bench) -> list[str]:
    return [record.state for record in bench.journal.records.values()]


def held_back(error: Exception | None = None) -> asyncio.Event:
    """The sink takes what comes, or raises the error, once the event is set."""
    release = asyncio.Event()

    async def does(_: Message) -> None:
        await release.wait()
        if error is not None:
            raise error

    script("out").does = does
    return release


ORDERED = "    order_by: body.k\n    to: {probe: {}, retry: {attempts: 9, first_wait: 10s}}\n"


async def test_a_replayed_message_waits_for_what_is_sent_in_its_lane(bench: Bench) -> None:
    async with bench.route(ORDERED) as route:
        script("out").does = raises(MessageError("no"))
        await post(route, {"k": "x", "n": 1})
        (dead,) = bench.journal.records
        release = held_back()
        await post(route, {"k": "x", "n": 2})
        assert await bench.journal.replay([dead], None, "me") == 1
        assert route.delivering is not None
        route.delivering.poke()
        await settle(40)
        assert numbers() == [1, 2]
        release.set()
        await settle(40)
        assert numbers() == [1, 2, 1]
    assert states(bench) == ["delivered", "delivered"]


async def test_what_fails_while_lanes_are_counted_still_holds_back_its_lane(bench: Bench) -> None:
    async with bench.route(ORDERED) as route:
        release = held_back(PeerError("away"))
        await post(route, {"k": "x", "n": 1})
        count, counted = bench.journal.lanes, asyncio.Event()

        async def slow(name: str) -> Mapping[Lane, int]:
            before = await count(name)
            await counted.wait()
            return before

        bench.journal.lanes = slow  # type: ignore[assignment,method-assign]
        assert route.delivering is not None
        route.delivering.poke()
        await settle()
        release.set()
        await settle()
        counted.set()
        await settle()
        await post(route, {"k": "x", "n": 2})
        script("out").does = lambda message: None
        await bench.clock.advance(11)
        await settle(40)
        assert numbers() == [1, 1, 2]
    assert states(bench) == ["delivered", "delivered"]


async def test_a_replayed_message_stays_behind_what_fails_in_its_lane(bench: Bench) -> None:
    async with bench.route(ORDERED) as route:
        script("out").does = raises(MessageError("no"))
        await post(route, {"k": "x", "n": 1})
        (dead,) = bench.journal.records
        release = held_back(PeerError("away"))
        await post(route, {"k": "x", "n": 2})
        await bench.journal.replay([dead], None, "me")
        assert route.delivering is not None
        route.delivering.poke()
        await settle(40)
        script("out").does = lambda message: None
        release.set()
        await settle(40)
        await bench.clock.advance(11)
        await settle(40)
        assert numbers() == [1, 2, 2, 1]
    assert states(bench) == ["delivered", "delivered"]


async def test_a_message_stays_in_memory_until_its_deliveries_are_committed(bench: Bench) -> None:
    settings = "    to:\n      - {probe: {name: a}, name: a}\n      - {probe: {name: b}, name: b}\n"
    async with bench.route(settings) as route:
        release, commit = asyncio.Event(), asyncio.Event()
        advance = bench.journal.advance

        def late(name: str, changes: Sequence[Change]) -> asyncio.Future[None]:
            async def written() -> None:
                await commit.wait()
                await advance(name, changes)

            return asyncio.ensure_future(written())

        async def slow(_: Message) -> None:
            await release.wait()

        bench.journal.advance = late  # type: ignore[assignment,method-assign]
        script("a").does = raises(MessageError("no"))
        script("b").does = slow
        await post(route, {"n": 1})
        release.set()
        await settle()
        assert route.delivering is not None
        route.delivering._spilled = True
        route.delivering._wake.set()
        await settle()
        commit.set()
        await settle(60)
        assert (numbers("a"), numbers("b")) == ([1], [1])
    assert states(bench) == ["dead"]


async def test_a_stop_does_not_wait_for_a_journal_that_finds_no_room(bench: Bench) -> None:
    """What is half done waits for room: the process must end all the same, before somebody kills it."""
    settings = "    to:\n      - {probe: {name: a}, name: a}\n      - {probe: {name: b}, name: b}\n"
    held, never = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def slow(_: Message) -> None:
        await held.wait()

    async with asyncio.timeout(20):
        async with bench.route(settings) as route:
            script("b").does = slow
            await post(route, {"n": 1})
            bench.journal.advance = lambda name, changes: never  # type: ignore[method-assign,assignment]
        assert numbers("a") == [1]
    assert states(bench) == ["stored"]


async def test_while_memory_has_all_that_it_may_take_the_journal_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BATCH", 2)
    async with bench.route("    to: {probe: {}, retry: {attempts: 9, first_wait: 10s}}\n") as route:
        script("out").does = raises(PeerError("away"))
        for n in range(4):
            await post(route, {"n": n})
        release = held_back()
        await bench.clock.advance(11)
        assert len(numbers()) == 6
        bench.clock.slept.clear()
        for _ in range(20):
            await bench.clock.advance(0.01)
        assert bench.clock.slept == []
        release.set()
        await settle(40)
    assert states(bench) == ["delivered"] * 4


async def test_what_is_due_is_sent_also_while_memory_is_full_of_written_messages(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BATCH", 2)
    steps = "    steps: [{call: {probe: {name: asked}, into: body.x, name: asked}}]\n"
    script("asked").does = replies({})
    async with bench.route(steps + "    to: {probe: {}, retry: {attempts: 9, first_wait: 10s}}\n") as route:
        script("out").does = raises(PeerError("away"))
        await post(route, {"n": 1})
        release = held_back()
        for n in (2, 3):
            await post(route, {"n": n})
        await bench.clock.advance(11)
        await settle(40)
        assert numbers() == [1, 2, 3, 1]
        release.set()
        await settle(40)
    assert states(bench) == ["delivered"] * 3


async def test_what_failed_before_those_ahead_of_it_waits_for_its_own_time(bench: Bench) -> None:
    """An urgent message overtakes others of its lane in the journal; behind them again, it keeps what it has to wait."""
    release = held_back()
    settings = "    priority: body.p\n    limits: {in_memory: 1}\n"
    async with bench.route(settings + ORDERED) as route:
        await post(route, {"k": "y", "n": 0, "p": 0})
        for n, p in ((1, 0), (2, 0), (3, 9)):
            await post(route, {"k": "x", "n": n, "p": p})
        urgent = script("out")
        urgent.does = lambda message: raises(PeerError("busy"))(message) if message.priority else None
        release.set()
        await settle(80)
        assert numbers() == [0, 3, 1, 2]
        urgent.does = lambda message: None
        await bench.clock.advance(11)
        await settle(40)
        assert numbers() == [0, 3, 1, 2, 3]
    assert states(bench) == ["delivered"] * 4


async def test_of_large_bodies_the_journal_gives_out_no_more_than_memory_may_hold(bench: Bench) -> None:
    settings = "    limits: {in_memory_size: 3KiB}\n    to: {probe: {}, retry: {attempts: 9, first_wait: 10s}}\n"
    async with bench.route(settings) as route:
        script("out").does = raises(PeerError("away"))
        for n in range(8):
            await post(route, {"n": n, "text": "x" * 1000})
        release = held_back()
        await bench.clock.advance(11)
        await settle(80)
        assert len(numbers()) == 8 + 4  # about: the last one goes over it
        release.set()
        await settle(200)
        assert sorted(map(str, numbers()[8:])) == list("01234567")
    assert states(bench) == ["delivered"] * 8


async def test_what_expires_while_it_waits_for_a_retry_holds_up_its_lane_no_longer(bench: Bench) -> None:
    settings = "    expire_after: 20s\n    order_by: body.k\n    to: {probe: {}, retry: {first_wait: 100s}}\n"
    async with bench.route(settings) as route:
        script("out").does = raises(PeerError("away"))
        await post(route, {"k": "x", "n": 1})
        await bench.clock.advance(10)
        await post(route, {"k": "x", "n": 2})
        script("out").does = lambda message: None
        await bench.clock.advance(9.9)
        await settle(40)
        assert (numbers(), states(bench)) == ([1], ["pending", "pending"])
        await bench.clock.advance(0.2)
        await settle(40)
        assert numbers() == [1, 2]
    assert states(bench) == ["expired", "delivered"]
    reason = next(iter(bench.journal.records.values())).reason
    assert reason is not None
    assert reason.text == "its deadline passed before the target had taken it"
