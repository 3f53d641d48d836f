"""What tcp and mllp have in common below their bytes: connecting and listening."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from adapters._bound import sockets_at
from adapters._handshakes import TlsServer
from gateway import (
    Address,
    ClientTls,
    ConfigError,
    Host,
    ListenAt,
    PeerError,
    client_context,
    link_fault,
    server_context,
)

P = TypeVar("P", bound=asyncio.Protocol)

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A peer that is silently gone is noticed after two minutes."""


def prepare(transport: asyncio.BaseTransport) -> None:
    """Sets keep-alive and no delay. A socket that is already gone stays as it is."""
    link = transport.get_extra_info("socket")
    try:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except OSError:
        pass


def facts(transport: asyncio.BaseTransport) -> dict[str, Any]:
    """`peer` and `local` as texts, and `certificate_subject` when the peer showed a certificate."""
    found: dict[str, Any] = {
        "peer": _shown(transport.get_extra_info("peername")),
        "local": _shown(transport.get_extra_info("sockname")),
    }
    certificate = transport.get_extra_info("peercert")
    if certificate:
        names = [f"{name}={value}" for part in certificate.get("subject", ()) for name, value in part]
        found["certificate_subject"] = ",".join(names)
    return found


def _shown(name: Any) -> str:
    return str(Address(name[0], name[1])) if isinstance(name, tuple) and len(name) >= 2 else ""


async def dial(
    make: Callable[[], P], address: Address, tls: ClientTls | None, *, timeout_s: float, who: str
) -> tuple[asyncio.Transport, P]:
    """A connection, made within `timeout_s` seconds, its TLS handshake included. `who` begins the sentences.

    Raises:
        PeerError: there is nobody, or not the one that `tls` expects.
        ConfigError: a file of `tls` can't be used.
    """
    secured: dict[str, Any] = {}
    if tls is not None:
        secured = {"ssl": client_context(tls), "server_hostname": tls.server_name or address.host}
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            transport, protocol = await loop.create_connection(make, address.host, address.port, **secured)
    except TimeoutError as error:
        raise PeerError(f"{who}: no connection within {timeout_s:g} s; is {address} reachable?") from error
    except OSError as error:
        raise PeerError(f"{who}: {link_fault(error)}") from error
    return transport, protocol


@asynccontextmanager
async def listen(make: Callable[[], asyncio.Protocol], at: ListenAt, host: Host, *, who: str) -> AsyncIterator[Servers]:
    """Serves whoever connects, for as long as the context lasts. While routes change the address stays ours.

    Raises:
        ConfigError: the address can't be had, or the certificate or its key can't be used.
    """
    secured = server_context(at.tls) if at.tls is not None else None
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        try:
            sockets = await stack.enter_async_context(sockets_at(at.address, host))
            servers = Servers()
            stack.callback(servers.close)
            for bound in sockets:
                server: asyncio.Server | TlsServer
                if secured is not None:
                    server = TlsServer(make, bound, secured, host.limits, host.clock)
                else:
                    # Cancelled in its last turn, one that also begins to serve would leave the address taken.
                    server = await loop.create_server(make, sock=bound, backlog=1024, start_serving=False)
                servers.add(server)
                await server.start_serving()
        except OSError as error:
            why = link_fault(error)
            raise ConfigError(f"{who}: can't listen: {why}; is another program or route on {at}?") from error
        yield servers


class Servers:
    """The servers of one address: localhost has two."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server | TlsServer] = []

    def add(self, server: asyncio.Server | TlsServer) -> None:
        """One more."""
        self._servers.append(server)

    @property
    def address(self) -> Address:
        """Where they listen; tells the port where 0 was asked for."""
        name = self._servers[0].sockets[0].getsockname()
        return Address(name[0], name[1])

    def close(self) -> None:
        """Nobody is let in any more; what was let in stays."""
        for server in self._servers:
            server.close()


def lost(who: str, error: Exception | None, *, answered: bool = False) -> PeerError:
    """The link is gone, with the error that ended it or by the peer's own will. answered: as `PeerError` has it."""
    why = "the peer closed the connection" if error is None else link_fault(error)
    return PeerError(f"{who}: {why}", reconnect=True, answered=answered)
