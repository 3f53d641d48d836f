"""The journal in one SQLite file, `gateway.db`, in the data folder: durable by group commit of one writer thread.

One connection writes and checkpoints; one reads for the delivery, one for lists and one for single messages, each in a
thread of its own.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from adapters import _sqlite_actions as actions
from adapters import _sqlite_browse as browsing
from adapters import _sqlite_reader as reading
from adapters import _sqlite_schema as schema
from adapters._sqlite_arrivals import Arrivals
from adapters._sqlite_changes import claim, prepared
from adapters._sqlite_ops import CALL, CHANGES, END, PATIENT_CALL, Op, Then, size_of
from adapters._sqlite_reader import Reader
from adapters._sqlite_records import CODES, STORED, id_key, trace_of
from adapters._sqlite_retention import Upkeep
from adapters._sqlite_tables import OPEN_DELIVERIES, Tables
from adapters._sqlite_time import JournalTime
from adapters._sqlite_writer import Writer
from gateway.journal import (
    Backlog,
    Change,
    Detail,
    Due,
    Filter,
    Finished,
    Journal,
    JournalBrokenError,
    Page,
    Reason,
    State,
    Waiting,
)
from gateway.message import Message
from gateway.ports import Clock


@asynccontextmanager
async def open_journal(
    folder: Path,
    *,
    age_s: float,
    size_bytes: int,
    reserve_bytes: int,
    clock: Clock,
    on_broken: Callable[[str], None],
) -> AsyncIterator[Journal]:
    """The journal of this folder, for this process alone.

    age_s, size_bytes: how old and how large finished messages may become before they are removed; dead ones stay.
    reserve_bytes: with less than this free on the disk (and 5 % of it) nothing new is accepted.
    on_broken: called once, on the loop, with a text, when the disk failed and nothing is promised any more.

    Raises:
        ConfigError: the folder can't be used, another process has it, or the file is damaged or of a newer version.
    """
    schema.check_version(apsw.sqlite_lib_version())
    async with AsyncExitStack() as stack:
        stack.enter_context(schema.owned(folder))
        path = folder / schema.FILE
        connection = await asyncio.to_thread(schema.opened, path)
        stack.callback(schema.close, connection)
        time = JournalTime(clock)
        with schema.plain(path):
            tables = Tables(connection, time)
            upkeep = Upkeep(tables, path, age_s=age_s, size_bytes=size_bytes, reserve_bytes=reserve_bytes)
        time.begin(tables.noted)
        journal = SqliteJournal(tables, upkeep, clock, time, _once(on_broken))
        stack.push_async_callback(journal.close)
        for name in ("delivery", "browse", "find"):
            with schema.plain(path):
                journal.add_reader(name, schema.connect(path, schema.READER_CACHE_KIB, reads_only=True))
        yield journal


def _once(call: Callable[[str], None]) -> Callable[[str], None]:
    called = False

    def once(text: str) -> None:
        nonlocal called
        if not called:
            called = True
            call(text)

    return once


class SqliteJournal:
    """A `Journal`. Make one with `open_journal`."""

    def __init__(
        self, tables: Tables, upkeep: Upkeep, clock: Clock, time: JournalTime, on_broken: Callable[[str], None]
    ) -> None:
        self._tables = tables
        self._upkeep = upkeep
        self._clock = clock
        self._on_broken = on_broken
        self.now = time
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(tables, upkeep, on_broken)
        self._readers: dict[str, Reader] = {}
        self._route_crcs: dict[str, int] = {}

    def add_reader(self, name: str, connection: apsw.Connection) -> None:
        """Lends a connection for reading."""
        self._readers[name] = Reader(connection, f"journal-{name}", self._writer.reading_failed)

    async def close(self) -> None:
        """Writes what waits, and the log back into the file."""
        for reader in self._readers.values():
            await reader.close()
        await self._writer.close()

    # -- what changes it ---------------------------------------------------------------------------------------------

    def append(self, route: str, message: Message, waiting: Waiting[bool]) -> None:
        self._writer.check_room()
        body = message.body
        arrivals = self._writer.arrivals(route)
        if arrivals is None:
            waiting.set_exception(JournalBrokenError(self._writer.broken or "journal: it is closed"))
        else:
            arrivals.add(message, body, self._route_crc(route), message.since or self.now(), waiting)

    def _route_crc(self, route: str) -> int:
        crc = self._route_crcs.get(route)
        if crc is None:
            crc = self._route_crcs[route] = zlib.crc32(route.encode("utf-8", "replace"))
        return crc

    async def bury(self, route: str, message: Message, reason: Reason) -> None:
        self._writer.check_room()
        arrivals = Arrivals(route)
        arrivals.add(message, message.body, self._route_crc(route), message.since or self.now(), None)
        await self._call(lambda tables: tables.bury(arrivals, reason))

    def advance(self, route: str, changes: Sequence[Change]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        crc = self._route_crc(route)
        ready = [prepared(crc, change) for change in changes]
        self._writer.put(Op(CHANGES, ready, future, size=size_of(ready)))
        return future

    def finish(self, route: str, ends: Sequence[Finished], then: Callable[[], None]) -> None:
        rows = [(end.id, CODES[end.state], trace_of(end.hops, end.attempts), end.reason) for end in ends]
        self._writer.put(Op(END, rows, Then(then), count=len(rows)))

    def _call(self, change: Callable[[Tables], Any], kind: int = CALL) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._writer.put(Op(kind, change, future))
        return future

    async def claim(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        await self._call(lambda tables: claim(tables, messages, deliveries, "claims + 1"), PATIENT_CALL)

    async def release(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        await self._call(lambda tables: claim(tables, messages, deliveries, "0"), PATIENT_CALL)

    async def replay(self, ids: Sequence[str], target: str | None, by: str) -> int:
        wall_s = self._clock.time()
        count: int = await self._call(lambda tables: actions.replay(tables, ids, target, by, wall_s))
        return count

    async def discard(self, ids: Sequence[str], by: str) -> int:
        wall_s = self._clock.time()
        count: int = await self._call(lambda tables: actions.discard(tables, ids, by, wall_s))
        return count

    async def note(self, id: str, action: str, by: str) -> None:
        wall_s = self._clock.time()
        await self._call(lambda tables: actions.note(tables, id, action, by, wall_s))

    async def remember(self, scope: str, key: str, value: str, window_s: float, most: int | None = None) -> str:
        kept: str = await self._call(lambda tables: actions.remember(tables, scope, key, value, window_s, most))
        return kept

    # -- what is asked of it -----------------------------------------------------------------------------------------

    async def recall(self, scope: str, key: str, most: int | None = None) -> str | None:
        self._check()
        return await self._readers["find"].call(
            lambda connection: actions.recall(connection, scope, key, most, self.now())
        )

    def trouble(self) -> str | None:
        return self._writer.trouble

    def counts(self) -> Mapping[str, Mapping[State, int]]:
        return self._tables.books()

    def _has(self, route: str, state: int) -> tuple[int, str] | None:
        """The route, if it has messages (or deliveries) in that state."""
        self._check()
        number = self._tables.routes.get(route)
        if number is None or not self._tables.counts.get((number, state)):
            return None
        return number, route

    def _check(self) -> None:
        if self._writer.broken is not None:
            raise JournalBrokenError(self._writer.broken)

    async def stored(self, route: str, exclude: Collection[str], limit: int, max_bytes: int) -> Backlog:
        number = self._has(route, STORED)
        if number is None:
            return Backlog(whole=True)
        keys = {id_key(name) for name in exclude}
        while True:
            works, damaged = await self._readers["delivery"].call(
                lambda connection: reading.stored(connection, number, keys, limit, max_bytes)
            )
            if damaged:
                await self._call(partial(actions.quarantine_messages, seqs=damaged), PATIENT_CALL)
            if works or not damaged:
                return works

    async def due(
        self, route: str, exclude: Collection[tuple[str, str]], limit: int, max_bytes: int | None = None
    ) -> Sequence[Due]:
        number = self._has(route, OPEN_DELIVERIES)
        if number is None:
            return ()
        keys = {(id_key(child), target) for child, target in exclude}
        while True:
            found, damaged = await self._readers["delivery"].call(
                lambda connection: reading.due(connection, number, keys, limit, max_bytes, self.now())
            )
            if damaged:
                await self._call(partial(actions.quarantine_deliveries, numbers=damaged), PATIENT_CALL)
            if found or not damaged:
                return found

    async def queued(
        self, route: str, lanes: Collection[tuple[str, str]], limit: int
    ) -> Mapping[tuple[str, str], Sequence[Due]]:
        number = self._has(route, OPEN_DELIVERIES)
        if number is None:
            return {}
        return await self._readers["delivery"].call(lambda connection: reading.queued(connection, number, lanes, limit))

    async def next_due(self, route: str, exclude: Collection[tuple[str, str]]) -> float | None:
        number = self._has(route, OPEN_DELIVERIES)
        if number is None:
            return None
        keys = {(id_key(child), target) for child, target in exclude}
        return await self._readers["delivery"].call(lambda connection: reading.next_due(connection, number[0], keys))

    async def lanes(self, route: str) -> Mapping[tuple[str, str], int]:
        number = self._has(route, OPEN_DELIVERIES)
        if number is None:
            return {}
        return await self._readers["delivery"].call(lambda connection: reading.lanes(connection, number[0]))

    async def browse(self, wanted: Filter, cursor: str | None, limit: int) -> Page:
        self._check()
        return await self._readers["browse"].call(lambda connection: browsing.browse(connection, wanted, cursor, limit))

    async def find(self, id: str) -> Detail | None:
        self._check()
        return await self._readers["find"].call(lambda connection: browsing.find(connection, id))
