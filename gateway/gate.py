"""The gate of a route: bounds what is in flight, lets senders wait, closes for a stop or a swap and drains."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from gateway.observe import RouteMeters

PATIENCE_S = 1.0
"""How long a sender that waits for an answer waits at a full gate before it is told to come again."""


class Gate:
    """Counts who is inside. `enter` waits at the limit and while closed; `leave` lets the next one in."""

    def __init__(self, limit: int, meters: RouteMeters) -> None:
        self._limit = limit
        self._meters = meters
        self._inside = 0
        self._waiting: OrderedDict[asyncio.Future[bool], bool] = OrderedDict()
        """Who waits, in order, and whether patiently. Who gives up is taken out: a gate may stay full for long."""
        self._coming = 0
        """Who was let in and does not run yet: nobody overtakes them, as their order may be that of a lane."""
        self._empty: asyncio.Future[None] | None = None
        self._open = True
        self._stopping = False
        self._over = False

    @property
    def inside(self) -> int:
        """How many are inside."""
        return self._inside

    def enter_at_once(self) -> bool:
        """Goes in if there is room and nobody is before it, without waiting."""
        if self._inside < self._limit and self._open and not self._coming and not self._waiting:
            self._inside += 1
            self._meters.in_flight = self._inside
            return True
        return False

    async def enter(self, *, patient: bool) -> bool:
        """Goes in when there is room; False: there was none in time.

        patient: waits for as long as it takes; else for 1 s, and not at all while the route stops.
        """
        if self.enter_at_once():
            return True
        if self._over or (self._stopping and not patient):
            return False
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = patient
        try:
            async with asyncio.timeout(None if patient else PATIENCE_S):
                return await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled():
                return turn.result()
            return False
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave()
            raise
        finally:
            if self._waiting.pop(turn, None) is None:
                self._coming -= 1
                self._let_in()

    def _let_in(self) -> None:
        """Lets in who waits, as many as there is room for."""
        while self._waiting and self._open and self._inside < self._limit:
            turn, _ = self._waiting.popitem(last=False)
            self._coming += 1
            if not turn.done():
                self._inside += 1
                turn.set_result(True)
        self._meters.in_flight = self._inside

    def leave(self) -> None:
        """Goes out; the one that waited longest comes in."""
        self._inside -= 1
        if self._waiting:
            self._let_in()
        self._meters.in_flight = self._inside
        if not self._inside and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def close(self, *, stopping: bool) -> None:
        """Lets nobody in any more. Stopping: who waits for an answer is sent away at once."""
        self._open = False
        self._stopping = stopping
        if stopping:
            for turn, patient in self._waiting.items():
                if not patient and not turn.done():
                    turn.set_result(False)

    def end(self) -> None:
        """It is closed for good: who still waits is sent away, and who comes is, too."""
        self.close(stopping=True)
        self._over = True
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(False)

    def limit(self, limit: int) -> None:
        """Changes how many may be inside."""
        self._limit = limit

    def reopen(self) -> None:
        """Lets in again, as many as there is room for."""
        self._open = True
        self._stopping = self._over = False
        self._let_in()

    async def drained(self) -> None:
        """Returns once nobody is inside."""
        while self._inside:
            if self._empty is None or self._empty.done():
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)
