"""Messages over UDP: one datagram is one message, at most once. Examples:

`from: {udp: {listen: "127.0.0.1:5514", content_type: text/plain}}`
`to: {udp: {connect: "collector.example:5514"}}`
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pydantic import Field

from adapters._bound import sockets_at
from gateway import (
    JSON,
    Address,
    AddressField,
    Deferred,
    Deliver,
    Duration,
    Host,
    Message,
    MessageError,
    PeerError,
    Send,
    Settings,
    Size,
    Workers,
    duration,
    link_fault,
    size,
)

_LARGEST = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
"""Bytes of a datagram's payload: 65,535 less the headers. RFC 768, RFC 791, RFC 8200."""
_READ = 65_536


class Source(Settings):
    """Takes each datagram that arrives as a message. At most once: nobody is told anything.

    What the system's receive buffer can't hold is lost uncounted; what `queue` can't hold is counted as dropped.
    A deferred message is tried again as long as the gateway runs.
    """

    listen: AddressField = Field(description="where datagrams arrive, such as 127.0.0.1:5514")
    content_type: str = Field(JSON, description="what the datagrams are")
    queue: int = Field(1000, ge=1, le=1_000_000, description="datagrams that may wait; more are dropped and counted")
    batch: int = Field(64, ge=1, le=1000, description="datagrams read at once, before others get their turn")
    receive_buffer: Size = Field(size("1MiB"), description="what the system is asked to hold for us")

    @property
    def answers(self) -> bool:
        return False

    @property
    def at_most_once(self) -> str:
        """Always: UDP knows no acknowledgement."""
        return "a datagram that finds no room is lost, and its sender is not told"

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        who = f"udp {self.listen}"
        loop = asyncio.get_running_loop()
        fault: PeerError | None = None
        arrivals = _Arrivals(self, host, deliver)
        async with AsyncExitStack() as stack:
            try:
                links = await stack.enter_async_context(sockets_at(self.listen, host, datagrams=True))
            except OSError as error:
                raise PeerError(f"{who}: {link_fault(error)}") from error
            async with arrivals.workers:
                for link in links:  # localhost has two
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
                    loop.add_reader(link, arrivals.drain, link, _shown(link.getsockname()))
                try:
                    ready()
                    fault = PeerError(f"{who}: {link_fault(await arrivals.failed)}", reconnect=True)
                finally:
                    for link in links:
                        loop.remove_reader(link)
        raise fault


class _Arrivals:
    """The bounded queue between the socket and the route."""

    def __init__(self, source: Source, host: Host, deliver: Deliver) -> None:
        self.failed: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
        self.workers = Workers(self._work, count=host.limits.in_flight, name=f"{host.route}:from")
        self._host = host
        self._deliver = deliver
        self._content_type = source.content_type
        self._batch = source.batch
        self._most_taken = host.limits.in_flight + source.queue
        self._most_bytes = host.limits.message
        self._taken = 0

    def drain(self, link: socket.socket, local: str) -> None:
        for _ in range(self._batch):
            try:
                data, peer = link.recvfrom(_READ)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if not self.failed.done():
                    self.failed.set_result(error)
                return
            if self._taken >= self._most_taken:
                self._host.dropped(1, "full")
            elif len(data) > self._most_bytes:
                self._host.dropped(1, "oversize")
            else:
                self._taken += 1
                facts: dict[str, Any] = {"peer": _shown(peer), "local": local}
                self.workers.put(Message(raw=data, content_type=self._content_type, transport=facts))

    async def _work(self, message: Message) -> None:
        outcome = await self._deliver(message)
        while isinstance(outcome, Deferred):
            await self._host.clock.sleep(outcome.wait_s)
            outcome = await self._deliver(message)
        self._taken -= 1


class Sink(Settings):
    """Sends each message as a datagram. Delivered means handed to the system: at most once, even to nobody.

    The host name is looked up once, when the sink opens.
    """

    connect: AddressField = Field(description="where the datagrams go, such as collector.example:5514")
    timeout: Duration = Field(duration("5s"), le=300, description="how long to wait for the host name to be looked up")

    @property
    def at_most_once(self) -> str:
        """Always: UDP knows no acknowledgement."""
        return "nobody says whether a datagram arrived"

    @property
    def replies(self) -> bool:
        """It has no reply to give."""
        return False

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        who = f"udp {self.connect}"
        try:
            async with asyncio.timeout(self.timeout):
                link, family = await _opened(self.connect, who, _aim)
        except TimeoutError as error:
            raise PeerError(f"{who}: the host name was not found within {self.timeout:g} s") from error
        largest = _LARGEST[family]

        async def send(message: Message) -> None:
            _send(link, message.body, largest, who)

        with link:
            yield send


def _send(link: socket.socket, body: bytes, largest: int, who: str) -> None:
    if len(body) > largest:
        raise MessageError(
            f"{who}: the body has {len(body)} bytes, expected at most {largest}, the most that a datagram holds",
            code="too_large",
        )
    try:
        try:
            link.send(body)
        except ConnectionRefusedError:  # about an earlier datagram: nobody was there. This one was not sent yet
            link.send(body)
    except ConnectionRefusedError:
        return
    except BlockingIOError as error:
        raise PeerError(f"{who}: the system's send buffer is full") from error
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            text = f"{who}: the body has {len(body)} bytes, more than the network on the way takes"
            raise MessageError(text, code="too_large") from error
        raise PeerError(f"{who}: {link_fault(error)}", reconnect=True) from error


async def _opened(
    address: Address, who: str, use: Callable[[socket.socket, Any], None]
) -> tuple[socket.socket, socket.AddressFamily]:
    """A socket for this address, and its family.

    Raises:
        PeerError: the name is not known, or the address can't be used.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, at = found[0]
        link = socket.socket(family, kind, protocol)
        try:
            link.settimeout(0)
            use(link, at)
        except BaseException:
            link.close()
            raise
    except OSError as error:
        raise PeerError(f"{who}: {link_fault(error)}") from error
    return link, socket.AddressFamily(family)


def _aim(link: socket.socket, at: Any) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    link.connect(at)


def _shown(name: Any) -> str:
    return str(Address(name[0], name[1]))
