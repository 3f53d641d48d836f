"""Messages that were begun again and again without an end: each runs alone, so that the one that kills can be named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from gateway.host import Alone
from gateway.journal import Due, Work

SUSPECT_CLAIMS = 2
"""Begun this often without an end, a message is run while no other such one runs."""
POISON_CLAIMS = 5
"""Begun this often without an end, a message is a dead letter: it kills the process."""


class Suspects:
    """Those of one route that wait for their turn, and what must stay behind them in its lane."""

    def __init__(self, alone: Alone, again: Callable[[], None]) -> None:
        """again: called when it is worth asking again whose turn it is."""
        self._alone = alone
        self._again = again
        self.works: deque[Work] = deque()
        self.deliveries: deque[Due] = deque()
        self._work: str | None = None
        """Id of the message that runs alone now."""
        self._delivery: tuple[str, str] | None = None
        """Name of the delivery that is sent alone now."""

    def clear(self) -> None:
        """Forgets those that wait: the journal will give them out again."""
        self.works.clear()
        self.deliveries.clear()

    def hold(self, works: Sequence[Work]) -> list[Work]:
        """Returns those that may begin at once. The others wait: suspects, and what is behind one in its lane."""
        keys = {work.message.key for work in self.works}
        sound = []
        for work in works:
            key = work.message.key
            if work.claims >= SUSPECT_CLAIMS or (key is not None and key in keys):
                self.works.append(work)
                keys.add(key)
            else:
                sound.append(work)
        return sound

    def hold_due(self, items: Sequence[Due]) -> list[Due]:
        """Returns those that may be sent at once. The others, suspects, wait."""
        self.deliveries += [item for item in items if item.claims >= SUSPECT_CLAIMS]
        return [item for item in items if item.claims < SUSPECT_CLAIMS]

    @property
    def works_bytes(self) -> int:
        """Bodies of the messages that wait."""
        return sum(work.message.size for work in self.works)

    @property
    def deliveries_bytes(self) -> int:
        """Bodies of the deliveries that wait."""
        return sum(item.delivery.message.size for item in self.deliveries)

    def next_work(self) -> Work | None:
        """The message whose turn it is, which waits no longer; None: nobody's.

        Of the first ones of each key that which was begun most often: most likely it is the one that kills.
        """
        firsts: dict[str, Work] = {}
        for one in self.works:
            firsts.setdefault(one.message.id if one.message.key is None else f"key {one.message.key}", one)
        work = max(firsts.values(), key=lambda work: work.claims, default=None)
        if work is None or not self._may_begin(work.claims):
            return None
        self.works.remove(work)
        return work

    def next_delivery(self) -> Due | None:
        """The delivery whose turn it is, which waits no longer; None: nobody's."""
        item = max(self.deliveries, key=lambda item: item.claims, default=None)
        if item is None or not self._may_begin(item.claims):
            return None
        self.deliveries.remove(item)
        return item

    def _may_begin(self, claims: int) -> bool:
        """A suspect may begin when no other one runs in the whole process: only then does it answer for a crash."""
        if not SUSPECT_CLAIMS <= claims < POISON_CLAIMS:
            return True
        if self._work is not None or self._delivery is not None:
            return False
        return self._alone.begin(self, self._again)

    def began(self, work: Work) -> None:
        """A message runs now."""
        if work.claims >= SUSPECT_CLAIMS:
            self._work = work.message.id

    def began_delivery(self, name: tuple[str, str]) -> None:
        """A suspected delivery is sent now."""
        self._delivery = name

    def left(self, message_id: str) -> bool:
        """A message left memory. Whether it was the one that ran alone."""
        if message_id != self._work:
            return False
        self._work = None
        return True

    def left_but(self, busy: dict[tuple[str, str], str]) -> None:
        """Deliveries left memory, all but these."""
        if self._delivery not in busy:
            self._delivery = None

    def pass_on(self) -> None:
        """Lets other routes have their turn, if nothing runs alone here."""
        if self._work is None and self._delivery is None:
            self.end()

    def end(self) -> None:
        """Nothing runs alone here any more."""
        self._alone.end(self)
