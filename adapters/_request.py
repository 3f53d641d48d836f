"""An HTTP request as the listener hands it over, and the bytes that answer it. No I/O."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qsl

from msgspec import Struct

PROBLEM = b"content-type: application/problem+json\r\n"
JSON_TYPE = b"content-type: application/json\r\n"
NOTHING: Mapping[str, str] = {}

NAMES: dict[bytes, str] = {}
"""Header names in lower case, by the bytes that came; `header_name` fills it."""
# The names of RFC 9110 where Python's are older.
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
_LINES = {status: f"HTTP/1.1 {status} {phrase}\r\n".encode() for status, phrase in _PHRASES.items()}
# What RFC 9110 section 8.6 allows no Content-Length for.
_BODILESS = frozenset({204, 304})
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Text that ends a header line, or that some readers cut it at. RFC 9110 section 5.5.
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Refusal(Exception):  # noqa: N818 - named for what the peer gets
    """A request is answered with an error, `application/problem+json`, before anybody handles it."""

    def __init__(self, status: int, code: str, detail: str, headers: bytes = b"") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.body = problem(status, code, detail)
        self.headers = headers if status in _BODILESS else PROBLEM + headers


class Answering(Protocol):
    """The connection that a request came over."""

    def answered(self, request: Request) -> None:
        """The request has its response now."""
        ...


class Request(Struct, gc=False, eq=False):
    """A whole request, checked and in limits. Call `answer` once, from anywhere in the loop's thread, at any time."""

    connection: Answering
    mount: Mount | None
    """What it was mounted with."""
    method: str
    path: str
    """As it came: percent-encoded, without the query."""
    params: Mapping[str, str]
    """The parameters of the path pattern, percent-decoded."""
    query: Mapping[str, str]
    """The query, decoded; a repeated name has its values joined by `, `."""
    headers: dict[str, str]
    """Names in lower case; a repeated name has its values joined by `, `. The receiver may keep it."""
    body: bytes
    peer: str
    """The address and port of the peer."""
    scheme: str
    """`http` or `https`."""
    target: str
    """The request target as it came, query included."""
    keep_alive: bool
    old: bool
    """HTTP/1.0."""
    certificate_subject: str | None = None
    """Of the certificate that the peer showed, such as `commonName=shop-7`."""
    response: bytes | None = None
    taken: bool = False
    """Set it when work on the request begins. One that nobody takes within a second or so is answered 503."""
    looks: int = 0
    """How often the listener found it waiting to be taken."""

    @property
    def content_type(self) -> str | None:
        """The Content-Type header."""
        return self.headers.get("content-type")

    def answer(self, status: int, body: bytes = b"", headers: bytes = b"") -> None:
        """Answers it. The first answer counts; later ones, and one whose peer has gone, do nothing.

        status: a final one, 200 to 599.
        headers: whole header lines, each ended by CR LF, such as `header_lines` makes; without length and connection.
        """
        if self.response is not None:
            return
        line = _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        if self.keep_alive and not self.old and status not in _BODILESS and self.method != "HEAD":
            self.response = b"%b%bcontent-length: %d\r\n\r\n%b" % (line, headers, len(body), body)
        else:
            self.response = self._unusual(line, status, body, headers)
        self.connection.answered(self)

    def _unusual(self, line: bytes, status: int, body: bytes, headers: bytes) -> bytes:
        connection = b"connection: close\r\n" if not self.keep_alive else b""
        if self.old and self.keep_alive:
            connection = b"connection: keep-alive\r\n"
        if status in _BODILESS:
            return b"%b%b%b\r\n" % (line, headers, connection)
        head = b"%b%b%bcontent-length: %d\r\n\r\n" % (line, headers, connection, len(body))
        return head if self.method == "HEAD" else head + body


Handler = Callable[[Request], None]
"""Gets each whole request, in the loop's thread. Has to be quick: it queues the request, or answers it at once."""

Check = Callable[[Mapping[str, str]], Refusal | None]
"""Gets the headers of a request before its body is read, and says whether it is refused."""

Upgrade = Callable[[Request, asyncio.Transport, bytes], asyncio.Protocol]
"""Takes a connection over when a `GET` with `Upgrade: websocket` came for its path, and nothing was answered yet.

request: method, path, params, query, headers, peer and target as parsed, without a body. Don't call its `answer`: write
the 101, or a refusal, to the transport, for example what `websockets.server.ServerProtocol` gives.
transport: the connection's. Close it when the conversation is over; before each write ask `is_closing()`.
bytes: what came behind the request already; feed them first.
Returns the protocol that from now on gets `data_received`, `eof_received`, `pause_writing`, `resume_writing` and
`connection_lost`; `connection_made` is not called. The connection still counts in the listener's limits. It is not
bound by its time-outs any more, and is cut when the listener closes: withdraw by closing your connections first.
"""


Told = Callable[[str, str, str], None]
"""Hears of a request that was refused unread: the code, why, and the peer."""


@dataclass(frozen=True, eq=False)
class Mount:
    """What answers at a path."""

    path: str
    handler: Handler
    limit: int
    """The largest body, in bytes."""
    check: Check | None
    upgrade: Upgrade | None
    parameters: tuple[str, ...]
    refused: Told | None = None


def problem(status: int, code: str, detail: str, message_id: str | None = None) -> bytes:
    """The body of an error answer, `application/problem+json`. RFC 9457; `code` is a stable word for programs."""
    found = {
        "type": "about:blank",
        "title": _PHRASES[status],
        "status": status,
        "detail": detail,
        "code": code,
    }
    if message_id is not None:
        found["id"] = message_id
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def header_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    """These header fields as lines for `Request.answer`.

    Raises:
        ValueError: a name is no token, or a value holds a control character or what Latin-1 can't carry.
    """
    lines = []
    for name, value in fields:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"header {name!r}: expected a name of letters, digits and dashes")
        if _UNSAFE.search(value):
            raise ValueError(f"header {name}: the value holds a control character such as CR, LF or NUL")
        try:
            lines.append(f"{name}: {value}\r\n".encode("latin-1"))
        except UnicodeEncodeError:
            raise ValueError(f"header {name}: the value holds characters outside of Latin-1") from None
    return b"".join(lines)


def header_name(name: bytes) -> str:
    """A header name in lower case, from a cache that peers can't make grow."""
    known = NAMES.get(name)
    if known is None:
        known = name.decode("latin-1").lower()
        if len(NAMES) < 1024 and len(name) <= 64:
            NAMES[name] = known
    return known


def read_query(text: str) -> Mapping[str, str]:
    """A query as names and decoded values; a repeated name has its values joined by `, `.

    Raises:
        ValueError: it is not UTF-8 once percent-decoded.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("the query is not UTF-8 once percent-decoded") from None
    for name, value in pairs:
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
