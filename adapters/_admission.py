"""Who may connect to a listener: so many in all, so many of one address, so many new ones a second."""

from __future__ import annotations

from gateway import Clock, Limits

_REMEMBERED = 10_000
"""Addresses whose rate is kept; when there are more, those that have recovered are forgotten."""


class Admission:
    """Counts the connections of one listener. `admit` when one comes, `leave` when one that was admitted goes."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.refused = 0
        """Connections refused since somebody last set this to 0."""
        self._clock = clock
        self._total = 0
        self._of_address: dict[str, int] = {}
        self.keep_to(limits)
        self._allowance: dict[str, tuple[float, float]] = {}
        """Per address: how many may come at once, and when that was so."""

    def keep_to(self, limits: Limits) -> None:
        """Goes on with these limits. Who was admitted stays."""
        self._limits = limits
        self._burst = max(1.0, limits.new_connections)

    def admit(self, address: str) -> bool:
        """Whether one more connection of this peer address may stay."""
        limits = self._limits
        if self._total >= limits.connections or not (limits.trusts(address) or self._may_come(address)):
            self.refused += 1
            return False
        self._total += 1
        self._of_address[address] = self._of_address.get(address, 0) + 1
        return True

    def leave(self, address: str) -> None:
        """A connection that was admitted is gone."""
        self._total -= 1
        left = self._of_address[address] - 1
        if left:
            self._of_address[address] = left
        else:
            del self._of_address[address]

    def _may_come(self, address: str) -> bool:
        if self._of_address.get(address, 0) >= self._limits.connections_per_address:
            return False
        now = self._clock.monotonic()
        if len(self._allowance) >= _REMEMBERED:
            self._forget(now)
        allowed = self._allowed(address, now)
        if allowed < 1:
            return False
        self._allowance[address] = (allowed - 1, now)
        return True

    def _allowed(self, address: str, now: float) -> float:
        allowed, at = self._allowance.get(address, (self._burst, now))
        return min(self._burst, allowed + (now - at) * self._limits.new_connections)

    def _forget(self, now: float) -> None:
        kept = {address: at for address, at in self._allowance.items() if self._allowed(address, now) < self._burst}
        # All of them still busy: a flood from many addresses, which the total bounds.
        self._allowance = kept if len(kept) < _REMEMBERED else {}
