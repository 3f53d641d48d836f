"""Random plays on a journal in a file: offers and tasks, small memory, failures, pauses, reloads, discards, replays."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from adapters.sqlite import open_journal
from gateway import Accepted, Message, Outcome, PeerError
from gateway.clock import SystemClock
from gateway.config import load
from gateway.edge import Door
from gateway.host import Services
from gateway.journal import Journal
from gateway.observe import Observed
from gateway.route import Route
from gateway.testing import until
from tests.gateway.probe import plug_in, script
from tests.gateway.test_review_random import SEEDS

ROUTES = """
version: 1
routes:
  r:
    from: {probe: {}}
    limits: {in_memory: MEMORY, in_flight: 20}
    concurrency: 3
ORDER    to: {probe: {}, retry: {attempts: 1000, first_wait: 10ms, max_wait: 20ms}}
"""


class Play:
    """What happens to one route."""

    def __init__(self, folder: Path, yaml: str, journal: Journal, luck: random.Random) -> None:
        (folder / "routes.yaml").write_text(yaml)
        self.configured = load(folder / "routes.yaml").routes["r"]
        self.luck = luck
        self.journal = journal
        clock = SystemClock()
        self.services = Services("desk", folder, journal, Observed(clock), clock, luck=luck.random)
        self.outcomes: list[Outcome] = []
        self.offered = 0
        self.calm = False
        script("out").does = self._does

    async def _does(self, message: Message) -> None:
        for _ in range(self.luck.randrange(3)):
            await asyncio.sleep(0)
        if not self.calm and self.luck.random() < 0.05:
            raise PeerError("away")

    async def run(self) -> None:
        for self.calm in (False, True):  # a restart
            route = Route(self.configured, self.services)
            await route.start()
            if not self.calm:
                await self._harm(route)
            else:
                await until(lambda: not self._left(), timeout_s=30)
                assert route.delivering is not None
                await until(lambda jobs=route.delivering._jobs: not jobs)  # type: ignore[misc]
            await route.stop(1 if self.calm else 0)
            assert route.gate.inside == 0

    def _left(self) -> int:
        counts = self.journal.counts().get("r", {})
        return counts.get("stored", 0) + counts.get("pending", 0)

    async def _harm(self, route: Route) -> None:
        luck, takes, number = self.luck, [], 0
        door = Door(route._edge, "test", answers=True)
        for _ in range(60):
            for _ in range(luck.randrange(12)):
                message = Message(raw=b'{"n": %d, "k": "%b"}' % (number, luck.choice([b"x", b"y"])))
                number += 1
                if luck.random() < 0.6 and door.offer(message, self.outcomes.append):
                    self.offered += 1
                else:
                    takes.append(asyncio.create_task(route.take(message, answers=True, type_="test")))
                    await asyncio.sleep(0)
                    if luck.random() < 0.05:
                        takes[-1].cancel()
            chance = luck.random()
            if chance < 0.05:
                await route.pause(1)
            elif chance < 0.2:
                route.resume()
            elif chance < 0.25:
                await route.swap(self.configured, 1)
            await asyncio.sleep(luck.choice([0, 0, 0.001, 0.004]))
        route.resume()
        self.outcomes += [
            done for done in await asyncio.gather(*takes, return_exceptions=True) if isinstance(done, Accepted)
        ]
        async with asyncio.timeout(10):
            await route.gate.drained()


@pytest.mark.parametrize("memory", [1, 6, 256])
@pytest.mark.parametrize("order", ["    order_by: body.k\n", ""], ids=["keys", "no-keys"])
@pytest.mark.parametrize("seed", [*SEEDS][:2] if len(SEEDS) == 25 else SEEDS)
async def test_all_that_is_answered_is_delivered_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, order: str, memory: int
) -> None:
    plug_in(monkeypatch)
    async with open_journal(
        tmp_path, age_s=1e6, size_bytes=1 << 40, reserve_bytes=0, clock=SystemClock(), on_broken=pytest.fail
    ) as journal:
        yaml = ROUTES.replace("ORDER", order).replace("MEMORY", str(memory))
        play = Play(tmp_path, yaml, journal, random.Random(seed))
        await play.run()
    sent = [message.id for message in script("out").received]
    accepted = [outcome.id for outcome in play.outcomes if isinstance(outcome, Accepted)]
    assert set(accepted) <= set(sent)
    assert play.offered > 20
    if order:
        keys: dict[object, list[int]] = defaultdict(list)
        for tree in script("out").trees:
            assert isinstance(tree, dict)
            if tree["n"] not in keys[tree["k"]]:
                keys[tree["k"]].append(tree["n"])
        assert all(found == sorted(found) for found in keys.values())
    assert max(Counter(sent).values()) < 20
