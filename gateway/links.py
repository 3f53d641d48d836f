"""Who reconnects: the engine, for all. Links hold what a component opened, notice a loss at once and open again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from gateway.errors import ConfigError, MessageError, PeerError
from gateway.message import Message
from gateway.observe import Observed, Peer
from gateway.ports import Clock, Deliver, Host, Send, Shared, Sink, Source

log = logging.getLogger("gateway.links")

T = TypeVar("T")

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 30.0
STEADY_S = 5.0
"""A link that lived this long starts its waits anew."""
OPENING_S = 5.0
"""How long a send waits for a link that is being opened."""

DOUBT_S = 30.0
"""How long after its last failed send a link without a connection to lose shows as down."""
WANTED_AFTER_S = 1.0
"""A send that finds the link down has it tried again at once, when its last try began longer ago than this."""
FAILURES_DOWN = 3
"""This many sends in a row that failed show as a link that is down, also where there is no connection to lose."""


def peer_error_in(error: BaseException) -> PeerError | None:
    """The PeerError that an exception is or carries; None when anything in it is something else."""
    if isinstance(error, PeerError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [peer_error_in(inner) for inner in error.exceptions]
        return found[0] if found and all(found) else None
    return None


def told_of(target: str, error: MessageError | PeerError) -> str:
    """What a sender hears of a target's error: its text names addresses and files, so no more than who and what."""
    if isinstance(error, MessageError):
        status = error.reply.transport.get("status") if isinstance(error.reply, Message) else None
        return f'the target "{target}" refused it' + (f" with {status}" if isinstance(status, int) else "")
    if error.too_late:
        return f'the target "{target}" gave no answer in time; it may have acted on the message'
    return f'the target "{target}" did not take it'


def _go_on_unless_cancelled() -> None:
    """Cancels anew when a component turned its cancellation into an error of its own: a loss just as we stop, say."""
    if _cancelled():
        raise asyncio.CancelledError


def _cancelled() -> bool:
    """Whether this task was told to end. If not, a CancelledError is only that of something it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Waits:
    """Growing waits between two tries of a link, with jitter: 0.1 s to 30 s, anew once a link was steady."""

    def __init__(self, clock: Clock, luck: Callable[[], float]) -> None:
        self._clock = clock
        self._luck = luck
        self._failures = 0
        self._began = clock.monotonic()

    def began(self) -> None:
        """A try begins."""
        self._began = self._clock.monotonic()

    @property
    def since_s(self) -> float:
        """Seconds since the last try began."""
        return self._clock.monotonic() - self._began

    async def after_failure(self, error: PeerError, wanted: asyncio.Event | None = None) -> None:
        """Waits as long as the failures so far ask for, or until the link is `wanted`.

        A steady link that is lost is tried again at once, and one that its peer ended after an answer.
        """
        if error.answered or self._clock.monotonic() - self._began >= STEADY_S:
            self._failures = 0
        else:
            grown = min(MAX_WAIT_S, FIRST_WAIT_S * 2.0**self._failures)
            self._failures = min(self._failures + 1, 20)
            wait_s = max(grown * (0.5 + 0.5 * self._luck()), min(error.wait_s or 0.0, MAX_WAIT_S))
            if wanted is None:
                await self._clock.sleep(wait_s)
            else:
                await _either(self._clock.sleep(wait_s), wanted.wait())


async def _either(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Link:
    """A sink, held open. `send` goes through the open one; a PeerError(reconnect=True) opens it anew, once for all."""

    def __init__(self, sink: Sink, host: Host, peer: Peer, observed: Observed, luck: Callable[[], float]) -> None:
        self._sink = sink
        self._host = host
        self._peer = peer
        self._observed = observed
        self._waits = Waits(host.clock, luck)
        self._send: Send | None = None
        self._lost: asyncio.Future[None] | None = None
        self._opened = asyncio.Event()
        self._down: str | None = None
        self._wanted = asyncio.Event()
        self._stopped = False
        self._failures = 0
        self._failed_s = 0.0

    async def hold(self) -> None:
        """Keeps the sink open until cancelled."""
        try:
            while True:
                self._waits.began()
                error = await self._held_once()
                _go_on_unless_cancelled()
                self._observed.became(self._peer, "down", str(error))
                self._down = str(error)
                self._opened.set()  # who waits for the link to open hears that it did not
                self._wanted.clear()
                await self._waits.after_failure(error, self._wanted)
                self._opened.clear()
                self._down = None
        finally:
            self._stopped = True
            self._down = "the route is stopping"
            self._opened.set()
            self._observed.became(self._peer, "stopped")

    async def _held_once(self) -> PeerError:
        try:
            async with self._sink.open(self._host) as send:
                lost = self._lost = asyncio.get_running_loop().create_future()
                self._send = send
                self._failures = 0
                self._opened.set()
                self._observed.became(self._peer, "up")
                await lost
        except (Exception, asyncio.CancelledError) as error:
            found = peer_error_in(error)
            if isinstance(error, asyncio.CancelledError):
                _go_on_unless_cancelled()
                return PeerError(f"{self._host.target}: the sink cancelled itself")
            if found is not None:
                return found
            if isinstance(error, ConfigError):
                return PeerError(str(error))
            log.exception("sink failed", extra={"route": self._host.route, "peer": self._host.target})
            return PeerError(f"{self._host.target}: the sink failed; see the log")
        finally:
            self._send = self._lost = None
            self._opened.clear()
        return PeerError(f"{self._host.target}: the link was lost", reconnect=True)

    async def send(self, message: Message) -> Message | None:
        """Sends through the open link.

        Raises:
            PeerError: it is not open and did not open within 5 s, or the sink raised it.
        """
        send, lost = self._send, self._lost
        try:
            if send is None:
                send, lost = await self._wait_open()
            try:
                reply = await send(message)
            except asyncio.CancelledError:
                _go_on_unless_cancelled()
                raise PeerError(f"{self._host.target}: the send was given up by its link") from None
        except MessageError as error:
            error.told = error.told or told_of(self._host.target, error)
            raise
        except PeerError as error:
            error.told = error.told or told_of(self._host.target, error)
            if send is None:
                raise
            if error.reconnect and lost is not None and not lost.done():
                lost.set_exception(error)
            self._failures += 1
            self._failed_s = self._host.clock.monotonic()
            if self._failures == FAILURES_DOWN and self._send is send:
                self._observed.became(self._peer, "down", str(error))
                asyncio.get_running_loop().call_later(DOUBT_S, self._forgive, send)
            raise
        if self._failures:
            if self._failures >= FAILURES_DOWN and self._send is send:
                self._observed.became(self._peer, "up")
            self._failures = 0
        return reply

    def _forgive(self, send: Send) -> None:
        """Shows it as up again when no send has failed for a while: nobody asked it since, so nobody knows better."""
        if self._send is not send or self._failures < FAILURES_DOWN:
            return
        left_s = self._failed_s + DOUBT_S - self._host.clock.monotonic()
        if left_s > 0.1:
            asyncio.get_running_loop().call_later(left_s, self._forgive, send)
        else:
            self._failures = 0
            self._observed.became(self._peer, "up")

    async def tried(self) -> None:
        """Returns once it is open, or could not be opened."""
        await self._opened.wait()

    def want(self) -> None:
        """Somebody needs it: if it waits before its next try, that comes now, but at most once a second."""
        if self._down is not None and not self._stopped and self._waits.since_s >= WANTED_AFTER_S:
            self._wanted.set()
            self._opened.clear()
            self._down = None

    async def _wait_open(self) -> tuple[Send, asyncio.Future[None] | None]:
        self.want()
        try:
            async with asyncio.timeout(OPENING_S):
                while self._send is None:
                    await self._opened.wait()
                    if self._down is not None:
                        raise PeerError(f"not connected: {self._down}")
                    if self._send is None:
                        await asyncio.sleep(0)
        except TimeoutError:
            raise PeerError(f"not connected: {self._host.target} did not open within {OPENING_S:g} s") from None
        return self._send, self._lost


async def keep_running(
    source: Source,
    host: Host,
    deliver: Deliver,
    peer: Peer,
    observed: Observed,
    luck: Callable[[], float],
    tried: Callable[[], None],
) -> None:
    """Runs a source until cancelled, again and again when its peer fails.

    tried: called once the source is ready, and once its first try failed: either way the start need not wait.

    Raises:
        ConfigError: before it was ever ready: it can't run as configured (an address in use, say).
    """
    waits = Waits(host.clock, luck)
    was_ready = False

    def ready() -> None:
        nonlocal was_ready
        was_ready = True
        observed.became(peer, "up")
        tried()

    while True:
        waits.began()
        try:
            await source.run(host, deliver, ready)
            error = PeerError(f"{peer.name}: the source ended")
        except asyncio.CancelledError:
            if _cancelled():
                observed.became(peer, "stopped")
                raise
            error = PeerError(f"{peer.name}: the source cancelled itself")
        except Exception as raised:
            found = peer_error_in(raised)
            if found is None and isinstance(raised, ConfigError) and not was_ready:
                raise
            if found is None and not isinstance(raised, ConfigError):
                log.exception("source failed", extra={"route": host.route, "peer": peer.name})
            error = found or PeerError(
                str(raised) if isinstance(raised, ConfigError) else f"{peer.name}: the source failed; see the log"
            )
        _go_on_unless_cancelled()
        observed.became(peer, "down", str(error))
        tried()
        await waits.after_failure(error)


class _Entry(Generic[T]):
    """One open shared thing: a task holds it, users lease it."""

    def __init__(self) -> None:
        self.users = 0
        self.value: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.close = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Shares:
    """Connections and listeners by their settings: equal settings are one instance, first user opens, last closes."""

    def __init__(self) -> None:
        self._entries: dict[object, _Entry[Any]] = {}
        self._keeping = False
        self._idle: dict[object, _Entry[Any]] = {}
        """What is kept open without users."""

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Keeps what has a `place` open for as long as the context lasts: while its users are changed for others."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False
            while self._idle:
                await self._let_go(next(iter(self._idle)))

    async def _let_go(self, what: Any) -> None:
        """Closes what is kept without users."""
        entry = self._idle.pop(what)
        if not entry.users:
            await self._closed(what, entry)

    async def _make_way(self, what: object) -> None:
        """Closes what is kept at the same place and is another."""
        place = getattr(what, "place", None)
        if place is not None:
            while others := [kept for kept in self._idle if kept != what and getattr(kept, "place", None) == place]:
                await self._let_go(others[0])

    @asynccontextmanager
    async def lease(self, what: Shared[T], host: Host) -> AsyncIterator[T]:
        """The open instance of `what`, for as long as the context lasts.

        Raises:
            PeerError: it could not be opened; or, out of the context: its link was lost.
        """
        await self._make_way(what)
        while (before := self._entries.get(what)) is not None and before.close.is_set():
            assert before.task is not None
            await asyncio.wait({before.task})  # never two at once: it may be an address, or a client id
        self._idle.pop(what, None)
        entry: _Entry[T] = self._entries.get(what) or self._start(what, host)
        entry.users += 1
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)

        inside = True

        def notice(_lost: asyncio.Future[None]) -> None:
            if inside:  # a callback that is scheduled already can't be taken back
                scope.reschedule(loop.time())

        try:
            value = await asyncio.shield(entry.value)
            async with scope:
                entry.lost.add_done_callback(notice)
                try:
                    yield value
                finally:
                    inside = False
                    entry.lost.remove_done_callback(notice)
        except TimeoutError:
            if not scope.expired():
                raise
            error = entry.lost.exception()
            text = str(error) if isinstance(error, PeerError) else f"{type(what).__name__}: the link was lost"
            raise PeerError(text, reconnect=True) from error
        finally:
            entry.users -= 1
            if entry.users == 0:
                is_open = entry.value.done() and not entry.lost.done()
                if self._keeping and is_open and getattr(what, "place", None) is not None:
                    self._idle[what] = entry
                else:
                    await self._closed(what, entry)

    def _start(self, what: Shared[T], host: Host) -> _Entry[T]:
        entry = self._entries[what] = _Entry[T]()
        entry.task = asyncio.create_task(self._hold(what, host, entry), name=f"share:{type(what).__name__}")
        return entry

    async def _closed(self, what: Shared[T], entry: _Entry[T]) -> None:
        entry.close.set()
        if entry.task is not None:
            if not entry.value.done():  # nobody waits any more for what is still being opened
                entry.task.cancel()
            await asyncio.shield(asyncio.wait({entry.task}))

    async def _hold(self, what: Shared[T], host: Host, entry: _Entry[T]) -> None:
        error: BaseException = PeerError(f"{type(what).__name__}: the link was lost", reconnect=True)
        try:
            async with what.open(host) as value:
                if not entry.value.done():
                    entry.value.set_result(value)
                await entry.close.wait()
        except (Exception, asyncio.CancelledError) as raised:
            found = peer_error_in(raised)
            error = found or raised
            if found is None and entry.value.done() and isinstance(raised, Exception):
                # Before, its users raise it themselves.
                log.exception("connection failed", extra={"route": host.route, "peer": type(what).__name__})
        finally:
            if self._entries.get(what) is entry:
                del self._entries[what]
            for waiting in (entry.value, entry.lost):
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # users may all be gone: then nobody needs to hear it
