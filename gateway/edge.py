"""The edge of one running route: a message goes in, and what became of it comes back, as its sender may hear it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from gateway.delivery import Delivering
from gateway.direct import delivered
from gateway.errors import INTERNAL, MessageError, PeerError
from gateway.expressions import Expression
from gateway.failpoints import failpoint, failpoint_soon
from gateway.gate import Gate
from gateway.host import Services
from gateway.journal import JournalBrokenError, JournalFullError, Reason
from gateway.message import Accepted, Deferred, Message, Outcome, Refused
from gateway.ports import Step
from gateway.target import Inside

log = logging.getLogger("gateway.route")

FULL_WAIT_S = 5.0
"""How long senders are asked to wait while the journal has no room."""
NOT_STORED = "the gateway can't store it now; send it again later"
PAUSED_WAIT_S = 5.0
"""How long senders are asked to wait while the route is paused and stores nothing."""


class Edge:
    """Takes messages in for one route. Its route sets what is inside, and changes it while messages flow."""

    def __init__(self, inside: Inside, delivering: Delivering | None, services: Services) -> None:
        self.name = inside.name
        self.inside = inside
        """The steps and targets that run now."""
        self.delivering = delivering
        """What takes stored messages on; None: the route stores nothing."""
        self.paused = False
        self._services = services
        self._meters = inside.meters
        self.gate = Gate(inside.settings.limits.in_flight, self._meters)
        self._source_name = f"/{services.name}/{self.name}"

    async def take(self, message: Message, *, answers: bool, type_: str) -> Outcome:
        """Takes a message in and returns what became of it. Never raises but CancelledError.

        answers: the sender is told the outcome; if not, a refusal is kept as a dead letter before this returns.
        """
        gate, meters = self.gate, self._meters
        if self.paused and self.delivering is None:
            meters.received += 1
            meters.deferred += 1
            return Deferred(message.id, f"{self.name} is paused", PAUSED_WAIT_S)
        if not gate.enter_at_once() and not await gate.enter(patient=not answers):
            meters.received += 1
            meters.deferred += 1
            return Deferred(message.id, f"{self.name} has as many messages as it may take; send again")
        inside = self.inside
        monotonic = inside.clock.monotonic
        began = monotonic()
        meters.received += 1
        try:
            self._label(message, type_)
            outcome = await self._handled(message)
        except MessageError as error:
            outcome = await self._refused(
                message, Refused(message.id, error.for_sender, error.code, str(error)), error.place, answers=answers
            )
        except PeerError as error:
            answerless = self.inside.settings.ack == "reply" and not error.too_late
            told = error.for_sender if error.too_late else f"{error.for_sender}; send it again later"
            outcome = Deferred(message.id, told, error.wait_s or 1.0, error.too_late, answerless, str(error))
            if answers:
                self.inside.refusals.note_deferred(message, outcome)
        except (JournalFullError, JournalBrokenError) as error:
            outcome = _not_stored(message, error)
        except Exception as error:
            outcome = await self._refused(message, self._failed(message, error), None, answers=answers)
        finally:
            gate.leave()
        self._note(message, outcome, began)
        return outcome

    def offer(self, message: Message, then: Callable[[Outcome], None], *, type_: str) -> bool:
        """Takes a message in at once, if its commit is all that is to be waited for: no task waits meanwhile.

        then: called with what became of it, in the loop's thread, perhaps before this returns. It never raises.
        False: nothing was done, and `then` is not called. `take` does it, and says what is wrong with it.
        """
        inside, delivering = self.inside, self.delivering
        if delivering is None or not (inside.accept.empty or inside.accept.plain) or not self.gate.enter_at_once():
            return False
        tell = partial(self._settle, message, then, inside.clock.monotonic())
        try:
            self._label(message, type_)
            taken = inside.accept.plain is None or inside.accept.plain(message) is not None
            if taken:
                self._ready_to_store(message)
                delivering.store_soon(message, _Stored(self, message, delivering, tell))
                self._meters.received += 1
        except Exception:  # `take` finds it as well, and tells it: nothing of it is for the log here
            taken = False
        if not taken:
            self.gate.leave()
        return taken

    def _settle(self, message: Message, then: Callable[[Outcome], None], began: float, error: Exception | None) -> None:
        """What was offered is stored, or is not."""
        outcome: Outcome
        if error is None:
            outcome = Accepted(message.id, stored=True)
        elif isinstance(error, JournalFullError | JournalBrokenError):
            outcome = _not_stored(message, error)
        else:
            outcome = self._failed(message, error)
        self.gate.leave()
        self._note(message, outcome, began)
        try:
            then(outcome)
        except Exception:
            log.exception("sender was not told", extra={"route": self.name, "message_id": message.id})

    def _failed(self, message: Message, error: Exception) -> Refused:
        """A bug, which is told in the log and counted."""
        log.error("message failed", extra={"route": self.name, "message_id": message.id}, exc_info=error)
        self._meters.errors += 1
        return Refused(message.id, INTERNAL, "internal")

    def _label(self, message: Message, type_: str) -> None:
        inside = self.inside
        message.formats = inside.formats
        message.source = self._source_name
        if not message.type:
            message.type = type_
        if message.raw is not None and len(message.raw) > inside.largest:
            raise _too_large(inside.largest)

    def _note(self, message: Message, outcome: Outcome, began: float) -> None:
        self._count(outcome)
        self._meters.latency.observe(self.inside.clock.monotonic() - began)
        watcher = self._services.observed.watcher
        if watcher is not None:
            watcher.heard(self.name, message, outcome)

    def _count(self, outcome: Outcome) -> None:
        if type(outcome) is Accepted:
            self._meters.accepted += 1
        elif type(outcome) is Refused:
            self._meters.refused += 1
        else:
            self._meters.deferred += 1

    async def _handled(self, message: Message) -> Outcome:
        inside, settings = self.inside, self.inside.settings
        if not inside.accept.empty:
            await self._checked(message)
        delivering = self.delivering
        if delivering is not None:
            self._ready_to_store(message)
            await self._stored(message, delivering)
            return Accepted(message.id, stored=True)
        self._age(message)
        if inside.memos.used:
            async with inside.memos.kept_once_delivered():
                reply = await delivered(inside, message)
        else:
            reply = await delivered(inside, message)
        return Accepted(message.id, reply if settings.ack == "reply" else None)

    def _age(self, message: Message) -> None:
        """Its deadline, and where that has to be kept to or it is stored, from when on its age counts."""
        inside = self.inside
        expire_after = inside.settings.expire_after
        if expire_after is not None and message.expires_at_s is None:
            message.expires_at_s = message.time_s + expire_after
        if not message.since and (self.delivering is not None or message.expires_at_s is not None):
            message.since = self._services.journal.now()
            if message.expires_at_s is not None:  # what it waited until now is part of its time
                message.since -= max(0.0, inside.clock.time() - message.time_s)

    def _ready_to_store(self, message: Message) -> None:
        settings = self.inside.settings
        self._age(message)
        if settings.priority is not None:
            message.priority = _urgency(settings.priority(message))
        if settings.order_by is not None:
            message.key = _lane(settings.order_by(message))
        failpoint("accept.parsed")

    async def _stored(self, message: Message, delivering: Delivering) -> None:
        """Returns once it is durable. Who gives up before has it delivered all the same."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(error: Exception | None) -> None:
            if told.done():
                return
            if error is None:
                told.set_result(None)
            else:
                told.set_exception(error)

        delivering.store_soon(message, _Stored(self, message, delivering, tell))
        await told

    def stored_by(self, delivering: Delivering) -> None:
        """A message is stored that this one took."""
        failpoint_soon("ack.sent")
        if self.delivering is not delivering and self.delivering is not None:
            self.delivering.poke()  # the route was paused meanwhile: nobody else tells the new one

    async def _checked(self, message: Message) -> None:
        accept = self.inside.accept
        if not (accept.plain(message) if accept.plain else await accept(message)):
            raise _not_accepted(accept.ended_by(message))

    async def _refused(self, message: Message, refused: Refused, place: str | None, *, answers: bool) -> Outcome:
        """A refusal, once it is safe: where the sender can't be told, as a committed dead letter."""
        if answers:
            if refused.code != "internal" or refused.detail:  # a bug of ours is logged already, and has no detail
                self.inside.refusals.note(message, refused, place)
            return refused
        try:
            await self.bury(message, Reason(refused.code, refused.full, place))
        except (PeerError, MessageError, JournalFullError, JournalBrokenError) as error:
            detail = f"the dead letter could not be kept: {error}"
            return Deferred(message.id, NOT_STORED, FULL_WAIT_S, detail=detail)
        except Exception:
            log.exception("dead letter failed", extra={"route": self.name, "message_id": message.id})
            self._meters.errors += 1
            detail = "the dead letter could not be kept; the gateway's log says why"
            return Deferred(message.id, NOT_STORED, FULL_WAIT_S, detail=detail)
        self.inside.dead_letters.note(message.id, refused.code, refused.full, place)
        return refused

    async def bury(self, message: Message, reason: Reason) -> None:
        """Keeps a dead letter: in the journal, or with the target that `dead_letter` names."""
        if self.inside.dead_letter is not None:
            for made in await self.inside.dead_letter.made_of(message):
                await self.inside.dead_letter.send(made)
        else:
            await self._services.journal.bury(self.name, message, reason)


class _Stored:
    """A message on its way into the journal, whose delivery begins from here, whoever waits for it and how.

    A task that is woken runs later than what is called at once: if those who wait told it themselves, messages of one
    commit would be turned round.
    """

    __slots__ = ("_delivering", "_edge", "_message", "_tell")

    def __init__(
        self, edge: Edge, message: Message, delivering: Delivering, tell: Callable[[Exception | None], None]
    ) -> None:
        """tell: called with None once the message is durable, or with the reason why it is not there."""
        self._edge = edge
        self._message = message
        self._delivering = delivering
        self._tell = tell

    def done(self) -> bool:
        """The delivery always waits."""
        return False

    def set_result(self, new: bool, /) -> None:  # noqa: FBT001 - as futures have it
        """It is durable. new: the journal did not have it before."""
        try:
            if new:
                self._delivering.stored(self._message)
            self._edge.stored_by(self._delivering)
        finally:
            self._tell(None)

    def set_exception(self, error: Exception, /) -> None:
        """It is not there."""
        self._tell(error)


class Door:
    """Where one source hands messages over: the `Deliver` of the port, which also takes offers."""

    __slots__ = ("_answers", "_edge", "_type")

    def __init__(self, edge: Edge, type_: str, *, answers: bool) -> None:
        self._edge = edge
        self._answers = answers
        self._type = type_

    def __call__(self, message: Message) -> Awaitable[Outcome]:
        """As `Edge.take`."""
        return self._edge.take(message, answers=self._answers, type_=self._type)

    def offer(self, message: Message, then: Callable[[Outcome], None]) -> bool:
        """As `Edge.offer`, but where a refusal must be kept as a dead letter: that has to be waited for."""
        return self._answers and self._edge.offer(message, then, type_=self._type)


def _not_stored(message: Message, error: Exception) -> Deferred:
    return Deferred(message.id, NOT_STORED, FULL_WAIT_S, detail=str(error))


def _urgency(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9:
        return value
    raise MessageError(f"priority: expected a whole number from 0 to 9, got {value!r:.60}")


def _not_accepted(ended: tuple[str, Step] | None) -> MessageError:
    """For the sender, who may put it right: which check it was, as that says of itself."""
    place, step = ended or (None, None)
    condition = getattr(step, "condition", None)
    which = f"the condition {condition.shown!r}" if isinstance(condition, Expression) else "a filter"
    error = MessageError(f"accept: {which} does not hold for this message")
    error.place = place
    return error


def _too_large(limit: int) -> MessageError:
    # How many more is not known here: some adapters read no further.
    return MessageError(f"body: more than {limit} bytes; send less, or raise limits.message", code="too_large")


def _lane(value: object) -> str | None:
    """The key of a message. Without a value it keeps no order: else all that have none would wait for each other."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else str(value)
