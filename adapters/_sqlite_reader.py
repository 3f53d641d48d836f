"""What the delivery asks the journal for, in a thread and over a connection of its own: no commit holds it up."""

# ruff: noqa: S608  what is put into statements is a constant of ours
from __future__ import annotations

import asyncio
import logging
import threading
import zlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import apsw

from adapters._sqlite_records import (
    STATES,
    DamagedError,
    Key,
    checksum,
    id_text,
    message_of,
    read_reason,
    replayed,
    sound_message,
)
from gateway.journal import ALL_QUEUED_BYTES, QUEUED_BYTES, Backlog, Delivery, Due, JournalBrokenError, Work

T = TypeVar("T")
log = logging.getLogger("gateway.journal")


class Reader:
    """A thread with a connection that only reads, which it closes at its end."""

    def __init__(self, connection: apsw.Connection, name: str, on_error: Callable[[apsw.Error], None]) -> None:
        self._connection = connection
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[[apsw.Connection], Any], asyncio.Future[Any]] | None] = deque()
        self._count = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, read: Callable[[apsw.Connection], T]) -> asyncio.Future[T]:
        """What `read` gives. It sees everything that was committed before."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((read, future))
        self._count.release()
        return future

    async def close(self) -> None:
        """Lets what is asked for finish, and ends the thread."""
        self._waiting.append(None)
        self._count.release()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while True:
            self._count.acquire()
            item = self._waiting.popleft()
            if item is None:
                self._connection.close()
                return
            read, future = item
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = read(self._connection)
            except apsw.Error as failure:
                self._on_error(failure)
                error = JournalBrokenError(f"journal: it can't be read ({failure})")
            except Exception as failure:
                error = failure  # type: ignore[assignment]
            try:
                self._loop.call_soon_threadsafe(_answer, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _answer(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


# -- stored ------------------------------------------------------------------------------------------------------------

SINCE = "coalesce(m.since, m.received)"
"""Rows of version 1 don't have it; journal time was wall time then."""
_STORED = (
    "SELECT s.seq, s.claims, m.id, length(m.body) FROM stored s JOIN messages m ON m.seq = s.seq "
    "WHERE s.route = ? ORDER BY s.urgency, s.turn"
)


def stored(
    connection: apsw.Connection, route: tuple[int, str], exclude: Collection[Key], limit: int, max_bytes: int
) -> tuple[Backlog, list[int]]:
    """Works, and the numbers of damaged messages that were met."""
    number, name = route
    chosen: list[tuple[int, int]] = []
    size, whole = 0, True
    with connection:
        for seq, claims, key, length in connection.execute(_STORED, (number,)):
            if key in exclude:
                continue
            if len(chosen) >= limit or (chosen and size + length > max_bytes):
                whole = False
                break
            chosen.append((seq, claims))
            size += length
        works = Backlog(whole=whole)
        damaged: list[int] = []
        for seq, claims in chosen:
            key, crc, envelope, body, since, again, only = connection.execute(
                f"SELECT id, crc, envelope, body, {SINCE}, again, only FROM messages m WHERE seq = ?", (seq,)
            ).get
            try:
                message = replayed(sound_message(name, key, crc, envelope, body), since, again)
                works.append(Work(message, claims, only))
            except DamagedError as error:
                log.error(
                    "a stored message is damaged",
                    extra={"route": name, "message_id": id_text(key), "reason": str(error)},
                )
                damaged.append(seq)
    return works, damaged


# -- deliveries --------------------------------------------------------------------------------------------------------

DELIVERY = (
    "SELECT m.id, d.child, d.target, d.state, d.lane, d.attempts, d.due_at, d.reason, d.crc, "
    f"coalesce(d.envelope, m.envelope), coalesce(d.body, m.body), {SINCE}, iif(m.again IS NULL, NULL, d.again) "
    "FROM deliveries d JOIN messages m USING (seq) "
)


def delivery_of(route: str, row: Sequence[Any]) -> Delivery:
    """The delivery of such a row.

    Raises:
        DamagedError: it is not as it was written.
    """
    parent, child, target, state, lane, attempts, due_at, reason, crc, envelope, body, since, again = row
    if checksum(zlib.crc32(route.encode("utf-8", "replace")), envelope, body) != crc:
        raise DamagedError("its checksum is wrong")
    message = message_of(envelope, body)
    if message.id != id_text(parent if child is None else child):
        raise DamagedError("its id is not the one that it was stored under")
    return Delivery(
        parent=id_text(parent),
        target=target,
        message=replayed(message, since, again),
        state=STATES[state],
        key=lane,
        attempts=attempts,
        due_at=due_at,
        reason=read_reason(reason),
    )


def due(
    connection: apsw.Connection,
    route: tuple[int, str],
    exclude: Collection[tuple[Key, str]],
    limit: int,
    max_bytes: int | None,
    now: float,
) -> tuple[list[Due], list[int]]:
    """Deliveries whose time has come, and the numbers of damaged ones that were met."""
    number, name = route
    chosen: list[tuple[int, int]] = []
    found: list[Due] = []
    damaged: list[int] = []
    with connection:
        for n, claims, key, target, _ in _times(connection, number, now):
            if (key, target) not in exclude:
                chosen.append((n, claims))
                if len(chosen) >= limit:
                    break
        size = 0
        for n, claims in chosen:
            if max_bytes is not None and size > max_bytes:
                break
            row = connection.execute(DELIVERY + "WHERE d.n = ?", (n,)).get
            try:
                found.append(Due(delivery_of(name, row), claims))
                size += found[-1].delivery.message.size
            except DamagedError as error:
                log.error(
                    "a delivery is damaged",
                    extra={"route": name, "message_id": id_text(row[0]), "target": row[2], "reason": str(error)},
                )
                damaged.append(n)
    return found, damaged


def queued(
    connection: apsw.Connection, route: tuple[int, str], lanes: Collection[tuple[str, str]], limit: int
) -> Mapping[tuple[str, str], list[Due]]:
    """The first pending deliveries of these lanes."""
    number, name = route
    found: dict[tuple[str, str], list[Due]] = {}
    left = ALL_QUEUED_BYTES
    with connection:
        for target, key in lanes:
            if left <= 0:
                break
            run = found[target, key] = []
            size = 0
            rows: list[Any] = connection.execute(_LANE, (number, target, key, limit)).fetchall()
            for n, claims in rows:
                row = connection.execute(DELIVERY + "WHERE d.n = ?", (n,)).get
                try:
                    delivery = delivery_of(name, row)
                except DamagedError:  # it is told, and put aside, when it is due
                    break
                run.append(Due(delivery, claims))
                size += delivery.message.size
                if size > QUEUED_BYTES:
                    break
            left -= size
    return found


_LANE = (
    "SELECT n, claims FROM deliveries WHERE route = ? AND target = ? AND lane = ? AND state = 1 "
    "ORDER BY turn, n LIMIT ?"
)


def next_due(connection: apsw.Connection, route: int, exclude: Collection[tuple[Key, str]]) -> float | None:
    """The time of the earliest pending delivery that has one."""
    with connection:
        for _, _, key, target, due_at in _times(connection, route, None):
            if (key, target) not in exclude:
                return float(due_at)
    return None


def _times(connection: apsw.Connection, route: int, until: float | None) -> apsw.Cursor:
    return connection.execute(
        "SELECT d.n, d.claims, coalesce(d.child, m.id), d.target, d.due_at "
        "FROM deliveries d JOIN messages m USING (seq) "
        "WHERE d.route = ? AND d.state = 1 AND d.due_at <= ? ORDER BY d.due_at, d.turn, d.n",
        (route, 1e300 if until is None else until),
    )


def lanes(connection: apsw.Connection, route: int) -> Mapping[tuple[str, str], int]:
    """How many pending deliveries each (target, key) has."""
    rows = connection.execute(
        "SELECT target, lane, count(*) FROM deliveries WHERE route = ? AND state = 1 AND lane IS NOT NULL "
        "GROUP BY target, lane",
        (route,),
    )
    return {(target, lane): count for target, lane, count in rows}
