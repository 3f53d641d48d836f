"""What a request head must be, beside what llhttp sees to: sizes, Host, framing and target. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from adapters._paths import Place, decoded_segments
from adapters._request import NOTHING, Mount, Refusal, header_lines, read_query
from gateway import Limits

_HOST = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_KNOWN = header_lines([("allow", "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE")])
_BUSY = header_lines([("retry-after", "1")])
# A path whose handler went so short a time ago is more often being changed than gone.
_LEFT_S = 10.0


class Target(NamedTuple):
    """A request target, taken apart."""

    path: str
    """As it came: percent-encoded, without the query."""
    query: Mapping[str, str]
    segments: list[str] | None
    """Those of the path, percent-decoded; None: the target is `*`, the server itself."""


def check_sizes(method: bytes, url: bytes, headers: Mapping[str, str], repeated: int, limits: Limits) -> None:
    """Counts what has come of a head, a header line as `name: value` with its line end.

    repeated: header lines that are joined to an earlier one of their name.

    Raises:
        Refusal: 414 or 431.
    """
    if len(method) + len(url) + len("  HTTP/1.1\r\n") > limits.header_line:
        raise Refusal(414, "uri_too_long", f"request line: more than {limits.header_line} bytes")
    if len(headers) + repeated > limits.header_count:
        raise Refusal(431, "headers_too_large", f"headers: more than {limits.header_count} lines")
    sizes = [len(name) + len(value) + 4 for name, value in headers.items()]
    if sum(sizes) > limits.headers:
        raise Refusal(431, "headers_too_large", f"headers: more than {limits.headers} bytes")
    if sizes and max(sizes) > limits.header_line:
        raise Refusal(431, "headers_too_large", f"headers: a line of more than {limits.header_line} bytes")


def check_framing(version: str, headers: Mapping[str, str]) -> None:
    """Refuses what two servers could read differently. RFC 9112 sections 3.2, 6.1 and 11.2.

    Raises:
        Refusal: 400 or 505.
    """
    if version not in ("1.1", "1.0"):
        raise Refusal(505, "version", "expected HTTP/1.1 or HTTP/1.0")
    host = headers.get("host")
    if host is None and version == "1.1":
        raise Refusal(400, "malformed", "header host: expected one, got none")
    if host is not None and not _HOST.fullmatch(host):
        raise Refusal(400, "malformed", "header host: expected a host name or address, and a port if need be")
    coding = headers.get("transfer-encoding")
    if coding is not None and version != "1.1":
        raise Refusal(400, "malformed", "header transfer-encoding: HTTP/1.0 has none")
    if coding is not None and coding.lower() != "chunked":
        raise Refusal(400, "malformed", "header transfer-encoding: expected chunked and nothing else")


def read_target(method: bytes, url: bytes, host: str | None, scheme: str) -> Target:
    """Takes a request target apart.

    Raises:
        Refusal: 400, or 405 for CONNECT.
    """
    if method == b"CONNECT":
        raise Refusal(405, "method_not_allowed", "this is no proxy", _KNOWN)
    target = url.decode("latin-1")
    if target == "*" and method == b"OPTIONS":
        return Target(target, NOTHING, None)
    if "#" in target:
        raise Refusal(400, "malformed", "request target: it holds a fragment")
    if not target.startswith("/"):
        target = _relative(target, host, scheme)
    path, _, query = target.partition("?")
    try:
        return Target(path, read_query(query) if query else NOTHING, decoded_segments(path))
    except ValueError as error:
        raise Refusal(400, "malformed", f"request target: {error}") from error


def _relative(target: str, host: str | None, scheme: str) -> str:
    """The path and query of an absolute target, whose authority has to be the Host. RFC 9112 section 3.2.2."""
    found, _, rest = target.partition("://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if found.lower() != scheme or authority.lower() != (host or authority).lower() or not authority:
        raise Refusal(400, "malformed", "request target: its host is not that of the header host")
    path = rest[len(authority) :]
    return path if path.startswith("/") else f"/{path}"


def nobody(place: Place[Mount] | None, method: bytes, now: float) -> Refusal:
    """The answer to a good request that no handler takes; `now`: the listener's clock, in seconds."""
    if place is None:
        return Refusal(404, "not_found", "nothing answers at this path")
    if place.empty:
        if now < (place.left_at or 0.0) + _LEFT_S:
            return Refusal(503, "busy", "what answers at this path is being changed; try again", _BUSY)
        return Refusal(404, "not_found", "nothing answers at this path any more")
    allow = header_lines([("allow", place.allow)])
    if method == b"OPTIONS":
        return Refusal(204, "", "", allow)
    if place.upgrade is not None and not place.by_method and method == b"GET":
        upgrade = header_lines([("upgrade", "websocket")])
        return Refusal(426, "upgrade_required", "this path speaks WebSocket only", upgrade)
    return Refusal(405, "method_not_allowed", f"this path takes {place.allow}", allow)
