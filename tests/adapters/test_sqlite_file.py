"""The journal's file: flipped bits, broken pages, other versions and programs, who may read it."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import apsw
import pytest

from adapters import _sqlite_schema as schema
from gateway import ConfigError
from gateway.journal import (
    Delivery,
    Expanded,
    Filter,
    JournalBrokenError,
)
from gateway.testing import until
from tests.adapters.test_sqlite import ROOM, bodies, keep, message, opened
from tests.memory_journal import append


def flip(path: Path, needle: bytes) -> None:
    """Turns one bit round, in the first place where these bytes are."""
    content = bytearray(path.read_bytes())
    at = content.index(needle)
    content[at] ^= 1
    path.write_bytes(content)


async def test_a_flipped_record_is_named_and_dead_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = message("this is well", key="k"), message("this will flip")
    async with opened(tmp_path) as journal:
        await keep(journal, bad, good)
    flip(tmp_path / schema.FILE, b"this will flip")
    async with opened(tmp_path) as journal:
        assert await bodies(journal) == ["this is well"]
        assert await bodies(journal, good) == []
        assert journal.counts()["r"] == {"stored": 1, "dead": 1}
        (row,) = (await journal.browse(Filter(status="dead"), None, 10)).rows
        assert (row.id, row.reason and row.reason.kind) == (bad.id, "damaged")
        detail = await journal.find(bad.id)
        assert detail is not None
        assert detail.row.reason is not None
        assert detail.row.reason.kind == "damaged"
    assert bad.id in {getattr(record, "message_id", None) for record in caplog.records}


@pytest.mark.parametrize("part", ["type of it", "header value", "the id"])
async def test_a_flipped_envelope_is_quarantined(tmp_path: Path, part: str) -> None:
    one = message("one", type="type of it", headers={"h": "header value"}, id="the id")
    async with opened(tmp_path) as journal:
        await keep(journal, one, message("two"))
    flip(tmp_path / schema.FILE, part.encode())
    async with opened(tmp_path) as journal:
        assert await bodies(journal) == ["two"]
        assert journal.counts()["r"] == {"stored": 1, "dead": 1}
        (row,) = (await journal.browse(Filter(reason="damaged"), None, 10)).rows
        assert row.state == "dead"


async def test_a_flipped_delivery_is_dead_and_its_lane_goes_on(tmp_path: Path) -> None:
    one, two = message("1"), message("2")
    async with opened(tmp_path) as journal:
        await keep(journal, one, two)
        for parent, body in ((one, b"this will flip"), (two, b"this is well")):
            parcel = Delivery(parent=parent.id, target="a", message=parent.with_body(body), key="k")
            await journal.advance("r", [Expanded(parent.id, [parcel])])
    flip(tmp_path / schema.FILE, b"this will flip")
    async with opened(tmp_path) as journal:
        assert [item.delivery.message.body for item in await journal.due("r", [], 10)] == [b"this is well"]
        assert journal.counts()["r"]["dead"] == 1
        detail = await journal.find(one.id)
        assert detail is not None
        assert detail.deliveries[0].reason is not None
        assert detail.deliveries[0].reason.kind == "damaged"


async def test_broken_pages_are_a_sentence_and_nothing_is_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await keep(journal, *(message("x" * 900) for _ in range(200)))
    path = tmp_path / schema.FILE
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096, 3):
        content[page * 4096 : page * 4096 + 100] = os.urandom(100)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        async with opened(tmp_path):
            pass
    assert path.read_bytes() == content


async def test_a_file_that_is_no_journal_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / schema.FILE).write_bytes(b"no journal at all" * 1000)
    with pytest.raises(ConfigError, match="is damaged"):
        async with opened(tmp_path):
            pass


async def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / schema.FILE))
    other.execute("PRAGMA user_version = 1").fetchall()
    other.execute("CREATE TABLE theirs (x)").fetchall()
    other.close()
    with pytest.raises(ConfigError, match="another program"):
        async with opened(tmp_path):
            pass


async def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    newer = apsw.Connection(str(tmp_path / schema.FILE))
    newer.pragma("user_version", schema.VERSION + 1)
    newer.close()
    with pytest.raises(ConfigError, match=f"is of version {schema.VERSION + 1}"):
        async with opened(tmp_path):
            pass


async def test_an_older_journal_is_brought_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as journal:
        await keep(journal, message("kept"))
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE later (x)"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    async with opened(tmp_path) as journal:
        assert await bodies(journal) == ["kept"]
    there = apsw.Connection(str(tmp_path / schema.FILE))
    assert there.pragma("user_version") == schema.VERSION
    assert there.table_exists(None, "later")
    there.close()


async def test_a_journal_of_version_1_is_taken_over(tmp_path: Path) -> None:
    stored, tried = message("stored", time_s=999_000.0), message("tried", time_s=999_500.0)
    async with opened(tmp_path) as journal:
        await keep(journal, stored, tried)
        parcel = Delivery(parent=tried.id, target="a", message=tried, due_at=0.0)
        await journal.advance("r", [Expanded(tried.id, [parcel])])
        for n in range(3):
            await journal.remember("s", str(n), "first", 60 + n)
    older = apsw.Connection(str(tmp_path / schema.FILE))
    for table, column in (("messages", "since"), ("messages", "again"), ("messages", "only"), ("deliveries", "again")):
        older.execute(f"ALTER TABLE {table} DROP COLUMN {column}").fetchall()
    older.execute("DROP INDEX memos_n; ALTER TABLE memos DROP COLUMN n").fetchall()
    older.execute("DELETE FROM counts WHERE route = 0 AND state > 1").fetchall()
    older.pragma("user_version", 1)
    older.close()
    async with opened(tmp_path) as journal:
        (work,) = await journal.stored("r", [], 10, ROOM)
        assert (work.message.body, work.message.since) == (b"stored", 999_000.0)
        (item,) = await journal.due("r", [], 10)
        assert (item.delivery.message.body, item.delivery.message.since) == (b"tried", 999_500.0)
        assert journal.now() == 1_000_000.0
        assert [await journal.remember("s", key, "again", 60, 2) for key in "120"] == ["first", "first", "again"]


async def test_pages_that_break_while_it_runs_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "WRITER_CACHE_KIB", 20)
    told: list[str] = []
    async with opened(tmp_path) as journal:
        await keep(journal, *(message("x" * 3000) for _ in range(300)))
    async with opened(tmp_path, on_broken=told.append) as journal:
        path = tmp_path / schema.FILE
        with path.open("r+b") as file:
            for page in range(1, path.stat().st_size // 4096):
                file.seek(page * 4096)
                file.write(os.urandom(64))
        with pytest.raises(JournalBrokenError):
            await journal.stored("r", [], 300, ROOM)
        await until(lambda: told)
        with pytest.raises(JournalBrokenError):
            await append(journal, "r", message())


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    async def run() -> list[int]:
        async with opened(tmp_path / "data") as journal:
            await keep(journal, message())
            return [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()]

    before = os.umask(0o000)
    try:
        modes = asyncio.run(run())
    finally:
        os.umask(before)
    assert len(modes) == 4
    assert set(modes) == {0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("version", "good"),
    [("3.40.1", False), ("3.51.2", False), ("3.7.0", False), ("3.51.3", True), ("3.54.1", True), ("3.6.23", True)],
)
def test_an_sqlite_that_can_corrupt_its_log_is_refused(version: str, good: bool) -> None:
    if good:
        schema.check_version(version)
    else:
        with pytest.raises(ConfigError, match=r"expected 3\.51\.3 or newer"):
            schema.check_version(version)
