"""What happens to a stored message in memory: its steps, its parcels, their lanes and sends, and what is written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack

from gateway.ends import Ends
from gateway.failpoints import failpoint, failpoint_soon
from gateway.failure import failure_of, shown
from gateway.jobs import Job, Parcel
from gateway.journal import Attempt, Change, JournalBrokenError, Reason
from gateway.lanes import Lanes
from gateway.message import Message
from gateway.packing import Packing
from gateway.target import Inside, RunningTarget
from gateway.workers import Workers

log = logging.getLogger("gateway.delivery")

EXPIRED_S = 0.001
"""So long after its deadline a message has surely expired."""
SET_S = 1.0
"""A clock that is wrong by less is not taken for one that was set."""


class Dispatch:
    """Runs jobs and parcels of one route. Use it as a context; `begin` and `give` hand over."""

    def __init__(self, inside: Inside, left: Callable[[Job | None], None], due: Callable[[], None]) -> None:
        """left: called when a job (None: one of the journal's parcels) left memory. due: it may have new due ones."""
        self._inside = inside
        self._route = inside.name
        self._settings = inside.settings
        self._journal = inside.services.journal
        self._left = left
        self._due = due
        self._targets = {target.name: target for target in inside.targets}
        self._alone = len(inside.targets) == 1
        self._pure = inside.steps.pure and all(target.path.pure for target in inside.targets)
        self._packing = Packing(inside)
        self.busy: dict[tuple[str, str], str] = {}
        """Names of written parcels in memory, with their parents: the journal must not give them out again."""
        self.seen_busy: set[tuple[str, str]] = set()
        """Those that became busy since somebody last cleared this: while the journal was asked for what is due, say."""
        self.lanes = Lanes()
        self.discarded = inside.discarded
        self._waits = any(
            path.plain is None and not path.empty for path in (inside.steps, *(one.path for one in inside.targets))
        )
        self._behind: dict[str, list[Job]] = {}
        """By key: jobs whose steps wait for those of the job before them."""
        self._steps: Workers[Job] = Workers(self._run, count=self._settings.concurrency, name=f"{self._route}:steps")
        self._senders = {
            name: Workers(self._send, count=self._settings.concurrency, name=f"{self._route}:{name}")
            for name in self._targets
        }
        self._stack = AsyncExitStack()
        self.given_bytes = 0
        """Bodies of the parcels in memory that the journal gave out, together."""
        self.sending = 0
        self.ends = Ends(self._route, self._journal, left)
        self.stopping = False
        self._idle = asyncio.Event()

    async def __aenter__(self) -> Dispatch:
        self._inside.called = self._idle.set
        await self._stack.enter_async_context(self._steps)
        for senders in self._senders.values():
            await self._stack.enter_async_context(senders)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(None, None, None)

    async def idle(self) -> None:
        """Returns once nothing is being sent, and no step waits for what it called. Call it with `stopping` set."""
        while self.sending or self._inside.calling:
            self._idle.clear()
            await self._idle.wait()

    # -- steps -----------------------------------------------------------------------------------------------------

    def begin(self, job: Job) -> None:
        """Takes a job on."""
        key = job.message.key
        if key is not None:
            if key in self._behind:
                self._behind[key].append(job)
                return
            self._behind[key] = []
        self._steps.put(job)

    async def _run(self, job: Job) -> None:
        if self.stopping:
            return
        try:
            await self._handle(job)
        except Exception as error:
            self._failed(job.message, error)
        key = job.message.key
        if key is not None:
            behind = self._behind[key]
            if behind:
                self._steps.put(behind.pop(0))
            else:
                del self._behind[key]

    def _failed(self, message: Message, error: Exception) -> None:
        """A message could not be moved on, by a bug: it stays as the journal has it until the next start.

        The others of the route go on: what a worker raises would end the delivery of all of them.
        """
        if not isinstance(error, JournalBrokenError):  # that is told once, and ends the process
            extra = {"route": self._route, "message_id": message.id}
            log.error("message is stuck until the next start", extra=extra, exc_info=error)
            self._inside.meters.errors += 1

    async def _handle(self, job: Job) -> None:
        if self.discarded and job.message.id in self.discarded:
            self._let_go(job)
            return
        target = self._packing.only
        if target is not None and job.only is None and job.reason is None:
            outs = self._packing.outs(job)
            if outs and job.message.key is None and self._pure and _is_ready(target, outs[0]):
                await self._send_at_once(job, outs[0], target)
                return
            if outs:
                self._packing.pack_one(job, outs[0])
        elif self._waits:
            await self._parcelled_unless_discarded(job)
        else:
            await self._packing.pack(job)
        await self._packed(job)

    async def _packed(self, job: Job) -> None:
        """Its steps have run: it has its parcels, or the reason why there are none."""
        if self.discarded and job.message.id in self.discarded:
            self._let_go(job)
            return
        if job.parcels and (not self._pure or any(parcel.final for parcel in job.parcels)):
            await self._write(job)
        if not job.open:
            if job.reason is not None and not job.expanded:
                job.handed_over = await self._packing.handed_over(job.message, job.reason)
                if not job.handed_over:
                    self._inside.dead_letters.note(job.message.id, job.reason.kind, job.reason.text, job.reason.place)
            self._end(job)
        elif len(job.parcels) == 1 and self._alone and job.message.key is None:
            await self._send(job.parcels[0])
        else:
            for parcel in [parcel for parcel in job.parcels if not parcel.final]:
                await self._enter(parcel)

    async def _parcelled_unless_discarded(self, job: Job) -> None:
        scope = job.scope = asyncio.timeout(None)
        try:
            async with scope:
                await self._packing.pack(job)
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            job.scope = None

    # -- lanes and sends -------------------------------------------------------------------------------------------

    def give(self, parcel: Parcel) -> None:
        """Takes on a parcel that the journal gave out."""
        self.busy[parcel.name] = parcel.parent
        self.given_bytes += parcel.size
        if self.lanes.join(parcel):  # else it was replayed while others of its lane are in memory
            self._senders[parcel.target].put(parcel)

    def discard(self, ids: Iterable[str], jobs: Iterable[Job]) -> None:
        """Begins nothing more of these messages, whose end the journal has. jobs: those of them that are in memory."""
        self.discarded.update(ids)
        self.discarded.update([child for (child, _), parent in self.busy.items() if parent in self.discarded])
        for job in jobs:
            self.discarded.update(parcel.message.id for parcel in job.parcels)
            if job.scope is not None:
                job.scope.reschedule(asyncio.get_running_loop().time())
        for parcel in self.lanes.behind(self.discarded):
            self._drop(parcel)

    def _drop(self, parcel: Parcel) -> None:
        """Lets go of a parcel of a discarded message, and writes nothing: the journal may have it anew, by a replay."""
        parcel.state = "discarded"
        self.busy.pop(parcel.name, None)
        self._send_next(self.lanes.drop(parcel))
        job = parcel.job
        if job is None:
            self._given_left(parcel)
        else:
            job.open -= 1
            if not job.open:
                self._left(job)
        self._due()

    def _given_left(self, parcel: Parcel) -> None:
        """A parcel that the journal gave out is not in memory any more."""
        self.given_bytes -= parcel.size
        self._left(None)

    def _let_go(self, job: Job) -> None:
        self._left(job)
        self._due()

    @property
    def shut(self) -> bool:
        """Whether the circuit of every target is open, or waits for how its probe ends: nothing can be sent."""
        return all(target.breaker is not None and target.breaker.wait_s() > 0 for target in self._targets.values())

    def knows(self, target: str) -> bool:
        """Whether the route has a target of this name."""
        return target in self._targets

    async def _enter(self, parcel: Parcel) -> None:
        if self.discarded and parcel.parent in self.discarded:
            self._drop(parcel)
        elif self.lanes.parked(parcel):
            await self._park([parcel])
        elif self.lanes.join(parcel):
            self._senders[parcel.target].put(parcel)

    def _send_next(self, parcel: Parcel | None) -> None:
        if parcel is not None:
            self._senders[parcel.target].put(parcel)

    async def _send(self, parcel: Parcel) -> None:
        if self.stopping:
            return
        self.sending += 1
        try:
            await self._try(parcel)
        except Exception as error:
            self._failed(parcel.message, error)
        finally:
            self.sending -= 1
            if not self.sending:
                self._idle.set()

    async def _try(self, parcel: Parcel) -> None:
        if self.discarded and parcel.parent in self.discarded:
            self._drop(parcel)
            return
        target, clock = self._targets[parcel.target], self._inside.clock
        message = parcel.message
        if message.expires_at_s is not None:
            left_s = message.left_s(self._journal.now())
            if left_s < 0:
                before = "the target had taken it" if parcel.attempts else "it was sent"
                reason = Reason("expired", f"its deadline passed before {before}", target.name)
                await self._done(parcel, "expired", None, reason)
                return
            message = _by_the_clock(message, clock.time() + left_s)
        wait_s = target.breaker.wait_s() if target.breaker is not None else 0.0
        if wait_s > 0:  # an open circuit is no attempt of this message's
            if parcel.reason is None:
                parcel.reason = Reason("retries", "the target's circuit is open: others failed before it", target.name)
            age_left_s = self._age_left_s(parcel, target)
            if age_left_s <= 0:
                await self._done(parcel, "dead", None, parcel.reason)
            else:
                await self._later(parcel, min(wait_s, age_left_s), None)
            return
        at_s, began = clock.time(), clock.monotonic()
        failpoint_soon("target.sent")
        try:
            reply: object = await target.send(message)
            failpoint("target.acked")
        except Exception as error:
            await self._went_wrong(parcel, error, at_s, clock.monotonic() - began)
            return
        parcel.attempts += 1
        took_s, answer = clock.monotonic() - began, shown(reply)
        await self._done(parcel, "delivered", Attempt(target.name, parcel.attempts, at_s, took_s, answer=answer))

    async def _send_at_once(self, job: Job, message: Message, target: RunningTarget) -> None:
        """What `_try` is to a parcel, to a message that has just that one and that nothing keeps from being sent."""
        if self.stopping:
            return
        clock = self._inside.clock
        at_s, began = clock.time(), clock.monotonic()
        failpoint_soon("target.sent")
        self.sending += 1
        try:
            reply: object = await target.send(message)
            failpoint("target.acked")
        except Exception as error:
            self._packing.pack_one(job, message)
            await self._went_wrong(job.parcels[0], error, at_s, clock.monotonic() - began)
        else:
            if self.discarded and job.message.id in self.discarded:
                self._let_go(job)
                return
            job.attempts = (Attempt(target.name, 1, at_s, clock.monotonic() - began, None, shown(reply)),)
            job.delivered = True
            self._end(job)
        finally:
            self.sending -= 1
            if not self.sending:
                self._idle.set()

    async def _went_wrong(self, parcel: Parcel, error: Exception, at_s: float, took_s: float) -> None:
        """An attempt failed: it is over, or it is tried again later."""
        target = self._targets[parcel.target]
        failure = failure_of(error, self._inside, target.name, parcel.message)
        reason, asked_s = failure.reason, failure.asked_s
        parcel.attempts += 1
        attempt = Attempt(target.name, parcel.attempts, at_s, took_s, reason.text, shown(failure.reply))
        retry, age_left_s = target.settings.retry, self._age_left_s(parcel, target)
        # its last try is at the end of its age at the latest, but not sooner than its peer asked for
        too_old = age_left_s <= min(asked_s or 0.0, retry.max_wait)
        if failure.final or parcel.attempts >= retry.attempts or too_old:
            await self._done(parcel, "dead", attempt, reason)
            return
        parcel.reason = reason
        target.meters.retried += 1
        wait_s = retry.wait_s(parcel.attempts, self._inside.services.luck, asked_s)
        await self._later(parcel, min(wait_s, age_left_s), attempt)

    def _age_left_s(self, parcel: Parcel, target: RunningTarget) -> float:
        """For how long it may be tried again: what its age leaves of the target's `max_age`."""
        return parcel.since + target.settings.retry.max_age - self._journal.now()

    async def _done(self, parcel: Parcel, state: str, attempt: Attempt | None, reason: Reason | None = None) -> None:
        """A parcel is final. Success is written without waiting for it; what went wrong is safe before we go on."""
        if state == "dead" and reason is not None and await self._packing.handed_over(parcel.message, reason):
            state = "discarded"
        if self.discarded and parcel.parent in self.discarded:  # also while it was handed over
            self._drop(parcel)
            return
        if state == "dead" and reason is not None:
            self._inside.dead_letters.note(parcel.message.id, reason.kind, reason.text, reason.place)
        parcel.state, parcel.due_at, parcel.reason = state, None, reason  # type: ignore[assignment]
        job = parcel.job
        if not self._alone and (job is None or job.open > 1):
            failpoint("fanout.partly_done")
        if attempt is not None and job is not None and not job.expanded:
            job.attempts = (*job.attempts, attempt)
        if job is not None:
            job.open -= 1
            if reason is not None and state == "dead":
                job.reason = reason
        if parcel.written:
            future = self._journal.advance(self._route, [parcel.attempted(attempt)])
            future.add_done_callback(lambda done: self._out(parcel, done))
        elif state in ("dead", "discarded"):
            await self._write(job)  # what the target would have received is kept with its dead letter
        self._send_next(self.lanes.ended(parcel))
        if job is not None and not job.open:
            self._end(job)

    async def _later(self, parcel: Parcel, wait_s: float, attempt: Attempt | None) -> None:
        """A parcel must wait: it is written and leaves memory, and with it all that are behind it in its lane."""
        if self.discarded and parcel.parent in self.discarded:
            self._drop(parcel)
            return
        now = self._journal.now()
        # once its deadline has passed it is not sent any more: it must not hold up its lane for longer
        parcel.due_at = now + min(wait_s, max(parcel.message.left_s(now), 0.0) + EXPIRED_S)
        if attempt is not None and parcel.job is not None and not parcel.job.expanded:
            parcel.job.attempts = (*parcel.job.attempts, attempt)
            attempt = None
        await self._park(self.lanes.park(parcel), attempt)

    async def _park(self, parcels: list[Parcel], attempt: Attempt | None = None) -> None:
        now = self._journal.now()
        changes: list[Change] = []
        unwritten = [parcel.job for parcel in parcels if parcel.job is not None and not parcel.written]
        written = [parcel for parcel in parcels if parcel.written]
        jobs = list(self.lanes.ahead_of(unwritten))
        for ahead in jobs:
            changes.append(ahead.written(now))
            self._keep_busy(ahead)
        head = parcels[0]
        if head in written and (attempt is not None or head.due_at is not None):
            changes.append(head.attempted(attempt))
        # one that was replayed is due; behind another it is not any more
        changes += [parcel.attempted(None) for parcel in written if parcel.job is None and parcel is not head]
        if changes:
            await self._handed_in(changes, jobs)
        for parcel in parcels:
            self.busy.pop(parcel.name, None)
            job = parcel.job
            if job is not None:
                job.open -= 1
                if not job.open:
                    self._end(job)
            else:
                self._given_left(parcel)
        self._due()

    def _keep_busy(self, job: Job) -> None:
        """Those that leave memory, too, until they are written: whoever lets go of them must not let go of others."""
        for parcel in job.parcels:
            self.lanes.move(parcel.lane)
        names = [parcel.name for parcel in job.parcels if not parcel.final]
        self.busy.update(dict.fromkeys(names, job.message.id))
        self.seen_busy.update(names)

    async def _write(self, job: Job | None) -> None:
        """Writes a job's parcels for the first time; those that are not final stay in memory."""
        assert job is not None
        now = self._journal.now()
        changes: list[Change] = []
        jobs = list(self.lanes.ahead_of([job]))
        for ahead in jobs:
            changes.append(ahead.written(now))
            self._keep_busy(ahead)
        await self._handed_in(changes, jobs)

    async def _handed_in(self, changes: Sequence[Change], jobs: Iterable[Job]) -> None:
        """Returns once these changes are durable. These jobs are written with them."""
        commit = self._journal.advance(self._route, changes)
        for job in jobs:
            job.commit = commit
        await commit

    async def write_partly_done(self, jobs: Iterable[Job]) -> None:
        """Writes what some of the targets have and others not, so that the next start sends to the others only."""
        partly = [
            job
            for job in jobs
            if not job.expanded and job.open and job.message.id not in self.discarded
            if any(parcel.final for parcel in job.parcels)
        ]
        now = self._journal.now()
        changes: list[Change] = [ahead.written(now) for ahead in self.lanes.ahead_of(partly)]
        if changes:
            await self._journal.advance(self._route, changes)

    # -- out -------------------------------------------------------------------------------------------------------

    def _out(self, parcel: Parcel, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.busy.pop(parcel.name, None)
            if parcel.job is None:
                self._given_left(parcel)
            self._due()

    def _end(self, job: Job) -> None:
        """A job has nothing left to do in memory: its end is written, and then it is forgotten."""
        if self.discarded and job.message.id in self.discarded:
            self._let_go(job)
        else:
            self.ends.put(job)


def _is_ready(target: RunningTarget, message: Message) -> bool:
    """Whether nothing has to be looked at before a send: no deadline, no circuit that is open."""
    return message.expires_at_s is None and (target.breaker is None or target.breaker.wait_s() <= 0)


def _by_the_clock(message: Message, expires_at_s: float) -> Message:
    """The message with its times as the machine's clock has them now, if somebody set it since it was received."""
    assert message.expires_at_s is not None
    set_by_s = expires_at_s - message.expires_at_s
    if abs(set_by_s) < SET_S:
        return message
    return message.replace(time_s=message.time_s + set_by_s, expires_at_s=expires_at_s)
