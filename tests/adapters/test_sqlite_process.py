"""The journal among processes and clocks: second owners, kill -9, clocks that jump, folders that can't be written."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import apsw
import pytest

from adapters import _sqlite_schema as schema
from gateway import ConfigError
from gateway.testing import ManualClock, until
from tests.adapters.test_sqlite import keep, listed, message, opened


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


@pytest.mark.parametrize(("set_by_s", "next_s"), [(86_400.0, 2_000_060), (-86_400.0, 2_000_000)])
async def test_a_clock_that_was_set_moves_journal_time_neither_then_nor_at_the_next_start(
    tmp_path: Path, set_by_s: float, next_s: float
) -> None:
    clock = ManualClock(2_000_000.0)
    async with opened(tmp_path, clock) as journal:
        clock.set_by_s = set_by_s
        assert journal.now() == pytest.approx(2_000_000)
        await keep(journal, message())
    await clock.advance(60)
    async with opened(tmp_path, clock) as journal:
        assert journal.now() == pytest.approx(next_s, abs=0.002)


async def test_a_clock_that_was_set_forward_while_nobody_had_the_journal_makes_nothing_old(tmp_path: Path) -> None:
    clock = ManualClock(2_000_000.0)
    async with opened(tmp_path, clock) as journal:
        await keep(journal, message())
    clock.set_by_s = 86_400.0
    await clock.advance(60)
    async with opened(tmp_path, clock) as journal:
        assert journal.now() == pytest.approx(2_000_060, abs=0.002)


@pytest.mark.parametrize("since_start_s", [5.0, 9e9])
async def test_after_a_start_of_the_machine_journal_time_goes_on_by_wall_time(
    tmp_path: Path, since_start_s: float
) -> None:
    clock = ManualClock(2_000_000.0)
    async with opened(tmp_path, clock) as journal:
        clock.set_by_s = 86_400.0
        await keep(journal, message())
    restarted = ManualClock(since_start_s)
    restarted.set_by_s = 2_086_460 - since_start_s
    async with opened(tmp_path, restarted) as journal:
        assert journal.now() == pytest.approx(2_000_060, abs=0.002)


async def test_a_clock_that_was_wrong_and_is_put_right_between_two_runs_makes_nothing_old(tmp_path: Path) -> None:
    for now_s in (2_000_000.0, 1_000.0, 2_000_060.0):
        async with opened(tmp_path, ManualClock(now_s)) as journal:
            await keep(journal, message())
            assert journal.now() == pytest.approx(max(2_000_000, now_s), abs=0.002)


async def test_a_clock_that_is_set_while_nothing_is_written_is_noted(tmp_path: Path) -> None:
    clock = ManualClock(2_000_000.0)
    async with opened(tmp_path, clock) as journal:
        await keep(journal, message())
        clock.set_by_s = 86_400.0
        await until(lambda: _wall_s(tmp_path) == 2_086_400)
        shutil.copytree(tmp_path, tmp_path.parent / "killed")
    after = ManualClock(5.0)
    after.set_by_s = 2_086_455
    async with opened(tmp_path.parent / "killed", after) as journal:
        assert journal.now() == pytest.approx(2_000_060, abs=0.002)


def _wall_s(folder: Path) -> float:
    """The wall time that the journal noted last."""
    reader = apsw.Connection(str(folder / schema.FILE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return float(reader.execute("SELECT n FROM counts WHERE route = 0 AND state = 2").get or 0) / 1000
    finally:
        reader.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from adapters.sqlite import open_journal
from gateway import Message
from gateway.clock import SystemClock
from gateway.journal import Attempted, Delivery, Expanded, Finished
from tests.memory_journal import append

async def caller(journal, n):
    while True:
        one = Message(raw=b"x" * 700, key=str(n))
        await append(journal, "r", one)
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
        rows = await listed(journal)
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
