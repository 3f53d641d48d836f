"""One running route: from its sources through the gate to what is inside, and the outcome back the same way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from gateway.config import Configured
from gateway.delivery import Delivering
from gateway.errors import INTERNAL, MessageError, PeerError
from gateway.expressions import Expression
from gateway.failpoints import failpoint, failpoint_soon
from gateway.gate import Gate
from gateway.host import EngineHost, Services
from gateway.journal import JournalBrokenError, JournalFullError, Reason
from gateway.links import keep_running
from gateway.message import Accepted, Deferred, Message, Outcome, Refused
from gateway.path import word_of
from gateway.ports import Deliver, Source, Step
from gateway.target import Inside, RunningTarget, chosen

log = logging.getLogger("gateway.route")

START_S = 2.0
"""How long a start waits for a source to listen or to have tried its peer once: a slow one holds up all routes."""
FULL_WAIT_S = 5.0
"""How long senders are asked to wait while the journal has no room."""
NOT_STORED = "the gateway can't store it now; send it again later"
PAUSED_WAIT_S = 5.0
"""How long senders are asked to wait while the route is paused and stores nothing."""


class Route:
    """A route as it runs. `start`, then messages flow; `swap` changes it under traffic; `stop` drains it."""

    def __init__(self, configured: Configured, services: Services) -> None:
        self.name = configured.name
        self.configured = configured
        self.paused = False
        """Nothing is delivered. Set it before `open`; later call `pause` and `resume`."""
        self.suspended = False
        """It is between the halves of a swap, or its last one failed: it takes nothing in until `go_on`."""
        self._services = services
        self._meters = services.observed.route(self.name)
        self.gate = Gate(configured.settings.limits.in_flight, self._meters)
        self._sources: list[asyncio.Task[None]] = []
        self._inside = Inside(configured, services)
        self._delivering: Delivering | None = self._made_delivering()
        self._source_name = f"/{services.name}/{self.name}"

    def _made_delivering(self) -> Delivering | None:
        return Delivering(self._inside) if self.configured.settings.ack == "stored" else None

    @property
    def inside(self) -> Inside:
        """The steps and targets that run now."""
        return self._inside

    @property
    def delivering(self) -> Delivering | None:
        """What takes stored messages on; None: the route stores nothing."""
        return self._delivering

    async def start(self) -> None:
        """`listen`, then `open`: for a route alone."""
        await self.listen()
        self.open()

    async def listen(self) -> None:
        """Starts the sources; what they take waits at the gate. Returns once each is ready or found its peer away.

        Raises:
            ConfigError: a source can't run as configured, such as an address in use.
        """
        self.gate.close(stopping=False)
        await self._start_sources()

    async def opened(self) -> None:
        """Returns once every target is open, or was found away."""
        await self._inside.tried()

    def open(self) -> None:
        """Opens the targets and lets messages in. Call it once all routes listen: targets may be among them."""
        self._start_inside()
        self.gate.reopen()

    def _start_inside(self) -> None:
        self._inside.start()
        if self._delivering is not None and not self.paused:
            self._delivering.start()

    async def pause(self, grace_s: float) -> None:
        """Stops delivering. With `ack: stored` messages are still taken and kept; otherwise senders are deferred.

        Returns once nothing is being sent any more, after `grace_s` at the latest; what is in flight is not stopped.
        """
        if self.paused:
            return
        self.paused = True
        before = self._delivering
        if before is None:
            await self._drain(grace_s)
        else:
            self._delivering = self._made_delivering()
            await self._stop_delivering(before, grace_s)

    def resume(self) -> None:
        """Goes on with what the journal has, and takes messages in again."""
        if self.paused:
            self.paused = False
            if self._delivering is not None:
                self._delivering.start()

    async def _start_sources(self) -> None:
        tried: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()
        for index, source in enumerate(self.configured.settings.sources):
            name = word_of(source) if index == 0 else f"{word_of(source)}-{index + 1}"
            peer = self._services.observed.peer(self.name, name, "source", source)
            host = self._host(name)
            done: asyncio.Future[None] = loop.create_future()
            running = keep_running(
                source,
                host,
                self.deliver_for(source),
                peer,
                self._services.observed,
                self._services.luck,
                lambda done=done: None if done.done() else done.set_result(None),  # type: ignore[misc]
            )
            task = asyncio.create_task(running, name=f"{self.name}:{name}")
            self._sources.append(task)
            tried.append(done)
        await self._until_tried(tried)

    async def _until_tried(self, tried: list[asyncio.Future[None]]) -> None:
        waiting: set[asyncio.Future[None]] = set(tried)
        deadline = asyncio.get_running_loop().time() + START_S
        while waiting:
            left = deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait(
                {*waiting, *self._sources}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in self._sources:
                if task.done():
                    await self._stop_sources()
                    task.result()
            waiting -= done
            if not done:
                return

    def _host(self, name: str) -> EngineHost:
        return EngineHost(self._services, self.name, name, self.configured.settings.limits, self._inside.formats)

    async def stop(self, grace_s: float) -> None:
        """Closes the gate, waits at most `grace_s` for what is in flight, then stops sources and targets."""
        await self.drain(grace_s)
        await self.halt(grace_s)

    async def drain(self, grace_s: float) -> None:
        """Closes the gate and waits at most `grace_s` for what is in flight."""
        self.gate.close(stopping=True)
        await self._drain(grace_s)

    async def halt(self, grace_s: float) -> None:
        """Stops targets, then sources: a target that is a route of ours is still there when its link closes."""
        await self._stop_inside(grace_s)
        await self._stop_sources()
        self.gate.end()
        self._services.observed.forget(self.name)

    async def swap(self, configured: Configured, grace_s: float) -> None:
        """Changes to another configuration: newcomers wait at the gate, and the two never run at once.

        Sources that stay as they are keep running, so that their senders notice nothing.

        Raises:
            ConfigError: a source can't run as configured; the route is suspended then.
        """
        await self.suspend(configured, grace_s)
        await self.go_on(configured)

    def keeps_sources(self, configured: Configured) -> bool:
        """Whether its sources go on as they are under another configuration."""
        now, then = self.configured.settings, configured.settings
        return then.sources == now.sources and then.limits == now.limits

    async def suspend(self, configured: Configured, grace_s: float) -> None:
        """The first half of a swap: after it nothing runs but the sources that stay as they are."""
        self.suspended = True
        self.gate.close(stopping=False)
        await self._drain(grace_s)
        await self._stop_inside(grace_s)
        if not self.keeps_sources(configured):
            await self._stop_sources()
        failpoint("reload.swapped")

    async def go_on(self, configured: Configured) -> None:
        """The second half of a swap.

        Raises:
            ConfigError: a source can't run as configured; the route is suspended then.
        """
        self._services.observed.forget_targets(self.name)
        self.configured = configured
        self._inside = Inside(configured, self._services)
        self._delivering = self._made_delivering()
        self._start_inside()
        if not self._sources:
            self.gate.limit(configured.settings.limits.in_flight)
            await self._start_sources()
        self.suspended = False
        self.gate.reopen()

    async def _drain(self, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s):
                await self.gate.drained()
        except TimeoutError:
            log.warning("grace is over", extra={"route": self.name, "in_flight": self.gate.inside})

    async def _stop_sources(self) -> None:
        for task in self._sources:
            task.cancel()
        await asyncio.gather(*self._sources, return_exceptions=True)
        self._sources.clear()

    async def _stop_inside(self, grace_s: float) -> None:
        if self._delivering is not None:
            await self._stop_delivering(self._delivering, grace_s)
        await self._inside.stop()

    async def _stop_delivering(self, delivering: Delivering, grace_s: float) -> None:
        await delivering.stop(grace_s)
        # What has ended may not be committed yet: who goes on from the journal would send it again.
        committed = self._services.journal.advance(self.name, [])
        await asyncio.wait({committed}, timeout=grace_s)
        if committed.done() and not committed.cancelled():
            committed.exception()  # a journal that is broken tells it to everybody

    def deliver_for(self, source: Source) -> Deliver:
        """The edge of the route for one source."""
        return partial(self.take, answers=source.answers, type_=f"{word_of(source)}.message")

    async def take(self, message: Message, *, answers: bool, type_: str) -> Outcome:
        """Takes a message in and returns what became of it. Never raises but CancelledError.

        answers: the sender is told the outcome; if not, a refusal is kept as a dead letter before this returns.
        """
        gate, meters = self.gate, self._meters
        if self.paused and self._delivering is None:
            meters.received += 1
            meters.deferred += 1
            return Deferred(message.id, f"{self.name} is paused", PAUSED_WAIT_S)
        if not gate.enter_at_once() and not await gate.enter(patient=not answers):
            meters.received += 1
            meters.deferred += 1
            return Deferred(message.id, f"{self.name} has as many messages as it may take; send again")
        inside = self._inside
        monotonic = inside.clock.monotonic
        began = monotonic()
        meters.received += 1
        try:
            message.formats = inside.formats
            message.source = self._source_name
            if not message.type:
                message.type = type_
            if message.raw is not None and len(message.raw) > inside.largest:
                raise _too_large(inside.largest)
            outcome = await self._handled(message)
        except MessageError as error:
            outcome = await self._refused(
                message, Refused(message.id, error.for_sender, error.code, str(error)), error.place, answers=answers
            )
        except PeerError as error:
            answerless = self.configured.settings.ack == "reply" and not error.too_late
            told = error.for_sender if error.too_late else f"{error.for_sender}; send it again later"
            outcome = Deferred(message.id, told, error.wait_s or 1.0, error.too_late, answerless, str(error))
        except (JournalFullError, JournalBrokenError) as error:
            outcome = Deferred(message.id, NOT_STORED, FULL_WAIT_S, detail=str(error))
        except Exception:
            log.exception("message failed", extra={"route": self.name, "message_id": message.id})
            meters.errors += 1
            refused = Refused(message.id, INTERNAL, "internal")
            outcome = await self._refused(message, refused, None, answers=answers)
        finally:
            gate.leave()
        self._count(outcome)
        meters.latency.observe(monotonic() - began)
        watcher = self._services.observed.watcher
        if watcher is not None:
            watcher.heard(self.name, message, outcome)
        return outcome

    def _count(self, outcome: Outcome) -> None:
        if type(outcome) is Accepted:
            self._meters.accepted += 1
        elif type(outcome) is Refused:
            self._meters.refused += 1
        else:
            self._meters.deferred += 1

    async def _handled(self, message: Message) -> Outcome:
        inside, settings = self._inside, self.configured.settings
        if not inside.accept.empty:
            await self._checked(message)
        if settings.expire_after is not None and message.expires_at_s is None:
            message.expires_at_s = message.time_s + settings.expire_after
        delivering = self._delivering
        if not message.since and (delivering is not None or message.expires_at_s is not None):
            message.since = self._services.journal.now()
            if message.expires_at_s is not None:  # what it waited until now is part of its time
                message.since -= max(0.0, inside.clock.time() - message.time_s)
        if delivering is not None:
            if settings.priority is not None:
                message.priority = _urgency(settings.priority(message))
            if settings.order_by is not None:
                message.key = _text(settings.order_by(message))
            failpoint("accept.parsed")
            await delivering.store(message)
            failpoint_soon("ack.sent")
            if self._delivering is not delivering and self._delivering is not None:
                self._delivering.poke()  # the route was paused meanwhile: nobody else tells the new one
            return Accepted(message.id, stored=True)
        if inside.memos.used:
            async with inside.memos.kept_once_delivered():
                reply = await self._delivered(message)
        else:
            reply = await self._delivered(message)
        return Accepted(message.id, reply if settings.ack == "reply" else None)

    async def _checked(self, message: Message) -> None:
        accept = self._inside.accept
        if not (accept.plain(message) if accept.plain else await accept(message)):
            raise _not_accepted(accept.ended_by(message))

    async def _delivered(self, message: Message) -> Message | None:
        """Runs the steps and sends to every target that takes what comes out. Returns the reply of the only one.

        Raises:
            MessageError, PeerError: of the worst: a PeerError if any target was away, so that the sender tries again.
        """
        inside = self._inside
        steps = inside.steps
        out: Message | None = message
        outs: Sequence[Message] = ()
        if steps.plain is not None:
            out = steps.plain(message)
            if out is not message:
                message.forget_tree()  # it is not needed any more, and waits as long as its target does
        elif not steps.empty:
            out, outs = None, await steps(message)
        if out is not None:
            if inside.only is not None:
                return await self._sent(inside.only, out)
            outs = (out,)
        if not outs:
            self._meters.filtered += 1
            return None
        sends: list[tuple[RunningTarget, Message]] = []
        for out in outs:
            for target in inside.always or chosen(inside, out):
                if target.path.empty:
                    sends.append((target, out))
                else:
                    sends += [(target, made) for made in await target.made_of(out)]
        if len(sends) == 1:
            return await self._sent(*sends[0])
        if sends:
            await self._sent_to_all(sends)
        return None

    async def _sent(self, target: RunningTarget, message: Message) -> Message | None:
        if message.expires_at_s is not None and message.left_s(self._services.journal.now()) < 0:
            self._meters.expired += 1
            return None
        try:
            return await target.send(message)
        except MessageError as error:
            error.place = error.place or target.name
            if isinstance(error.reply, Message) and self.configured.settings.ack == "reply":
                return error.reply
            raise
        except PeerError as error:
            if isinstance(error.reply, Message) and self.configured.settings.ack == "reply":
                return error.reply
            raise

    async def _sent_to_all(self, sends: list[tuple[RunningTarget, Message]]) -> None:
        results = await asyncio.gather(*(self._sent(*send) for send in sends), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if isinstance(error, asyncio.CancelledError | PeerError):
                raise error
        for error in errors:
            if not isinstance(error, MessageError):  # a bug, which has to be heard of
                raise error
        if errors:
            raise errors[0]

    async def _refused(self, message: Message, refused: Refused, place: str | None, *, answers: bool) -> Outcome:
        """A refusal, once it is safe: where the sender can't be told, as a committed dead letter."""
        if answers:
            if refused.code != "internal":  # a bug is logged already
                self._inside.refusals.note(message, refused, place)
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
        self._inside.dead_letters.note(message.id, refused.code, refused.full, place)
        return refused

    async def bury(self, message: Message, reason: Reason) -> None:
        """Keeps a dead letter: in the journal, or with the target that `dead_letter` names."""
        if self._inside.dead_letter is not None:
            for made in await self._inside.dead_letter.made_of(message):
                await self._inside.dead_letter.send(made)
        else:
            await self._services.journal.bury(self.name, message, reason)


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


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)
