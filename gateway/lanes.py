"""Lanes: parcels of one target and key, sent one after the other, in memory and beyond in the journal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from gateway.jobs import Job, Lane, Parcel


class Lanes:
    """The lanes of one route. Parcels that need no order are in none of them."""

    def __init__(self) -> None:
        self._waiting: dict[Lane, list[Parcel]] = {}
        """Parcels in memory; the first of each lane is sent."""
        self._parked: dict[Lane, int] = {}
        """How many parcels of a lane are in the journal, not in memory: while there are any, others queue up there."""
        self._moved: set[Lane] | None = None
        """Lanes of which something was written, parked or ended while they are being counted; None: they are not."""
        self.uncounted = False
        """Parcels were dropped since lanes were counted: more are thought to be parked than there are."""

    def __bool__(self) -> bool:
        return bool(self._waiting or self._parked)

    def join(self, parcel: Parcel) -> bool:
        """Takes a parcel in behind the others of its lane. Whether it is to be sent now."""
        lane = parcel.lane
        if lane is None:
            return True
        waiting = self._waiting.setdefault(lane, [])
        waiting.append(parcel)
        return len(waiting) == 1

    def parked(self, parcel: Parcel) -> bool:
        """Whether a parcel must queue up in the journal, behind others of its lane. Then it counts as one of them."""
        lane = parcel.lane
        if lane is None or not self._parked.get(lane):
            return False
        self.move(lane)
        self._parked[lane] += 1
        return True

    def queue(self, lane: Lane) -> bool:
        """Whether more than one parcel of a lane is in the journal."""
        return self._parked.get(lane, 0) > 1

    def park(self, parcel: Parcel) -> list[Parcel]:
        """The first parcel of a lane goes to the journal, and all that are behind it with it: these."""
        lane = parcel.lane
        if lane is None:
            return [parcel]
        self.move(lane)
        waiting = self._waiting.pop(lane, [parcel])
        self._parked[lane] = self._parked.get(lane, 0) + sum(1 for one in waiting if one.job is not None)
        return waiting

    def ended(self, parcel: Parcel) -> Parcel | None:
        """A parcel is final. The one that is to be sent now."""
        lane = parcel.lane
        if lane is None:
            return None
        if parcel.job is None and lane in self._parked:
            self._parked[lane] -= 1
            if self._parked[lane] <= 0:
                del self._parked[lane]
        self.move(lane)
        return self._next(lane, parcel)

    def drop(self, parcel: Parcel) -> Parcel | None:
        """A parcel was discarded; whether the journal counts it is not known. The one that is to be sent now."""
        lane = parcel.lane
        if lane is None:
            return None
        self.uncounted = True
        self.move(lane)
        return self._next(lane, parcel)

    def _next(self, lane: Lane, parcel: Parcel) -> Parcel | None:
        waiting = self._waiting.get(lane, [])
        if parcel not in waiting:
            return None
        first = waiting[0] is parcel
        waiting.remove(parcel)
        if not waiting:
            del self._waiting[lane]
            return None
        return waiting[0] if first else None

    def behind(self, ids: Collection[str]) -> list[Parcel]:
        """Parcels of these messages that wait behind others."""
        return [parcel for waiting in self._waiting.values() for parcel in waiting[1:] if parcel.parent in ids]

    def ahead_of(self, jobs: list[Job]) -> Iterator[Job]:
        """These jobs and all that stand before them in a lane and are not written: oldest first, each once.

        A parcel may be written only after all that are ahead of it in its lane: else a crash would turn them round.
        """
        found: dict[int, Job] = {}

        def visit(job: Job) -> None:
            if id(job) in found or job.expanded:
                return
            for parcel in job.parcels:
                lane = parcel.lane
                if parcel.final or lane is None:
                    continue
                for other in self._waiting.get(lane, ()):
                    if other is parcel:
                        break
                    if other.job is not None:
                        visit(other.job)
            found[id(job)] = job

        for job in jobs:
            visit(job)
        yield from found.values()

    # -- counting --------------------------------------------------------------------------------------------------

    def move(self, lane: Lane | None) -> None:
        """Notes that something happens in a lane, which a count that is under way may not know of."""
        if self._moved is not None and lane is not None:
            self._moved.add(lane)

    def begin_count(self) -> None:
        """The journal is about to be asked how many parcels of each lane it has pending."""
        self.uncounted = False
        self._moved = set()

    def end_count(self, pending: Mapping[Lane, int], discarded: Collection[str]) -> bool:
        """Takes over how many those are. discarded: messages in memory that the journal does not count.

        Lanes that moved while it was asked may have more than it knew of, and are better thought to have too many:
        then the next ones go through the journal, while with too few they would overtake. Whether all were counted.
        """
        exact = True
        before, moved = self._parked, self._moved or ()
        parked = self._parked = dict(pending)  # of most lanes nothing is in memory: this must be quick for all of them
        for lane in {*self._waiting, *moved}:
            if lane not in pending and lane not in before:
                continue
            waiting = (one for one in self._waiting.get(lane, ()) if one.job is not None and one.written)
            here = sum(1 for one in waiting if one.parent not in discarded)
            count = pending.get(lane, 0) - here
            if lane in moved:
                exact = False
                count = max(count, before.get(lane, 0))
            if count > 0:
                parked[lane] = count
            else:
                parked.pop(lane, None)
        self._moved = None
        return exact
