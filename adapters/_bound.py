"""Addresses that stay ours while what listens there is changed: who comes meanwhile waits, and is not refused.

    async with sockets_at(address, host) as sockets:
        ...

What was bound is shared by address and outlives a component that goes while routes change, see `Shared.place`; what
comes meanwhile is kept by the system. Each component serves copies of the sockets, which are its own to close.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from gateway import Address, Host


@asynccontextmanager
async def sockets_at(address: Address, host: Host, *, datagrams: bool = False) -> AsyncIterator[list[socket.socket]]:
    """Sockets bound to this address, more than one for a name of several addresses. Each time those of port 0 are new.

    Raises:
        OSError: the address can't be had, or another component of this gateway has it.
    """
    bound = Bound(address, datagrams)
    async with bound.open(host) if address.port == 0 else host.share(bound) as sockets:
        with sockets.lent() as copies:
            yield copies


@dataclass(frozen=True)
class Bound:
    """An address of this machine, ours for as long as it is open."""

    address: Address
    datagrams: bool

    @property
    def place(self) -> str:
        """The port, whatever the host: 127.0.0.1 and 0.0.0.0 are in each other's way."""
        return f"{'udp' if self.datagrams else 'tcp'} port {self.address.port}"

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Sockets]:
        """Binds.

        Raises:
            OSError: the address can't be had.
        """
        sockets = await self._bind()
        try:
            yield Sockets(sockets)
        finally:
            for bound in sockets:
                bound.close()

    async def _bind(self) -> list[socket.socket]:
        kind = socket.SOCK_DGRAM if self.datagrams else socket.SOCK_STREAM
        host, port = self.address.host, self.address.port
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        missing: OSError | None = None
        try:
            for family, _, protocol, _, at in dict.fromkeys(found):
                bound = socket.socket(family, kind, protocol)
                sockets.append(bound)
                bound.settimeout(0)
                if not self.datagrams:
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    bound.bind(at)
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:  # localhost is ::1 as well, also where there is no IPv6
                        raise
                    sockets.pop().close()
                    missing = error
            if not sockets and missing is not None:
                raise missing
        except BaseException:
            for bound in sockets:
                bound.close()
            raise
        return sockets


class Sockets:
    """The sockets of a bound address, lent to one component at a time."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._lent = False

    @contextmanager
    def lent(self) -> Iterator[list[socket.socket]]:
        """Copies of them.

        Raises:
            OSError: another component has them.
        """
        if self._lent:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._lent = True
        copies: list[socket.socket] = []
        try:
            copies += [bound.dup() for bound in self._sockets]
            yield copies
        finally:
            self._lent = False
            for copy in copies:
                copy.close()
