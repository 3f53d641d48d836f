"""The usual commit, in one statement: the same tables, books and answers as with care, whatever comes and fails."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest

from adapters import _sqlite_writer as writing
from adapters._sqlite_quick import MOST, Quick
from adapters._sqlite_records import STATES, id_text
from adapters._sqlite_tables import NEXT, ZONE_BITS
from gateway import Message, MessageError
from gateway.journal import Attempt, Finished, Journal, JournalBrokenError, JournalFullError
from gateway.message import new_id
from gateway.testing import ManualClock, until
from tests.adapters.test_sqlite import bodies, keep, listed, message, opened
from tests.adapters.test_sqlite_faults import Disk, disk
from tests.memory_journal import append

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
    return {table: rows_of(folder, f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}


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
        self._refused: list[str] = []
        """Ids that are not there."""
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
        luck = self._luck
        refused = [name for name in (*self._refused[-20:], "nobody") if name not in self._model]
        return [*luck.sample(list(self._model), min(len(self._model), count)), luck.choice(refused)]

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
                    self._journal.append(route, one, future)
                else:
                    future = asyncio.ensure_future(append(self._journal, route, one))
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
            if isinstance(error, JournalBrokenError):
                return names
            self._refused += names if kind == "append" else []
            return []
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
            assert told == sum(self._change(name, (*FINAL, "discarded"), "stored") for name in names)
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
    assert ways.quick >= 5
    assert ways.careful > 5


# -- quick and careful -------------------------------------------------------------------------------------------------


def some_messages(luck: random.Random, count: int) -> list[Message]:
    return [
        Message(
            id=odd_ids(luck),
            raw=luck.choice((b"", b"\0", luck.randbytes(50))),
            time_s=luck.choice((0.0, 5.0, -1.5, luck.uniform(0, 1e6))),
            priority=luck.choice((0, 0, 7)),
            correlation_id=luck.choice((None, "", "a\0b", "\ud800", "x")),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3, 16, 17, 64, 65, MOST - 1, MOST])
async def test_both_ways_leave_the_same_tables(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    luck = random.Random(count)
    first, second = some_messages(luck, count), some_messages(luck, count)
    ends = [Finished(one.id, "delivered", (), luck.choice(((), (Attempt("a", 1, 1.0, 0.5),)))) for one in first]
    luck.shuffle(ends)
    left = []
    for way in ("quick", "careful"):
        folder = tmp_path / way
        ways = Twice(monkeypatch)
        async with opened(folder):
            pass
        begin_at(folder, ZONE - count - count // 2)  # the second batch crosses into the next zone
        async with opened(folder) as journal:
            await keep(journal, message(id="0", time_s=3.0))  # the route's first message needs a number for the route
            if way == "careful":
                monkeypatch.setattr(Quick, "commit", lambda *_: False)
            assert await asyncio.gather(*(append(journal, "r", one) for one in first)) == [True] * count
            ended = asyncio.get_running_loop().create_future()
            news = [append(journal, "r", one) for one in second]
            coming = asyncio.gather(*news)
            journal.finish("r", ends, lambda: ended.set_result(None))  # noqa: B023
            assert await coming == [True] * count
            await ended
            assert journal.counts() == {"r": {"stored": count + 1, "delivered": count}}
        assert (ways.quick, ways.careful) in (((2, 1), (3, 1)) if way == "quick" else ((0, 1),))
        check_file(folder, None)
        left.append(dump(folder))
        monkeypatch.undo()
    assert left[0] == left[1]


async def test_a_duplicate_costs_its_neighbours_nothing(tmp_path: Path, ways: Twice) -> None:
    known = message("known")
    async with opened(tmp_path) as journal:
        await keep(journal, known)
        some = [message(str(n)) for n in range(MOST - 1)]
        news = await asyncio.gather(*(append(journal, "r", one) for one in (*some[:9], known, *some[9:])))
        assert news == [True] * 9 + [False] + [True] * (MOST - 10)
        assert ways.careful == 2
        assert await bodies(journal, limit=1000) == ["known", *map(str, range(MOST - 1))]
        check_file(tmp_path, journal)


@pytest.mark.parametrize("how", ["twice in one", "twice", "discarded", "replayed", "unknown"])
async def test_an_end_counts_once(tmp_path: Path, how: str) -> None:
    one, two = message("1"), message("2")
    states = {"twice in one": "delivered", "twice": "delivered", "discarded": "discarded", "replayed": "delivered"}
    async with opened(tmp_path) as journal:
        await keep(journal, one, two)
        ends = [Finished(one.id, "delivered")]
        if how == "twice in one":
            ends *= 2
        elif how == "unknown":
            ends = [Finished("nobody", "delivered")]
        elif how != "discarded":
            await journal.advance("r", [Finished(one.id, "delivered")])
        if how == "discarded":
            await journal.discard([one.id], "me")
        elif how == "replayed":
            await journal.replay([one.id], None, "me")
        ended = asyncio.get_running_loop().create_future()
        journal.finish("r", ends, lambda: ended.set_result(None))
        await ended
        found = check_file(tmp_path, journal)
        assert found == {one.id: ("r", states.get(how, "stored")), two.id: ("r", "stored")}


async def test_a_quick_commit_is_synced_before_it_is_told(tmp_path: Path, disk: Disk, ways: Twice) -> None:
    order: list[str] = []
    real = disk.passes

    def passes(kind: str) -> None:
        order.append(kind)
        real(kind)

    async with opened(tmp_path) as journal:
        first = message("first")
        await keep(journal, first)
        disk.passes = passes  # type: ignore[method-assign]
        await keep(journal, message("second"))
        order.append("told")
        journal.finish("r", [Finished(first.id, "delivered")], lambda: order.append("told"))
        await until(lambda: order.count("told") == 2)
    assert ways.quick == 2
    told = [at for at, kind in enumerate(order) if kind == "told"]
    assert "sync" in order[: told[0]]
    assert "sync" in order[told[0] : told[1]]


async def test_a_process_that_is_to_be_ended_behind_a_commit_commits_as_all_others(
    tmp_path: Path, ways: Twice, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    monkeypatch.setattr(writing, "ARMED", True)
    monkeypatch.setattr(writing, "failpoint", passed.append)
    one = message("1")
    async with opened(tmp_path) as journal:
        await keep(journal, message("0"), one)
        journal.finish("r", [Finished(one.id, "delivered")], lambda: passed.append("told"))
        await until(lambda: "told" in passed)
    assert ways.quick == 2
    assert passed == ["journal.inside_transaction", *["journal.committed"] * 2, "journal.marked", "told"]


# -- those who wait do not suffer from each other ----------------------------------------------------------------------


class Fussy:
    """Somebody who waits and falls over what is told."""

    def done(self) -> bool:
        return False

    def set_result(self, _new: bool, /) -> None:
        raise RuntimeError("fell over")

    def set_exception(self, _error: Exception, /) -> None:
        raise RuntimeError("fell over")


async def test_one_who_falls_over_the_answer_keeps_it_from_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await keep(journal, message("0"))
        future = asyncio.get_running_loop().create_future()
        journal.append("r", message("1"), Fussy())
        journal.append("r", message("2"), future)
        assert await future is True


async def test_one_who_falls_over_the_end_of_a_message_keeps_no_other_from_an_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fall() -> None:
        raise RuntimeError("fell over")

    one = message("1")
    async with opened(tmp_path) as journal:
        await keep(journal, one)
        journal.finish("r", [Finished(one.id, "delivered")], fall)
        assert await asyncio.wait_for(append(journal, "r", message("2")), 5)
    assert "who waited for a change failed" in caplog.text


async def test_a_message_that_can_not_be_stored_harms_none_that_came_with_it(tmp_path: Path, ways: Twice) -> None:
    async with opened(tmp_path) as journal:
        await keep(journal, message("0"))
        wrong = message("wrong", id="\ud800")
        told = await asyncio.gather(
            *(append(journal, "r", one) for one in (message("1"), wrong, message("2"))), return_exceptions=True
        )
        assert [type(answer) for answer in told] == [bool, UnicodeEncodeError, bool]
        assert await bodies(journal) == ["0", "1", "2"]
        check_file(tmp_path, journal)


async def test_what_can_not_be_stored_is_no_duplicate(tmp_path: Path) -> None:
    """SQLite ignores both in one statement: a sender that was told so of the wrong one would drop it."""
    async with opened(tmp_path) as journal:
        await keep(journal, message("0"))
        wrong = message("wrong", time_s=float("nan"))
        told = await asyncio.gather(
            *(append(journal, "r", one) for one in (message("1"), wrong, message("2"))), return_exceptions=True
        )
        assert told[0] is told[2] is True
        assert isinstance(told[1], Exception)
        assert await bodies(journal) == ["0", "1", "2"]
        check_file(tmp_path, journal)


async def test_a_message_without_a_body_leaves_nothing_behind(
    tmp_path: Path, ways: Twice, caplog: pytest.LogCaptureFixture
) -> None:
    """Its turn has come before it is known that it has none: whoever came with it is stored, and no one else."""
    async with opened(tmp_path) as journal:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(MessageError):
            journal.append("r", Message(parsed=object()), future)  # type: ignore[arg-type]
        await journal.note("nobody", "looked", "me")
        assert journal.counts() == {}
        check_file(tmp_path, journal)
    assert "could not apply" not in caplog.text


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_what_came_in_the_turn_of_the_end_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as journal:
        writer = journal._writer  # type: ignore[attr-defined]
        real = writer._kick

        def kick() -> None:
            """The writer is quick to see that it is to end."""
            writer._asleep = False
            if writer._wake.locked():
                writer._wake.release()
            writer._thread.join()
            real()

        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for number, future in enumerate(futures):
            journal.append("r", message(str(number)), future)
        monkeypatch.setattr(writer, "_kick", kick)
        await writer.close()
    assert [await future for future in futures] == [True] * 3
    async with opened(tmp_path) as journal:
        assert await bodies(journal) == ["0", "1", "2"]


async def test_what_came_in_the_turn_in_which_the_writer_ended_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is gone before what came is handed over: nobody would ever answer."""
    broken: list[str] = []
    async with opened(tmp_path, on_broken=broken.append) as journal:
        await keep(journal, message("0"))
        writer = journal._writer  # type: ignore[attr-defined]

        def damaged(**_: Any) -> None:
            raise apsw.CorruptError("it is damaged")

        monkeypatch.setattr(writer._upkeep, "after_commit", damaged)
        future = asyncio.get_running_loop().create_future()
        journal.append("r", message("1"), future)
        writer._asleep = False
        writer._wake.release()
        writer._thread.join()  # in this turn of the loop
        with pytest.raises(JournalBrokenError):
            await asyncio.wait_for(future, 5)


async def test_a_wake_that_comes_twice_is_one(tmp_path: Path) -> None:
    """The writer wakes by itself while it is woken: the lock that it sleeps at is open then, and is opened again."""
    async with opened(tmp_path) as journal:
        await keep(journal, message("0"))
        writer = journal._writer  # type: ignore[attr-defined]
        wake = threading.Lock()  # open
        await until(lambda: writer._asleep)
        real, writer._wake = writer._wake, wake
        writer._kick()
        writer._wake = real
        real.release()
        await keep(journal, message("1"))
