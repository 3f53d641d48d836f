"""Random failures, lost senders, replays and pauses on a journal that commits and answers late: all arrives, once."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from adapters.memory import box
from gateway import Message, MessageError, Outcome, PeerError
from gateway.edge import Door
from gateway.journal import Backlog, Change, Due, Expanded, Waiting
from gateway.ports import Clock
from gateway.route import Route
from gateway.testing import settle
from tests.gateway.test_delivery import Bench, sent
from tests.memory_journal import MemoryJournal, _copied

T = TypeVar("T")

SEEDS = range(int(os.environ.get("RANDOM_SEEDS", "25")))
"""`RANDOM_SEEDS`: how many plays of each kind."""
ORDER = "    order_by: body.k\n"
ROUTE = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
ORDER    concurrency: 3
    limits: {in_memory: 6}
    steps: [{choose: [{when: body.n > 5, steps: [{set: {type: large}}]}]}]
    to:
      - {memory: {name: a}, name: a, when: body.n % 3 != 0, retry: {attempts: 1000, first_wait: 1s, max_wait: 4s}}
      - {memory: {name: b}, name: b, retry: {attempts: 1000, first_wait: 1s, max_wait: 4s}}
"""

PLAIN = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    concurrency: 3
    limits: {in_memory: 6}
    steps: [{set: {type: changed}}]
    to: {memory: {name: b}, name: b, retry: {attempts: 1000, first_wait: 1s, max_wait: 4s}}
"""
"""What comes out of its steps is sent without a parcel."""


class LateJournal(MemoryJournal):
    """Applies changes in their order but later, tells so later still, and answers with what was a moment ago."""

    def __init__(self, clock: Clock, luck: random.Random) -> None:
        super().__init__(clock)
        self._luck = luck
        self._applied: asyncio.Future[Any] | None = None
        self._told: asyncio.Future[Any] | None = None

    async def _a_while(self) -> None:
        await settle(self._luck.randrange(4))

    def _later(self, apply: Callable[[], T]) -> asyncio.Future[T]:
        before, told_before = self._applied, self._told
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def applied() -> T:
            if before is not None:
                await asyncio.wait({before})
            await self._a_while()
            return apply()

        applying = asyncio.ensure_future(applied())

        async def told() -> None:
            result = await applying
            if told_before is not None:
                await asyncio.wait({told_before})
            await self._a_while()
            if not future.done():
                future.set_result(result)

        self._applied, self._told = applying, asyncio.ensure_future(told())
        return future

    def append(self, route: str, message: Message, waiting: Waiting[bool]) -> None:
        kept = message.replace(raw=message.body)

        def tell(done: asyncio.Future[bool]) -> None:
            if not waiting.done():
                waiting.set_result(done.result())

        self._later(lambda: self._keep(route, kept)).add_done_callback(tell)

    def advance(self, route: str, changes: Sequence[Change]) -> asyncio.Future[None]:
        as_they_are = [
            Expanded(change.id, [_copied(one) for one in change.deliveries], change.hops, change.attempts)
            if isinstance(change, Expanded)
            else change
            for change in changes
        ]

        def apply() -> None:
            for change in as_they_are:
                self._apply(change)
            self._wake_lanes(route)

        return self._later(apply)

    async def claim(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        await self._later(lambda: None)
        await super().claim(route, messages, deliveries)

    async def stored(self, route: str, exclude: Collection[str], limit: int, max_bytes: int) -> Backlog:
        found = await super().stored(route, exclude, limit, max_bytes)
        await self._a_while()
        return found

    async def due(
        self, route: str, exclude: Collection[tuple[str, str]], limit: int, max_bytes: int | None = None
    ) -> Sequence[Due]:
        found = await super().due(route, exclude, limit, max_bytes)
        await self._a_while()
        return found

    async def queued(
        self, route: str, lanes: Collection[tuple[str, str]], limit: int
    ) -> Mapping[tuple[str, str], Sequence[Due]]:
        found = await super().queued(route, lanes, limit)
        await self._a_while()
        return found

    async def lanes(self, route: str) -> Mapping[tuple[str, str], int]:
        found = await super().lanes(route)
        await self._a_while()
        return found

    async def replay_dead(self, most: int) -> None:
        dead = [one for one, record in self.records.items() if record.state == "dead"]
        chosen = self._luck.sample(dead, min(most, len(dead)))
        await self._later(lambda: [self._replayed(one, None, "me") for one in chosen])


class Play:
    """What happens to one route."""

    def __init__(self, folder: Path, yaml: str, seed: int, *, refusing: bool) -> None:
        self.bench = Bench(folder, yaml)
        self.luck = random.Random(seed)
        self.journal = self.bench.journal = LateJournal(self.bench.clock, self.luck)
        self._faults = [PeerError("away"), *([MessageError("no")] if refusing else [])]
        self._number = 0
        self.accepted: set[str] = set()
        self.answers: Counter[str] = Counter()
        """Of what was offered."""

    async def run(self) -> None:
        for _ in range(2):  # a restart each
            await self._harm()
        for name in ("a", "b"):
            box(name).failing = None
        async with self.bench.running() as route:
            for _ in range(40):
                await self.journal.replay_dead(1000)
                assert route.delivering is not None
                route.delivering.poke()
                await settle(60)
                await self.bench.clock.advance(5)
            assert route.gate.inside == 0
            assert route.delivering is not None
            assert not route.delivering._jobs

    async def _harm(self) -> None:
        luck = self.luck
        async with self.bench.running() as route:
            takes: list[asyncio.Task[object]] = []
            for _ in range(20):
                for name in ("a", "b"):
                    box(name).failing = luck.choice(self._faults) if luck.random() < 0.4 else None
                for _ in range(luck.randrange(4)):
                    self._send(route, takes)
                if luck.random() < 0.3:
                    await self.journal.replay_dead(3)
                    assert route.delivering is not None
                    route.delivering.poke()
                if luck.random() < 0.05:
                    await route.pause(5)
                    route.resume()
                await settle(luck.randrange(40))
                if luck.random() < 0.5:
                    await self.bench.clock.advance(luck.random() * 3)
            await asyncio.gather(*takes, return_exceptions=True)
            async with asyncio.timeout(5):
                await route.gate.drained()
            assert self.accepted <= {*self.journal.records}
            assert all(count == 1 for count in self.answers.values())

    def _send(self, route: Route, takes: list[asyncio.Task[object]]) -> None:
        """Half of them are offered; of the others some senders give up."""
        luck = self.luck
        message = Message(raw=None, parsed={"k": luck.choice("xyz"), "n": self._number})
        self._number += 1

        def then(outcome: Outcome) -> None:
            assert outcome.id in self.journal.records  # answered once it is durable
            self.accepted.add(outcome.id)
            self.answers[outcome.id] += 1

        if luck.random() < 0.5 and Door(route._edge, "test", answers=True).offer(message, then):
            self.answers[message.id] += 0
            return
        takes.append(asyncio.create_task(route.take(message, answers=True, type_="test")))
        if luck.random() < 0.1:
            asyncio.get_running_loop().call_soon(takes[-1].cancel)


@pytest.fixture(autouse=True)
def empty_boxes() -> None:
    for name in ("a", "b"):
        box(name).received.clear()
        box(name).failing = None


@pytest.mark.parametrize("order", [ORDER, ""], ids=["keys", "no-keys"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_stored_message_arrives_once_whatever_is_replayed(tmp_path: Path, seed: int, order: str) -> None:
    play = Play(tmp_path, ROUTE.replace("ORDER", order), seed, refusing=True)
    await play.run()
    check(play)


@pytest.mark.parametrize("refusing", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_so_it_does_where_no_parcel_is_made_of_it(tmp_path: Path, seed: int, refusing: bool) -> None:
    play = Play(tmp_path, PLAIN, seed, refusing=refusing)
    await play.run()
    check(play, "b")


@pytest.mark.parametrize("seed", SEEDS)
async def test_and_in_the_order_of_their_keys_while_nothing_is_refused(tmp_path: Path, seed: int) -> None:
    play = Play(tmp_path, ROUTE.replace("ORDER", ORDER), seed, refusing=False)
    await play.run()
    check(play)
    turns = {record.message.tree["n"]: record.turn for record in play.journal.records.values()}  # type: ignore[index,call-overload]
    for name in ("a", "b"):
        by_key: dict[str, list[int]] = defaultdict(list)
        for tree in sent(name):
            by_key[tree["k"]].append(turns[tree["n"]])
        assert all(found == sorted(found) for found in by_key.values()), (name, by_key)


def check(play: Play, targets: str = "ab") -> None:
    assert set(play.bench.states()) <= {"delivered"}
    stored = {record.message.tree["n"] for record in play.journal.records.values()}  # type: ignore[index,call-overload]
    assert Counter(tree["n"] for tree in sent("b")) == Counter(stored)
    if "a" in targets:
        assert Counter(tree["n"] for tree in sent("a")) == Counter(number for number in stored if number % 3)
