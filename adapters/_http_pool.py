"""A pool of HTTP/1.1 connections to one server, each lent to one request at a time."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from adapters._http_wire import Answer, Wire, WireError
from adapters._turn import Turn
from gateway import Address, Limits

_SWEEP_S = 5.0
_STALE_S = 1.0
"""That a server has closed a connection that was idle is known after a round trip. Later it may have begun to act."""


class ConnectError(Exception):
    """There is no connection; its cause says why."""


class Pool:
    """Connections made when they are needed, at most so many, closed after some time without use.

    timeout_s: for the whole answer to arrive, and before that for a connection to be free.
    connect_timeout_s: for a connection to be made, its TLS handshake included.
    """

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        limits: Limits,
        *,
        connections: int,
        timeout_s: float,
        connect_timeout_s: float,
        idle_s: float,
    ) -> None:
        self._address = address
        self._tls = tls
        self._limits = limits
        self._most = connections
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._turn = Turn()
        self._wires: set[Wire] = set()
        self._connecting = 0
        self._free: list[Wire] = []
        self._waiting: deque[asyncio.Future[Wire | None]] = deque()
        """Who waits for a connection: done with one, or with None when one may be made."""
        self._asked: dict[asyncio.Future[Answer], tuple[float, Wire]] = {}
        """Requests under way and their deadlines, in that order: all have the same time."""
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(self, request: bytes, *, without_body: bool = False) -> Answer:
        """Sends a whole request and returns its answer. Cancelling it ends its connection.

        A server may close a connection that was idle at the moment when it is used again: then the request is sent
        once more, on another one. It carries an Idempotency-Key. RFC 9110 section 9.2.2, RFC 9112 section 9.3.1.

        Raises:
            WireError: there was no good answer.
            ConnectError: there was no connection; its cause says why.
        """
        wire = self._taken() or await self._awaited()
        while True:
            began, stale_s = self._loop.time(), _STALE_S if wire.used else 0.0
            reply = wire.ask(request, without_body=without_body)
            self._asked[reply] = (began + self._timeout_s, wire)
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout_s, self._too_late)
            try:
                return await reply
            except asyncio.CancelledError:
                if reply.cancelled():
                    wire.end(WireError("nobody waits for it any more"))
                raise
            except WireError as error:
                if not error.unheard or self._loop.time() - began >= stale_s:
                    raise
            finally:
                del self._asked[reply]
                self._give_back(wire)
            wire = await self._awaited()

    def close(self) -> None:
        """Ends all connections; who waits hears that the sink was closed."""
        self._closed = True
        for handle in (self._timer, self._sweeping):
            if handle is not None:
                handle.cancel()
        error = WireError("the sink was closed")
        for wire in list(self._wires):
            wire.end(error)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _taken(self) -> Wire | None:
        """A free connection, the last used first; None: there is none."""
        while self._free:
            wire = self._free.pop()
            if wire.usable:
                return wire
        return None

    async def _awaited(self) -> Wire:
        """A new connection, or one that becomes free in time."""
        deadline = self._loop.time() + self._timeout_s
        while len(self._wires) + self._connecting >= self._most:
            turn: asyncio.Future[Wire | None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout_at(deadline):
                    wire = await turn
            except TimeoutError:
                self._pass_on(turn)
                text = f"all connections were busy for {self._timeout_s:g} s; raise connections, or is it too slow?"
                raise WireError(text) from None
            except asyncio.CancelledError:
                self._pass_on(turn)
                raise
            if wire is not None and wire.usable:
                return wire
        if self._closed:
            raise WireError("the sink was closed")
        self._connecting += 1
        try:
            return await self._made()
        finally:
            self._connecting -= 1
            if len(self._wires) + self._connecting < self._most:
                self._next(None)

    async def _made(self) -> Wire:
        host, port = self._address
        name = host if self._tls is not None else None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, wire = await self._loop.create_connection(
                    lambda: Wire(self._limits, self._turn, self._ended), host, port, ssl=self._tls, server_hostname=name
                )
        except OSError as error:  # time-outs and faults of TLS are such, too
            raise ConnectError from error
        if self._closed or not wire.usable:
            wire.end(WireError("the sink was closed"))
            raise WireError("the sink was closed" if self._closed else "it closed the connection without an answer")
        self._wires.add(wire)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)
        return wire

    def _give_back(self, wire: Wire) -> None:
        """The request on it is over."""
        if not wire.usable:
            wire.end(WireError("it is of no more use"))
        elif not self._waiting or not self._next(wire):
            wire.idle_since = self._loop.time()
            self._free.append(wire)

    def _pass_on(self, turn: asyncio.Future[Wire | None]) -> None:
        """Gives on what somebody was given who does not want it any more."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            wire = turn.result()
            if wire is None:
                self._next(None)
            else:
                self._give_back(wire)

    def _next(self, wire: Wire | None) -> bool:
        """Lets the one that waited longest have it; False: nobody waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(wire)
                return True
        return False

    def _ended(self, wire: Wire) -> None:
        if wire in self._wires:
            self._wires.discard(wire)
            self._next(None)

    def _too_late(self) -> None:
        """Ends what is overdue. One timer serves all requests: few are ever late."""
        now, self._timer = self._loop.time(), None
        for deadline, wire in list(self._asked.values()):
            if deadline > now:
                self._timer = self._loop.call_later(deadline - now, self._too_late)
                return
            wire.end(WireError(f"no answer within {self._timeout_s:g} s", late=True))

    def _sweep(self) -> None:
        """Closes what was idle for too long: a connection that the server closes meanwhile is a failed send."""
        old = self._loop.time() - self._idle_s
        kept = []
        for wire in self._free:
            if wire.usable and wire.idle_since > old:
                kept.append(wire)
            else:
                wire.end(WireError("it was idle for too long"))
        self._free = kept
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep) if self._wires else None
