"""What the http sink does around a request: the pool with its TLS, errors as sentences, and reading an answer."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from adapters._encoding import decompressed
from adapters._http_pool import ConnectError, Pool
from adapters._http_wire import Answer, WireError, tls_fault
from gateway import Address, ClientTls, Limits, Message, MessageError, PeerError, client_context

# Trying again changes nothing: the message has to be another one. All others may pass.
FINAL = frozenset({400, 409, 413, 415, 422})
_LONGEST_WAIT_S = 3600.0
_IDLE_S = 30.0
"""Shorter than most servers keep a connection."""
_IN_TARGETS = "%/?:@!$&'()*+,;=~[]"
_PORTS = {"http": 80, "https": 443}


@asynccontextmanager
async def pool(
    origin: str, tls: ClientTls | None, limits: Limits, *, timeout_s: float, connect_timeout_s: float, connections: int
) -> AsyncIterator[Pool]:
    """A pool of connections to the server of an origin such as `https://erp.example:8443`, while the context lasts.

    Raises:
        ConfigError: a file of `tls` can't be used.
    """
    parts = urlsplit(origin)
    address = Address(parts.hostname or "", parts.port or _PORTS[parts.scheme.lower()])
    context = client_context(tls) if parts.scheme.lower() == "https" else None
    made = Pool(
        address,
        context,
        limits,
        connections=connections,
        timeout_s=timeout_s,
        connect_timeout_s=connect_timeout_s,
        idle_s=_IDLE_S,
    )
    try:
        yield made
    finally:
        made.close()


def host_header(origin: str) -> bytes:
    """The Host header of an origin: its host, in ASCII, and its port if it has one."""
    return origin.partition("://")[2].encode("idna" if not origin.isascii() else "ascii")


def target_of(url: str, origin: str) -> bytes:
    """The request target of a URL of this origin: path and query, percent-encoded, without the fragment."""
    target = url[len(origin) :].partition("#")[0]
    if not target.startswith("/"):
        target = f"/{target}"
    return (target if target.isascii() else quote(target, safe=_IN_TARGETS)).encode()


def modified(tls: ClientTls | None) -> tuple[int, ...]:
    """When each file of these settings was last written; empty: one of them is being replaced right now."""
    files = () if tls is None else (tls.ca, tls.certificate, tls.private_key)
    try:
        return tuple(file.stat().st_mtime_ns for file in files if file is not None)
    except OSError:
        return ()


def peer_error(who: str, error: WireError | ConnectError, *, connect_timeout_s: float) -> PeerError:
    """A failed request as a sentence that begins with `who`."""
    if isinstance(error, WireError):
        return PeerError(f"{who}: {error}", too_late=error.late)
    return PeerError(f"{who}: {_why_not_connected(error.__cause__, connect_timeout_s)}")


def _why_not_connected(cause: BaseException | None, connect_timeout_s: float) -> str:
    if isinstance(cause, TimeoutError):
        return f"no connection within {connect_timeout_s:g} s; is it reachable?"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; is it running?"
    if isinstance(cause, ssl.SSLError):
        return tls_fault(cause)
    if isinstance(cause, socket.gaierror):
        return "the host name is not known"
    if isinstance(cause, OSError) and cause.errno:
        return f"no connection: {os.strerror(cause.errno).lower()}"
    return f"no connection: {str(cause).lower() or 'unknown reason'}"


def read(answer: Answer, message: Message, limits: Limits, who: str) -> Message:
    """The answer to a message, as its reply.

    Raises:
        PeerError: it is not what its Content-Encoding says.
    """
    status, headers, raw = answer
    if "content-encoding" in headers:
        try:
            raw = decompressed(raw, headers.pop("content-encoding"), limits)
        except MessageError as error:
            raise PeerError(f"{who}: its answer can't be read: {error}") from error
    return Message(
        type="http.reply",
        raw=raw,
        content_type=headers.get("content-type") or "application/octet-stream",
        headers=headers,
        transport={"status": status},
        correlation_id=message.correlation_id,
        causation_id=message.id,
        traceparent=message.traceparent,
        formats=message.formats,
    )


def failure(who: str, reply: Message, now_s: float) -> MessageError | PeerError:
    """What an answer that is not 2xx means for its message. `now_s`: seconds since 1970, for a Retry-After date."""
    status = reply.transport["status"]
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    text = f"{who}: answered {phrase}, expected 2xx"
    if status in FINAL:
        return MessageError(text, reply=reply)
    return PeerError(text, reply=reply, wait_s=retry_after(reply.headers.get("retry-after"), now_s))


def retry_after(value: str | None, now_s: float) -> float | None:
    """Seconds to wait by a Retry-After header, an hour at most; None: it says nothing. RFC 9110 section 10.2.3."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        wait_s = float(value[:9])
    else:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        wait_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)
