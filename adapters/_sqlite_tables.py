"""The journal's tables as its one writer changes them: what comes in, what ends, and the books. Runs in its thread.

Everything here happens inside a transaction that the writer began; after it `committed` or `rolled_back` is called.
"""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple

import apsw

from adapters._sqlite_arrivals import COLUMNS, WIDTH, Arrivals
from adapters._sqlite_records import (
    DEAD,
    DELIVERED,
    EXPIRED,
    PENDING,
    STATES,
    STORED,
    DamagedError,
    Key,
    id_key,
    id_text,
    message_of,
    reason_blob,
    search_text,
)
from adapters._sqlite_time import JournalTime, Noted
from gateway.failpoints import failpoint
from gateway.journal import Reason, State

CHUNK = 64
"""Rows in one statement: each step into SQLite costs a change of hands between threads."""
KNOWN = 32_768
"""How many open messages are known by id without a look into the tables, twice."""
OPEN_DELIVERIES = len(STATES)
"""In `counts`, beside the states: how many deliveries of a route are pending."""
ZONE_BITS = 12
_CLOCK = (0, 0)
NEXT = (0, 1)
"""In `counts`: the number after the highest that was given, to a message or a turn."""
_WALL, _MONOTONIC = (0, 2), (0, 3)
"""What the machine's clocks showed at `_CLOCK`, all in milliseconds."""


End = tuple[str, int, bytes | None, "Reason | None"]
"""Of a stored message: its id, the state that it ends in, what is left of its history, and why."""


class Place(NamedTuple):
    """Where a stored message stands."""

    seq: int
    route: int
    urgency: int
    turn: int


_ROUTE = itemgetter(1)
"""Of a place."""


def zones_of(numbers: range, received: Sequence[float]) -> Sequence[tuple[int, float, float]]:
    """The earliest and latest time of each 4096 messages, so that a search by time skips the others.

    At most two zones for 4096 messages or less. received: when these came; each zone gets the times of all of them.
    """
    if not numbers:
        return ()
    low, high = min(received), max(received)
    return [(zone, low, high) for zone in range(numbers[0] >> ZONE_BITS, (numbers[-1] >> ZONE_BITS) + 1)]


@cache
def _insert_messages(count: int) -> str:
    """Parameters: the number of the first, the route, then `WIDTH` of each."""
    rows = ",".join(
        f"(?1+{index},?2,{','.join(f'?{at}' for at in range(3 + index * WIDTH, 3 + (index + 1) * WIDTH))})"
        for index in range(count)
    )
    return f"INSERT OR IGNORE INTO messages (seq,route,{','.join(COLUMNS)}) VALUES {rows}"


@cache
def _insert_states(count: int) -> str:
    return "INSERT INTO states (seq, route, state, at, trace) VALUES " + ",".join([f"(?,?,{DELIVERED},?,?)"] * count)


@cache
def _delete_stored(count: int) -> str:
    return f"DELETE FROM stored WHERE route = ? AND urgency = ? AND turn IN ({','.join('?' * count)})"


@cache
def _upsert_counts(count: int) -> str:
    return (
        f"INSERT INTO counts (route, state, n) VALUES {','.join(['(?,?,?)'] * count)} "
        "ON CONFLICT (route, state) DO UPDATE SET n = excluded.n"
    )


class Tables:
    """What is in the file, for the writer."""

    def __init__(self, connection: apsw.Connection, now: JournalTime) -> None:
        self.connection = connection
        self.execute: Callable[..., Any] = connection.execute
        self.now = now
        self.routes: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.counts: dict[tuple[int, int], int] = {}
        """By route and state, as committed. Read by other threads: never changed in place but key by key."""
        self.noted = Noted(0.0)
        """Journal time as it was persisted when this was made."""
        self.ended_from: float = 0
        """The first of the messages that became final since retention last began to look."""
        self.memos: dict[str, int] = {}
        """The number of the newest memo, by scope, as far as it was asked for."""
        self._next = 1
        self._deltas: dict[tuple[int, int], int] = {}
        self._known: dict[str, tuple[int, int, int, int]] = {}
        """As `Place`."""
        self._older: dict[str, tuple[int, int, int, int]] = {}
        self._load()

    def _load(self) -> None:
        self.routes = {name: route for route, name in self.execute("SELECT route, name FROM routes")}
        self.names = {route: name for name, route in self.routes.items()}
        counts = {(route, state): n for route, state, n in self.execute("SELECT route, state, n FROM counts")}
        journal_ms, wall_ms, monotonic_ms = (counts.pop(key, None) for key in (_CLOCK, _WALL, _MONOTONIC))
        wall_s = None if wall_ms is None else wall_ms / 1000
        self.noted = Noted((journal_ms or 0) / 1000, wall_s, (monotonic_ms or 0) / 1000)
        highest = self.execute("SELECT max(seq) FROM messages").get or 0
        self._next = max(self._next, counts.pop(NEXT, 1), highest + 1)
        self.counts = counts

    # -- transactions ------------------------------------------------------------------------------------------------

    def close_books(self) -> None:
        """Writes what the transaction changed in the counts: the last thing before it is committed."""
        rows = self.books_rows()
        self.execute(_upsert_counts(len(rows) // 3), rows)

    def books_rows(self) -> Sequence[int]:
        """The rows of `counts` that the transaction changed: route, state and number of each."""
        rows: list[int] = [*NEXT, self._next]
        for key, seconds in zip((_CLOCK, _WALL, _MONOTONIC), self.now.note(), strict=True):
            rows += (*key, int((seconds or 0.0) * 1000))
        for key, delta in self._deltas.items():
            rows += (*key, self.counts.get(key, 0) + delta)
        return rows

    def committed(self) -> None:
        """The transaction is durable."""
        for key, delta in self._deltas.items():
            self.counts[key] = self.counts.get(key, 0) + delta
        self._deltas.clear()

    def rolled_back(self) -> None:
        """The transaction is undone."""
        self._deltas.clear()
        self._known.clear()
        self._older.clear()
        self.memos.clear()
        self._load()

    def count(self, route: int, state: int, change: int) -> None:
        """Notes that the route has so many more messages in that state."""
        key = route, state
        self._deltas[key] = self._deltas.get(key, 0) + change

    def next_turn(self) -> int:
        """A number that is higher than all before, never given twice."""
        return self.take_numbers(1)[0]

    def take_numbers(self, count: int) -> range:
        """So many such numbers."""
        first = self._next
        self._next = first + count
        return range(first, first + count)

    def route_number(self, name: str) -> int:
        """The number of a route, given to it at its first message."""
        number = self.routes.get(name)
        if number is None:
            number = self.execute("INSERT INTO routes (name) VALUES (?) RETURNING route", (name,)).get
            self.routes[name] = number
            self.names[number] = name
        return number

    # -- what comes in -----------------------------------------------------------------------------------------------

    def append(self, arrivals: Arrivals) -> list[bool]:
        """Stores messages. False for those whose ids are there."""
        route = self.routes.get(arrivals.route) or self.route_number(arrivals.route)
        count = len(arrivals)
        numbers = self.take_numbers(count)
        at, inserted = numbers.start, 0
        for rows in arrivals.chunks(CHUNK):
            size = len(rows) // WIDTH
            self.execute(_insert_messages(size), (at, route, *rows))
            inserted += self.connection.changes()
            at += size
        self.execute(
            "INSERT INTO stored SELECT route, urgency, seq, seq, 0 FROM messages WHERE seq BETWEEN ? AND ?",
            (numbers[0], numbers[-1]),
        )
        self.know_arrivals(arrivals, route, numbers)
        for zone in zones_of(numbers, arrivals.column("received")):
            self.execute(
                "INSERT INTO zones VALUES (?, ?, ?) ON CONFLICT (zone) DO UPDATE "
                "SET low = min(low, excluded.low), high = max(high, excluded.high)",
                zone,
            )
        self.count(route, STORED, count)
        if inserted == count:
            return [True] * count
        keys = arrivals.column("id")
        return [self._is_new(*one, route) for one in zip(arrivals.ids, keys, numbers, strict=True)]

    def _is_new(self, id: str, key: Key, seq: int, route: int) -> bool:
        there = self.execute("SELECT seq FROM messages WHERE id = ?", (key,)).get
        if there == seq:
            return True
        if there is None:  # it was ignored for something else: who is told that it is there would forget it
            raise ValueError(f"journal: message {id} can't be stored: a value of it is none that SQLite can keep")
        self.forget(id)
        self.count(route, STORED, -1)
        return False

    def bury(self, arrivals: Arrivals, reason: Reason) -> None:
        """Stores one message as a dead letter; one that is there stays as it is."""
        failpoint("journal.dead_letter")
        if self.append(arrivals)[0]:
            self.finish(arrivals.ids[0], DEAD, None, reason)

    # -- what ends ---------------------------------------------------------------------------------------------------

    def place(self, id: str) -> Place | None:
        """Where a message stands whose steps are not finished; None: it is not there, or further on."""
        place = self._known.get(id) or self._older.get(id)
        if place is not None:
            return Place(*place)
        found = self.execute(
            "SELECT m.seq, m.route, m.urgency, s.turn FROM messages m JOIN stored s ON s.route = m.route "
            "AND s.urgency = m.urgency AND s.turn = coalesce(m.turn, m.seq) WHERE m.id = ?",
            (id_key(id),),
        ).fetchone()
        return None if found is None else Place(*found)

    def know(self, id: str, place: Place) -> None:
        """Keeps the place of a message that will soon end."""
        self._older.pop(id, None)
        self._known[id] = place
        if len(self._known) > KNOWN:
            self._older, self._known = self._known, {}

    def know_arrivals(self, arrivals: Arrivals, route: int, numbers: range) -> None:
        """Keeps the places of messages that came."""
        places = zip(numbers, repeat(route), arrivals.column("urgency"), numbers, strict=False)
        self._known.update(zip(arrivals.ids, places, strict=True))
        if len(self._known) > KNOWN:
            self._older, self._known = self._known, {}

    def forget(self, id: str) -> None:
        """Its place is not what it was."""
        self._known.pop(id, None)
        self._older.pop(id, None)

    def take(self, id: str) -> Place | None:
        """Removes a message from those that are stored, so that it becomes something else."""
        place = self.place(id)
        if place is None:
            return None
        self.forget(id)
        self.execute(_delete_stored(1), (place.route, place.urgency, place.turn))
        self.count(place.route, STORED, -1)
        return place

    def take_number(self, seq: int) -> Place | None:
        """The same, for a message whose id may not be what it was."""
        found = self.execute(
            "SELECT m.id, m.seq, m.route, m.urgency, s.turn FROM messages m JOIN stored s ON s.route = m.route "
            "AND s.urgency = m.urgency AND s.turn = coalesce(m.turn, m.seq) WHERE m.seq = ?",
            (seq,),
        ).fetchone()
        if found is None:
            return None
        place = Place(*found[1:])
        self.know(id_text(found[0]), place)
        return self.take(id_text(found[0]))

    def take_delivered(self, ends: Sequence[End]) -> Sequence[tuple[int, int, int, int]] | None:
        """The places of messages that end as delivered, which are stored no more; the books have it.

        None: nothing was done, as not all of them end so, or have a place that is known.
        """
        ids = [end[0] for end in ends]
        places = [*map(self._known.pop, ids, repeat(None))]
        if None in places:
            places = [place or self._older.pop(one, None) for place, one in zip(places, ids, strict=True)]
        found = [place for place in places if place is not None]
        if len(found) < len(ends) or not {end[1] for end in ends} <= {DELIVERED}:
            self._known.update((one, place) for one, place in zip(ids, places, strict=True) if place is not None)
            return None
        for route, count in Counter(map(_ROUTE, found)).items():
            self.count(route, STORED, -count)
            self.count(route, DELIVERED, count)
        if found:
            self.ended_from = min(self.ended_from, min(found)[0])
        return found

    def finish_all(self, ends: Sequence[End]) -> None:
        """Ends stored messages: (id, state, trace, reason)."""
        groups: dict[tuple[int, int], list[int]] = {}
        rows: list[Any] = []
        known, older = self._known, self._older
        now = self.now()
        seen: set[str] = set()
        for message_id, state, trace, reason in ends:
            if message_id in seen:
                continue
            seen.add(message_id)
            place = known.pop(message_id, None) or older.pop(message_id, None)
            if state != DELIVERED or place is None:
                self.finish(message_id, state, trace, reason, None if place is None else Place(*place))
                continue
            group = place[1], place[2]
            if group in groups:
                groups[group].append(place[3])
            else:
                groups[group] = [place[3]]
            rows += (place[0], place[1], now, trace)
        for (route, urgency), turns in groups.items():
            for at in range(0, len(turns), CHUNK):
                chunk = turns[at : at + CHUNK]
                self.execute(_delete_stored(len(chunk)), (route, urgency, *chunk))
            self.count(route, STORED, -len(turns))
            self.count(route, DELIVERED, len(turns))
        for at in range(0, len(rows), 4 * CHUNK):
            some = rows[at : at + 4 * CHUNK]
            self.execute(_insert_states(len(some) // 4), some)
        if rows:
            self.ended_from = min(self.ended_from, *rows[::4])

    def finish(
        self, id: str, state: int, trace: bytes | None, reason: Reason | None, place: Place | None = None
    ) -> None:
        """Ends one message, whatever its state; one that is final already stays as it is."""
        if state == DEAD:
            failpoint("journal.dead_letter")
        if place is not None:
            self.know(id, place)
        place = self.take(id)
        if place is None:
            self._close_pending(id, state, trace, reason)
            return
        if state == DELIVERED:
            self.execute(_insert_states(1), (place.seq, place.route, self.now(), trace))
            self.count(place.route, DELIVERED, 1)
            self.ended_from = min(self.ended_from, place.seq)
            return
        self.set_state(place.seq, place.route, state, reason, trace=trace)

    def _close_pending(self, id: str, state: int, trace: bytes | None, reason: Reason | None) -> None:
        found = self.execute(
            "SELECT seq, s.route FROM messages m JOIN states s USING (seq) WHERE m.id = ? AND s.state = 1",
            (id_key(id),),
        ).fetchone()
        if found is None:
            return
        seq, route = found
        self.execute("UPDATE deliveries SET state = ?, due_at = NULL WHERE seq = ? AND state = 1", (state, seq))
        self.count(route, OPEN_DELIVERIES, -self.connection.changes())
        self.add_trace(seq, trace)
        self.count(route, PENDING, -1)
        self.change_state(seq, route, state, reason)

    def set_state(
        self, seq: int, route: int, state: int, reason: Reason | None, *, trace: bytes | None = None, open: int = 0
    ) -> None:
        """Writes the state of a message that was stored until now."""
        envelope, received = self.execute("SELECT envelope, received FROM messages WHERE seq = ?", (seq,)).fetchone()
        try:
            search = search_text(message_of(envelope, None))
        except DamagedError:
            search = ""
        self.execute(
            "INSERT INTO states (seq, route, state, at, trace, open, received, kind, reason, search) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq,
                route,
                state,
                self.now(),
                trace,
                open,
                received,
                _kind(reason, state),
                reason_blob(reason),
                search.encode("utf-8", "replace").decode(),
            ),
        )
        self.count(route, state, 1)
        self.ended_from = min(self.ended_from, seq)

    def change_state(self, seq: int, route: int, state: int, reason: Reason | None) -> None:
        """Gives another state to a message that has one; counts it there, not where it was."""
        self.execute(
            "UPDATE states SET state = ?, at = ?, open = 0, kind = ?, reason = ? WHERE seq = ?",
            (state, self.now(), _kind(reason, state), reason_blob(reason), seq),
        )
        self.count(route, state, 1)
        self.ended_from = min(self.ended_from, seq)

    def add_trace(self, seq: int, trace: bytes | None) -> None:
        """Adds a piece to the history of a message that is not at its end."""
        if trace is not None:
            self.execute("INSERT INTO traces (seq, trace) VALUES (?, ?)", (seq, trace))

    def books(self) -> dict[str, dict[State, int]]:
        """How many messages of each route are in each state, as committed. May be called from any thread."""
        books: dict[str, dict[State, int]] = {}
        for (route, state), count in self.counts.copy().items():
            if state < OPEN_DELIVERIES:
                books.setdefault(self.names[route], {})[STATES[state]] = count
        return books


def _kind(reason: Reason | None, state: int) -> str | None:
    return reason.kind if reason is not None else "expired" if state == EXPIRED else None
