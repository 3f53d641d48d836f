"""Discarded messages that are in memory: once the discard is answered nothing of them begins, and the books balance."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gateway import Accepted, Message, MessageError, Outcome, PeerError
from gateway.edge import Door
from gateway.route import Route
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import FEEDS, plug_in, raises, script
from tests.gateway.test_review_random import SEEDS, LateJournal


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


def numbers(name: str = "out") -> list[object]:
    return [tree["n"] for tree in script(name).trees]  # type: ignore[index]


def states(bench: Bench) -> list[str]:
    return [record.state for record in bench.journal.records.values()]


def held(name: str = "out", error: Exception | None = None) -> asyncio.Event:
    """The sink takes what comes, or raises the error, once the event is set."""
    release = asyncio.Event()

    async def does(_: Message) -> None:
        await release.wait()
        if error is not None:
            raise error

    script(name).does = does
    return release


async def discard(bench: Bench, route: Route, number: int) -> str:
    """Discards the message with this number, as the API does. Its id, unless it had ended before."""
    (found,) = [
        record.message.id
        for record in bench.journal.records.values()
        if record.message.tree["n"] == number  # type: ignore[index,call-overload]
    ]
    if not await bench.journal.discard([found], "me"):
        return ""  # it had just ended
    assert route.delivering is not None
    route.delivering.discard([found])
    return found


def memory_is_empty(route: Route) -> bool:
    delivering = route.delivering
    assert delivering is not None
    dispatch = delivering._dispatch
    return not (delivering._jobs or dispatch.busy or dispatch.lanes or dispatch.discarded)


ONE = "    concurrency: 1\n    to: {probe: {}, retry: {attempts: 9, first_wait: 10s}}\n"
ORDERED = "    order_by: body.k\n    to: {probe: {}, retry: {attempts: 9, first_wait: 10s}}\n"


async def test_what_waits_in_memory_for_its_turn_is_not_sent(bench: Bench) -> None:
    async with bench.route(ONE) as route:
        release = held()
        for n in range(1, 5):
            await post(route, {"n": n})
        await discard(bench, route, 2)
        await discard(bench, route, 4)
        release.set()
        await settle(40)
        assert numbers() == [1, 3]
        assert memory_is_empty(route)
    assert states(bench) == ["delivered", "discarded", "delivered", "discarded"]


async def test_what_waits_for_one_of_the_sends_of_its_target_is_not_sent(bench: Bench) -> None:
    """Steps and retries each have as many workers as the target takes sends: some wait behind them."""
    async with bench.route(ONE) as route:
        script("out").does = raises(PeerError("away"))
        await post(route, {"n": 1})
        release = held()
        await post(route, {"n": 2})
        await bench.clock.advance(11)
        await settle(20)
        assert numbers() == [1, 2]
        await discard(bench, route, 1)
        release.set()
        await settle(40)
        assert numbers() == [1, 2]
        assert memory_is_empty(route)
    assert states(bench) == ["discarded", "delivered"]


@pytest.mark.parametrize("error", [None, PeerError("away"), MessageError("no")], ids=["taken", "away", "refused"])
async def test_what_is_being_sent_may_finish_and_its_lane_goes_on(bench: Bench, error: Exception | None) -> None:
    async with bench.route(ORDERED) as route:
        release = held(error=error)
        for n in (1, 2, 3):
            await post(route, {"n": n, "k": "x"})
        await discard(bench, route, 1)
        await discard(bench, route, 2)
        script("out").does = lambda message: None
        release.set()
        await settle(40)
        await post(route, {"n": 4, "k": "x"})
        await bench.clock.advance(60)
        await settle(40)
        assert numbers() == [1, 3, 4]
        assert memory_is_empty(route)
    assert states(bench) == ["discarded", "discarded", "delivered", "delivered"]


@pytest.mark.parametrize("error", [None, PeerError("away"), MessageError("no")], ids=["taken", "away", "refused"])
async def test_what_is_sent_without_a_parcel_may_finish_too(bench: Bench, error: Exception | None) -> None:
    async with bench.route(ONE) as route:
        release = held(error=error)
        await post(route, {"n": 1})
        assert numbers() == [1]
        one = await discard(bench, route, 1)
        release.set()
        await settle(40)
        await bench.clock.advance(60)
        assert numbers() == [1]
        assert memory_is_empty(route)
        assert states(bench) == ["discarded"]
        assert await bench.journal.replay([one], None, "me") == 1
        script("out").does = lambda message: None
        assert route.delivering is not None
        route.delivering.poke()
        await settle(40)
    assert numbers() == [1, 1]
    assert states(bench) == ["delivered"]


async def test_what_is_tried_again_from_the_journal_is_tried_no_more(bench: Bench) -> None:
    async with bench.route(ORDERED) as route:
        script("out").does = raises(PeerError("away"))
        for n in (1, 2, 3):
            await post(route, {"n": n, "k": "x"})
        release = held(error=PeerError("away"))
        await bench.clock.advance(11)
        assert numbers() == [1, 1]
        await discard(bench, route, 1)
        await discard(bench, route, 2)
        script("out").does = lambda message: None
        release.set()
        await bench.clock.advance(60)
        await settle(40)
        await post(route, {"n": 4, "k": "x"})
        assert numbers() == [1, 1, 3, 4]
        assert memory_is_empty(route)
    assert states(bench) == ["discarded", "discarded", "delivered", "delivered"]


async def test_a_step_that_asks_again_and_again_ends(bench: Bench) -> None:
    steps = "    steps: [{call: {probe: {name: asked}, into: body.x, name: asked}}]\n"
    async with bench.route(steps + "    retry: {attempts: 9, first_wait: 10s}\n    to: {probe: {}}\n") as route:
        script("asked").does = raises(PeerError("away"))
        await post(route, {"n": 1})
        assert numbers("asked") == [1]
        await discard(bench, route, 1)
        for _ in range(5):
            await bench.clock.advance(100)
        assert numbers("asked") == [1]
        assert numbers() == []
        assert memory_is_empty(route)
        await post(route, {"n": 2})
        assert numbers("asked") == [1, 2]
    assert states(bench) == ["discarded", "stored"]


async def test_a_message_that_waits_for_the_steps_of_another_is_not_begun(bench: Bench) -> None:
    steps = "    order_by: body.k\n    steps: [{call: {probe: {name: asked}, into: body.x, name: asked}}]\n    to: {probe: {}}\n"
    async with bench.route(steps) as route:
        release = held("asked", MessageError("no"))
        for n in (1, 2, 3):
            await post(route, {"n": n, "k": "x"})
        await discard(bench, route, 2)
        release.set()
        await settle(40)
        assert numbers("asked") == [1, 3]
        assert memory_is_empty(route)
    assert states(bench) == ["dead", "discarded", "dead"]


async def test_a_replay_is_not_ended_by_the_dead_letter_that_it_was_before(bench: Bench) -> None:
    """It was being handed over when it was discarded and replayed: the journal has it anew."""
    async with bench.route(ONE + "    dead_letter: {probe: {name: dead}, name: dlq}\n") as route:
        script("out").does = raises(PeerError("away"))
        await post(route, {"n": 1})
        release = held("dead")
        script("out").does = raises(MessageError("no"))
        await bench.clock.advance(11)
        assert numbers("dead") == [1]
        one = await discard(bench, route, 1)
        assert await bench.journal.replay([one], "probe", "me") == 1
        script("out").does = lambda message: None
        assert route.delivering is not None
        route.delivering.poke()
        await settle(20)
        release.set()
        await settle(40)
        assert numbers() == [1, 1, 1]
    assert states(bench) == ["delivered"]


async def test_the_target_for_dead_letters_does_not_get_it(bench: Bench) -> None:
    async with bench.route(ONE + "    dead_letter: {probe: {name: dead}, name: dlq}\n") as route:
        release = held(error=MessageError("no"))
        await post(route, {"n": 1})
        await discard(bench, route, 1)
        release.set()
        await settle(40)
        assert memory_is_empty(route)
    assert numbers("dead") == []
    assert states(bench) == ["discarded"]


async def test_of_many_targets_those_that_did_not_have_it_do_not_get_it(bench: Bench) -> None:
    settings = "    concurrency: 1\n    to:\n      - {probe: {name: a}, name: a}\n      - {probe: {name: b}, name: b}\n"
    async with bench.route(settings) as route:
        release = held("b")
        for n in (1, 2):
            await post(route, {"n": n})
        assert (numbers("a"), numbers("b")) == ([1, 2], [1])
        await discard(bench, route, 2)
        release.set()
        await settle(40)
        assert (numbers("a"), numbers("b")) == ([1, 2], [1])
        assert memory_is_empty(route)
    assert states(bench) == ["delivered", "discarded"]


async def test_children_of_a_split_are_not_sent(bench: Bench) -> None:
    settings = "    concurrency: 1\n    steps: [{split: {each: body.lines}}]\n    to: {probe: {}}\n"
    async with bench.route(settings) as route:
        release = held()
        await post(route, {"n": 1, "lines": [{"n": "1a"}, {"n": "1b"}, {"n": "1c"}]})
        await discard(bench, route, 1)
        release.set()
        await settle(40)
        assert numbers() == ["1a"]
        assert memory_is_empty(route)
    assert states(bench) == ["discarded"]


async def test_what_the_journal_gave_out_just_before_is_not_begun(bench: Bench) -> None:
    async with bench.route(ONE) as route:
        await route.pause(0)
        await post(route, {"n": 1})
        claim, claimed = bench.journal.claim, asyncio.Event()

        async def slow(name: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
            await claimed.wait()
            await claim(name, messages, deliveries)

        bench.journal.claim = slow  # type: ignore[method-assign,assignment]
        route.resume()
        await settle()
        await discard(bench, route, 1)
        claimed.set()
        await settle(40)
        assert numbers() == []
        assert memory_is_empty(route)
    assert states(bench) == ["discarded"]


async def test_what_is_replayed_while_its_last_send_goes_on_is_sent_again(bench: Bench) -> None:
    async with bench.route(ONE) as route:
        release = held()
        await post(route, {"n": 1})
        message_id = await discard(bench, route, 1)
        assert await bench.journal.replay([message_id], None, "me") == 1
        assert route.delivering is not None
        route.delivering.poke()
        await settle(20)
        release.set()
        await settle(40)
        assert numbers() == [1, 1]
        assert memory_is_empty(route)
    assert states(bench) == ["delivered"]


RANDOM = """
    concurrency: 2
    limits: {in_memory: 6}
    retry: {attempts: 9, first_wait: 2s}
    steps:
      - choose: [{when: body.n % 4 == 1, steps: [{call: {probe: {name: asked}, into: body.x, name: asked}}]}]
    to:
      - {probe: {name: a}, name: a, when: body.n % 3 != 0, retry: {attempts: 99, first_wait: 1s}}
      - {probe: {name: b}, name: b, retry: {attempts: 99, first_wait: 1s}}
"""

PLAIN = "    concurrency: 2\n    limits: {in_memory: 6}\n    to: {probe: {name: b}, retry: {attempts: 99, first_wait: 1s}}\n"


class Play:
    """Messages that come, targets that take their time and fail, and an operator who discards."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.luck = random.Random(seed)
        self.gone: set[int] = set()
        self.outcomes: list[Outcome] = []
        self.late: list[int] = []
        self._calm = False
        self._turns: list[asyncio.Future[None]] = []
        for name in ("a", "b", "asked"):
            script(name).does = self._does

    async def _does(self, message: Message) -> Message:
        number = message.tree["n"]  # type: ignore[index,call-overload]
        if number in self.gone:
            self.late.append(number)
        if self._calm:
            return Message(raw=b"{}")
        if self.luck.random() < 0.6:
            self._turns.append(asyncio.get_running_loop().create_future())
            await self._turns[-1]
        if self.luck.random() < 0.4:
            raise PeerError("away")
        return Message(raw=b"{}")

    def _let_some_go_on(self) -> None:
        while self._turns and (self._calm or self.luck.random() < 0.5):
            turn = self._turns.pop(self.luck.randrange(len(self._turns)))
            if not turn.done():
                turn.set_result(None)

    async def run(self, route: Route) -> None:
        luck = self.luck
        for number in range(60):
            tree = {"n": number, "k": luck.choice("xy")}
            door = FEEDS["in"]
            assert isinstance(door, Door)
            if luck.random() < 0.5 or not door.offer(Message(raw=None, parsed=tree), self.outcomes.append):
                self.outcomes.append(await post(route, tree))
            self._let_some_go_on()
            if luck.random() < 0.5:
                await self._discard_one(route)
            await settle(luck.randrange(10))
            if luck.random() < 0.4:
                await self.bench.clock.advance(luck.random() * 3)
        self._calm = True
        for _ in range(80):
            self._let_some_go_on()
            await settle(30)
            await self.bench.clock.advance(5)

    async def _discard_one(self, route: Route) -> None:
        open_ones: list[int] = [
            record.message.tree["n"]  # type: ignore[index,call-overload,misc]
            for record in self.bench.journal.records.values()
            if record.state in ("stored", "pending")
        ]
        if open_ones:
            chosen = self.luck.choice(open_ones)
            if await discard(self.bench, route, chosen):
                self.gone.add(chosen)


class Late(LateJournal):
    """Commits late, and discards late."""

    async def discard(self, ids: Sequence[str], by: str) -> int:
        counts: list[int] = []

        def apply() -> None:
            counts.append(0)
            for one in ids:
                record = self.records[one]
                if record.state in ("stored", "pending", "dead"):
                    record.state, record.reason, counts[-1] = "discarded", None, counts[-1] + 1
                    for delivery in record.deliveries:
                        if delivery.state in ("pending", "dead"):
                            delivery.state = "discarded"
            self._wake_lanes("r")

        await self._later(apply)
        return sum(counts)


@pytest.mark.parametrize(
    "settings", ["    order_by: body.k" + RANDOM, RANDOM, PLAIN], ids=["keys", "no-keys", "no-parcels"]
)
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_after_a_discard_nothing_begins_whatever_goes_on(
    bench: Bench, seed: int, late: bool, settings: str
) -> None:
    if late:
        bench.journal = Late(bench.clock, random.Random(seed))
        bench.services = replace(bench.services, journal=bench.journal)
    play = Play(bench, seed)
    async with bench.route(settings) as route:
        await play.run(route)
        assert route.delivering is not None
        route.delivering.poke()  # lanes that moved while they were counted are counted again when there is something to do
        await settle(20)
        assert memory_is_empty(route)
        assert route.gate.inside == 0
    assert Counter(map(type, play.outcomes)) == {Accepted: 60}
    assert play.late == []
    assert set(states(bench)) == {"delivered", "discarded"}
    assert Counter(states(bench))["discarded"] == len(play.gone) > 5
    for name in ("a", "b") if "order_by" in settings else ():
        for key in "xy":
            sent = [tree["n"] for tree in script(name).trees if tree["k"] == key]  # type: ignore[index]
            firsts = list(dict.fromkeys(sent))
            assert firsts == sorted(firsts), (name, key)
