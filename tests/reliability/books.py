"""The books after a run (I10): what /metrics says, what the rows of the journal are, and what was seen from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from adapters._sqlite_records import STATES
from gateway.journal import State
from tests.reliability.ledger import Ledger
from tests.reliability.targets import uid_of

Metrics = Mapping[str, float]


@dataclass
class Books:
    """A journal after its process has stopped."""

    problem: str
    """What SQLite's own check says: `ok`."""
    counted: Counter[tuple[str, str]]
    """By route and state, as the journal counts along."""
    rows: list[tuple[str, str, str | None]]
    """Route, state and the checker's id of each message."""
    suspected: set[str | None]
    """Those that are dead because they were under way at five ends of the process."""

    @property
    def found(self) -> Counter[tuple[str, str]]:
        """By route and state, row by row."""
        return Counter((route, state) for route, state, _ in self.rows)

    def uids(self, *states: str) -> set[str]:
        """The checker's ids of those in these states."""
        return {uid for _, state, uid in self.rows if state in states and uid is not None}


def read(file: Path) -> Books:
    """The books in this file, which nobody has open."""
    connection = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        counts = connection.execute("SELECT name, state, n FROM counts JOIN routes USING (route) WHERE n <> 0")
        counted = Counter({(name, STATES[state]): n for name, state, n in counts if state < len(STATES)})
        rows: list[Any] = connection.execute(
            "SELECT name, coalesce(s.state, 0), body, kind FROM messages m JOIN routes USING (route) "
            "LEFT JOIN states s USING (seq)"
        ).fetchall()
        return Books(
            problem=str(connection.execute("PRAGMA integrity_check").get),
            counted=counted,
            rows=[(name, STATES[state], uid_of(body)) for name, state, body, _ in rows],
            suspected={uid_of(body) for _, state, body, kind in rows if STATES[state] == "dead" and kind == "poison"},
        )
    finally:
        connection.close()


def wrong_in(books: Books, ledger: Ledger) -> Iterator[str]:
    """What of a journal is not as it was promised or as it was seen from outside, each as a line."""
    if books.problem != "ok":
        yield f"the journal's file: {books.problem}"
    if books.counted != books.found:
        yield f"the books do not balance: counted {dict(books.counted)}, there are {dict(books.found)}"
    pending = {key: n for key, n in books.found.items() if key[1] in ("stored", "pending")}
    if pending:
        yield f"still pending after the drain: {pending}"
    states = {uid: state for _, state, uid in books.rows}
    for uid, entry in ledger.sent.items():
        state = states.get(uid)
        if state is None:
            if entry.acknowledged_s is not None and entry.route not in ledger.through_brokers:
                yield f"{uid} of {entry.route} was acknowledged and is not in the journal"
            continue
        arrived = not ledger.missing(uid)
        if arrived and uid in books.suspected:
            continue  # it came, and five times the process died before that was noted
        if arrived != (state == "delivered") and state not in ("stored", "pending"):
            yield f"{uid} of {entry.route} is {state} in the journal, and {'all' if arrived else 'not all'} targets have it"


def unbalanced(metrics: Metrics, books: Books, ledger: Ledger, since_s: float) -> Iterator[str]:
    """Where /metrics, read at the end of a process, differs from its journal and from what was heard since its start.

    since_s: when the process was started.
    """
    for route in ledger.targets:
        shown = {
            state: metrics.get(f'gateway_journal_messages{{route="{route}",state="{state}"}}', 0) for state in STATES
        }
        there = {state: books.found[route, state] for state in STATES}
        if shown != there:
            yield f"/metrics of {route}: the journal is said to have {_some(shown)}, it has {_some(there)}"
        if (pending := metrics.get(f'gateway_messages_pending{{route="{route}"}}', 0)) != shown["stored"] + shown[
            "pending"
        ]:
            yield f"/metrics of {route}: {pending:g} pending, and of them in the journal {_some(shown)}"
        yield from _unbalanced_since(metrics, route, ledger, since_s)


def _unbalanced_since(metrics: Metrics, route: str, ledger: Ledger, since_s: float) -> Iterator[str]:
    received, accepted, stored, refused, deferred = (
        metrics.get(f'gateway_messages_{word}_total{{route="{route}"}}', 0)
        for word in ("received", "accepted", "stored", "refused", "deferred")
    )
    in_flight = in_flight_in(metrics, route)
    if received != accepted + refused + deferred + in_flight:
        yield (
            f"/metrics of {route}: {received:g} received, expected {accepted:g} accepted + {refused:g} refused + "
            f"{deferred:g} deferred + {in_flight:g} in flight"
        )
    if accepted != stored:
        yield f"/metrics of {route}: {accepted:g} accepted, {stored:g} of them stored"
    if route in ledger.through_brokers:
        return  # the broker was told, not the checker
    entries = [entry for entry in ledger.sent.values() if entry.route == route]
    heard = sum(entry.acknowledged_s is not None and entry.acknowledged_s >= since_s for entry in entries)
    silent = sum(entry.acknowledged_s is entry.refused_s is None and entry.sent_s >= since_s for entry in entries)
    if not heard <= accepted <= heard + silent:
        yield f"/metrics of {route}: {accepted:g} accepted, {heard} senders heard so and {silent} heard nothing"


def in_flight_in(metrics: Metrics, route: str) -> float:
    """How many messages of a route are taken and not yet answered."""
    return metrics.get(f'gateway_messages_in_flight{{route="{route}"}}', 0)


def _some(counts: Mapping[State, float]) -> dict[str, int]:
    return {state: int(count) for state, count in counts.items() if count}
