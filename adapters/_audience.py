"""A server that sends the same to all who are connected, at most once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from adapters._admission import Admission
from adapters._sockets import listen, prepare
from gateway import Host, ListenAt

log = logging.getLogger("gateway.audience")

_GOODBYE_S = 1.0


class Audience:
    """Who is connected. What they say is not listened to."""

    def __init__(self, host: Host, queue_bytes: int) -> None:
        self.host = host
        self.admission = Admission(host.limits, host.clock)
        self.listeners: set[_Listener] = set()
        self._queue_bytes = queue_bytes

    def tell(self, data: bytes) -> None:
        """Writes to each. Who lags by more than the queue holds is cut, which counts as one drop."""
        for listener in tuple(self.listeners):
            if listener.lag_bytes > self._queue_bytes:
                self.listeners.discard(listener)
                listener.cut()
                self.host.dropped(1, "slow")
            else:
                listener.write(data)


class _Listener(asyncio.Protocol):
    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._transport: asyncio.Transport = asyncio.Transport()
        self._admitted: str | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        address = (transport.get_extra_info("peername") or ("",))[0]
        if self._audience.admission.admit(address):
            self._admitted = address
            self._audience.listeners.add(self)
            prepare(transport)
        else:
            log.warning("connection refused", extra={"route": self._audience.host.route, "peer": address})
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._audience.listeners.discard(self)
        if self._admitted is not None:
            self._audience.admission.leave(self._admitted)
        if not self.gone.done():
            self.gone.set_result(None)

    @property
    def lag_bytes(self) -> int:
        """Bytes written and not yet taken by the operating system."""
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def cut(self) -> None:
        self._transport.abort()


@asynccontextmanager
async def audience(at: ListenAt, host: Host, *, queue_bytes: int, who: str) -> AsyncIterator[Audience]:
    """Whoever connects to this address, for as long as the context lasts.

    Raises:
        ConfigError: the address can't be had, or the certificate can't be used.
    """
    people = Audience(host, queue_bytes)
    try:
        async with listen(lambda: _Listener(people), at, host, who=who):
            yield people
    finally:
        leaving = [listener.gone for listener in people.listeners]
        for listener in tuple(people.listeners):
            listener.close()
        if leaving:
            await asyncio.wait(leaving, timeout=_GOODBYE_S)
        for listener in tuple(people.listeners):
            listener.cut()
