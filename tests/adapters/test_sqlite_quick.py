"""The usual commit, in one statement: the same tables, books and answers as with care, whatever comes and fails."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest

from adapters import _sqlite_writer as writing
from adapters._sqlite_quick import MOST, Quick
from adapters._sqlite_records import CODES, STATES, id_key, id_text
from adapters._sqlite_tables import NEXT, ZONE_BITS
from gateway import Message
from gateway.journal import Attempt, Finished, Journal, JournalBrokenError, JournalFullError
from gateway.message import new_id
from gateway.testing import ManualClock
from tests.adapters.test_sqlite import bodies, keep, listed, message, opened
from tests.adapters.test_sqlite_faults import Disk, disk

__all__ = ["disk"]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SEEDS = range(int(os.environ.get("QUICK_SEEDS", "4")))
ZONE = 1 << ZONE_BITS
FINAL = ("delivered",) * 12 + ("filtered", "expired", "dead")
TABLES = ("routes", "counts", "messages", "stored", "states", "deliveries", "traces", "actions", "zones", "memos")


def odd_ids(luck: random.Random) -> str:
    usual = new_id()
    return luck.choice((usual,) * 12 + (usual.upper(), f"a\0{usual}", f"é{usual}", f"{usual[:-2]} -", usual[:-1] + "g"))


class Twice:
    """Which of the commits were quick."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.quick = self.careful = 0
        real = Quick.commit

        def commit(quick: Quick, *args: Any) -> bool:
            done = real(quick, *args)
            self.quick += done
            self.careful += not done
            return done

        monkeypatch.setattr(Quick, "commit", commit)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Twice:
    return Twice(monkeypatch)


def rows_of(folder: Path, sql: str) -> list[Any]:
    connection = apsw.Connection(str(folder / "gateway.db"), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def dump(folder: Path) -> dict[str, list[Any]]:
    return {table: rows_of(folder, f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}  # noqa: S608


def begin_at(folder: Path, number: int) -> None:
    """The next message of this journal gets this number."""
    connection = apsw.Connection(str(folder / "gateway.db"))
    connection.execute("INSERT OR REPLACE INTO counts VALUES (?, ?, ?)", (*NEXT, number))
    connection.close()


def check_file(folder: Path, journal: Journal | None) -> dict[str, tuple[str, str]]:
    """The route and state of each message; the books, the zones and the numbers are as the rows are."""
    found: dict[str, tuple[str, str]] = {}
    books: Counter[tuple[int, int]] = Counter()
    zones = {zone: (low, high) for zone, low, high in rows_of(folder, "SELECT * FROM zones")}
    highest = 0
    for seq, key, route, name, received, stored, state, turn in rows_of(
        folder,
        "SELECT m.seq, m.id, m.route, r.name, m.received, s.seq, t.state, m.turn FROM messages m JOIN routes r "
        "USING (route) LEFT JOIN stored s ON s.seq = m.seq LEFT JOIN states t ON t.seq = m.seq",
    ):
        assert (stored is None) != (state is None), (key, stored, state)
        low, high = zones[seq >> ZONE_BITS]
        assert low <= received <= high
        found[id_text(key)] = name, STATES[state or 0]
        books[route, state or 0] += 1
        highest = max(highest, seq, turn or 0)
    assert rows_of(folder, "SELECT count(*) FROM stored") + rows_of(folder, "SELECT count(*) FROM states") == [
        (sum(state == "stored" for _, state in found.values()),),
        (sum(state != "stored" for _, state in found.values()),),
    ]
    kept = {(route, state): n for route, state, n in rows_of(folder, "SELECT * FROM counts WHERE route > 0") if n}
    assert kept == dict(books)
    assert highest < rows_of(folder, "SELECT coalesce(max(n), 1) FROM counts WHERE route = 0 AND state = 1")[0][0]
    if journal is not None:
        shown = {(route, state): n for route, states in journal.counts().items() for state, n in states.items() if n}
        assert shown == dict(Counter(found.values()))
    return found


class Play:
    """A journal, what may happen to it, and what it must have then."""

    def __init__(self, folder: Path, disk: Disk, seed: int) -> None:
        self._luck = random.Random(seed)
        self._folder = folder
        self._disk = disk
        self._clock = ManualClock()
        self._stack = AsyncExitStack()
        self._model: dict[str, tuple[str, str]] = {}
        self._routes = ["r", "s"]
        self._broken: list[str] = []
        self._there: set[str] = set()
        """Ids of which somebody was told that they are there."""

    async def run(self, rounds: int) -> None:
        await self._open()
        await self._stack.aclose()
        begin_at(self._folder, ZONE - self._luck.randrange(600))
        await self._open()
        try:
            for _ in range(rounds):
                await self._round()
                if self._luck.random() < 0.05:
                    await self._reopen()
        finally:
            self._disk.heal()
            await self._stack.aclose()
        assert check_file(self._folder, None) == self._model
        await self._open()
        try:
            assert check_file(self._folder, self._journal) == self._model
            found = {row.id for row in await listed(self._journal, since_s=0, until_s=1e6)}
            assert found == set(self._model)
        finally:
            await self._stack.aclose()

    async def _open(self) -> None:
        self._broken.clear()
        self._journal = await self._stack.enter_async_context(
            opened(self._folder, self._clock, on_broken=self._broken.append)
        )

    async def _reopen(self) -> None:
        self._disk.heal()
        await self._stack.aclose()
        await self._open()

    # -- one round: some things at once, on a disk that may fail -------------------------------------------------------

    async def _round(self) -> None:
        luck = self._luck
        failing = luck.random()
        if failing < 0.15:
            self._disk.fail(apsw.FullError, "write", luck.randrange(12))
        elif failing < 0.2:
            self._disk.fail(apsw.IOError, luck.choice(("write", "sync")), luck.randrange(4))
        played = [play for _ in range(luck.choice((1, 1, 1, 1, 2, 5))) for play in self._some()]
        # a task hands over once it runs
        played.sort(key=lambda play: play[0] != "finish" and isinstance(play[2], asyncio.Task))
        for _ in range(1000):
            # a journal that breaks tells nothing of ends
            if all(future.done() or (self._broken and kind == "finish") for kind, _, future in played):
                break
            if self._journal.trouble() is not None:
                self._disk.heal()
            await asyncio.sleep(0.001)
        self._disk.heal()
        unknown = [self._settle(*play) for play in played]
        if self._broken:
            await self._reopen()
            there = check_file(self._folder, self._journal)
            for name in [name for names in unknown for name in names]:
                if name in there:
                    self._model[name] = there[name]
        assert self._there <= set(self._model)
        assert check_file(self._folder, self._journal) == self._model

    def _some(self) -> list[tuple[str, Any, asyncio.Future[Any]]]:
        luck = self._luck
        kind = luck.choice(("append",) * 5 + ("finish",) * 5 + ("both",) * 4 + ("discard", "replay", "note"))
        if kind == "append":
            return self._append()
        if kind == "finish":
            return self._finish()
        if kind == "both":
            return self._append() + self._finish()
        ids = self._chosen(luck.choice((1, 5)))
        call = {"discard": self._journal.discard, "note": self._note}.get(kind, self._replay)
        return [(kind, ids, asyncio.ensure_future(call(ids, "me")))]

    async def _replay(self, ids: list[str], by: str) -> int:
        return await self._journal.replay(ids, None, by)

    async def _note(self, ids: list[str], by: str) -> None:
        await self._journal.note(ids[0], "looked", by)

    def _chosen(self, count: int) -> list[str]:
        return [*self._luck.sample(list(self._model), min(len(self._model), count)), "nobody"]

    def _append(self) -> list[tuple[str, Any, asyncio.Future[Any]]]:
        luck = self._luck
        if luck.random() < 0.05:
            self._routes.append(f"new {len(self._routes)}")
        routes = [luck.choice(self._routes)] if luck.random() < 0.7 else self._routes
        ids = [odd_ids(luck) for _ in range(luck.choice((1, 1, 2, 3, 17, 70, MOST - 1, MOST, MOST + 1)))]
        if luck.random() < 0.15:
            ids += luck.choices(ids, k=luck.choice((1, 3)))
        if luck.random() < 0.15:
            ids += self._chosen(luck.choice((1, 3)))[:-1]
            luck.shuffle(ids)
        played: list[tuple[str, Any, asyncio.Future[Any]]] = []
        for name in ids:
            one = Message(
                id=name,
                raw=luck.choice((b"", luck.randbytes(luck.randrange(200)))),
                time_s=luck.uniform(0, 1e6),
                priority=luck.choice((0, 0, 0, 7)),
                correlation_id=luck.choice((None, None, "c", "\ud800", "a\0b", "")),
            )
            route = luck.choice(routes)
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            try:
                if luck.random() < 0.8:
                    self._journal.append_soon(route, one, future)
                else:
                    future = asyncio.ensure_future(self._journal.append(route, one))
            except JournalFullError as error:
                future.set_exception(error)
            played.append(("append", (name, route), future))
        return played

    def _finish(self) -> list[tuple[str, Any, asyncio.Future[Any]]]:
        luck = self._luck
        ids = self._chosen(luck.choice((1, 3, 40, MOST, 300)))
        stored = [name for name, (_, state) in self._model.items() if state == "stored"]
        if luck.random() < 0.7:
            ids = stored[-luck.choice((1, 3, 17, 100, MOST, 300)) :]  # the newest are known
        if ids and luck.random() < 0.1:
            ids.append(luck.choice(ids))
        states = ["delivered" if luck.random() < 0.95 else luck.choice(FINAL)] * len(ids)
        if luck.random() < 0.2:
            states = [luck.choice(FINAL) for _ in ids]
        tries = (Attempt("a", 1, 1.0, 0.5),)
        ends = [
            Finished(name, state, (), luck.choice(((), tries)))  # type: ignore[arg-type]
            for name, state in zip(ids, states, strict=True)
        ]
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._journal.finish("r", ends, lambda: future.set_result(None))
        return [("finish", ends, future)]

    # -- what must be there then ---------------------------------------------------------------------------------------

    def _settle(self, kind: str, what: Any, future: asyncio.Future[Any]) -> list[str]:
        """Notes what was told. The ids of what nobody can know."""
        names = [what[0]] if kind == "append" else [end.id for end in what] if kind == "finish" else what
        if kind == "finish" and self._broken and not future.done():
            return names
        error = future.exception()
        if error is not None:
            assert isinstance(error, JournalFullError | JournalBrokenError), error
            return names if isinstance(error, JournalBrokenError) else []
        told = future.result()
        if kind == "append":
            name, route = what
            assert not (told and name in self._model), name
            if told:
                self._model[name] = route, "stored"
            else:  # the same id to two routes in one turn: one of them has it
                self._there.add(name)
        elif kind == "finish":
            for end in what:
                self._change(end.id, ("stored",), end.state)
        elif kind == "discard":
            assert told == sum(self._change(name, ("stored", "dead"), "discarded") for name in names)
        elif kind == "replay":
            assert told == sum(self._change(name, FINAL + ("discarded",), "stored") for name in names)
        return []

    def _change(self, name: str, states: tuple[str, ...], state: str) -> bool:
        route, now = self._model.get(name, ("", ""))
        if now not in states:
            return False
        self._model[name] = route, state
        return True


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_comes_and_fails_rows_books_and_answers_agree(
    tmp_path: Path, disk: Disk, seed: int, ways: Twice
) -> None:
    await Play(tmp_path, disk, seed).run(60)
    assert ways.quick > 10
    assert ways.careful > 5
