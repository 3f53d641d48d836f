"""Messages that are offered: no task waits for their commit; all else is as with those that are handed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from adapters.sqlite import open_journal
from gateway import Accepted, Deferred, Message, Outcome, Refused
from gateway.clock import SystemClock
from gateway.edge import Door
from gateway.journal import Backlog, JournalFullError, Waiting
from gateway.testing import settle, until
from tests.gateway.bench import Bench, post
from tests.gateway.probe import FEEDS, plug_in, script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


@asynccontextmanager
async def on_disk(bench: Bench) -> AsyncIterator[None]:
    """The bench keeps its messages in a file, and its clock goes by itself."""
    clock = SystemClock()
    async with open_journal(
        bench.folder, age_s=1e6, size_bytes=1 << 40, reserve_bytes=0, clock=clock, on_broken=pytest.fail
    ) as journal:
        bench.services = replace(bench.services, journal=journal, clock=clock)
        yield


def offered(number: int, **fields: object) -> tuple[bool, list[Outcome]]:
    """Offers a message by the door of the source: whether it was taken, and where its outcome will be."""
    door, outcomes = FEEDS["in"], list[Outcome]()
    assert isinstance(door, Door)
    message = Message(raw=None, parsed={"n": number, "k": "x"}, **fields)  # type: ignore[arg-type]
    return door.offer(message, outcomes.append), outcomes


def numbers(name: str = "out") -> list[object]:
    return [tree["n"] for tree in script(name).trees]  # type: ignore[index]


async def test_messages_of_one_key_go_in_their_order_whether_a_task_waits_for_them_or_not(bench: Bench) -> None:
    async with on_disk(bench), bench.route("    order_by: body.k\n    to: {probe: {}}\n") as route:
        for first in range(0, 40, 4):
            waits = [
                asyncio.create_task(
                    route.take(Message(raw=None, parsed={"n": first + n, "k": "x"}), answers=True, type_="test")
                )
                for n in (0, 1)
            ]
            await asyncio.sleep(0)
            assert offered(first + 2)[0]
            assert offered(first + 3)[0]
            await asyncio.gather(*waits)
        await until(lambda: len(numbers()) == 40)
        assert numbers() == list(range(40))
        assert route.gate.inside == 0


STORED = "    to: {probe: {}}\n"


def states(bench: Bench) -> list[str]:
    return [record.state for record in bench.journal.records.values()]


async def test_an_offer_is_answered_once_its_message_is_durable(bench: Bench) -> None:
    async with bench.route(STORED) as route:
        taken, outcomes = offered(1)
        assert taken
        assert (outcomes, states(bench), route.gate.inside) == ([], [], 1)
        await settle()
        (outcome,) = outcomes
        assert isinstance(outcome, Accepted)
        assert outcome.stored
        assert route.gate.inside == 0
        assert numbers() == [1]
    meters = bench.observed.route("r")
    assert (meters.received, meters.accepted, meters.stored, meters.in_flight) == (1, 1, 1, 0)
    assert states(bench) == ["delivered"]


@pytest.mark.parametrize(
    "settings",
    [
        "    accept: [{filter: body.n > 5}]\n",
        "    limits: {message: 10B}\n",
        "    order_by: body.none\n",
        "    priority: body.k\n",
        "    ack: delivered\n",
    ],
    ids=["filtered", "large", "no-key", "no-priority", "not-stored"],
)
async def test_what_is_refused_or_not_stored_is_left_to_be_handed_over(bench: Bench, settings: str) -> None:
    async with bench.route(settings + STORED) as route:
        raw = b'{"n": 1, "k": "x"}'
        assert not FEEDS["in"].offer(Message(raw=raw), pytest.fail)  # type: ignore[attr-defined]
        await settle()
        meters = bench.observed.route("r")
        assert (route.gate.inside, meters.in_flight, meters.received, states(bench)) == (0, 0, 0, [])


async def test_offers_are_refused_at_a_full_gate_and_none_overtakes_who_waits_there(bench: Bench) -> None:
    async with bench.route("    limits: {in_flight: 1}\n    order_by: body.k\n" + STORED) as route:
        assert offered(1)[0]
        assert not offered(0)[0]
        waiting = asyncio.create_task(post(route, {"n": 2, "k": "x"}))
        await asyncio.sleep(0)
        while not offered(3)[0]:  # not before the one that waits
            await asyncio.sleep(0)
        await waiting
        await settle()
        assert numbers() == [1, 2, 3]
        assert route.gate.inside == 0


async def test_a_full_journal_takes_no_offer(bench: Bench) -> None:
    async with bench.route(STORED) as route:
        bench.journal.full = True
        assert not offered(1)[0]
        assert route.gate.inside == 0
        assert isinstance(await post(route, {"n": 1}), Deferred)
    meters = bench.observed.route("r")
    assert (meters.received, meters.deferred, meters.stored) == (1, 1, 0)


async def test_a_commit_that_finds_no_room_defers_who_offered(bench: Bench) -> None:
    async with bench.route(STORED) as route:

        def no_room(name: str, message: Message, waiting: Waiting[bool]) -> None:
            error = JournalFullError("journal: no room; free some disk space")
            asyncio.get_running_loop().call_soon(waiting.set_exception, error)

        bench.journal.append = no_room  # type: ignore[assignment,method-assign]
        taken, outcomes = offered(1)
        assert taken
        await settle()
        assert [type(outcome) for outcome in outcomes] == [Deferred]
        assert route.gate.inside == 0
    meters = bench.observed.route("r")
    assert (meters.received, meters.deferred, meters.accepted, meters.stored) == (1, 1, 0, 0)


async def test_what_is_offered_to_a_paused_route_is_kept_until_it_resumes(bench: Bench) -> None:
    async with bench.route(STORED) as route:
        await route.pause(0)
        taken, outcomes = offered(1)
        assert taken
        await settle()
        assert [type(outcome) for outcome in outcomes] == [Accepted]
        assert numbers() == []
        route.resume()
        await settle()
        assert numbers() == [1]


@pytest.mark.parametrize("hands_over", ["offer", "task", "task-given-up"])
async def test_what_is_committed_after_its_route_was_paused_and_resumed_is_sent(bench: Bench, hands_over: str) -> None:
    append, commits = bench.journal.append, list[Callable[[], None]]()
    bench.journal.append = lambda *args: commits.append(partial(append, *args))  # type: ignore[method-assign]
    async with bench.route(STORED) as route:
        if hands_over == "offer":
            assert offered(1)[0]
        else:
            posting = asyncio.create_task(post(route, {"n": 1}))
            await settle()
            if hands_over == "task-given-up":
                posting.cancel()
        await route.pause(0)
        route.resume()
        await settle()
        assert numbers() == []
        commits[0]()
        await settle(40)
        assert numbers() == [1]
        assert route.gate.inside == 0
    assert states(bench) == ["delivered"]


async def test_memory_catches_up_with_the_journal_while_messages_keep_coming(bench: Bench) -> None:
    async with bench.route(STORED) as route:
        await route.pause(0)
        for number in range(20):
            await post(route, {"n": number})
        stored, asked = bench.journal.stored, 0

        async def while_one_comes(name: str, exclude: Collection[str], limit: int, max_bytes: int) -> Backlog:
            nonlocal asked
            asked += 1
            found = await stored(name, exclude, limit, max_bytes)
            if asked < 100:
                await route.take(Message(raw=None, parsed={"n": 19 + asked}), answers=True, type_="test")
            return found

        bench.journal.stored = while_one_comes  # type: ignore[assignment,method-assign]
        route.resume()
        await settle(200)
        assert asked < 5
        assert numbers() == list(range(20 + asked))
    assert set(states(bench)) == {"delivered"}


async def test_what_comes_while_memory_catches_up_is_bounded_and_goes_in_its_order(bench: Bench) -> None:
    async with bench.route("    order_by: body.k\n    limits: {in_memory: 4}\n    concurrency: 1\n" + STORED) as route:
        await route.pause(0)
        for number in range(2):
            await post(route, {"n": number, "k": "x"})
        stored, most, count = bench.journal.stored, 0, 2

        async def while_many_come(name: str, exclude: Collection[str], limit: int, max_bytes: int) -> Backlog:
            nonlocal most, count
            found = await stored(name, exclude, limit, max_bytes)
            for _ in range(5 if count < 40 else 0):
                assert offered(count)[0]
                count += 1
            await settle(3)
            assert route.delivering is not None
            most = max(most, len(route.delivering._jobs) + len(route.delivering._late or ()))
            return found

        bench.journal.stored = while_many_come  # type: ignore[assignment,method-assign]
        route.resume()
        await settle(600)
        sent = numbers()
        assert sent == sorted(set(sent))  # type: ignore[type-var]
        assert len(sent) == len(bench.journal.records) == count > 40
        assert most <= 8
        assert route.gate.inside == 0
    assert set(states(bench)) == {"delivered"}


async def test_a_fault_of_the_journal_is_told_and_counted_and_so_is_one_of_who_offered(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(route: str, message: Message) -> bool:
        raise ValueError("a bug")

    honest = bench.journal._keep
    bench.journal._keep = keep  # type: ignore[method-assign]
    async with bench.route(STORED) as route:
        taken, outcomes = offered(1)
        await until(lambda: len(outcomes) == 1)
        assert taken
        assert [type(one) for one in outcomes] == [Refused]
        assert bench.services.observed.route("r").errors == 1

        bench.journal._keep = honest  # type: ignore[method-assign]

        def then(outcome: Outcome) -> None:
            raise ValueError("another bug")

        door = FEEDS["in"]
        assert isinstance(door, Door)
        assert door.offer(Message(raw=None, parsed={"n": 2}), then)
        await until(lambda: numbers() == [2])
        assert route.gate.inside == 0
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "message failed",
        "sender was not told",
    ]
