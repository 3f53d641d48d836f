"""Stored delivery over the journal on SQLite: retries, lanes, restarts and spilling as over the fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.memory import box
from gateway import Accepted, Message, MessageError, PeerError
from gateway.config import load
from gateway.host import Services
from gateway.journal import Journal
from gateway.observe import Observed
from gateway.route import Route
from gateway.testing import ManualClock, until
from tests.adapters.test_sqlite import opened

YAML = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    order_by: body.k
    limits: {in_memory: 16}
    to:
      - {memory: {name: a}, name: a, retry: {attempts: 3, first_wait: 10s}}
      - {memory: {name: b}, name: b}
"""


@pytest.fixture(autouse=True)
def empty_boxes() -> None:
    for name in ("in", "a", "b"):
        box(name).received.clear()
        box(name).failing = None


class Bench:
    """One stored route on a journal in a folder, on a clock that tests move."""

    def __init__(self, folder: Path, yaml: str = YAML) -> None:
        self.clock = ManualClock()
        self._folder = folder
        (folder / "routes.yaml").write_text(yaml)
        self._config = load(folder / "routes.yaml")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Route, Journal]]:
        async with opened(self._folder / "data", self.clock) as journal:
            services = Services("test", self._folder, journal, Observed(self.clock), self.clock, luck=lambda: 1.0)
            route = Route(self._config.routes["r"], services)
            await route.start()
            try:
                yield route, journal
            finally:
                await route.stop(0)

    async def passes(self, condition: Callable[[], object]) -> None:
        """Lets time go until the condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                await self.clock.advance(1)
                await asyncio.sleep(0.002)


async def post(route: Route, *, fields: dict[str, Any] | None = None, **tree: Any) -> None:
    outcome = await route.take(Message(raw=None, parsed=tree, **(fields or {})), answers=True, type_="test")
    assert isinstance(outcome, Accepted)


def sent(name: str) -> list[Any]:
    return [message.tree["n"] for message in box(name).received]  # type: ignore[index,call-overload]


def books(journal: Journal) -> dict[str, int]:
    return {state: n for state, n in journal.counts().get("r", {}).items() if n}


async def test_what_is_stored_is_delivered_once_to_each(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as (route, journal):
        await asyncio.gather(*(post(route, k=str(n % 7), n=n) for n in range(300)))
        await until(lambda: books(journal) == {"delivered": 300})
    assert sorted(sent("a")) == sorted(sent("b")) == list(range(300))


async def test_more_than_memory_holds_arrives_in_the_order_of_its_keys(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as (route, journal):
        for n in range(200):
            await post(route, k=str(n % 3), n=n)
        await until(lambda: books(journal) == {"delivered": 200})
    for name in ("a", "b"):
        for key in range(3):
            assert [n for n in sent(name) if n % 3 == key] == list(range(key, 200, 3))


async def test_order_is_kept_across_retries_and_restarts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running() as (route, journal):
        box("a").failing = PeerError("away")
        for n in range(40):
            await post(route, k="x", n=n)
        await until(lambda: len(sent("b")) == 40)
    assert sent("a") == []
    box("a").failing = None
    async with bench.running() as (route, journal):
        await post(route, k="x", n=40)
        await bench.passes(lambda: books(journal) == {"delivered": 41})
    assert sent("a") == sent("b") == list(range(41))


async def test_what_uses_up_its_attempts_is_dead_and_can_be_sent_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running() as (route, journal):
        box("a").failing = PeerError("away")
        await post(route, k="x", n=1)
        await bench.passes(lambda: books(journal) == {"dead": 1})
        box("a").failing = None
        dead = box("b").received[0].id
        detail = await journal.find(dead)
        assert detail is not None
        assert [(one.target, one.number) for one in detail.attempts if one.error] == [("a", 1), ("a", 2), ("a", 3)]
        assert await journal.replay([dead], None, "me") == 1
        assert route.delivering is not None
        route.delivering.poke()
        await bench.passes(lambda: books(journal) == {"delivered": 1})
    assert (sent("a"), sent("b")) == ([1], [1])


async def replayed(route: Route, journal: Journal, message_id: str, target: str | None) -> None:
    assert await journal.replay([message_id], target, "me") == 1
    assert route.delivering is not None
    route.delivering.poke()
    await until(lambda: books(journal) == {"delivered": 1})


async def test_a_replay_to_one_target_reaches_no_other(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as (route, journal):
        await post(route, k="x", n=1)
        await until(lambda: books(journal) == {"delivered": 1})
        (one,) = box("a").received
        for target, counts in (("a", (2, 1)), ("b", (2, 2)), ("b", (2, 3)), (None, (3, 4)), ("a", (4, 4))):
            await replayed(route, journal, one.id, target)
            assert (len(sent("a")), len(sent("b"))) == counts


async def test_what_failed_in_a_replay_to_one_target_is_tried_again_there_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running() as (route, journal):
        await post(route, k="x", n=1)
        await until(lambda: books(journal) == {"delivered": 1})
        (one,) = box("a").received
        box("a").failing = PeerError("away")
        assert await journal.replay([one.id], "a", "me") == 1
        assert route.delivering is not None
        route.delivering.poke()
        await until(lambda: books(journal) == {"pending": 1})
        box("a").failing = None
        await bench.passes(lambda: books(journal) == {"delivered": 1})
        assert (len(sent("a")), len(sent("b"))) == (2, 1)
        await replayed(route, journal, one.id, "b")
        assert (len(sent("a")), len(sent("b"))) == (2, 2)
        await replayed(route, journal, one.id, None)
        assert (len(sent("a")), len(sent("b"))) == (3, 3)


async def test_a_replay_to_a_target_that_does_not_take_the_message_says_so(tmp_path: Path) -> None:
    yaml = YAML.replace("name: b}\n", "name: b, when: body.n > 1}\n")
    assert yaml != YAML
    async with Bench(tmp_path, yaml).running() as (route, journal):
        await post(route, k="x", n=1)
        await until(lambda: books(journal) == {"delivered": 1})
        (one,) = box("a").received
        assert await journal.replay([one.id], "b", "me") == 1
        assert route.delivering is not None
        route.delivering.poke()
        await until(lambda: books(journal) == {"dead": 1})
        detail = await journal.find(one.id)
        assert detail is not None
        assert detail.row.reason is not None
        assert detail.row.reason.text == "replay: the target b does not take this message"
        assert (len(sent("a")), len(sent("b"))) == (1, 0)


async def test_what_a_target_refuses_is_kept_with_what_it_would_have_received(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as (route, journal):
        box("a").failing = MessageError("no")
        await post(route, k="x", n=1)
        await until(lambda: books(journal) == {"dead": 1})
        detail = await journal.find(box("b").received[0].id)
        assert detail is not None
        assert {(one.target, one.state) for one in detail.deliveries} == {("a", "dead"), ("b", "delivered")}
        assert detail.row.reason is not None
        assert detail.row.reason.kind == "refused"
