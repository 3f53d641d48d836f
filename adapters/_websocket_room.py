"""A path of the data listener where WebSocket clients connect: one route may read what they say, others tell them.

async with host.share(Door(listen, path, ...)) as room:
    room.tell(frame, topic)          # a sink
    async with room.read_by(intake, host): ...   # a source
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from adapters._listener import Listener, Listening
from adapters._request import Refusal, Request, header_lines
from adapters._websocket_crowd import farewell, swept
from adapters._websocket_handshake import accepted, headers_of, refused, topics_of, transport_of
from adapters._websocket_link import GOING_AWAY, TRY_AGAIN_LATER, Hearer, Link, Pulse
from gateway import ConfigError, Host, ListenAt

log = logging.getLogger("gateway.websocket")

_LEFT_S = 5.0
"""How long after its reader has gone a room lets nobody in: it is being changed more often than gone."""
_SHOWN = 100
"""Characters of an origin that the log shows."""


@dataclass(frozen=True)
class Door:
    """A path that accepts WebSocket clients. Components with equal settings are in one room."""

    at: ListenAt
    path: str
    origins: tuple[str, ...]
    subprotocols: tuple[str, ...]
    pulse: Pulse

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Room]:
        """Lets clients in for as long as the context lasts; then they are closed with 1001.

        Raises:
            ConfigError: the address can't be had, or another component answers at the path in its own way.
        """
        async with host.share(Listener(self.at)) as listening:
            if listening.paths.place(self.path).upgrade is not None:
                raise ConfigError(
                    f"websocket {self.at}{self.path}: two components answer there with different settings; "
                    "give them the same origins, subprotocols and pings, or different paths"
                )
            room = Room(self, host, listening)
            with (
                listening.mount(self.path, (), _nobody, limits=host.limits, upgrade=room.upgrade),
                swept(room.links, host.clock),
            ):
                try:
                    yield room
                finally:
                    await farewell(room.links, GOING_AWAY, "the gateway is stopping")


def _nobody(request: Request) -> None:
    raise AssertionError(f"a path that takes no methods got {request.method}")


class Room:
    """Who is connected at one path."""

    def __init__(self, door: Door, host: Host, listening: Listening) -> None:
        self.links: set[Link] = set()
        self.listening = listening
        self._door = door
        self._host = host
        self._reader: Hearer | None = None
        self._limits = host.limits
        self._left_at: float | None = None

    # A hearer, while nobody reads

    hears_rest = False

    @property
    def full(self) -> bool:
        """Nothing waits here."""
        return False

    def heard(self, link: Link, data: bytes, *, text: bool) -> None:
        """Counts what nobody reads."""
        self._host.dropped(1, "unheard")
        link.settled(len(data))

    def missed(self, why: str) -> None:
        """It would not have been read either."""

    def gone(self, link: Link) -> None:
        """The link has ended."""
        self.links.discard(link)

    # What components do

    def check_unread(self) -> None:
        """Makes sure that nobody hears the clients yet.

        Raises:
            ConfigError: somebody does.
        """
        if self._reader is not None:
            door = self._door
            raise ConfigError(f"websocket {door.at}{door.path}: two routes read there; change the path of one")

    @asynccontextmanager
    async def read_by(self, reader: Hearer, host: Host) -> AsyncIterator[None]:
        """Lets this one hear the clients for as long as the context lasts; then they are closed with 1001."""
        self._reader, self._limits = reader, host.limits
        for link in self.links:
            link.hearer = reader
        try:
            yield
        finally:
            self._reader, self._limits = None, self._host.limits
            self._left_at = self._host.clock.monotonic()
            await farewell(self.links, GOING_AWAY, "the route is stopping")

    def tell(self, frame: bytes, topic: str | None, *, most_lag_bytes: int, host: Host) -> bool:
        """Sends a frame to all who are here, or to those who asked for no topic or for this one.

        Who lags behind by more than `most_lag_bytes` is closed with 1013, and counted as dropped. Returns whether
        anybody lags at all: then let the loop run before the next one, as it may be ours to write.
        """
        lags = False
        for link in tuple(self.links):
            if topic is not None and link.topics and topic not in link.topics:
                continue
            lag_bytes = link.lag_bytes
            lags = lags or lag_bytes > 0
            if lag_bytes <= most_lag_bytes:
                link.write(frame)
            elif link.open:
                host.dropped(1, "slow")
                link.close(TRY_AGAIN_LATER, "too slow")
        return lags

    # What the listener calls

    def upgrade(self, request: Request, transport: asyncio.Transport, rest: bytes) -> asyncio.Protocol:
        """Takes a connection over, or refuses it."""
        door = self._door
        try:
            self._check_reader()
            protocol, answer = accepted(request, origins=door.origins, subprotocols=door.subprotocols)
        except Refusal as refusal:
            self._note(refusal, request)
            if not transport.is_closing():
                transport.write(refused(refusal))
            transport.close()
            return asyncio.Protocol()
        if not transport.is_closing():
            transport.write(answer)
        link = Link(
            protocol,
            transport,
            self._reader or self,
            limits=self._limits,
            pulse=door.pulse,
            facts=transport_of(request, protocol),
            headers=headers_of(request.headers),
        )
        link.topics = topics_of(request)
        link.lost.add_done_callback(lambda _: self.links.discard(link))
        self.links.add(link)
        if rest:
            link.data_received(rest)
        return link

    def _note(self, refusal: Refusal, request: Request) -> None:
        """A browser tells its user nothing of why: who runs this end has to see it."""
        why, origin = str(refusal), request.headers.get("origin", "")[:_SHOWN]
        if refusal.code == "origin":
            why = f"{why}; name {origin} in origins if they should"
        extra = {"listener": str(self._door.at), "path": request.path, "peer": request.peer, "status": refusal.status}
        log.info("handshake refused", extra={**extra, "reason": why})

    def _check_reader(self) -> None:
        left_at = self._left_at
        if self._reader is None and left_at is not None and self._host.clock.monotonic() < left_at + _LEFT_S:
            again = header_lines([("retry-after", "1")])
            raise Refusal(503, "busy", "what reads here is being changed; try again", again)
