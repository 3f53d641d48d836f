"""Takes stored messages on: from memory right after the commit, else from the journal. Loses none.

A message that can be finished from memory costs the journal one insert and one update. What can't be finished now (a
target failed, a lane is blocked) is written down as deliveries and leaves memory; the journal gives it back when it is
due. Everything here runs on one loop, so what stands between two awaits is atomic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from itertools import takewhile

from gateway.dispatch import Dispatch
from gateway.errors import INTERNAL, GatewayError
from gateway.jobs import Job, Lane, Parcel
from gateway.journal import BEGINNING, Attempted, Backlog, Due, Finished, JournalBrokenError, Reason, Waiting, Work
from gateway.message import CUT, Message
from gateway.suspects import POISON_CLAIMS, Suspects
from gateway.target import Inside

log = logging.getLogger("gateway.delivery")

BATCH = 256
RUN = 32
"""How many parcels of one lane the journal gives out at once, at most: if the first fails, all are written again."""
AGAIN_S = 1.0
"""How long the journal is left alone when it could not be asked, or could not tell for sure, or nothing can be sent."""
COUNT_SHARE = 20
"""How many times as long as it took to count lanes is waited before they are counted again."""
ENDING_TIMES = 4
"""How many times what may be in memory may wait there for its end to be written."""
NOTED_S = 1.0
"""How long a stop waits at least for what it writes; what is not written is done again by the next start."""


class Delivering:
    """The delivery of one route's stored messages. `start`, `store_soon`; `stop` lets what is being sent finish."""

    def __init__(self, inside: Inside) -> None:
        self._route = inside.name
        self._inside = inside
        self._journal = inside.services.journal
        self._meters = inside.meters
        self._limits = inside.settings.limits
        self._dispatch = Dispatch(inside, self._left, self._look_again)
        self._jobs: dict[str, Job] = {}
        """Messages in memory, and those whose end is not committed yet."""
        self._bytes = 0
        self._told_first: list[Job] = []
        """Messages in memory that begin once their senders were told that they are stored."""
        self._spilled = True
        """Some stored messages are in the journal only: newcomers queue up behind them there."""
        self._more = True
        """Messages were stored, and not taken into memory, since the journal was last asked for some."""
        self._late: list[Job] | None = None
        """Those that were stored since then, while all of them have room; they are not in memory yet."""
        self._late_bytes = 0
        self._recount = True
        """Deliveries in the journal may have become others than this knows of."""
        self._recount_at: float | None = None
        """When they are counted again, since some were on their way while they were counted."""
        self._shut_until = 0.0
        """Journal time until which it gives out nothing while all circuits are open: all of it would go back."""
        self._suspects = Suspects(inside.services.alone, self._look_again)
        self._claiming: tuple[Sequence[str], Sequence[tuple[str, str]]] = (), ()
        """What is being claimed, and not in memory yet: a stop may come between the two."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to take on what the journal has."""
        self._task = asyncio.create_task(self._run(), name=f"{self._route}:delivery")

    async def stop(self, grace_s: float) -> None:
        """Begins nothing more, waits at most `grace_s` for what is being sent, then stops. The journal has the rest."""
        self._dispatch.stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._dispatch.idle()
        except TimeoutError:
            log.warning("grace is over", extra={"route": self._route, "sending": self._dispatch.sending})
        self._dispatch.ends.write()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            try:
                async with asyncio.timeout(max(grace_s, NOTED_S)):
                    await self._take_back()
            except TimeoutError:
                log.warning("what is half done is not written: the journal has no room", extra={"route": self._route})
        self._suspects.end()

    async def _take_back(self) -> None:
        """What is half done is written down; what was begun says nothing about what a crash was due to."""
        await self._dispatch.write_partly_done(self._jobs.values())
        messages, deliveries = self._claiming
        begun = [*messages, *(job.message.id for job in self._jobs.values() if not job.expanded)]
        sent = [*deliveries, *self._dispatch.busy]
        if begun or sent:
            try:
                await self._journal.release(self._route, begun, sent)
            except GatewayError as error:
                log.warning("claims are not taken back", extra={"route": self._route, "reason": str(error)})

    def store_soon(self, message: Message, waiting: Waiting[bool]) -> None:
        """Stores a message. Once `waiting` has its result it calls `stored`, at once, if that is True.

        Raises:
            JournalFullError: it is not stored, and nobody is told.
        """
        self._journal.append(self._route, message, waiting)

    def stored(self, message: Message) -> None:
        """A message is durable. Called in the order in which messages are stored."""
        self._meters.stored += 1
        message.forget_tree()
        if self._spilled:
            self._wake.set()
            if self._late is not None and self._room(message):
                self._late.append(Job(message))
                self._late_bytes += message.size
            else:
                self._fell_behind()
        elif not self._room(message):
            self._fell_behind()
        elif message.id not in self._jobs:
            self._take(Job(message))

    def _fell_behind(self) -> None:
        """Only the journal has what is stored now."""
        self._spilled = self._more = True
        self._late, self._late_bytes = None, 0
        self._wake.set()

    def _room(self, message: Message) -> bool:
        ending, limit = self._dispatch.ends.waiting, self._limits.in_memory
        # What only waits for its end to be written weighs little, and must not send newcomers the long way round.
        held = len(self._jobs) - ending
        if self._late:
            held += len(self._late)
        if self._dispatch.stopping or held >= limit or ending >= ENDING_TIMES * limit:
            return False
        return self._bytes + self._late_bytes + message.size <= self._limits.in_memory_size

    def _keep(self, job: Job) -> None:
        self._jobs[job.message.id] = job
        self._bytes += job.size

    def _take(self, job: Job) -> None:
        """Begins behind the answer to its sender: who hears nothing, as a message kills the process, sends it again."""
        self._keep(job)
        if not self._told_first:
            asyncio.get_running_loop().call_soon(self._tell_first)
        self._told_first.append(job)

    def _tell_first(self) -> None:
        """Whoever waits for one of these was woken by now, or will be before these begin."""
        jobs, self._told_first = self._told_first, []
        asyncio.get_running_loop().call_soon(self._begin, jobs)

    def _begin(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._dispatch.begin(job)

    def _left(self, job: Job | None) -> None:
        if job is not None and self._jobs.pop(job.message.id, None) is not None:
            self._bytes -= job.size
            if self._suspects.left(job.message.id):
                self._wake.set()
            if job.message.id in self._dispatch.discarded:  # if it was replayed meanwhile, only the journal has it
                self._spilled = self._more = True
        if self._spilled:
            self._wake.set()

    def _look_again(self) -> None:
        self._wake.set()

    def discard(self, ids: Sequence[str]) -> None:
        """Begins nothing more of these messages, which the journal has as discarded; what is being sent may finish."""
        self._dispatch.discard(ids, [self._jobs[one] for one in ids if one in self._jobs])
        self.poke()

    def _forget_discarded(self) -> None:
        """Those that have left memory: the journal gives them out again only when they were replayed."""
        discarded, busy = self._dispatch.discarded, self._dispatch.busy
        if discarded:
            here = {*self._jobs, *busy.values(), *(child for child, _ in busy)}
            here.update(parcel.message.id for job in self._jobs.values() for parcel in job.parcels)
            discarded &= here

    def poke(self) -> None:
        """The journal was changed from outside (replay): look again."""
        self._spilled = self._more = self._recount = True
        self._suspects.clear()
        self._wake.set()

    # -- what the journal has --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        async with self._dispatch:
            while True:
                try:
                    await self._look()
                except JournalBrokenError:  # everybody is told, and the process ends
                    return
                except Exception:
                    log.exception("the journal could not be asked", extra={"route": self._route})
                    await self._inside.clock.sleep(AGAIN_S)
                    self.poke()

    async def _look(self) -> None:
        """Takes on what the journal has, then waits until it may have more."""
        self._wake.clear()
        self._forget_discarded()
        lanes = self._dispatch.lanes
        self._recount = self._recount or lanes.uncounted
        if self._recount or (self._recount_at is not None and self._journal.now() >= self._recount_at):
            self._recount = False
            lanes.begin_count()
            began = self._journal.now()
            await self._journal.advance(self._route, [])  # what was handed over is counted as well
            exact = lanes.end_count(await self._journal.lanes(self._route), self._dispatch.discarded)
            now = self._journal.now()
            self._recount_at = None if exact else now + max(AGAIN_S, COUNT_SHARE * (now - began))
        if not self._dispatch.stopping:
            await self._load_due()
            await self._send_suspects()
            if self._spilled:
                await self._load_stored()
                await self._begin_held()
        self._suspects.pass_on()
        await self._until_due()

    async def _until_due(self) -> None:
        due_at = None
        if self._room_for_due() > 0:  # else whoever leaves memory wakes us
            due_at = await self._journal.next_due(self._route, self._known_deliveries())
        if due_at is not None and self._dispatch.shut:
            due_at = max(due_at, self._shut_until)
        if self._wake.is_set():
            return
        waiting = asyncio.ensure_future(self._wake.wait())
        tasks: set[asyncio.Future[object]] = {waiting}  # type: ignore[arg-type]
        if due_at is not None:
            wait_s = max(due_at - self._journal.now(), 0.005)
            tasks.add(asyncio.ensure_future(self._inside.clock.sleep(wait_s)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _load_stored(self) -> None:
        room = self._limits.in_memory - len(self._jobs) - len(self._suspects.works)
        held_bytes = self._bytes + self._suspects.works_bytes
        room_bytes = self._limits.in_memory_size - held_bytes
        if room <= 0 or (room_bytes <= 0 and held_bytes):
            return  # whoever leaves memory wakes us
        self._more = False
        self._late, self._late_bytes = [], 0
        known = [*self._jobs, *(work.message.id for work in self._suspects.works)]
        works = await self._journal.stored(self._route, known, min(room, BATCH), room_bytes)
        if works:
            self._wake.set()
            sound = self._suspects.hold(works)
            if sound:
                await self._claim([work.message.id for work in sound], [])
                for work in sound:
                    if work.message.id not in self._dispatch.discarded:  # since it was given out
                        self._take_work(work)
        self._catch_up(works)

    def _catch_up(self, works: Backlog) -> None:
        """Goes on from memory, if that has all now: what the journal gave out, and what was stored since it was asked.

        What is stored from now on was not among what it gave out: that it is stored was told before the claim was.
        """
        late, self._late, self._late_bytes = self._late, None, 0
        if late is None or not works.whole or self._more or self._suspects.works:
            return
        self._spilled = False
        given = {work.message.id for work in works}
        for job in late:
            if job.message.id in given or job.message.id in self._dispatch.discarded:
                continue
            if not self._room(job.message):
                self._fell_behind()
                return
            self._take(job)

    async def _begin_held(self) -> None:
        while not self._dispatch.stopping and (work := self._suspects.next_work()) is not None:
            if work.claims >= POISON_CLAIMS:
                reason = Reason("poison", _poison(work.claims), "steps", INTERNAL)
                self._inside.dead_letters.note(work.message.id, reason.kind, reason.text, reason.place)
                await self._journal.advance(self._route, [Finished(work.message.id, "dead", reason=reason)])
                continue
            await self._claim([work.message.id], [])
            if work.message.id in self._dispatch.discarded:
                continue
            self._suspects.began(work)
            self._take_work(work)

    def _take_work(self, work: Work) -> None:
        work.message.formats = self._inside.formats
        job = Job(work.message, work.only)
        job.reason = BEGINNING if CUT in work.message.transport else None  # it was replayed
        self._take(job)

    def _known_deliveries(self) -> list[tuple[str, str]]:
        return [*self._dispatch.busy, *(_name(item) for item in self._suspects.deliveries)]

    def _room_for_due(self) -> int:
        """How many more the journal may give out. Those of messages in memory, which it has too, take up none."""
        used = self._bytes_of_due()
        if used and used >= self._limits.in_memory_size:
            return 0
        return (
            BATCH
            - len(self._suspects.deliveries)
            - sum(parent not in self._jobs for parent in self._dispatch.busy.values())
        )

    def _bytes_of_due(self) -> int:
        return self._dispatch.given_bytes + self._suspects.deliveries_bytes

    async def _load_due(self) -> None:
        while not self._dispatch.stopping:
            if self._dispatch.shut:
                if self._journal.now() < self._shut_until:
                    return
                self._shut_until = self._journal.now() + AGAIN_S
            known = self._known_deliveries()
            room = self._room_for_due()
            self._dispatch.seen_busy.clear()
            room_bytes = self._limits.in_memory_size - self._bytes_of_due()
            found = await self._journal.due(self._route, known, room, room_bytes) if room > 0 else ()
            # what was written while we asked is in memory, or was until just now: the answer is older than that
            due = [item for item in found if _name(item) not in self._dispatch.seen_busy]
            if not due:
                return
            good = [item for item in due if self._dispatch.knows(item.delivery.target)]
            gone = [item for item in due if item not in good]
            sound = self._suspects.hold_due(good)
            await self._give(await self._with_followers(sound, room // 2, set(known)))
            if gone:
                await self._end(gone)
                return

    async def _with_followers(
        self, firsts: Sequence[Due], room: int, known: Collection[tuple[str, str]]
    ) -> Sequence[Due]:
        """These, and behind each those of its lane that may be sent right after it: one by one would cost commits.

        known: what was in memory before the journal was asked for the first ones.
        """
        lanes = [lane for item in firsts if not item.claims and (lane := _lane(item)) is not None]
        queues = [lane for lane in lanes if self._dispatch.lanes.queue(lane)]
        most = min(RUN, 1 + (room - len(firsts)) // len(queues)) if queues else 1
        if most < 2:
            return firsts
        queued = await self._journal.queued(self._route, queues, most)
        moved = self._dispatch.seen_busy.union(known)  # the answer may be older than what became of these
        elsewhere = moved.union(map(_name, firsts))
        found: list[Due] = []
        for item in firsts:
            if _name(item) in moved:
                continue
            found.append(item)
            lane = _lane(item)
            first, *followers = (lane and queued.get(lane)) or (None,)
            if first is not None and _name(first) == _name(item):
                found += takewhile(lambda one: _follows(one) and _name(one) not in elsewhere, followers)
        return found

    async def _send_suspects(self) -> None:
        self._suspects.left_but(self._dispatch.busy)
        while not self._dispatch.stopping and (item := self._suspects.next_delivery()) is not None:
            if item.claims >= POISON_CLAIMS:
                await self._end([item])
            else:
                await self._give([item])
                self._suspects.began_delivery(_name(item))

    async def _claim(self, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        self._claiming = messages, deliveries
        await self._journal.claim(self._route, messages, deliveries)
        self._claiming = (), ()

    async def _give(self, items: Sequence[Due]) -> None:
        if items:
            await self._claim([], [_name(item) for item in items])
        for item in items:
            if item.delivery.parent not in self._dispatch.discarded:  # since it was given out
                item.delivery.message.formats = self._inside.formats
                self._dispatch.give(Parcel.of_delivery(item.delivery))

    async def _end(self, items: Sequence[Due]) -> None:
        await self._journal.advance(self._route, [self._ended(item) for item in items])
        self._recount = True
        self._wake.set()

    def _ended(self, item: Due) -> Attempted:
        delivery = item.delivery
        if item.claims >= POISON_CLAIMS:
            reason = Reason("poison", _poison(item.claims), delivery.target, INTERNAL)
        else:
            known = ", ".join(target.name for target in self._inside.targets)
            text = (
                f"the route has no target called {delivery.target} any more; it has {known}: give one of them this "
                "name and replay it, or replay it edited, as a new message"
            )
            reason = Reason("refused", text, delivery.target)
        child = delivery.message.id
        self._inside.dead_letters.note(child, reason.kind, reason.text, reason.place)
        return Attempted(delivery.parent, child, delivery.target, "dead", delivery.attempts, reason=reason)


def _lane(item: Due) -> Lane | None:
    key = item.delivery.key
    return None if key is None else (item.delivery.target, key)


def _follows(item: Due) -> bool:
    """Whether it only waits for those ahead of it: one that failed, and was overtaken since, has a time of its own."""
    return not item.claims and item.delivery.due_at is None


def _name(item: Due) -> tuple[str, str]:
    return item.delivery.message.id, item.delivery.target


def _poison(claims: int) -> str:
    return f"it was begun {claims} times without an end: it seems to kill the process"
