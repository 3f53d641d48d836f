"""Lists of messages, and everything about one, over the connection that is for people."""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from adapters._sqlite_actions import DAMAGED
from adapters._sqlite_reader import DELIVERY, delivery_of
from adapters._sqlite_records import (
    CODES,
    DELIVERED,
    PENDING,
    STATES,
    STORED,
    DamagedError,
    id_key,
    id_text,
    message_of,
    read_reason,
    read_trace,
    search_text,
    sound_message,
)
from adapters._sqlite_tables import ZONE_BITS
from gateway.journal import Attempt, Delivery, Detail, Filter, Hop, Row
from gateway.message import Message

log = logging.getLogger("gateway.journal")

SLICE = 1000
"""How many messages are looked at in one look into the file: it must not hold the log back for long."""
_END = 1 << 62

_FOUND = (
    "SELECT m.seq, r.name, m.id, m.received, m.envelope, length(m.body), s.state, s.reason "
    "FROM messages m JOIN routes r USING (route) LEFT JOIN states s USING (seq) WHERE m.seq IN "
)


def browse(connection: apsw.Connection, wanted: Filter, cursor: str | None, limit: int) -> list[Row]:
    """The newest messages that are wanted, after the cursor."""
    before = int(cursor) if cursor is not None and cursor.isdigit() else _END
    rows: list[Row] = []
    for first, end in _ranges(connection, wanted, before):
        for seqs in _slices(connection, wanted, first, end, limit - len(rows)):
            marks = ",".join("?" * len(seqs))
            found = connection.execute(f"{_FOUND} ({marks}) ORDER BY m.seq DESC", seqs).fetchall()
            for line in found:
                row = _row(line, wanted)
                if row is not None:
                    rows.append(row)
                    if len(rows) >= limit:
                        return rows
    return rows


def _row(line: Sequence[Any], wanted: Filter) -> Row | None:
    """The row of such a line; None: the text that is looked for is not in it."""
    seq, route, key, received, envelope, size, state, reason = line
    try:
        message = message_of(envelope, None)
        why = read_reason(reason)
    except DamagedError:
        message, why = Message(id=id_text(key), time_s=received), DAMAGED
    if wanted.text is not None and wanted.text.lower() not in search_text(message):
        return None
    return Row(
        id=message.id,
        route=route,
        state=STATES[state or STORED],
        received_s=received,
        type=message.type,
        subject=message.subject,
        key=message.key,
        sender_id=message.sender_id,
        correlation_id=message.correlation_id,
        size=size,
        reason=why,
        cursor=str(seq),
    )


def _ranges(connection: apsw.Connection, wanted: Filter, before: int) -> Iterator[tuple[int, int]]:
    """Where to look, newest first: all, or only where something of the time that is wanted may be."""
    if wanted.since_s is None and wanted.until_s is None:
        yield 0, before
        return
    zones: list[Any] = connection.execute(
        "SELECT zone FROM zones WHERE high >= ? AND low <= ? ORDER BY zone DESC",
        (-1e300 if wanted.since_s is None else wanted.since_s, 1e300 if wanted.until_s is None else wanted.until_s),
    ).fetchall()
    for (zone,) in zones:
        first, end = zone << ZONE_BITS, (zone + 1) << ZONE_BITS
        if first < before:
            yield first, min(end, before)


def _slices(connection: apsw.Connection, wanted: Filter, first: int, end: int, limit: int) -> Iterator[list[int]]:
    """Numbers of messages that may be wanted, newest first."""
    sources = [_source(connection, wanted, state) for state in _states(wanted)]
    count = limit if wanted.text is None else max(limit, SLICE)
    while first < end:
        found: set[int] = set()
        full = False
        for sql, values in sources:
            seqs = [seq for (seq,) in connection.execute(sql, (*values, first, end, count))]
            full = full or len(seqs) == count
            found.update(seqs)
        best = sorted(found, reverse=True)[:count]
        for at in range(0, len(best), SLICE):
            yield best[at : at + SLICE]
        if not full or not best:
            return
        end = best[-1]


def _states(wanted: Filter) -> list[int | None]:
    if wanted.status is None:
        return [None]
    return [STORED, PENDING] if wanted.status == "pending" else [CODES[wanted.status]]


def _source(connection: apsw.Connection, wanted: Filter, state: int | None) -> tuple[str, list[Any]]:
    """How to find messages in a state; its last three values are the first number, the end, and how many."""
    where: list[str] = []
    values: list[Any] = []

    def need(condition: str, value: Any) -> None:
        where.append(condition)
        values.append(value)

    of_route, times, at = "m.route", "m.received", "m.seq"
    if wanted.correlation_id is not None:
        table = "messages m INDEXED BY messages_correlation LEFT JOIN states s USING (seq)"
        need("m.correlation = ?", wanted.correlation_id)
        if state is not None:
            need("coalesce(s.state, 0) = ?", state)
    elif state is None:
        table = "messages m" if wanted.reason is None else "messages m JOIN states s USING (seq)"
    elif state == STORED:
        table, of_route, at = "stored t JOIN messages m ON m.seq = t.seq", "t.route", "t.seq"
    elif state == DELIVERED:
        table, of_route, at = "states s JOIN messages m USING (seq)", "s.route", "s.seq"
        need("s.state = ?", state)
    else:
        table, of_route, times, at = "states s", "s.route", "s.received", "s.seq"
        need("s.state = ?", state)
        if wanted.text is not None:
            need("instr(s.search, ?) > 0", wanted.text.lower())
    if wanted.route is not None:
        number = connection.execute("SELECT route FROM routes WHERE name = ?", (wanted.route,)).get
        need(f"{of_route} = ?", number)
    if wanted.reason is not None:
        need("s.kind = ?" if state != STORED else "? IS NULL", wanted.reason)
    if wanted.since_s is not None:
        need(f"{times} >= ?", wanted.since_s)
    if wanted.until_s is not None:
        need(f"{times} <= ?", wanted.until_s)
    where += [f"{at} >= ?", f"{at} < ?"]
    return f"SELECT {at} FROM {table} WHERE {' AND '.join(where)} ORDER BY {at} DESC LIMIT ?", values


# -- one message -------------------------------------------------------------------------------------------------------


def find(connection: apsw.Connection, id: str) -> Detail | None:
    """Everything about the message with this id, or with a child of this id."""
    detail = None
    with connection:
        key = id_key(id)
        seq: Any = connection.execute("SELECT seq FROM messages WHERE id = ?", (key,)).get
        if seq is None:
            seq = connection.execute("SELECT seq FROM deliveries WHERE child = ? LIMIT 1", (key,)).get
        if seq is not None:
            detail = _detail(connection, seq)
    return detail


def _detail(connection: apsw.Connection, seq: int) -> Detail:
    line: Any = connection.execute(f"{_FOUND} (?)", (seq,)).get
    row = _row(line, Filter())
    assert row is not None
    crc, envelope, body, trace = connection.execute(
        "SELECT m.crc, m.envelope, m.body, s.trace FROM messages m LEFT JOIN states s USING (seq) WHERE m.seq = ?",
        (seq,),
    ).get
    message = _message(row, line[2], crc, envelope, body)
    hops, attempts = _history(connection, seq, trace)
    lines: Any = connection.execute("SELECT line FROM actions WHERE seq = ? ORDER BY n", (seq,)).fetchall()
    return Detail(
        row=row,
        message=message,
        hops=hops,
        attempts=attempts,
        deliveries=_deliveries(connection, seq, row.route),
        actions=[text for (text,) in lines],
    )


def _message(row: Row, key: bytes | str, crc: int, envelope: bytes, body: bytes) -> Message:
    try:
        return sound_message(row.route, key, crc, envelope, body)
    except DamagedError as error:
        log.error("a message is damaged", extra={"route": row.route, "message_id": row.id, "reason": str(error)})
        row.reason = DAMAGED
        try:
            return message_of(envelope, body)
        except DamagedError:
            return Message(id=row.id, raw=body, time_s=row.received_s, content_type="application/octet-stream")


def _history(connection: apsw.Connection, seq: int, last: bytes | None) -> tuple[list[Hop], list[Attempt]]:
    hops: list[Hop] = []
    attempts: list[Attempt] = []
    pieces = [piece for (piece,) in connection.execute("SELECT trace FROM traces WHERE seq = ? ORDER BY n", (seq,))]
    for piece in (*pieces, *([last] if last is not None else [])):
        some_hops, some_attempts = read_trace(piece)
        hops += some_hops
        attempts += some_attempts
    return hops, attempts


def _deliveries(connection: apsw.Connection, seq: int, route: str) -> list[Delivery]:
    found: list[Delivery] = []
    rows: list[Any] = connection.execute(DELIVERY + "WHERE d.seq = ? ORDER BY d.n", (seq,)).fetchall()
    for row in rows:
        try:
            found.append(delivery_of(route, row))
        except DamagedError as error:
            parent, child, target, state, lane, attempts, due_at, *_ = row
            name = id_text(parent if child is None else child)
            log.error("a delivery is damaged", extra={"route": route, "message_id": name, "reason": str(error)})
            found.append(
                Delivery(
                    parent=id_text(parent),
                    target=target,
                    message=Message(id=name, raw=row[10]),
                    state=STATES[state],
                    key=lane,
                    attempts=attempts,
                    due_at=due_at,
                    reason=DAMAGED,
                )
            )
    return found
