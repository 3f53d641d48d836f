"""The journal when its disk is full or fails: what waits, what is told, what stays."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from adapters import _sqlite_retention as retention
from adapters import _sqlite_writer as writing
from gateway import ConfigError, Message
from gateway.journal import (
    Attempted,
    Delivery,
    Expanded,
    Finished,
    JournalBrokenError,
    JournalFullError,
)
from gateway.testing import until
from tests.adapters.test_sqlite import bodies, keep, listed, message, opened
from tests.memory_journal import append

# -- a disk that fails on demand ---------------------------------------------------------------------------------------


class Disk(apsw.VFS):
    """Fails writes or syncs with `error` once `after` more of them have passed."""

    def __init__(self) -> None:
        self.error: type[apsw.Error] | None = None
        self.kind = "write"
        self.after = 0
        self.once = False
        super().__init__("failing", base="unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        return _File(self, name, flags)

    def fail(self, error: type[apsw.Error], kind: str = "write", after: int = 0) -> None:
        self.kind, self.after, self.error = kind, after, error

    def heal(self) -> None:
        self.error = None

    def passes(self, kind: str) -> None:
        if self.error is None or kind != self.kind:
            return
        if self.after > 0:
            self.after -= 1
            return
        failure = self.error("the disk says no")
        failure.extendedresult = {  # type: ignore[attr-defined]
            apsw.FullError: apsw.SQLITE_FULL,
            apsw.IOError: apsw.SQLITE_IOERR_FSYNC if kind == "sync" else apsw.SQLITE_IOERR_WRITE,
        }[self.error]
        if self.once:
            self.error = None
        raise failure


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.passes("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.passes("sync")
        super().xSync(flags)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(writing, "AGAIN_S", 0.01)
    disk = Disk()
    yield disk
    disk.unregister()
    apsw.set_default_vfs("unix")


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def test_a_full_disk_refuses_newcomers_and_keeps_what_ends_until_there_is_room(
    tmp_path: Path, disk: Disk
) -> None:
    one, two = message("1"), message("2")
    async with opened(tmp_path) as journal:
        await keep(journal, one, two)
        disk.fail(apsw.FullError)
        first = journal.advance("r", [Finished(one.id, "delivered")])
        second = journal.advance("r", [Expanded(two.id, [Delivery(parent=two.id, target="a", message=two)])])
        with pytest.raises(JournalFullError, match="room"):
            await append(journal, "r", message("3"))
        with pytest.raises(JournalFullError):
            await journal.remember("s", "k", "v", 10)
        assert "no room" in (journal.trouble() or "")
        claiming = asyncio.ensure_future(journal.claim("r", [one.id], []))
        assert not first.done()
        assert journal.counts()["r"]["stored"] == 2
        disk.heal()
        await asyncio.wait_for(asyncio.gather(first, second, claiming), 5)
        await keep(journal, message("3"))
        assert await bodies(journal) == ["3"]
        assert journal.counts() == {"r": {"stored": 1, "delivered": 1, "pending": 1}}


async def test_room_is_noticed_when_nobody_asks(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path) as journal:
        disk.fail(apsw.FullError)
        with pytest.raises(JournalFullError):
            await append(journal, "r", message())
        assert journal.trouble() is not None
        disk.heal()
        await until(lambda: journal.trouble() is None)


async def test_what_still_waits_for_room_at_the_end_is_told_so(tmp_path: Path, disk: Disk) -> None:
    one = message("1")
    async with opened(tmp_path) as journal:
        await keep(journal, one)
        disk.fail(apsw.FullError)
        waiting = journal.advance("r", [Finished(one.id, "delivered")])
        await until(lambda: journal.trouble() is not None)
    with pytest.raises(JournalBrokenError, match="closed"):
        await waiting
    disk.heal()
    async with opened(tmp_path) as journal:
        assert await bodies(journal) == ["1"]


async def test_a_change_that_can_not_be_applied_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = message("1"), message("2")
    async with opened(tmp_path) as journal:
        await keep(journal, one, two)
        wrong = journal.remember("s", "k", "v", "no number")  # type: ignore[arg-type]
        told = await asyncio.gather(
            journal.advance("r", [Finished(one.id, "delivered")]),
            wrong,
            keep(journal, message("3")),
            return_exceptions=True,
        )
        assert [type(answer) for answer in told] == [type(None), TypeError, type(None)]
        assert await bodies(journal) == ["2", "3"]
        assert journal.counts()["r"] == {"stored": 2, "delivered": 1}
    assert "could not apply" in caplog.text


async def test_after_a_failed_sync_nothing_of_the_same_batch_is_acknowledged(tmp_path: Path, disk: Disk) -> None:
    """A change that can't be applied has the others of its batch tried one by one: the disk may fail in between."""
    told: list[str] = []
    async with opened(tmp_path, on_broken=told.append) as journal:
        await keep(journal, message("0"))
        disk.fail(apsw.IOError, "sync")
        disk.once = True
        wrong = journal.remember("s", "k", "v", "no number")  # type: ignore[arg-type]
        answers = await asyncio.gather(
            wrong, *(append(journal, "r", message(str(n))) for n in range(5)), return_exceptions=True
        )
        assert {type(answer) for answer in answers[1:]} == {JournalBrokenError}
    assert len(told) == 1


async def test_changes_that_waited_for_room_are_applied_in_their_order(tmp_path: Path, disk: Disk) -> None:
    one = message("1")
    async with opened(tmp_path) as journal:
        await keep(journal, one)
        disk.fail(apsw.FullError)
        waits = [journal.advance("r", [Expanded(one.id, [Delivery(parent=one.id, target="a", message=one)])])]
        await asyncio.sleep(0.05)
        waits.append(journal.advance("r", [Attempted(one.id, one.id, "a", "dead", 1)]))
        await asyncio.sleep(0.05)
        waits.append(journal.advance("r", [Attempted(one.id, one.id, "a", "delivered", 1)]))
        disk.heal()
        await asyncio.wait_for(asyncio.gather(*waits), 5)
        assert journal.counts()["r"]["dead"] == 1


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("kind", ["write", "sync"])
async def test_a_disk_that_fails_breaks_the_journal_for_good(
    tmp_path: Path, disk: Disk, kind: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CHECKPOINT_PAGES", 20)
    told: list[str] = []
    stored: list[Message] = []
    async with opened(tmp_path, on_broken=told.append) as journal:
        disk.fail(apsw.IOError, kind, after)

        async def go_on() -> None:
            for n in range(500):
                one = message(f"{n}" * 100)
                await append(journal, "r", one)
                stored.append(one)

        with pytest.raises(JournalBrokenError, match="disk failed"):
            await go_on()
        disk.heal()
        with pytest.raises(JournalBrokenError):
            await append(journal, "r", message())
        with pytest.raises(JournalBrokenError):
            await journal.advance("r", [Finished("x", "delivered")])
        with pytest.raises(JournalBrokenError):
            await journal.stored("r", [], 1, 1)
        await until(lambda: told)
        assert len(told) == 1
    async with opened(tmp_path) as journal:
        there = await bodies(journal, limit=1000)
        assert there[: len(stored)] == [one.body.decode() for one in stored]
        await keep(journal, message())


@pytest.mark.parametrize("seed", range(4))
async def test_whenever_the_disk_is_full_nothing_acknowledged_is_lost(tmp_path: Path, disk: Disk, seed: int) -> None:
    luck = random.Random(seed)
    kept: dict[str, str] = {}
    async with opened(tmp_path) as journal:
        waits = []
        for _ in range(150):
            if luck.random() < 0.3:
                disk.fail(apsw.FullError, "write", luck.randrange(6))
            one = Message(raw=luck.randbytes(luck.randrange(9000)))
            try:
                await append(journal, "r", one)
            except JournalFullError:
                disk.heal()
                continue
            kept[one.id] = "stored"
            if luck.random() < 0.5:
                waits.append(journal.advance("r", [Finished(one.id, "delivered")]))
                kept[one.id] = "delivered"
        disk.heal()
        await asyncio.wait_for(asyncio.gather(*waits), 5)
    async with opened(tmp_path) as journal:
        rows = await listed(journal)
        assert {row.id: row.state for row in rows} == kept


async def test_a_full_disk_at_the_start_is_a_sentence(tmp_path: Path, disk: Disk) -> None:
    disk.fail(apsw.FullError)
    with pytest.raises(ConfigError, match=r"disk of .* is full"):
        async with opened(tmp_path):
            pass


async def test_a_broken_disk_at_the_start_is_a_sentence(tmp_path: Path, disk: Disk) -> None:
    disk.fail(apsw.IOError, "sync")
    with pytest.raises(ConfigError, match="can't be opened"):
        async with opened(tmp_path):
            pass


# -- room --------------------------------------------------------------------------------------------------------------


async def test_nothing_new_is_taken_below_the_reserve_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway.journal")
    monkeypatch.setattr(retention, "LOOK_S", 0.01)
    monkeypatch.setattr(writing, "IDLE_S", 0.01)
    real = os.statvfs
    free = 1 << 20

    def statvfs(path: Any) -> Any:
        facts = list(real(path))
        facts[4] = free // facts[1]
        return os.statvfs_result(facts)

    one = message("1")
    async with opened(tmp_path, reserve_bytes=1 << 20) as journal:
        await keep(journal, one)
        monkeypatch.setattr(os, "statvfs", statvfs)
        with pytest.raises(JournalFullError, match="free"):
            await keep(journal, *(message() for _ in range(2000)))
        with pytest.raises(JournalFullError):
            await append(journal, "r", message())
        assert "free" in (journal.trouble() or "")
        await journal.advance("r", [Finished(one.id, "delivered")])
        monkeypatch.setattr(os, "statvfs", real)
        for _ in range(500):
            try:
                await append(journal, "r", message("room again"))
                break
            except JournalFullError:
                await asyncio.sleep(0.01)
        assert journal.trouble() is None
        assert (await bodies(journal, limit=5000))[-1] == "room again"
    assert caplog.messages == ["nothing more is stored", "messages are stored again"]
    assert "free some space" in caplog.records[0].__dict__["reason"]
