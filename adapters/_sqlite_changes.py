"""Deliveries in the journal's tables: written, tried, claimed; the order of lanes; the end of their messages."""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from adapters._sqlite_records import (
    CODES,
    DEAD,
    FILTERED,
    GRAVITY,
    MAX_ATTEMPTS,
    PENDING,
    Key,
    checksum,
    envelope_of,
    id_key,
    read_reason,
    reason_blob,
    trace_of,
)
from adapters._sqlite_tables import CHUNK, OPEN_DELIVERIES, Place, Tables
from gateway.errors import MessageError
from gateway.failpoints import failpoint
from gateway.journal import Attempted, Change, Delivery, Finished, Reason

Lane = tuple[int, str, str]
"""(route, target, key)"""


class Parcel(NamedTuple):
    """A delivery as bytes."""

    target: str
    child: Key | None
    """None: it has the id of its parent."""
    state: int
    lane: str | None
    due_at: float | None
    attempts: int
    crc: int
    reason: bytes | None
    envelope: bytes
    body: bytes
    again: int


class Expansion(NamedTuple):
    """An `Expanded` as bytes."""

    id: str
    parcels: Sequence[Parcel]
    trace: bytes | None


class Try(NamedTuple):
    """An `Attempted` as bytes."""

    change: Attempted
    trace: bytes | None


class End(NamedTuple):
    """A `Finished` as bytes."""

    id: str
    state: int
    trace: bytes | None
    reason: Reason | None


Prepared = Expansion | Try | End


def prepared(route_crc: int, change: Change) -> Prepared:
    """A change as it is written. Called where the messages live, before they change."""
    if isinstance(change, Finished):
        return End(change.id, CODES[change.state], trace_of(change.hops, change.attempts), change.reason)
    if isinstance(change, Attempted):
        return Try(change, trace_of((), (change.attempt,)) if change.attempt is not None else None)
    seen: dict[int, tuple[bytes, bytes]] = {}
    parcels = [_parcel(route_crc, delivery, seen) for delivery in change.deliveries]
    return Expansion(change.id, parcels, trace_of(change.hops, change.attempts))


def _parcel(route_crc: int, delivery: Delivery, seen: dict[int, tuple[bytes, bytes]]) -> Parcel:
    message = delivery.message
    state, reason = CODES[delivery.state], delivery.reason
    if id(message) not in seen:
        try:
            body = message.body
        except MessageError as error:  # it can't be sent either
            body, state, reason = b"", DEAD, Reason(error.code, str(error), delivery.target)
        seen[id(message)] = envelope_of(message), body
    envelope, body = seen[id(message)]
    return Parcel(
        delivery.target,
        None if message.id == delivery.parent else id_key(message.id),
        state,
        delivery.key,
        delivery.due_at if state == PENDING else None,
        delivery.attempts,
        checksum(route_crc, envelope, body),
        reason_blob(reason),
        envelope,
        body,
        message.again,
    )


def apply(tables: Tables, changes: Iterable[Prepared]) -> None:
    """Applies changes in their order, and then wakes the lanes that they moved."""
    lanes: set[Lane] = set()
    for change in changes:
        if isinstance(change, End):
            tables.finish(change.id, change.state, change.trace, change.reason)
        elif isinstance(change, Expansion):
            _expand(tables, change, lanes)
        else:
            _try(tables, change, lanes)
    wake(tables, lanes)


def _expand(tables: Tables, change: Expansion, lanes: set[Lane]) -> None:
    place = tables.take(change.id)
    if place is None:
        return
    envelope, body = tables.execute("SELECT envelope, body FROM messages WHERE seq = ?", (place.seq,)).fetchone()
    for parcel in change.parcels:
        _insert(tables, place, parcel, (envelope, body))
        if parcel.lane is not None and parcel.state == PENDING:
            lanes.add((place.route, parcel.target, parcel.lane))
    left = sum(parcel.state == PENDING for parcel in change.parcels)
    tables.count(place.route, OPEN_DELIVERIES, left)
    state, reason = PENDING, None
    if not left:
        state, reason = _gravest([(parcel.state, parcel.reason) for parcel in change.parcels])
    tables.set_state(place.seq, place.route, state, reason, open=left)
    tables.add_trace(place.seq, change.trace)


def _insert(tables: Tables, place: Place, parcel: Parcel, parent: tuple[bytes, bytes]) -> None:
    if parcel.state == DEAD:
        failpoint("journal.dead_letter")
    tables.execute(
        "INSERT INTO deliveries (seq, route, state, turn, target, child, lane, due_at, attempts, claims, crc, reason, "
        "envelope, body, again) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
        (
            place.seq,
            place.route,
            parcel.state,
            place.turn,
            parcel.target,
            parcel.child,
            parcel.lane,
            parcel.due_at,
            parcel.attempts,
            parcel.crc,
            parcel.reason,
            None if parcel.envelope == parent[0] else parcel.envelope,
            None if parcel.body == parent[1] else parcel.body,
            parcel.again,
        ),
    )


def _try(tables: Tables, prepared: Try, lanes: set[Lane]) -> None:
    change = prepared.change
    child = None if change.child == change.parent else id_key(change.child)
    found = tables.execute(
        "SELECT n, seq, route, lane FROM deliveries WHERE seq = (SELECT seq FROM messages WHERE id = ?) "
        "AND target = ? AND child IS ? AND state = 1",
        (id_key(change.parent), change.target, child),
    ).fetchone()
    if found is None:
        return
    n, seq, route, lane = found
    state = CODES[change.state]
    tables.execute(
        "UPDATE deliveries SET state = ?, attempts = ?, due_at = ?, reason = ?, claims = 0 WHERE n = ?",
        (state, change.attempts, change.due_at if state == PENDING else None, reason_blob(change.reason), n),
    )
    tables.add_trace(seq, prepared.trace)
    if change.attempts > MAX_ATTEMPTS:
        tables.execute("DELETE FROM traces WHERE n = (SELECT min(n) FROM traces WHERE seq = ?)", (seq,))
    if lane is not None:
        lanes.add((route, change.target, lane))
    if state != PENDING:
        if state == DEAD:
            failpoint("journal.dead_letter")
        closed(tables, seq, route, 1)


def closed(tables: Tables, seq: int, route: int, count: int) -> None:
    """So many deliveries of a pending message became final: it does, too, when none is left."""
    tables.count(route, OPEN_DELIVERIES, -count)
    left = tables.execute("UPDATE states SET open = open - ? WHERE seq = ? RETURNING open", (count, seq)).get
    if left:
        return
    ends: list[tuple[int, bytes | None]] = tables.execute(
        "SELECT state, reason FROM deliveries WHERE seq = ?", (seq,)
    ).fetchall()
    state, reason = _gravest(ends)
    tables.count(route, PENDING, -1)
    tables.change_state(seq, route, state, reason)


def _gravest(ends: Sequence[tuple[int, bytes | None]]) -> tuple[int, Reason | None]:
    for state in GRAVITY:
        reasons = [reason for found, reason in ends if found == state]
        if reasons:
            return state, read_reason(next(filter(None, reasons), None))
    return FILTERED, None


def wake(tables: Tables, lanes: Iterable[Lane]) -> None:
    """The first pending delivery of each of these lanes is due now, unless it has its time."""
    for route, target, key in lanes:
        tables.execute(
            "UPDATE deliveries SET due_at = ? WHERE n = (SELECT n FROM deliveries WHERE route = ? AND target = ? "
            "AND lane = ? AND state = 1 ORDER BY turn, n LIMIT 1) AND due_at IS NULL",
            (tables.now(), route, target, key),
        )


# -- claims ------------------------------------------------------------------------------------------------------------


@cache
def _find_stored(count: int) -> str:
    return (
        "SELECT m.seq, m.route, m.urgency, s.turn, m.id FROM messages m JOIN stored s ON s.route = m.route "
        f"AND s.urgency = m.urgency AND s.turn = coalesce(m.turn, m.seq) WHERE m.id IN ({','.join('?' * count)})"
    )


def claim(
    tables: Tables,
    messages: Sequence[str],
    deliveries: Sequence[tuple[str, str]],
    claims: Literal["claims + 1", "0"],
) -> None:
    """Notes that these stored messages and pending deliveries are begun, or that it does not count."""
    for at in range(0, len(messages), CHUNK):
        _claim_messages(tables, messages[at : at + CHUNK], claims)
    for child, target in deliveries:
        key = id_key(child)
        tables.execute(
            f"UPDATE deliveries SET claims = {claims} WHERE seq = (SELECT seq FROM messages WHERE id = ?) "
            "AND target = ? AND child IS NULL AND state = 1",
            (key, target),
        )
        if not tables.connection.changes():
            tables.execute(
                f"UPDATE deliveries SET claims = {claims} WHERE child = ? AND target = ? AND state = 1", (key, target)
            )


def _claim_messages(tables: Tables, ids: Sequence[str], claims: str) -> None:
    keys: dict[Any, str] = {id_key(name): name for name in ids}
    groups: dict[tuple[int, int], list[int]] = {}
    for *place, key in tables.execute(_find_stored(len(keys)), tuple(keys)).fetchall():
        found = Place(*place)
        tables.know(keys[key], found)
        groups.setdefault((found.route, found.urgency), []).append(found.turn)
    for (route, urgency), turns in groups.items():
        tables.execute(
            f"UPDATE stored SET claims = {claims} WHERE route = ? AND urgency = ? "
            f"AND turn IN ({','.join('?' * len(turns))})",
            (route, urgency, *turns),
        )
