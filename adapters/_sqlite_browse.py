"""Lists of messages, and everything about one, over the connection that is for people."""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from adapters._sqlite_actions import DAMAGED
from adapters._sqlite_reader import DELIVERY, delivery_of
from adapters._sqlite_records import (
    CODES,
    DEAD,
    DELIVERED,
    DISCARDED,
    EXPIRED,
    FILTERED,
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
from adapters._sqlite_tables import NEXT, ZONE_BITS
from gateway.journal import Attempt, Delivery, Detail, Filter, Hop, Page, Row
from gateway.message import Message

log = logging.getLogger("gateway.journal")

SLICE = 1000
"""How many messages are looked at in one look into the file: it must not hold the log back for long."""
WIDTH = 1 << 14
"""Among how many places of the list one look searches at first: fewer when that takes long, more when it is quick."""
QUICK_S, LONG_S = 0.005, 0.02
PAGE_S = 0.1
"""How long one page is searched for. Whoever wants more goes on from there; others have their turn meanwhile."""
_END = 1 << 62

Source = tuple[str, list[Any]]
"""A statement that gives (place in the list, number), and its values but for the last three: from, to, count."""

_FOUND = (
    "SELECT m.seq, r.name, m.id, m.received, m.envelope, length(m.body), s.state, s.reason "
    "FROM messages m JOIN routes r USING (route) LEFT JOIN states s USING (seq) WHERE m.seq IN "
)


def browse(connection: apsw.Connection, wanted: Filter, cursor: str | None, limit: int) -> Page:
    """The newest messages that are wanted, after the cursor: as far as they are found in `PAGE_S`.

    Raises:
        ValueError: the cursor is none of ours.
    """
    before = _END
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise ValueError(f"cursor: {cursor!r:.40} is none of ours")
        before = int(cursor)
    until_s = time.monotonic() + PAGE_S
    rows: list[Row] = []
    sources = list(_sources(connection, wanted))
    for first, end in _ranges(connection, wanted, before):
        for keys, reached in _slices(connection, wanted, sources, first, end, limit + 1 - len(rows)):
            rows += _rows(connection, wanted, keys, limit + 1 - len(rows))
            if len(rows) > limit:
                return Page(rows[:limit], rows[limit - 1].cursor)
            if time.monotonic() >= until_s:
                return Page(rows, str(reached))
    return Page(rows)


def _rows(connection: apsw.Connection, wanted: Filter, keys: dict[int, int], limit: int) -> Iterator[Row]:
    """The rows of these messages (their numbers, and their places in the list) whose envelopes have what is wanted."""
    if _in_envelope(wanted):
        keys = _with_envelopes(connection, wanted, keys)
    some = list(keys)[:limit]
    if not some:
        return
    found: list[Any] = connection.execute(f"{_FOUND} ({','.join('?' * len(some))})", some).fetchall()
    for line in sorted(found, key=lambda line: -keys[line[0]]):
        yield _row(line, keys[line[0]])


def _in_envelope(wanted: Filter) -> bool:
    """Whether something is wanted that only an envelope says."""
    return wanted.text is not None or wanted.sender_id is not None


def _with_envelopes(connection: apsw.Connection, wanted: Filter, keys: dict[int, int]) -> dict[int, int]:
    marks = ",".join("?" * len(keys))
    lines: list[Any] = connection.execute(
        f"SELECT seq, envelope FROM messages WHERE seq IN ({marks})", list(keys)
    ).fetchall()
    found = {seq for seq, envelope in lines if _fits(envelope, wanted)}
    return {seq: key for seq, key in keys.items() if seq in found}


def _fits(envelope: bytes, wanted: Filter) -> bool:
    try:
        message = message_of(envelope, None)
    except DamagedError:
        return not wanted.text and wanted.sender_id is None
    if wanted.sender_id not in (None, message.sender_id):
        return False
    return wanted.text is None or wanted.text.lower() in search_text(message)


def _row(line: Sequence[Any], key: int) -> Row:
    _, route, id_of, received, envelope, size, state, reason = line
    try:
        message = message_of(envelope, None)
        why = read_reason(reason)
    except DamagedError:
        message, why = Message(id=id_text(id_of), time_s=received), DAMAGED
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
        cursor=str(key),
    )


def _ranges(connection: apsw.Connection, wanted: Filter, before: int) -> Iterator[tuple[int, int]]:
    """Where to look, newest first: all, or only where something of the time that is wanted may be."""
    lowest: int = connection.execute("SELECT coalesce(min(seq), 0) FROM messages").get
    highest: Any = connection.execute("SELECT n FROM counts WHERE route = ? AND state = ?", NEXT).get
    before = min(before, _END if highest is None else highest)
    if (wanted.since_s is None and wanted.until_s is None) or wanted.status == "pending":
        yield lowest, before  # those that were replayed wait elsewhere than where their time is
        return
    zones: list[Any] = connection.execute(
        "SELECT zone FROM zones WHERE high >= ? AND low <= ? ORDER BY zone DESC",
        (-1e300 if wanted.since_s is None else wanted.since_s, 1e300 if wanted.until_s is None else wanted.until_s),
    ).fetchall()
    for (zone,) in zones:
        first, end = zone << ZONE_BITS, (zone + 1) << ZONE_BITS
        if first < before:
            yield first, min(end, before)


def _slices(
    connection: apsw.Connection, wanted: Filter, sources: Sequence[Source], first: int, end: int, limit: int
) -> Iterator[tuple[dict[int, int], int]]:
    """Messages that may be wanted, newest first: their numbers and places in the list; and what was reached in it."""
    count = SLICE if _in_envelope(wanted) else min(SLICE, limit)
    width = WIDTH
    while first < end:
        began_s = time.monotonic()
        low = max(first, end - width)
        found: list[tuple[int, int]] = []
        full = False
        for sql, values in sources:
            some: list[Any] = connection.execute(sql, (*values, low, end, count)).fetchall()
            full = full or len(some) == count
            found += some
        best = sorted(found, reverse=True)[:count]
        end = best[-1][0] if full or len(found) > count else low
        yield {seq: key for key, seq in best}, end
        took_s = time.monotonic() - began_s
        if not full and took_s < QUICK_S:
            width *= 4
        elif took_s > LONG_S:
            width = max(width // 4, SLICE)


# -- where messages of a state are -------------------------------------------------------------------------------------


def _sources(connection: apsw.Connection, wanted: Filter) -> Iterator[Source]:
    """What to ask for what is wanted."""
    route: Any = None
    if wanted.route is not None:
        route = connection.execute("SELECT route FROM routes WHERE name = ?", (wanted.route,)).get
        if route is None:
            return
    if wanted.correlation_id is not None:
        yield _correlated(wanted, route)
    elif wanted.status is None and wanted.reason is None:
        yield _statement(wanted, "messages m", "m.seq", "m.received", [("m.route = ?", route), *_in_bytes(wanted)])
    elif wanted.status == "delivered":
        where = [("s.state = ?", DELIVERED), ("s.route = ?", route), *_in_bytes(wanted)]
        yield _statement(wanted, "states s JOIN messages m USING (seq)", "s.seq", "m.received", where)
    elif wanted.status is None:
        for state in (PENDING, FILTERED, EXPIRED, DEAD, DISCARDED):  # nothing else has a reason
            yield _of_state(wanted, route, state)
    else:
        yield _of_state(wanted, route, CODES[wanted.status])
        if wanted.status == "pending" and wanted.reason is None:
            yield from _of_stored(connection, wanted, route)


def _in_bytes(wanted: Filter) -> list[tuple[str, Any]]:
    """Most messages have the text or the sender's id nowhere in their bytes, which SQLite sees at once.

    It does so without holding up others.
    """
    text = wanted.text
    plain = text is not None and text.isascii() and ": " not in text and "\n" not in text
    sender_id = None if wanted.sender_id is None else wanted.sender_id.encode("utf-8", "replace")
    return [
        ("instr(m.envelope, ?) > 0", sender_id),
        ("instr(lower(m.envelope), ?) > 0", text.lower() if plain and text is not None else None),
    ]


def _of_state(wanted: Filter, route: int | None, state: int) -> Source:
    # the index has all states but delivered, and is used only where that is said
    where: list[tuple[str, Any]] = [("s.state = ? AND s.state <> 2", state), ("s.route = ?", route)]
    for text in (wanted.text, wanted.sender_id):
        if text is not None:
            where.append(("instr(s.search, ?) > 0", text.lower()))
    return _statement(wanted, "states s", "s.seq", "s.received", where)


def _correlated(wanted: Filter, route: int | None) -> Source:
    where: list[tuple[str, Any]] = [("m.correlation = ?", wanted.correlation_id), ("m.route = ?", route)]
    if wanted.status == "pending":
        where.append(("coalesce(s.state, 0) <= ?", PENDING))
    elif wanted.status is not None:
        where.append(("s.state = ?", CODES[wanted.status]))
    table = "messages m INDEXED BY messages_correlation LEFT JOIN states s USING (seq)"
    return _statement(wanted, table, "m.seq", "m.received", where)


def _of_stored(connection: apsw.Connection, wanted: Filter, route: int | None) -> Iterator[Source]:
    """One statement for each route and urgency: each is in the order of turns already."""
    routes: list[Any] = connection.execute("SELECT route FROM routes").fetchall()
    for (number,) in routes if route is None else [(route,)]:
        urgency: Any = -_END
        while True:
            urgency = connection.execute(
                "SELECT min(urgency) FROM stored WHERE route = ? AND urgency > ?", (number, urgency)
            ).get
            if urgency is None:
                break
            where = [("t.route = ?", number), ("t.urgency = ?", urgency), *_in_bytes(wanted)]
            yield _statement(wanted, "stored t JOIN messages m USING (seq)", "t.turn", "m.received", where)


def _statement(wanted: Filter, table: str, key: str, received: str, where: list[tuple[str, Any]]) -> Source:
    given = [
        *where,
        ("s.kind = ?", wanted.reason),
        (f"{received} >= ?", wanted.since_s),
        (f"{received} <= ?", wanted.until_s),
    ]
    given = [(condition, value) for condition, value in given if value is not None]
    conditions = [condition for condition, _ in given] + [f"{key} >= ?", f"{key} < ?"]
    number = f"{table.partition(' ')[2][0]}.seq"
    sql = f"SELECT {key}, {number} FROM {table} WHERE {' AND '.join(conditions)} ORDER BY {key} DESC LIMIT ?"
    return sql, [value for _, value in given]


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
    row = _row(line, seq)
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
