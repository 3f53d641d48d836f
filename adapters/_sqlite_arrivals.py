"""Messages of one route that came in one turn of the loop, as the rows that the writer stores in one statement."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from adapters._sqlite_records import checksum, envelope_of, id_key
from gateway.journal import Waiting
from gateway.message import Message

log = logging.getLogger("gateway.journal")

COLUMNS = ("urgency", "crc", "id", "received", "correlation", "envelope", "body", "since")
"""Of a row in `Arrivals.rows`; the writer adds the number and the route."""
WIDTH = len(COLUMNS)


class Arrivals:
    """Rows of messages, one after the other in one list, and who waits for each."""

    __slots__ = ("ids", "route", "rows", "size", "waiting")

    def __init__(self, route: str) -> None:
        self.route = route
        self.ids: list[str] = []
        self.rows: list[Any] = []
        self.waiting: list[Waiting[bool]] = []
        self.size = 0
        """Bytes of their bodies."""

    def add(self, message: Message, body: bytes, route_crc: int, since: float, waiting: Waiting[bool] | None) -> None:
        """Adds a message. since: journal time from which its age counts. waiting: None: nobody waits for it."""
        envelope = envelope_of(message)
        correlation = message.correlation_id
        self.rows += (
            -message.priority,
            checksum(route_crc, envelope, body),
            id_key(message.id),
            message.time_s,
            None if correlation is None else correlation.encode("utf-8", "replace").decode(),
            envelope,
            body,
            since,
        )
        self.ids.append(message.id)
        self.size += len(body)
        if waiting is not None:
            self.waiting.append(waiting)

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> Sequence[Any]:
        """This column of all rows."""
        return self.rows[COLUMNS.index(name) :: WIDTH]

    def chunks(self, count: int) -> Iterator[Sequence[Any]]:
        """The rows, so many at a time."""
        for at in range(0, len(self.rows), WIDTH * count):
            yield self.rows[at : at + WIDTH * count]

    def apart(self) -> Iterator[Arrivals]:
        """Each message by itself, with who waits for it."""
        for index, (name, waiting) in enumerate(zip(self.ids, self.waiting, strict=True)):
            one = Arrivals(self.route)
            one.ids.append(name)
            one.rows = self.rows[index * WIDTH : (index + 1) * WIDTH]
            one.waiting.append(waiting)
            yield one

    # -- as who waits for the operation ------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return False

    def set_result(self, news: Sequence[bool]) -> None:
        """They are durable. news: which of them were not there before."""
        for waiting, new in zip(self.waiting, news, strict=True):
            if not waiting.done():
                try:
                    waiting.set_result(new)
                except Exception:  # what it is to one must not be to the others
                    log.exception("who waited for a message failed")

    def set_exception(self, error: Exception) -> None:
        """They are not there."""
        for waiting in self.waiting:
            if not waiting.done():
                try:
                    waiting.set_exception(error)
                except Exception:
                    log.exception("who waited for a message failed")
