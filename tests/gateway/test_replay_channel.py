"""Replays through a channel, over the journal on SQLite: readers get them, and what a crash sends again only once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.memory import box
from gateway import Message
from gateway.app import App
from gateway.config import load
from gateway.host import Services
from gateway.journal import Change, Filter, Finished, Journal, Row
from gateway.observe import Observed
from gateway.testing import ManualClock, until
from tests.adapters.test_sqlite import opened

YAML = """
version: 1
routes:
  writes:
    from: {memory: {name: in}}
    to: {channel: live}
  reads:
    from: {channel: live}
    STEPS
    to: {memory: {name: a}, name: a}
  reads-too:
    from: {channel: live}
    to: {memory: {name: b}, name: b}
"""


@pytest.fixture(autouse=True)
def empty_boxes() -> None:
    for name in ("in", "a", "b"):
        box(name).received.clear()
        box(name).failing = None


class Desk:
    def __init__(self, app: App, journal: Journal) -> None:
        self.app = app
        self.journal = journal

    async def post(self, raw: bytes, **fields: str) -> None:
        await self.app.routes["writes"].take(Message(raw=raw, **fields), answers=True, type_="t")  # type: ignore[arg-type]

    async def replay(self, target: str | None = None) -> None:
        (row,) = await self.rows("writes")
        assert await self.journal.replay([row.id], target, "me") == 1
        delivering = self.app.routes["writes"].delivering
        assert delivering is not None
        delivering.poke()

    async def rows(self, route: str) -> Sequence[Row]:
        return (await self.journal.browse(Filter(route=route), None, 100)).rows

    def delivered(self, route: str) -> int:
        return self.journal.counts().get(route, {}).get("delivered", 0)


@asynccontextmanager
async def running(folder: Path, steps: str = "") -> AsyncIterator[Desk]:
    clock = ManualClock()
    (folder / "routes.yaml").write_text(YAML.replace("STEPS", steps))
    async with opened(folder / "data", clock) as journal:
        app = App(load(folder / "routes.yaml"), Services("t", folder, journal, Observed(clock), clock))
        await app.start()
        try:
            yield Desk(app, journal)
        finally:
            await app.stop(0)


async def test_a_replay_of_what_was_delivered_reaches_every_reader_again(tmp_path: Path) -> None:
    async with running(tmp_path) as here:
        await here.post(b"1")
        await until(lambda: here.delivered("reads") == here.delivered("reads-too") == 1)
        await here.replay()
        await until(lambda: here.delivered("reads") == here.delivered("reads-too") == 2)
        await until(lambda: here.delivered("writes") == 1)
        await here.replay("channel")
        await until(lambda: here.delivered("reads") == here.delivered("reads-too") == 3)
    assert [one.body for one in box("a").received] == [b"1", b"1", b"1"]
    assert len({one.id for one in box("a").received}) == 3


async def test_what_is_sent_again_since_its_end_was_not_noted_is_taken_once(tmp_path: Path) -> None:
    async with running(tmp_path) as here:
        await here.post(b"1")
        await until(lambda: here.delivered("writes") == 1)
        advance = here.journal.advance

        def forgotten(route: str, changes: Sequence[Change]) -> object:
            ends = [change for change in changes if isinstance(change, Finished)]
            return advance(route, [] if route == "writes" and ends else changes)

        here.journal.advance = forgotten  # type: ignore[method-assign,assignment]
        await here.replay()
        await until(lambda: here.delivered("reads") == here.delivered("reads-too") == 2)
    async with running(tmp_path) as here:
        await until(lambda: here.delivered("writes") == 1)
        assert len(await here.rows("reads")) == len(await here.rows("reads-too")) == 2
    assert len(box("a").received) == len(box("b").received) == 2


async def test_a_replay_of_a_dead_letter_reaches_only_the_readers_that_do_not_have_it(tmp_path: Path) -> None:
    yaml = "accept: [{filter: message.type == 'good'}]"
    async with running(tmp_path, yaml) as here:
        await here.post(b"1", type="bad")
        await until(lambda: here.journal.counts()["writes"].get("dead") == 1)
        await until(lambda: here.delivered("reads-too") == 1)
    async with running(tmp_path) as here:
        await here.replay()
        await until(lambda: here.delivered("reads") == here.delivered("writes") == 1)
        assert len(await here.rows("reads-too")) == 1
    assert (len(box("a").received), len(box("b").received)) == (1, 1)


async def test_a_reader_that_drops_duplicates_takes_a_replay(tmp_path: Path) -> None:
    async with running(tmp_path, "steps: [dedupe: {by: body.n}]") as here:
        await here.post(b'{"n": 1}')
        await until(lambda: here.delivered("reads") == 1)
        await here.replay()
        await until(lambda: here.delivered("reads") == 2)
        await here.post(b'{"n": 1}')
        await until(lambda: here.journal.counts()["reads"].get("filtered") == 1)
    assert len(box("a").received) == 2
