"""What operators do to messages in the journal's tables, what is remembered, and what is found damaged."""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

from collections.abc import Sequence

import apsw

from adapters._sqlite_changes import Lane, closed, wake
from adapters._sqlite_records import (
    DEAD,
    DELIVERED,
    DISCARDED,
    EXPIRED,
    MAX_ATTEMPTS,
    PENDING,
    STORED,
    id_key,
    reason_blob,
)
from adapters._sqlite_tables import OPEN_DELIVERIES, Tables
from gateway.journal import Reason
from gateway.message import rfc3339

MAX_ACTIONS = 200
"""What is kept of what operators did to one message."""
FORGET = 8
"""How many memos go at most with each new one: more than one, so that a number that was lowered is reached."""


def _seq(tables: Tables, id: str) -> int | None:
    """The number of a message, by its id or that of a child."""
    key = id_key(id)
    seq: int | None = tables.execute("SELECT seq FROM messages WHERE id = ?", (key,)).get
    if seq is None:
        seq = tables.execute("SELECT seq FROM deliveries WHERE child = ? LIMIT 1", (key,)).get
    return seq


def replay(tables: Tables, ids: Sequence[str], target: str | None, by: str, wall_s: float) -> int:
    """Final messages become pending or stored again. How many did."""
    lanes: set[Lane] = set()
    count = 0
    for name in ids:
        seq = _seq(tables, name)
        found = seq and tables.execute("SELECT route, state, trace FROM states WHERE seq = ?", (seq,)).fetchone()
        if not seq or not found or found[1] == PENDING:
            continue
        route, state, trace = found
        if _knows_deliveries(tables, seq, state):
            again = _reopen(tables, seq, route, target, lanes)
        else:
            again = True
            _store_again(tables, seq, route, target, delivered=state == DELIVERED)
        if again:
            tables.count(route, state, -1)
            _keep_trace(tables, seq, trace)
            _note(tables, seq, wall_s, by, "replay" if target is None else f"replay to {target}")
            count += 1
    wake(tables, lanes)
    return count


def _knows_deliveries(tables: Tables, seq: int, state: int) -> bool:
    """Whether all deliveries of a message are there. Those of a replay to one target go, once that has it."""
    if state == DELIVERED and tables.execute("SELECT only FROM messages WHERE seq = ?", (seq,)).get is not None:
        tables.execute(
            "UPDATE messages SET again = max(again, (SELECT coalesce(max(again), 0) FROM deliveries WHERE seq = ?1)) "
            "WHERE seq = ?1",
            (seq,),
        )
        tables.execute("DELETE FROM deliveries WHERE seq = ?", (seq,))
    return bool(tables.execute("SELECT 1 FROM deliveries WHERE seq = ? LIMIT 1", (seq,)).get)


def _reopen(tables: Tables, seq: int, route: int, target: str | None, lanes: set[Lane]) -> bool:
    """Makes deliveries pending again, behind all others of their lanes. False: none is to be."""
    rows = tables.execute("SELECT n, state, target, lane FROM deliveries WHERE seq = ? ORDER BY n", (seq,)).fetchall()
    if target is not None:
        chosen = [row for row in rows if row[2] == target]
    else:
        states = {row[1] for row in rows}
        wanted = {DEAD} if DEAD in states else {DISCARDED, EXPIRED} if states & {DISCARDED, EXPIRED} else {DELIVERED}
        chosen = [row for row in rows if row[1] in wanted]
    if not chosen:
        return False
    turn, now = tables.next_turn(), tables.now()
    tables.execute("UPDATE deliveries SET turn = ? WHERE seq = ?", (turn, seq))
    tables.execute(
        "UPDATE messages SET turn = ?, since = ?, again = coalesce(again, 0) WHERE seq = ?", (turn, now, seq)
    )
    for n, state, name, lane in chosen:
        tables.execute(
            "UPDATE deliveries SET state = 1, due_at = ?, attempts = 0, claims = 0, reason = NULL, again = again + ? "
            "WHERE n = ?",
            (now if lane is None else None, state == DELIVERED, n),
        )
        if lane is not None:
            lanes.add((route, name, lane))
    tables.execute(
        "UPDATE states SET state = 1, at = ?, open = ?, kind = NULL, reason = NULL WHERE seq = ?",
        (now, len(chosen), seq),
    )
    tables.count(route, PENDING, 1)
    tables.count(route, OPEN_DELIVERIES, len(chosen))
    return True


def _store_again(tables: Tables, seq: int, route: int, only: str | None, *, delivered: bool) -> None:
    turn = tables.next_turn()
    tables.execute("DELETE FROM states WHERE seq = ?", (seq,))
    urgency = tables.execute(
        "UPDATE messages SET turn = ?, since = ?, again = coalesce(again, 0) + ?, only = ? WHERE seq = ? "
        "RETURNING urgency",
        (turn, tables.now(), delivered, only, seq),
    ).get
    tables.execute("INSERT INTO stored VALUES (?, ?, ?, ?, 0)", (route, urgency, turn, seq))
    tables.count(route, STORED, 1)


def _keep_trace(tables: Tables, seq: int, trace: bytes | None) -> None:
    tables.add_trace(seq, trace)
    tables.execute("UPDATE states SET trace = NULL WHERE seq = ? AND trace IS NOT NULL", (seq,))
    _keep_last(tables, "traces", seq, MAX_ATTEMPTS)


def _keep_last(tables: Tables, table: str, seq: int, count: int) -> None:
    tables.execute(
        f"DELETE FROM {table} WHERE seq = ?1 AND n <= "
        f"(SELECT n FROM {table} WHERE seq = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)",
        (seq, count),
    )


def discard(tables: Tables, ids: Sequence[str], by: str, wall_s: float) -> int:
    """Dead and unfinished messages become discarded. How many did."""
    lanes: set[Lane] = set()
    count = 0
    for name in ids:
        seq = _seq(tables, name)
        if seq is not None and _discard(tables, seq, lanes):
            _note(tables, seq, wall_s, by, "discard")
            count += 1
    wake(tables, lanes)
    return count


def _discard(tables: Tables, seq: int, lanes: set[Lane]) -> bool:
    found = tables.execute("SELECT route, state FROM states WHERE seq = ?", (seq,)).fetchone()
    if found is None:
        place = tables.take_number(seq)
        if place is not None:
            tables.set_state(seq, place.route, DISCARDED, None)
        return place is not None
    route, state = found
    if state not in (PENDING, DEAD):
        return False
    waiting: list[tuple[str, str | None]] = tables.execute(
        "SELECT target, lane FROM deliveries WHERE seq = ? AND state = 1", (seq,)
    ).fetchall()
    lanes.update((route, target, lane) for target, lane in waiting if lane is not None)
    tables.execute("UPDATE deliveries SET state = 6, due_at = NULL WHERE seq = ? AND state IN (1, 5)", (seq,))
    tables.count(route, OPEN_DELIVERIES, -len(waiting))
    tables.count(route, state, -1)
    tables.change_state(seq, route, DISCARDED, None)
    return True


def note(tables: Tables, id: str, action: str, by: str, wall_s: float) -> None:
    """Adds an audit line to a message, if it is there."""
    seq = _seq(tables, id)
    if seq is not None:
        _note(tables, seq, wall_s, by, action)


def _note(tables: Tables, seq: int, wall_s: float, by: str, action: str) -> None:
    tables.execute("INSERT INTO actions (seq, line) VALUES (?, ?)", (seq, f"{rfc3339(wall_s)} {by}: {action}"))
    _keep_last(tables, "actions", seq, MAX_ACTIONS)


_NEWEST = "SELECT max(n) FROM memos WHERE scope = ?"
_KEPT = "SELECT value FROM memos WHERE scope = ? AND key = ? AND until > ? AND n > ?"


def recall(connection: apsw.Connection, scope: str, key: str, most: int | None, now: float) -> str | None:
    """The value that is kept under this key, within its window and the newest so many."""
    forgotten = -1 if most is None else (connection.execute(_NEWEST, (scope,)).get or 0) - most
    kept: str | None = connection.execute(_KEPT, (scope, key, now, forgotten)).get
    return kept


def remember(tables: Tables, scope: str, key: str, value: str, window_s: float, most: int | None) -> str:
    """The value that is kept under this key: this one if none was, or none within its window and the newest so many."""
    now = tables.now()
    last = tables.memos.get(scope)
    if last is None:
        last = tables.execute(_NEWEST, (scope,)).get or 0
    forgotten = -1 if most is None else last - most
    kept: str | None = tables.execute(_KEPT, (scope, key, now, forgotten)).get
    if kept is None:
        tables.memos[scope] = last = last + 1
        tables.execute(
            "INSERT OR REPLACE INTO memos (scope, key, value, until, n) VALUES (?, ?, ?, ?, ?)",
            (scope, key, value, now + window_s, last),
        )
        if most is not None:
            tables.execute(
                "DELETE FROM memos WHERE (scope, key) IN "
                "(SELECT scope, key FROM memos WHERE scope = ?1 AND n <= ?2 ORDER BY n LIMIT ?3)",
                (scope, last - most, FORGET),
            )
    return value if kept is None else kept


def quarantine_messages(tables: Tables, seqs: Sequence[int]) -> None:
    """Stored messages whose records are damaged become dead letters."""
    for seq in seqs:
        place = tables.take_number(seq)
        if place is not None:
            tables.set_state(seq, place.route, DEAD, DAMAGED)


def quarantine_deliveries(tables: Tables, numbers: Sequence[int]) -> None:
    """Pending deliveries whose records are damaged become dead letters."""
    lanes: set[Lane] = set()
    for n in numbers:
        found = tables.execute("SELECT seq, route, target, lane FROM deliveries WHERE n = ? AND state = 1", (n,)).get
        if found is None:
            continue
        seq, route, target, lane = found
        tables.execute(
            "UPDATE deliveries SET state = 5, due_at = NULL, reason = ? WHERE n = ?", (reason_blob(DAMAGED), n)
        )
        if lane is not None:
            lanes.add((route, target, lane))
        closed(tables, seq, route, 1)
    wake(tables, lanes)


DAMAGED = Reason("damaged", "its record in the journal is not as it was written: the disk changed it", "journal")
