"""Random failures, replays, discards, pauses and restarts of a route on a real journal: all ends, once, in order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import Message, MessageError, PeerError
from gateway.config import load
from gateway.host import Services
from gateway.journal import Filter, Journal
from gateway.observe import Observed
from gateway.route import Route
from gateway.testing import ManualClock
from tests.adapters.test_sqlite import opened
from tests.gateway.probe import Does, plug_in, script

YAML = """
version: 1
routes:
  r:
    from: {probe: {}}
ORDER    concurrency: 3
    limits: {in_memory: 6}
    steps: [STEPS]
    to:
      - {probe: {name: a}, name: a, when: body.n % 3 != 0, RETRY}
      - {probe: {name: b}, name: b, circuit: {failures: 2, reset_after: 2s}, RETRY}
"""
RETRY = "retry: {attempts: 1000, first_wait: 1s, max_wait: 4s}"
ORDER = "    order_by: body.k\n"
SPLIT = "{split: {each: body.parts, steps: []}}"


class Play:
    """What happens to one route, over several starts."""

    def __init__(self, folder: Path, yaml: str, seed: int, *, operated: bool) -> None:
        self._folder = folder
        (folder / "routes.yaml").write_text(yaml.replace("RETRY", RETRY))
        self._config = load(folder / "routes.yaml")
        self._luck = random.Random(seed)
        self._operated = operated
        self.clock = ManualClock()
        self.stored: dict[str, int] = {}
        """The number of each message by its id."""
        self.got: dict[str, list[Message]] = {"a": [], "b": []}
        self._fails = {"a": 0.0, "b": 0.0}

    async def run(self) -> dict[str, int]:
        for name in self.got:
            script(name).does = self._sink(name)
        for _ in range(3):
            async with opened(self._folder / "data", self.clock) as journal:
                await self._with_route(journal, self._harm)
        self._fails = dict.fromkeys(self._fails, 0.0)
        async with opened(self._folder / "data", self.clock) as journal:
            await self._with_route(journal, self._until_empty)
            return {state: n for state, n in journal.counts()["r"].items() if n}

    def _sink(self, name: str) -> Does:
        async def does(message: Message) -> None:
            if self._luck.random() < 0.3:
                await asyncio.sleep(self._luck.random() * 0.002)
            if self._luck.random() < self._fails[name]:
                raise MessageError("no") if self._operated and self._luck.random() < 0.3 else PeerError("away")
            self.got[name].append(message)

        return does

    async def _with_route(self, journal: Journal, does: Callable[[Route, Journal], object]) -> None:
        services = Services("t", self._folder, journal, Observed(self.clock), self.clock, luck=self._luck.random)
        route = Route(self._config.routes["r"], services)
        await route.start()
        try:
            await does(route, journal)  # type: ignore[misc]
        finally:
            await route.stop(5)

    async def _harm(self, route: Route, journal: Journal) -> None:
        luck = self._luck
        for _ in range(25):
            for name in self._fails:
                self._fails[name] = luck.choice((0.0, 0.0, 0.4, 1.0))
            for _ in range(luck.randrange(6)):
                number = len(self.stored)
                tree = {"k": luck.choice("xyz"), "n": number, "parts": [{"n": number, "part": p} for p in range(3)]}
                message = Message(raw=None, parsed=tree)
                self.stored[message.id] = number
                await route.take(message, answers=True, type_="test")
            if self._operated:
                await self._operate(route, journal)
            if luck.random() < 0.1:
                await route.pause(5)
                route.resume()
            if luck.random() < 0.6:
                await self.clock.advance(luck.random() * 3)
            await asyncio.sleep(luck.random() * 0.004)

    async def _operate(self, route: Route, journal: Journal) -> None:
        luck = self._luck
        assert route.delivering is not None
        if luck.random() < 0.4:
            rows = (await journal.browse(Filter(status="dead"), None, 50)).rows
            chosen = [row.id for row in rows if luck.random() < 0.5]
            await journal.replay(chosen, luck.choice((None, None, "b")), "me")
            route.delivering.poke()
        if luck.random() < 0.3 and self.stored:
            chosen = luck.sample(list(self.stored), min(2, len(self.stored)))
            await journal.discard(chosen, "me")
            route.delivering.discard(chosen)
            if luck.random() < 0.5:
                await journal.replay(chosen, None, "me")
                route.delivering.poke()

    async def _until_empty(self, _: Route, journal: Journal) -> None:
        async with asyncio.timeout(20):
            while any(journal.counts()["r"].get(state) for state in ("stored", "pending")):
                await self.clock.advance(1)
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)


def part_of(message: Message) -> tuple[int, int]:
    tree = message.tree
    assert isinstance(tree, dict)
    return tree["n"], tree.get("part", 0)


@pytest.mark.parametrize("steps", ["", SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("order", [ORDER, ""], ids=["keys", "no-keys"])
@pytest.mark.parametrize("seed", range(2))
async def test_all_arrives_once_and_in_order(tmp_path: Path, seed: int, order: str, steps: str) -> None:
    play = Play(tmp_path, YAML.replace("ORDER", order).replace("STEPS", steps), seed, operated=False)
    assert await play.run() == {"delivered": len(play.stored)}
    parts = range(3 if steps else 1)
    for name, takes in (("a", lambda n: n % 3 != 0), ("b", lambda _: True)):
        expected = Counter((n, part) for n in play.stored.values() if takes(n) for part in parts)
        assert Counter(map(part_of, play.got[name])) == expected
        by_key: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
        for message in play.got[name]:
            by_key[message.key].append(part_of(message))
        assert not order or all(found == sorted(found) for found in by_key.values()), (name, by_key)


@pytest.mark.parametrize("steps", ["", SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("order", [ORDER, ""], ids=["keys", "no-keys"])
@pytest.mark.parametrize("seed", range(2))
async def test_all_ends_and_the_books_balance_whatever_operators_do(
    tmp_path: Path, seed: int, order: str, steps: str
) -> None:
    play = Play(tmp_path, YAML.replace("ORDER", order).replace("STEPS", steps), seed, operated=True)
    books = await play.run()
    assert sum(books.values()) == len(play.stored)
    assert set(books) <= {"delivered", "dead", "discarded"}
