"""Journal time: what every wait, age and window of stored messages goes by, whatever happens to the machine's clock."""

from __future__ import annotations

from typing import NamedTuple

from gateway.ports import Clock

SET_S = 1.0
"""A clock that goes wrong by more than this was set, or it drifts: that is worth noting."""


class Noted(NamedTuple):
    """A moment of journal time, and what the machine's clocks showed then, in seconds."""

    journal_s: float
    wall_s: float | None = None
    """None: that was not noted yet, in version 1 of the file."""
    monotonic_s: float = 0.0


class JournalTime:
    """Journal time, in seconds: wall time at first, then onwards by the monotonic clock, and never back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._monotonic = clock.monotonic
        self._offset = clock.time() - clock.monotonic()
        self._noted = self.note()

    def begin(self, noted: Noted) -> None:
        """Goes on where it was, by what has gone by since: as the clocks have it, and the least of what they say.

        The monotonic clock knows how long a process was away, unless the machine was started anew meanwhile or is
        another one. Wall time knows, unless it was set. And not to later than it is by wall time, which may have been
        wrong and put right: what is thought to be too old is lost.
        """
        now = self._clock.time()
        if noted.wall_s is not None:
            monotonic = self._monotonic()
            now = min(now, noted.journal_s + now - noted.wall_s)
            if monotonic >= noted.monotonic_s:
                now = min(now, noted.journal_s + monotonic - noted.monotonic_s)
        self._offset = max(now, noted.journal_s) - self._monotonic()
        self._noted = noted

    def __call__(self) -> float:
        return self._monotonic() + self._offset

    def note(self) -> Noted:
        """What is to be kept on disk of this moment, so that the next process can `begin` with it."""
        self._noted = Noted(self(), self._clock.time(), self._monotonic())
        return self._noted

    def was_set(self) -> bool:
        """Whether the machine's clock was set since `note` was called."""
        journal_s, wall_s, _ = self._noted
        return wall_s is None or abs(self._clock.time() - wall_s - self() + journal_s) > SET_S
