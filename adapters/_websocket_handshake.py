"""Opening handshakes: who is let in, and what a server answered. RFC 6455 section 4."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from adapters._request import Refusal, Request, header_lines
from adapters._sockets import facts, prepare
from gateway import Limits, PeerError, link_fault

QUIET = logging.getLogger("gateway.websocket.protocol")
"""The log of the package websockets, which would write each opening, and bodies while debugging."""
QUIET.setLevel(logging.ERROR)

_OF_THE_LINK = frozenset(
    {
        "authorization",
        "connection",
        "cookie",
        "proxy-authorization",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "upgrade",
    }
)
_PORTS = {"http": 80, "https": 443}
_HEAD_END = b"\r\n\r\n"


def accepted(request: Request, *, origins: Sequence[str], subprotocols: Sequence[str]) -> tuple[ServerProtocol, bytes]:
    """The protocol of a new connection and the bytes that accept it.

    origins: the values of Origin that are let in, `*` for all; none: those of the request's own host.
    subprotocols: what we speak, best first; a peer has to speak one of them. None: whatever.

    Raises:
        Refusal: the handshake is not good, or its origin not welcome.
    """
    version = request.headers.get("sec-websocket-version")
    if version != "13":
        found = f"got {version!r}" if version else "got none"
        ours = header_lines([("sec-websocket-version", "13"), ("upgrade", "websocket")])
        raise Refusal(426, "version", f"header sec-websocket-version: expected 13, {found}", ours)
    if not _is_welcome(request, origins):
        raise Refusal(403, "origin", "header origin: pages of this origin may not connect")
    offered = cast("Sequence[Subprotocol]", tuple(subprotocols))
    handshake = ServerProtocol(subprotocols=offered or None, max_size=None, logger=QUIET)
    response = handshake.accept(Handshake(request.target, Headers(request.headers)))
    if response.status_code != 101:
        raise Refusal(response.status_code, "handshake", str(handshake.handshake_exc))
    handshake.send_response(response)
    # That one's parser waits for the request, which we have read already.
    protocol = ServerProtocol(state=State.OPEN, max_size=None, logger=QUIET)
    protocol.subprotocol = handshake.subprotocol
    return protocol, b"".join(handshake.data_to_send())


def refused(refusal: Refusal) -> bytes:
    """The answer to a handshake that is refused."""
    phrase = HTTPStatus(refusal.status).phrase.encode()
    lines = b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n" % (refusal.status, phrase, refusal.headers)
    return b"%bcontent-length: %d\r\n\r\n%b" % (lines, len(refusal.body), refusal.body)


def _is_welcome(request: Request, origins: Sequence[str]) -> bool:
    origin = request.headers.get("origin")
    if origin is None or "*" in origins:
        return True
    if origins:
        return origin.lower() in {known.lower() for known in origins}
    try:
        found = urlsplit(origin)
        port = found.port or _PORTS.get(found.scheme)
        host = urlsplit(f"//{request.headers.get('host', '')}")
        return found.hostname is not None and (found.hostname, port) == (
            host.hostname,
            host.port or _PORTS[request.scheme],
        )
    except ValueError:
        return False


def transport_of(request: Request, protocol: ServerProtocol) -> dict[str, Any]:
    """What messages of an accepted connection carry as transport, but the opcode."""
    found: dict[str, Any] = {
        "path": request.path,
        "params": request.params,
        "query": request.query,
        "peer": request.peer,
        "scheme": "wss" if request.scheme == "https" else "ws",
    }
    if protocol.subprotocol is not None:
        found["subprotocol"] = protocol.subprotocol
    if request.certificate_subject is not None:
        found["certificate_subject"] = request.certificate_subject
    return found


def headers_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a handshake that may say something of the messages: none of the connection, none with secrets."""
    return {name: value for name, value in headers.items() if name not in _OF_THE_LINK}


def topics_of(request: Request) -> frozenset[str]:
    """What a client asks for as `?topic=a&topic=b`."""
    return frozenset(parse_qs(request.target.partition("?")[2]).get("topic", ()))


class Calling(asyncio.Protocol):
    """The handshake of a client. `done` once the server agreed; then the transport needs its real protocol at once."""

    def __init__(
        self,
        uri: WebSocketURI,
        *,
        headers: Mapping[str, str],
        subprotocols: Sequence[str],
        limits: Limits,
        who: str,
        agreed: Callable[[ClientProtocol, asyncio.Transport, bytes], None],
    ) -> None:
        """agreed: gets the protocol, the transport, and what came behind the handshake already."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the server agreed; or a PeerError, once it did not."""
        # Who is cancelled while it dials does not come to ask.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        offered = cast("Sequence[Subprotocol]", tuple(subprotocols))
        self._protocol = ClientProtocol(uri, subprotocols=offered or None, max_size=None, logger=QUIET)
        self._headers = headers
        self._limits = limits
        self._who = who
        self._agreed = agreed
        self._transport: asyncio.Transport = asyncio.Transport()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        prepare(transport)
        request = self._protocol.connect()
        for name, value in self._headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        self._transport.write(b"".join(self._protocol.data_to_send()))

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        self._head += data
        end = self._head.find(_HEAD_END)
        if end < 0:
            if len(self._head) > self._limits.headers:
                self._fail(f"its answer has more than {self._limits.headers} bytes of headers")
            return
        self._judge(self._head[: end + 4], self._head[end + 4 :])

    def _judge(self, head: bytes, rest: bytes) -> None:
        line = head.partition(b"\r\n")[0].decode("latin-1")
        status = line.split(" ")[1] if line.startswith("HTTP/1.1 ") else ""
        if status != "101":
            said = f"it answered {line[:80]!r}" if line.startswith("HTTP/") else "it does not speak HTTP"
            hint = {
                "401": "; set username and password, or token",
                "403": "; is an origin asked for? set it under headers",
                "400": "; does it expect one of its subprotocols?",
            }.get(status, "; redirects are not followed" if status.startswith("3") else "")
            self._fail(f"{said}, expected 101{hint}")
            return
        protocol = self._protocol
        protocol.receive_data(head)
        protocol.events_received()
        if protocol.state is not State.OPEN:
            self._fail(f"its handshake is not good: {protocol.handshake_exc}")
            return
        self.done.set_result(None)
        self._agreed(protocol, self._transport, rest)

    def eof_received(self) -> None:
        self._fail("it closed the connection during the handshake")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("it closed the connection during the handshake" if exc is None else link_fault(exc))

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(PeerError(f"{self._who}: {why}"))
        self._transport.abort()


def transport_of_client(transport: asyncio.Transport, protocol: ClientProtocol, url: str) -> dict[str, Any]:
    """What messages of a connection of ours carry as transport, but the opcode."""
    known = facts(transport)
    parts = urlsplit(url)
    found: dict[str, Any] = {"path": parts.path or "/", "params": {}, "query": {}, "peer": known["peer"]}
    found["scheme"] = parts.scheme.lower()
    if protocol.subprotocol is not None:
        found["subprotocol"] = protocol.subprotocol
    return found
