"""Server-sent events: what happens, as it happens. It costs nothing while nobody listens.

Who reads slowly misses the oldest events, never holds up a message or another reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from gateway.api.access import READ
from gateway.api.bodies import only
from gateway.api.control import Control, Running, route_named
from gateway.api.problems import Problem
from gateway.api.routes import counters, in_journal
from gateway.api.shapes import Shape
from gateway.message import Accepted, Deferred, Message, Outcome, Refused, rfc3339
from gateway.observe import Peer

log = logging.getLogger("gateway.api")

router = APIRouter(prefix="/api/v1", tags=["events"])

TICK_S = 0.5
COUNTERS_EVERY = 2
"""Ticks between two events with counters."""
HEARTBEAT_S = 15.0
SAMPLE = 50
"""Messages that one tick shows at most; how many more there were is said."""
MOST_WAITING = 256
"""Events that wait for one client; the oldest go first when there are more."""
MOST_CLIENTS = 32


class _Client:
    def __init__(self, route: str | None) -> None:
        self.route = route
        self.missed = 0
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.ended = False

    def put(self, event: bytes) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(event)
        self._wake.set()

    def end(self) -> None:
        self.ended = True
        self._wake.set()

    async def next(self) -> bytes:
        """The next event, or a heartbeat; nothing when it has ended."""
        while not self._waiting:
            if self.ended:
                return b""
            self._wake.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                return b": heartbeat\n\n"
        if self.missed:
            count, self.missed = self.missed, 0
            return _event("missed", {"events": count})
        return self._waiting.popleft()


class Hub:
    """Hears of messages and links while there are clients, and tells all of them."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._clients: set[_Client] = set()
        self._task: asyncio.Task[None] | None = None
        self._messages: dict[str, deque[Shape]] = {}
        self._unseen: dict[str, int] = {}

    # what the data path calls

    def heard(self, route: str, message: Message, outcome: Outcome) -> None:
        """A route has answered for a message."""
        rows = self._messages.setdefault(route, deque(maxlen=SAMPLE))
        if len(rows) == SAMPLE:
            self._unseen[route] = self._unseen.get(route, 0) + 1
        rows.append(_row(route, message, outcome))

    def changed(self, peer: Peer) -> None:
        """A link has another state."""
        self._tell("peer", peer.shown(), peer.route)

    # clients

    async def stream(self, route: str | None) -> AsyncIterator[bytes]:
        """The events of one client, as bytes, until it goes or the gateway stops. route: only what is about it."""
        client = _Client(route)
        self._clients.add(client)
        if self._task is None:
            self._control.services.observed.watcher = self
            self._task = asyncio.create_task(self._ticks(), name="api:events")
        try:
            yield b"retry: 2000\n\n" + _event("counters", self._counted(route))
            while event := await client.next():
                yield event
        finally:
            self._clients.discard(client)
            if not self._clients:
                self._rest()

    @property
    def crowded(self) -> bool:
        """Whether there is no room for one more client."""
        return len(self._clients) >= MOST_CLIENTS

    def close(self) -> None:
        """Ends all streams."""
        for client in self._clients:
            client.end()

    def _rest(self) -> None:
        self._control.services.observed.watcher = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._messages.clear()
        self._unseen.clear()

    async def _ticks(self) -> None:
        ticks = 0
        while True:
            await self._control.services.clock.sleep(TICK_S)
            ticks += 1
            self._tell_messages()
            if ticks % COUNTERS_EVERY == 0:
                for route in {client.route for client in self._clients}:
                    event = _event("counters", self._counted(route))
                    for client in [client for client in self._clients if client.route == route]:
                        client.put(event)

    def _tell_messages(self) -> None:
        for route, rows in self._messages.items():
            if rows:
                self._tell("messages", {"messages": list(rows), "more": self._unseen.pop(route, 0)}, route)
                rows.clear()

    def _tell(self, kind: str, data: Shape, route: str) -> None:
        event = _event(kind, data)
        for client in self._clients:
            if client.route in (None, route):
                client.put(event)

    def _counted(self, only_route: str | None) -> Shape:
        services = self._control.services
        counts = services.journal.counts()
        found: Shape = {}
        for name, route in self._control.routes.items():
            if only_route in (None, name):
                meters = services.observed.route(name)
                found[name] = {
                    "in_flight": meters.in_flight,
                    "paused": route.paused,
                    "counters": counters(meters),
                    "journal": in_journal(counts.get(name, {})),
                }
        return {"at": rfc3339(services.clock.time()), "routes": found}


def _row(route: str, message: Message, outcome: Outcome) -> Shape:
    row: Shape = {
        "id": message.id,
        "route": route,
        "received": rfc3339(message.time_s),
        "type": message.type,
        "outcome": "accepted",
    }
    if message.subject is not None:
        row["subject"] = message.subject
    match outcome:
        case Accepted():
            pass
        case Refused():
            row |= {"outcome": "refused", "reason": outcome.full}
        case Deferred():
            row |= {"outcome": "deferred", "reason": outcome.full}
    return row


def _event(kind: str, data: Shape) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data, enc_hook=str))


@router.get("/events", dependencies=READ)
async def events(request: Request, control: Running, route: str | None = None) -> StreamingResponse:
    """Events `messages` (a sample of outcomes, twice a second), `peer` (a link's new state), `counters` (each second).

    With `route` only what is about that route.
    """
    only(request, "route")
    if route is not None:
        route_named(control, route)
    hub: Hub = request.app.state.hub
    if hub.crowded:
        raise Problem(503, "crowded", f"{MOST_CLIENTS} clients listen already", retry_after_s=10)
    if control.phase == "stopping":
        raise Problem(503, "stopping", "the gateway is stopping; try again later", retry_after_s=5)
    return StreamingResponse(hub.stream(route), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
