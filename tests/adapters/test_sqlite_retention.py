"""What the journal on SQLite removes, and when; that the books go on counting it; and that it stays within its size."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters import _sqlite_retention as retention
from adapters import _sqlite_writer as writing
from gateway import Message
from gateway.journal import Attempted, Expanded, Finished, Journal, JournalFullError, Reason
from gateway.testing import ManualClock
from tests.adapters.test_sqlite import bodies, delivery, due, keep, listed, message, opened
from tests.memory_journal import append


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "IDLE_S", 0.005)
    monkeypatch.setattr(retention, "LOOK_S", 0.005)


async def there(journal: Journal) -> list[str]:
    rows = await listed(journal)
    return [row.subject or "" for row in reversed(rows)]


async def becomes(journal: Journal, expected: list[str]) -> None:
    """Returns once exactly these are left."""
    async with asyncio.timeout(5):
        while await there(journal) != expected:
            await asyncio.sleep(0.005)


async def test_what_ended_long_ago_is_removed_and_still_counted(tmp_path: Path) -> None:
    clock = ManualClock()
    states = ("stored", "pending", "delivered", "filtered", "expired", "dead", "discarded")
    async with opened(tmp_path, clock, age_s=3600) as journal:
        few = {state: message(state, subject=state) for state in states}
        await keep(journal, *few.values())
        await journal.advance("r", [Expanded(few["pending"].id, [delivery(few["pending"], due_at=0.0)])])
        for state in ("delivered", "filtered", "expired", "dead"):
            await journal.advance("r", [Finished(few[state].id, state)])
        await journal.discard([few["discarded"].id], "me")
        before = journal.counts()
        await clock.advance(3000)
        await keep(journal, message(subject="young"))
        assert await there(journal) == [*states, "young"]
        await clock.advance(700)
        await becomes(journal, ["stored", "pending", "dead", "young"])
        assert journal.counts()["r"] == {**before["r"], "stored": 2}
        assert await bodies(journal) == ["stored", "x"]
        assert await due(journal) == [("pending", "a")]
    async with opened(tmp_path, clock, age_s=3600) as journal:
        assert journal.counts()["r"]["delivered"] == 1
        assert sum(journal.counts()["r"].values()) == 8


async def test_what_ends_late_is_removed_in_its_turn(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock, age_s=100) as journal:
        one, two = message("1", subject="1"), message("2", subject="2")
        await keep(journal, one, two)
        await journal.bury("r", message(subject="dead"), Reason("refused", "no"))
        await journal.advance("r", [Expanded(one.id, [delivery(one)])])
        await journal.advance("r", [Finished(two.id, "delivered")])
        await clock.advance(200)
        await becomes(journal, ["1", "dead"])
        await journal.advance("r", [Attempted(one.id, one.id, "a", "delivered", 1)])
        await clock.advance(50)
        await keep(journal, message(subject="3"))
        await clock.advance(100)
        await becomes(journal, ["dead", "3"])


async def test_many_are_removed_while_others_are_stored(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock, age_s=10) as journal:
        old = [message(subject="old") for _ in range(3000)]
        await keep_all(journal, old)
        for one in old[1:]:
            journal.advance("r", [Finished(one.id, "delivered")])
        await journal.bury("r", message(subject="dead"), Reason("refused", "no"))
        await clock.advance(100)
        young = [message(subject=str(n)) for n in range(300)]
        for one in young:
            await append(journal, "r", one)
        await becomes(journal, ["old", "dead", *(str(n) for n in range(300))])
        assert journal.counts()["r"] == {"stored": 301, "delivered": 2999, "dead": 1}


async def keep_all(journal: Journal, messages: list[Message]) -> None:
    await asyncio.gather(*(append(journal, "r", one) for one in messages))


async def test_over_its_size_the_oldest_finished_go_first(tmp_path: Path) -> None:
    async with opened(tmp_path, size_bytes=2 << 20) as journal:
        first = message("x" * 1000, subject="waits")
        await keep(journal, first)
        for n in range(60):
            some = [message("y" * 1000, subject=f"{n}") for _ in range(100)]
            await keep_all(journal, some)
            for one in some:
                journal.advance("r", [Finished(one.id, "delivered")])
            await journal.advance("r", [])
        left = await there(journal)
        assert left[0] == "waits"
        assert left[-1] == "59"
        assert len(left) < 4000
        assert journal.counts()["r"] == {"stored": 1, "delivered": 6000}
        assert (tmp_path / "gateway.db").stat().st_size < 4 << 20


async def test_when_nothing_may_go_newcomers_wait_until_something_ends(tmp_path: Path) -> None:
    async with opened(tmp_path, size_bytes=1 << 20) as journal:
        kept: list[str] = []

        async def fill() -> None:
            for _ in range(5000):
                one = message("y" * 2000)
                await append(journal, "r", one)
                kept.append(one.id)

        with pytest.raises(JournalFullError, match=r"must be kept"):
            await fill()
        assert len(kept) < 4000
        for name in kept[: len(kept) // 2]:
            await journal.advance("r", [Finished(name, "delivered")])
        async with asyncio.timeout(5):
            while True:
                try:
                    await append(journal, "r", message("room again"))
                    break
                except JournalFullError:
                    await asyncio.sleep(0.005)
        assert (await bodies(journal, limit=10_000))[-1] == "room again"
        assert len(await bodies(journal, limit=10_000)) == len(kept) - len(kept) // 2 + 1


async def test_space_is_given_back_to_the_disk(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock, age_s=10) as journal:
        many = [message("z" * 20_000) for _ in range(400)]
        await keep_all(journal, many)
        await journal.advance("r", [Finished(one.id, "delivered") for one in many])
        path = tmp_path / "gateway.db"
        async with asyncio.timeout(5):
            while path.stat().st_size < 4 << 20:
                await asyncio.sleep(0.01)
            await clock.advance(100)
            while path.stat().st_size > 4 << 20:
                await asyncio.sleep(0.01)
        assert await there(journal) == []


async def test_memos_are_forgotten_after_their_window(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as journal:
        for n in range(20):
            await journal.remember("s", str(n), "v", 10)
        await journal.remember("s", "long", "v", 1000)
        await clock.advance(100)

        def left() -> int:
            count: int = journal._tables.connection.execute("SELECT count(*) FROM memos").get  # type: ignore[attr-defined]
            return count

        async with asyncio.timeout(5):
            while left() != 1:
                await asyncio.sleep(0.01)


async def test_the_log_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHECKPOINT_PAGES", 100)
    async with opened(tmp_path) as journal:
        for _ in range(100):
            await keep_all(journal, [message("z" * 2000) for _ in range(30)])
        assert (tmp_path / "gateway.db-wal").stat().st_size < 2 << 20
