"""A server whose TLS handshakes are bounded like its connections: so many at once, of one address, and a second.

asyncio's own server tells nobody of a connection before its handshake is over. Until then it would count for nothing,
and a peer that never begins one could take all descriptors of the process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from adapters._admission import Admission
from gateway import Address, Clock, Limits, link_fault

log = logging.getLogger("gateway.tls")

Make = Callable[[], asyncio.Protocol]

_BACKLOG = 1024
_NO_DESCRIPTOR_S = 1.0
"""How long no connection is taken when the process has no descriptor left for one, as with asyncio's own servers."""
_TELL_S = 1.0
_FAULTS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate, which client_ca asks for",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS",
    "HTTP_REQUEST": "the peer does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "the peer has no TLS version in common with us, expected 1.2 or newer",
}
_TOLD = 10
"""Of the peers and reasons of a second, so many have a line of the log each; the others have one together."""
_OTHERS = ("several", "several")
_AT_ONCE = 100
"""Connections that are taken before others have their turn."""


class TlsServer:
    """What listens at a bound socket, once `start_serving` was called; connections that were handed over outlive it.

    make: makes the protocol of each connection whose handshake is over.
    """

    def __init__(self, make: Make, bound: socket.socket, context: ssl.SSLContext, limits: Limits, clock: Clock) -> None:
        self.sockets = (bound,)
        self._make = make
        self._context = context
        self._timeout_s = limits.handshake
        self._admission = Admission(limits, clock)
        self._loop = asyncio.get_running_loop()
        self._failed: Counter[tuple[str, str]] = Counter()  # by peer and reason, since that was last told
        self._shaking: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._serving = False

    def is_serving(self) -> bool:
        """Whether it takes connections."""
        return self._serving

    async def start_serving(self) -> None:
        """Begins to take connections."""
        for each in self.sockets:
            each.listen(_BACKLOG)
        self._serving = True
        self._resume()

    def close(self) -> None:
        """Takes no more connections, and gives up those that are still shaking hands. The address is free at once."""
        self._pause()
        self._serving = False
        for timer in (self._again, self._telling):
            if timer is not None:
                timer.cancel()
        for task in self._shaking:
            task.cancel()
        for each in self.sockets:
            each.close()

    def _resume(self) -> None:
        self._again = None
        for each in self.sockets:
            self._loop.add_reader(each, self._accept, each)

    def _pause(self) -> None:
        if self._serving and self._again is None:
            for each in self.sockets:
                self._loop.remove_reader(each)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                log.warning("no connection taken", extra={"reason": error.strerror})
                self._pause()
                self._again = self._loop.call_later(_NO_DESCRIPTOR_S, self._resume)
                return
            if not self._admission.admit(name[0]):
                connection.close()
                self._tell_soon()
                continue
            connection.settimeout(0.0)
            task = self._loop.create_task(self._shake(connection, name[0]), name="tls-handshake")
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    def _tell_soon(self) -> None:
        if self._serving and self._telling is None:
            self._telling = self._loop.call_later(_TELL_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        address = str(Address(*self.sockets[0].getsockname()[:2]))
        if self._admission.refused:
            count, self._admission.refused = self._admission.refused, 0
            log.warning("connections refused", extra={"listener": address, "count": count})
        for (peer, why), count in self._failed.items():
            extra = {"listener": address, "count": count, "peer": peer, "reason": why}
            log.warning("handshakes failed", extra=extra)
        self._failed.clear()

    async def _shake(self, connection: socket.socket, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, connection, ssl=self._context, ssl_handshake_timeout=self._timeout_s
            )
        except OSError as error:  # faults of TLS and time-outs are such, too
            if isinstance(error, ssl.SSLError):  # who only went may have asked whether the port is open
                failed = (address, _why(error))
                self._failed[failed if failed in self._failed or len(self._failed) < _TOLD else _OTHERS] += 1
                self._tell_soon()
        finally:
            self._admission.leave(address)


def _why(error: ssl.SSLError) -> str:
    """What kept a peer out, for who runs this end."""
    for reason, text in _FAULTS.items():
        if reason in (error.reason or ""):
            return text
    return link_fault(error).replace("tls.ca", "client_ca")
