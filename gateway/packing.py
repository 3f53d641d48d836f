"""What comes out of a stored message's steps, packed into parcels: one message to one target each."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gateway.errors import INTERNAL, MessageError, PeerError
from gateway.failpoints import failpoint
from gateway.jobs import Job, Parcel
from gateway.journal import Hop, Reason
from gateway.message import Message
from gateway.path import Trace
from gateway.target import Inside, RunningTarget, chosen

log = logging.getLogger("gateway.delivery")


class Packing:
    """Runs the steps of one route's jobs, and of its targets."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self.only = inside.only if inside.steps.empty or inside.steps.plain is not None else None
        """The target of all that comes out of the steps, as it is: then there is nothing to choose or to split up."""
        self._history = inside.settings.history

    async def pack(self, job: Job) -> None:
        """Runs its steps and those of its targets: then it has its parcels, or the reason why there are none."""
        if job.reason is not None:
            return  # it was known before
        steps = self._inside.steps
        if steps.empty or steps.plain is not None:
            outs = self.outs(job)
        else:
            trace = self._trace(job)
            try:
                outs = await steps(job.message, trace)
            except Exception as error:
                outs = self._ended_by(job, error, trace)
            failpoint("steps.inside")
        if outs:
            await self._split_up(job, outs)

    def outs(self, job: Job) -> Sequence[Message]:
        """What comes out of the route's steps when none of them waits; nothing: filtered, or dead with `job.reason`."""
        steps = self._inside.steps
        outs: Sequence[Message] = (job.message,)
        if steps.plain is not None:
            trace = self._trace(job)
            try:
                after = steps.plain(job.message) if trace is None else steps.plain.traced(job.message, trace)
                outs = () if after is None else (after,)
            except Exception as error:
                outs = self._ended_by(job, error, trace)
        failpoint("steps.inside")
        return outs

    def pack_one(self, job: Job, out: Message) -> None:
        """Makes this its only parcel, for the only target."""
        assert self.only is not None
        job.parcels = [Parcel(job, job.message.id, out, self.only.name, job.message.key)]
        job.open = 1

    def _ended_by(self, job: Job, error: Exception, trace: Trace | None) -> Sequence[Message]:
        """Nothing: its steps ended with this error."""
        if isinstance(error, MessageError):
            job.reason = Reason(error.code, str(error), error.place, error.told)
        elif isinstance(error, PeerError):
            job.reason = Reason("retries", str(error), "steps", error.for_sender)
        else:
            job.reason = self.internal(job.message, "steps", error)
        if trace is not None:
            job.hops.append(Hop(job.reason.place or "steps", "failed"))
        return ()

    def _trace(self, job: Job) -> Trace | None:
        return Trace(job.hops, self._history) if self._history != "off" else None

    def internal(self, message: Message, place: str, error: Exception) -> Reason:
        """The reason of a bug, which is told in the log and counted."""
        log.error("message failed", extra={"route": self._inside.name, "message_id": message.id}, exc_info=error)
        self._inside.meters.errors += 1
        return Reason("internal", INTERNAL, place)

    async def _split_up(self, job: Job, outs: Sequence[Message]) -> None:
        parcels: list[Parcel] = []
        for out in outs:
            try:
                targets = chosen(self._inside, out)
            except MessageError as error:
                kind = "unmatched" if error.place is None else error.code
                job.reason = Reason(kind, str(error), error.place, error.told)
                return
            if job.only is not None:
                targets = [target for target in targets if target.name == job.only]
            for target in targets:
                parcels += await self._packed(job, target, out)
        job.parcels = parcels  # all at once: a stop must not find some of them
        job.open = sum(not parcel.final for parcel in parcels)
        job.reason = next((parcel.reason for parcel in parcels if parcel.final), None)
        if job.only is not None and not parcels:
            job.reason = Reason("unmatched", f"replay: the target {job.only} does not take this message", job.only)

    async def _packed(self, job: Job, target: RunningTarget, out: Message) -> list[Parcel]:
        key, parent, place = job.message.key, job.message.id, f"to.{target.name}.steps"
        try:
            made = await target.made_of(out, self._trace(job))
            return [Parcel(job, parent, message, target.name, key) for message in made]
        except MessageError as error:
            reason = Reason(error.code, str(error), error.place or place, error.told)
        except PeerError as error:
            reason = Reason("retries", str(error), place, error.for_sender)
        except Exception as error:
            reason = self.internal(out, place, error)
        parcel = Parcel(job, parent, out, target.name, key)
        parcel.state, parcel.reason = "discarded", reason
        if self._history != "off":
            job.hops.append(Hop(reason.place or place, "failed"))
        if not await self.handed_over(out, reason):
            parcel.state = "dead"
            self._inside.dead_letters.note(parcel.message.id, reason.kind, reason.text, reason.place)
        return [parcel]

    async def handed_over(self, message: Message, reason: Reason) -> bool:
        """Whether the target that `dead_letter` names took it. If not, or if there is none, the journal keeps it."""
        target = self._inside.dead_letter
        if target is None or message.id in self._inside.discarded:
            return False
        error = {"kind": reason.kind, "text": reason.text, "place": reason.place}
        try:
            for made in await target.made_of(message.replace(context={**message.context, "error": error})):
                await target.send(made)
        except (MessageError, PeerError) as failed:
            extra = {"route": self._inside.name, "message_id": message.id, "target": target.name, "reason": str(failed)}
            log.warning("dead letter kept in the journal", extra=extra)
            return False
        except Exception as error:
            self.internal(message, target.name, error)
            return False
        return True
