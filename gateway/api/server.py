"""The API on a socket: uvicorn inside our loop, with its signals, logs and limits in our hands."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.access import TOKEN_FILE, Door, admin_token
from gateway.api.application import application
from gateway.api.control import Control
from gateway.errors import ConfigError
from gateway.settings import Address

log = logging.getLogger("gateway.api")

MOST_CONNECTIONS = 512
KEEP_ALIVE_S = 60
HEAD_S = 10.0
"""How long the head of a request may take to arrive."""
MOST_HEAD = 64 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
GRACE_S = 5
"""How long requests under way may take once the routes have stopped."""


@dataclass(frozen=True)
class Serving:
    """Where the API is."""

    address: Address
    token_file: Path
    """The admin token is in it."""

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:8080`."""
        return f"http://{self.address}"


class _Connection(HttpToolsProtocol):
    """A connection whose request heads have bounds of time and size, which uvicorn leaves open."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time for the first head begins."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.on_message_begin()

    def on_message_begin(self) -> None:
        """The time for this head begins."""
        super().on_message_begin()
        self._end_head()
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is there in time."""
        self._end_head()
        super().on_headers_complete()

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to a head that is not whole yet."""
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD and not self.transport.is_closing():
                self._end_head()
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._end_head()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's."""
        yield


def bound(address: Address) -> socket.socket:
    """A socket bound to this address, port 0 for any free one.

    Raises:
        ConfigError: it can't be had.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound_socket = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"gateway.api.listen: {address} is no address here: {error.strerror or error}") from error
    try:
        bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound_socket.bind(where)
        bound_socket.listen(128)
        bound_socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except OSError as error:
        bound_socket.close()
        if error.errno == errno.EADDRINUSE:
            text = "is in use by another program; stop that one, or write another address"
        elif error.errno == errno.EACCES:
            text = "may not be used by this user; write a port of 1024 or more"
        else:
            text = f"can't be listened on: {error.strerror or error}"
        raise ConfigError(f"gateway.api.listen: {address} {text}") from error
    return bound_socket


@asynccontextmanager
async def serving(control: Control) -> AsyncIterator[Serving]:
    """Serves the API of this gateway for as long as the context lasts.

    Raises:
        ConfigError: the address is in use, or the admin token can't be read or made.
    """
    listen = control.config.gateway.api.listen
    folder = control.services.data
    token = await asyncio.to_thread(admin_token, folder)
    with bound(listen) as listening:
        guard = application(control, Door(token, control.services.clock, listen))
        config = uvicorn.Config(
            guard,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http=_Connection,
            interface="asgi3",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listening]), name="api:server")
        task.add_done_callback(_ended)
        place = Serving(Address(listen.host, listening.getsockname()[1]), folder / TOKEN_FILE)
        log.info("API listens", extra={"url": place.url, "token_file": str(place.token_file)})
        try:
            yield place
        finally:
            guard.app.state.hub.close()
            server.should_exit = True
            await asyncio.gather(task, return_exceptions=True)


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("the API has stopped", exc_info=task.exception())
