"""The usual commit, messages that came and messages that were delivered, as one statement.

Each step into SQLite gives the interpreter's lock away and has to get it back from a loop that is busy; a transaction
of many statements then waits longer for the lock than for the disk. One statement is a transaction by itself. It
inserts into a view, and triggers put each row where it belongs.
"""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import apsw

from adapters._sqlite_arrivals import COLUMNS, WIDTH, Arrivals
from adapters._sqlite_records import DELIVERED, STORED
from adapters._sqlite_tables import End, Tables, zones_of

MOST = 256
"""How many messages that came, and how many that ended, one statement takes."""
_ZONES = 2
"""No more are touched by so many messages."""
_VIEW = f"""
CREATE TEMP VIEW changes AS SELECT 0 kind, 0 a, 0 b, 0 c, 0 d, 0 e, 0 f, 0 g, 0 h, 0 i, 0 j;
CREATE TEMP TRIGGER changes_come INSTEAD OF INSERT ON changes WHEN new.kind = 0 AND new.e IS NOT NULL BEGIN
  INSERT INTO messages (seq, route, {", ".join(COLUMNS)})
    VALUES (new.a, new.b, new.c, new.d, new.e, new.f, new.g, new.h, new.i, new.j);
  INSERT INTO stored VALUES (new.b, new.c, new.a, new.a, 0);
END;
CREATE TEMP TRIGGER changes_end INSTEAD OF INSERT ON changes WHEN new.kind = 1 AND new.a IS NOT NULL BEGIN
  DELETE FROM stored WHERE route = new.b AND urgency = new.c AND turn = new.d;
  INSERT INTO states (seq, route, state, at, trace) VALUES (new.a, new.b, {DELIVERED}, new.e, new.f);
END;
CREATE TEMP TRIGGER changes_count INSTEAD OF INSERT ON changes WHEN new.kind = 2 AND new.a IS NOT NULL BEGIN
  INSERT INTO counts (route, state, n) VALUES (new.a, new.b, new.c)
    ON CONFLICT (route, state) DO UPDATE SET n = excluded.n;
END;
CREATE TEMP TRIGGER changes_time INSTEAD OF INSERT ON changes WHEN new.kind = 3 AND new.a IS NOT NULL BEGIN
  INSERT INTO zones VALUES (new.a, new.b, new.c)
    ON CONFLICT (zone) DO UPDATE SET low = min(low, excluded.low), high = max(high, excluded.high);
END;
"""


@cache
def _statement(come: int, ended: int, counts: int) -> str:
    """Parameters: the number of the first that came, its route, the time; then zones, what came, what ended, books."""
    came = [f"(0,?1+{index},?2{',?' * WIDTH})" for index in range(come)]
    ends = ["(1,?,?,?,?,?3,?,0,0,0,0)"] * ended
    books = ["(2,?,?,?,0,0,0,0,0,0,0)"] * counts
    # numbered and first, so that the marks of the rows behind them count on from there
    zones = ["(3,?4,?5,?6,0,0,0,0,0,0,0)", "(3,?7,?8,?9,0,0,0,0,0,0,0)"]
    return f"INSERT INTO changes VALUES {','.join((*zones, *came, *ends, *books))}"


def _rounded(count: int) -> int:
    """Few sizes, so that their statements stay prepared; what is left over is filled with nothing."""
    step = 4 if count <= 16 else 16 if count <= 64 else 64
    return -(-count // step) * step


class Quick:
    """Commits what fits into one statement."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        tables.connection.execute(_VIEW)

    def commit(self, arrivals: Sequence[Arrivals], ends: Sequence[End], ready: Callable[[], None]) -> bool:
        """Stores what came and ends what was delivered, durably. False: nothing was done: it is not as simple as that.

        ready: called when only SQLite has something left to do.
        """
        tables = self._tables
        count = sum(map(len, arrivals))
        routes = {tables.routes.get(one.route) for one in arrivals} or {0}
        route = routes.pop()
        if routes or route is None or count > MOST or len(ends) > MOST:
            return False
        places = tables.take_delivered(ends)
        if places is None:
            return False
        numbers = tables.take_numbers(count)
        if count:
            tables.count(route, STORED, count)
        values: list[Any] = [numbers.start, route, tables.now()]
        zones = zones_of(numbers, [time_s for one in arrivals for time_s in one.column("received")])
        for zone in zones:
            values += zone
        values += (None,) * (3 * (_ZONES - len(zones)))
        for one in arrivals:
            values += one.rows
        came = _rounded(count)
        values += (None,) * (WIDTH * (came - count))
        for place, end in zip(places, ends, strict=True):
            values += place
            values.append(end[2])
        ended = _rounded(len(ends))
        values += (None,) * (5 * (ended - len(ends)))
        books = tables.books_rows()
        values += books
        counts = _rounded(len(books) // 3)
        values += (None,) * (3 * counts - len(books))
        statement = _statement(came, ended, counts)
        ready()
        try:
            tables.execute(statement, values)
        except apsw.ConstraintError:  # an id that is there already: which one is found out with care
            tables.rolled_back()
            return False
        at = 0
        for one in arrivals:
            tables.know_arrivals(one, route, numbers[at : at + len(one)])
            at += len(one)
        tables.committed()
        return True
