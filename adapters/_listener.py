"""One HTTP/1.1 listener per address, shared by all http and websocket routes on it.

    async with host.share(Listener(listen)) as listening:
        with listening.mount("/orders/{id}", ("GET", "POST"), handler, limits=host.limits):
            ...

`handler` gets each `_request.Request` once it is whole, and `request.answer(status, body, headers)` answers it, from
anywhere and in any order: answers go out in the order of the requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from adapters._admission import Admission
from adapters._http1 import Connection
from adapters._paths import Paths, parameters
from adapters._request import Check, Handler, Mount, Told, Upgrade
from adapters._sockets import listen, prepare
from adapters._turn import Turn
from gateway import Address, Clock, ConfigError, Host, Limits, ListenAt

_SWEEP_S = 0.5
# How long a closing listener waits for its peers to take what was answered.
_CLOSING_S = 1.0
_HOSTS = 1000


@dataclass(frozen=True)
class Listener:
    """The listener of an address, with its TLS. Bodies keep to the limits given at `mount`; all other limits, of
    headers, times and connections, are those of the component that was the first to mount something on it.
    """

    at: ListenAt

    @property
    def place(self) -> str:
        """Its port: it stays open while routes change."""
        return f"tcp port {self.at.address.port}"

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Listening]:
        """Listens for as long as the context lasts.

        Raises:
            ConfigError: the address can't be had, or its certificate or key can't be used.
        """
        listening = Listening(host.limits, host.clock, tls=self.at.tls is not None)
        async with listen(lambda: Connection(listening), self.at, host, who=f"http listener {self.at}") as servers:
            try:
                listening.serve(servers.address)
                yield listening
            finally:
                servers.close()
                await listening.close()


class Listening:
    """An open listener: what is mounted on it, and its connections."""

    def __init__(self, limits: Limits, clock: Clock, *, tls: bool) -> None:
        self.limits = limits
        self.tls = tls
        self.scheme = "https" if tls else "http"
        self.address = Address("", 0)
        """Where it listens; tells the port where 0 was asked for."""
        self.paths: Paths[Mount] = Paths()
        self.hosts: set[str] = set()
        """Hosts that were found good, so that most requests need no second look."""
        self.small_head = min(limits.headers, limits.header_line)
        """A head of so many bytes keeps to all limits but the number of its lines."""
        self.header_count = limits.header_count
        self.now = clock.monotonic()
        """Seconds, as of the last sweep: good enough for time-outs."""
        self._mounted = 0
        self._clock = clock
        self._admission = Admission(limits, clock)
        self.connections: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self.turn = Turn()
        self._closed = False
        self._empty = asyncio.Event()

    @contextmanager
    def mount(
        self,
        path: str,
        methods: Sequence[str],
        handler: Handler,
        *,
        limits: Limits | None = None,
        check: Check | None = None,
        upgrade: Upgrade | None = None,
        refused: Told | None = None,
    ) -> Iterator[Mount]:
        """Lets requests for these methods of a path reach `handler` for as long as the context lasts.

        path: a pattern such as `/orders/{id}`; static segments win over parameters.
        methods: HEAD is answered like GET, without a body, and OPTIONS with Allow, unless they are named. None at all
            for a path that takes upgrades alone.
        limits: whose `message` bounds the bodies, and which the listener keeps to when nothing else is mounted;
            default: the listener's.
        check: looks at the headers before the body is read.
        upgrade: takes over the connection of a WebSocket handshake; see `_request.Upgrade`.
        refused: hears of requests whose headers or size are not taken.

        When the context ends, requests that are not answered yet are answered 503, and for a while those that come
        later, too: what was mounted there is being changed more often than gone.

        Raises:
            ConfigError: another one has that path and method.
        """
        place = self.paths.place(path)
        limit = (limits or self.limits).message
        mount = Mount(path, handler, limit, check, upgrade, parameters(path), refused)
        names = list(dict.fromkeys(method.encode() for method in methods))
        if any(name in place.by_method for name in names) or (upgrade is not None and place.upgrade is not None):
            raise ConfigError(f"http {self.address}: two routes take {', '.join(methods)} at {path}; change one's path")
        if limits is not None and not self._mounted:
            self.keep_to(limits)
        self._mounted += 1
        place.by_method.update(dict.fromkeys(names, mount))
        place.upgrade = place.upgrade or (mount if upgrade is not None else None)
        try:
            yield mount
        finally:
            self._mounted -= 1
            for name in names:
                del place.by_method[name]
            if place.upgrade is mount:
                place.upgrade = None
            place.left_at = self.tick()
            for connection in list(self.connections):
                connection.withdraw(mount)

    def tick(self) -> float:
        """Reads the clock, in seconds."""
        self.now = self._clock.monotonic()
        return self.now

    def serve(self, address: Address) -> None:
        """Begins to look after the connections of the server that listens there."""
        self.address = address
        self._sweep_on()

    def keep_to(self, limits: Limits) -> None:
        """Goes on with these limits."""
        self.limits = limits
        self.small_head = min(limits.headers, limits.header_line)
        self.header_count = limits.header_count
        self._admission.keep_to(limits)

    def sweep(self) -> None:
        """Cuts what is overdue on any connection. Called twice a second."""
        now = self.tick()
        for connection in list(self.connections):
            connection.sweep(now)

    async def close(self) -> None:
        """Closes all connections, once what was answered is written, or after a second."""
        self._closed = True
        self.turn.take()  # who has sent a whole request is told so
        for connection in list(self.connections):
            connection.shut()
        try:
            async with asyncio.timeout(_CLOSING_S):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            pass
        finally:
            if self._sweeping is not None:
                self._sweeping.cancel()
            for connection in list(self.connections):
                connection.abort()

    # what connections call

    def admit(self, connection: Connection, transport: asyncio.BaseTransport) -> bool:
        """Counts a new connection; False: it is one too many, and has to be told so."""
        self.connections.add(connection)
        prepare(transport)
        if self._closed:
            connection.abort()
            return False
        connection.admitted = self._admission.admit(connection.address)
        if not connection.admitted and len(self.connections) > 2 * self.limits.connections:
            connection.abort()
        return connection.admitted

    def left(self, connection: Connection) -> None:
        """The connection is gone."""
        self.connections.discard(connection)
        if connection.admitted:
            self._admission.leave(connection.address)
        if not self.connections:
            self._empty.set()

    def remember_host(self, host: str | None) -> None:
        """This Host header is well-formed."""
        if host is not None and len(self.hosts) < _HOSTS:
            self.hosts.add(host)

    def _sweep_on(self) -> None:
        self.sweep()
        self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep_on)
