"""What wraps a send. Each layer takes a Send and gives a Send; `route.py` stacks them where everybody can see it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container

from pydantic import Field

from gateway.errors import MessageError, PeerError
from gateway.message import Message
from gateway.observe import TargetMeters
from gateway.ports import Clock, Send
from gateway.settings import Settings
from gateway.units import Duration, duration


class Retry(Settings):
    """How often and how long a peer is tried again. Waits double from `first_wait` to `max_wait`, with full jitter."""

    attempts: int = Field(8, ge=1, le=1000, description="tries in all, the first one included")
    first_wait: Duration = Field(duration("1s"), gt=0, description="the longest wait before the second try")
    max_wait: Duration = Field(duration("5m"), gt=0, description="the longest wait between two tries")
    max_age: Duration = Field(
        duration("24h"), gt=0, description="after this time since receipt, or since a replay, it is not tried again"
    )

    def wait_s(self, attempts: int, luck: Callable[[], float], asked_s: float | None = None) -> float:
        """Seconds to wait after that many failed attempts.

        luck: a number from 0 to 1 (full jitter). asked_s: what the peer asked for (Retry-After), obeyed up to
        `max_wait`, and never shortened by luck.
        """
        grown = min(self.max_wait, self.first_wait * 2.0 ** min(attempts - 1, 40))
        return max(grown * luck(), min(asked_s or 0.0, self.max_wait))


class Circuit(Settings):
    """When a target that keeps failing is left alone: after `failures` in a row, for `reset_after`, then one probe."""

    failures: int = Field(5, ge=1, description="failures in a row that open the circuit")
    reset_after: Duration = Field(
        duration("30s"),
        gt=0,
        description="time until one probe is let through; doubles with each failed probe, to 16 times",
    )


class Breaker:
    """The state of one circuit: closed, open, or half-open while one probe is on its way."""

    def __init__(self, circuit: Circuit, clock: Clock, meters: TargetMeters) -> None:
        self._circuit = circuit
        self._clock = clock
        self._meters = meters
        self._failures = 0
        self._opened = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if self._open_until is None:
            return "closed"
        return "half-open" if self._probing or self._clock.monotonic() >= self._open_until else "open"

    def wait_s(self) -> float:
        """Seconds until a send may be tried; 0: now."""
        if self._open_until is None:
            return 0.0
        left = self._open_until - self._clock.monotonic()
        return left if left > 0 else (0.1 if self._probing else 0.0)

    def begin(self) -> bool:
        """Takes the right to try. Returns whether it is the probe of an open circuit; hand that to how it ended.

        Raises:
            PeerError: the circuit is open; `wait_s` says for how long.
        """
        if self._open_until is None:
            return False
        wait_s = self.wait_s()
        if wait_s > 0:
            raise PeerError(
                f"circuit: open after {self._failures} failures in a row; next try in {wait_s:.1f} s", wait_s=wait_s
            )
        self._probing = True
        return True

    def ended(self, *, good: bool, probe: bool) -> None:
        """Notes how a try went; what the peer refused for good (MessageError) counts as good: it answered.

        Of tries that began before the circuit opened, those that fail late say nothing new: only a probe doubles.
        """
        if probe:
            self._probing = False
        if good:
            self._failures = self._opened = 0
            self._open_until = None
        elif probe or self._open_until is None:
            self._failures += 1
            if self._failures >= self._circuit.failures:
                open_s = self._circuit.reset_after * 2 ** min(self._opened, 4)
                self._open_until = self._clock.monotonic() + open_s
                self._opened += 1
        self._meters.circuit_open = int(self._open_until is not None)

    def abandoned(self, *, probe: bool) -> None:
        """Notes that a try was cancelled and said nothing about the peer."""
        if probe:
            self._probing = False


def guarded(send: Send, breaker: Breaker) -> Send:
    """Fails at once while the circuit is open."""

    async def guarded_send(message: Message) -> Message | None:
        probe = breaker.begin()
        try:
            reply = await send(message)
        except PeerError:
            breaker.ended(good=False, probe=probe)
            raise
        except MessageError:
            breaker.ended(good=True, probe=probe)
            raise
        except BaseException:
            breaker.abandoned(probe=probe)
            raise
        breaker.ended(good=True, probe=probe)
        return reply

    return guarded_send


def measured(send: Send, meters: TargetMeters, clock: Clock) -> Send:
    """Counts attempts by how they end, and times those that were answered."""
    monotonic = clock.monotonic

    async def measured_send(message: Message) -> Message | None:
        began = monotonic()
        try:
            reply = await send(message)
        except MessageError:
            meters.refused += 1
            meters.latency.observe(monotonic() - began)
            raise
        except PeerError:
            meters.failed += 1
            meters.latency.observe(monotonic() - began)
            raise
        meters.delivered += 1
        meters.latency.observe(monotonic() - began)
        return reply

    return measured_send


def limited(send: Send, at_once: int, discarded: Container[str] = ()) -> Send:
    """Lets that many sends run at once; others wait in the order they came.

    discarded: ids of messages that are not sent any more when their turn comes: that is a PeerError.
    """
    running = 0
    waiting: deque[asyncio.Future[None]] = deque()

    async def limited_send(message: Message) -> Message | None:
        nonlocal running
        waits = running >= at_once
        if waits:
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    running -= 1
                    _next_turn()
                raise
        else:
            running += 1
        try:
            if waits and message.id in discarded:
                raise PeerError("send: the message was discarded while it waited for its turn")
            return await send(message)
        finally:
            running -= 1
            if waiting:
                _next_turn()

    def _next_turn() -> None:
        nonlocal running
        while waiting and running < at_once:
            turn = waiting.popleft()
            if not turn.done():
                running += 1
                turn.set_result(None)

    return limited_send


def retried(send: Send, retry: Retry, clock: Clock, luck: Callable[[], float], meters: TargetMeters) -> Send:
    """Tries again in place while the peer fails: for calls inside steps. Stored targets retry by the journal."""

    async def retried_send(message: Message) -> Message | None:
        deadline = clock.monotonic() + retry.max_age
        attempts = 0
        while True:
            try:
                return await send(message)
            except PeerError as error:
                attempts += 1
                wait_s = retry.wait_s(attempts, luck, error.wait_s)
                if attempts >= retry.attempts or clock.monotonic() + wait_s > deadline:
                    raise
                meters.retried += 1
                await clock.sleep(wait_s)

    return retried_send
