"""The journal when the disk, its file, the clock or another process are against it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from adapters import _sqlite_retention as retention
from adapters import _sqlite_schema as schema
from adapters import _sqlite_writer as writing
from gateway import ConfigError, Message
from gateway.journal import (
    Attempted,
    Delivery,
    Expanded,
    Filter,
    Finished,
    JournalBrokenError,
    JournalFullError,
)
from gateway.testing import ManualClock, until
from tests.adapters.test_sqlite import ROOM, bodies, keep, message, opened

# -- a disk that fails on demand ---------------------------------------------------------------------------------------


class Disk(apsw.VFS):
    """Fails writes or syncs with `error` once `after` more of them have passed."""

    def __init__(self) -> None:
        self.error: type[apsw.Error] | None = None
        self.kind = "write"
        self.after = 0
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
            await journal.append("r", message("3"))
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
            await journal.append("r", message())
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
                await journal.append("r", one)
                stored.append(one)

        with pytest.raises(JournalBrokenError, match="disk failed"):
            await go_on()
        disk.heal()
        with pytest.raises(JournalBrokenError):
            await journal.append("r", message())
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
                await journal.append("r", one)
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
        rows = await journal.browse(Filter(), None, 1000)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            await journal.append("r", message())
        assert "free" in (journal.trouble() or "")
        await journal.advance("r", [Finished(one.id, "delivered")])
        monkeypatch.setattr(os, "statvfs", real)
        for _ in range(500):
            try:
                await journal.append("r", message("room again"))
                break
            except JournalFullError:
                await asyncio.sleep(0.01)
        assert journal.trouble() is None
        assert (await bodies(journal, limit=5000))[-1] == "room again"


# -- the file ----------------------------------------------------------------------------------------------------------


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
        (row,) = await journal.browse(Filter(status="dead"), None, 10)
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
        (row,) = await journal.browse(Filter(reason="damaged"), None, 10)
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
            await journal.append("r", message())


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


# -- processes and clocks ----------------------------------------------------------------------------------------------


async def test_a_second_owner_is_told_who_has_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            async with opened(tmp_path):
                pass
        await keep(journal, message())
    async with opened(tmp_path):
        pass


async def test_journal_time_never_goes_back(tmp_path: Path) -> None:
    clock = ManualClock(2_000_000.0)
    async with opened(tmp_path, clock) as journal:
        await clock.advance(100)
        await keep(journal, message())
        last = journal.now()
    back = ManualClock(1_000.0)
    async with opened(tmp_path, back) as journal:
        assert journal.now() == pytest.approx(last, abs=0.002)
        await back.advance(5)
        assert journal.now() == pytest.approx(last + 5, abs=0.002)
    ahead = ManualClock(9_000_000.0)
    async with opened(tmp_path, ahead) as journal:
        assert journal.now() == pytest.approx(9_000_000.0)


CHILD = """
import asyncio, sys
from pathlib import Path
from adapters.sqlite import open_journal
from gateway import Message
from gateway.clock import SystemClock
from gateway.journal import Attempted, Delivery, Expanded, Finished

async def caller(journal, n):
    while True:
        one = Message(raw=b"x" * 700, key=str(n))
        await journal.append("r", one)
        print("stored", one.id, flush=True)
        if n % 3 == 0:
            await journal.advance("r", [Finished(one.id, "delivered")])
            print("delivered", one.id, flush=True)
        elif n % 3 == 1:
            parcel = Delivery(parent=one.id, target="a", message=one, key=str(n))
            await journal.advance("r", [Expanded(one.id, [parcel])])
            print("pending", one.id, flush=True)
            await journal.advance("r", [Attempted(one.id, one.id, "a", "dead", 1)])
            print("dead", one.id, flush=True)

async def main():
    async with open_journal(Path(sys.argv[1]), age_s=1e9, size_bytes=1 << 40, reserve_bytes=0, clock=SystemClock(),
                            on_broken=print) as journal:
        print("open", flush=True)
        await asyncio.gather(*(caller(journal, n) for n in range(12)))

asyncio.run(main())
"""
ORDER = {"stored": 0, "pending": 1, "delivered": 2, "dead": 2}


def _has_spoken(said: Path) -> bool:
    return said.stat().st_size > 0


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    luck = random.Random(3)
    promised: dict[str, str] = {}
    said = tmp_path / "said"
    for _ in range(4):
        with said.open("wb") as out:
            child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "data")], stdout=out)
            await until(partial(_has_spoken, said))
            time.sleep(luck.uniform(0.05, 0.3))
            child.send_signal(signal.SIGKILL)
            child.wait()
        promised.update(_promised(said))
        await _keeps(tmp_path / "data", promised)
    assert len(promised) > 20


@pytest.mark.parametrize("name", ["inside_transaction", "committed", "marked", "dead_letter", "checkpoint"])
async def test_a_kill_at_any_point_of_the_journal_loses_nothing(tmp_path: Path, name: str) -> None:
    said = tmp_path / "said"
    count = 2 if name == "checkpoint" else 50
    armed = {**os.environ, "GATEWAY_FAILPOINTS": f"journal.{name}=kill:{count}"}
    with said.open("wb") as out:
        child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "data")], stdout=out, env=armed, timeout=30)
    assert child.returncode == -signal.SIGKILL
    promised = _promised(said)
    assert len(promised) > 20
    await _keeps(tmp_path / "data", promised)


def _promised(said: Path) -> dict[str, str]:
    lines = said.read_text().split("\n")[1:-1]
    return {name: state for state, name in (line.split() for line in lines)}


async def _keeps(folder: Path, promised: dict[str, str]) -> None:
    """Makes sure that all that was promised is there, and that the books are right."""
    async with opened(folder) as journal:
        rows = await journal.browse(Filter(), None, 1_000_000)
        states = {row.id: row.state for row in rows}
        assert [name for name in promised if name not in states] == []
        assert [name for name, state in promised.items() if ORDER[states[name]] < ORDER[state]] == []
        books = journal.counts()["r"]
        assert {state: n for state, n in books.items() if n} == {
            state: list(states.values()).count(state) for state in set(states.values())
        }


def test_a_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        folder.mkdir(mode=0o555)
        folder.parent.chmod(0o755)
        code = CHILD.replace("asyncio.run(", "import os\nif os.geteuid() == 0: os.setuid(65534)\nasyncio.run(")
        child = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
        assert "can't be written" in child.stderr.splitlines()[-1]
        folder.chmod(0o755)


def test_a_folder_that_can_not_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another data folder"), schema.owned(tmp_path / "file" / "data"):
        pass


def test_an_unwritable_folder_is_told_apart_from_a_full_one(tmp_path: Path) -> None:
    for number, words in ((errno.EROFS, "can't be written"), (errno.ENOSPC, "is full"), (errno.EIO, "can't be used")):
        with pytest.raises(ConfigError, match=words), schema._plain_errors(tmp_path):
            raise OSError(number, os.strerror(number))
