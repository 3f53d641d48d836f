"""What the http sink does around a request: the client with its TLS, errors as sentences, and reading an answer."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import ConnectError, ConnectTimeoutError, PoolTimeoutError, RequestError, RequestTimeoutError
from pyreqwest.response import Response

from adapters._encoding import decompressed
from gateway import ClientTls, ConfigError, Limits, Message, MessageError, PeerError, client_context

# Trying again changes nothing: the message has to be another one. All others may pass.
FINAL = frozenset({400, 409, 413, 415, 422})
_LONGEST_WAIT_S = 3600.0
_IDLE_S = 30.0
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_FAULTS = {
    "Connection refused": "connection refused; is it running?",
    "failed to lookup address": "the host name is not known",
    "UnknownIssuer": "its certificate is by an unknown authority; name its authority in tls.ca",
    "certificate expired": "its certificate has expired; it needs a new one",
    "certificate not valid for name": "its certificate is for another host; is the url right?",
    "certificate not valid yet": "its certificate is not valid yet; is the clock right?",
    "InvalidContentType": "it does not speak TLS; write http:// in the url, or check the port",
    "CertificateRequired": "it asks for a client certificate; set tls.certificate and tls.private_key",
    "HandshakeFailure": "it refuses the handshake; does it ask for a client certificate?",
    "UnknownCA": "it does not trust the authority of our certificate",
    "Connection reset": "it reset the connection",
    "connection closed before message completed": "it closed the connection without an answer",
    "end of file before message length": "it closed the connection inside its answer",
    "No route to host": "no route to host",
    "Network is unreachable": "the network is unreachable",
}


def client(tls: ClientTls | None, *, timeout_s: float, connect_timeout_s: float, connections: int) -> Client:
    """A pooled HTTP/1.1 client that follows no redirects, decompresses nothing and knows no proxy.

    Raises:
        ConfigError: a file of `tls` can't be used.
    """
    timeout = timedelta(seconds=timeout_s)
    builder = (
        ClientBuilder()
        .http1_only()
        # Cancelling a send does not stop the request: these do.
        .timeout(timeout)
        .pool_timeout(timeout)
        .connect_timeout(timedelta(seconds=connect_timeout_s))
        .max_connections(connections)
        # Shorter than most servers keep a connection: one that they close meanwhile is a failed send.
        .pool_idle_timeout(timedelta(seconds=_IDLE_S))
        .pool_max_idle_per_host(connections)
        .follow_redirects(enable=False)
        .referer(enable=False)
        .gzip(enable=False)
        .deflate(enable=False)
        .brotli(enable=False)
        .zstd(enable=False)
        .no_proxy()
        .user_agent("interchange-gateway")
    )
    if tls is not None:
        # It says in sentences what is wrong with a file; the client's own errors name none.
        client_context(tls)
        if tls.ca is not None:
            for certificate in _CERTIFICATE.findall(tls.ca.read_bytes()):
                builder = builder.add_root_certificate_pem(certificate)
        if tls.certificate is not None:
            key = tls.private_key or tls.certificate
            builder = builder.identity_pem(key.read_bytes() + b"\n" + tls.certificate.read_bytes())
    try:
        return builder.build()
    except (ValueError, RequestError) as error:
        raise ConfigError(f"tls: the certificates can't be used: {error}") from error


def modified(tls: ClientTls | None) -> tuple[int, ...]:
    """When each file of these settings was last written; empty: one of them is being replaced right now."""
    files = () if tls is None else (tls.ca, tls.certificate, tls.private_key)
    try:
        return tuple(file.stat().st_mtime_ns for file in files if file is not None)
    except OSError:
        return ()


def peer_error(who: str, error: RequestError, *, timeout_s: float, connect_timeout_s: float) -> PeerError:
    """A failed request as a sentence that begins with `who`. The client's own texts hold the whole URL: not used."""
    causes = [cause["message"] for cause in (error.details.get("causes") or [])[1:]]
    connecting = "client error (Connect)" in causes
    if isinstance(error, PoolTimeoutError):
        return PeerError(f"{who}: all connections were busy for {timeout_s:g} s; raise connections, or is it too slow?")
    if isinstance(error, ConnectTimeoutError) and connecting:
        return PeerError(f"{who}: no connection within {connect_timeout_s:g} s; is it reachable?")
    if isinstance(error, RequestTimeoutError):
        return PeerError(f"{who}: no answer within {timeout_s:g} s", too_late=True)
    for sign, sentence in _FAULTS.items():
        if any(sign in cause for cause in causes):
            return PeerError(f"{who}: {sentence}")
    if isinstance(error, ConnectError) and connecting:
        return PeerError(f"{who}: no connection: {causes[-1].lower()}")
    return PeerError(f"{who}: it did not answer in HTTP/1.1: {causes[-1].lower() if causes else 'unknown reason'}")


class cancellable:  # noqa: N801 - reads as a word where it is used
    """Makes sure that a cancellation is heard: the client loses one that comes in the moment of an answer."""

    __slots__ = ("_before", "_task")

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        lost = self._task is not None and self._task.cancelling() > self._before
        if lost and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError


async def read(response: Response, message: Message, limits: Limits, who: str) -> Message:
    """The answer to a message, whole.

    Raises:
        PeerError: it is larger than `limits.message`, or not what its Content-Encoding says.
    """
    headers = _headers(response)
    limit = limits.message
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise PeerError(f"{who}: its answer is larger than {limit} bytes; raise limits.message if it may be")
    # It gives less than asked for only at the end, and without a second wait what came with the head.
    found = await response.body_reader.read(limit + 1)
    raw = b"" if found is None else found.to_bytes()
    if len(raw) > limit:
        raise PeerError(f"{who}: its answer is larger than {limit} bytes; raise limits.message if it may be")
    encoding = headers.pop("content-encoding", None)
    if encoding is not None:
        try:
            raw = decompressed(raw, encoding, limits)
        except MessageError as error:
            raise PeerError(f"{who}: its answer can't be read: {error}") from error
    return Message(
        type="http.reply",
        raw=raw,
        content_type=headers.get("content-type") or "application/octet-stream",
        headers=headers,
        transport={"status": response.status},
        correlation_id=message.correlation_id,
        causation_id=message.id,
        traceparent=message.traceparent,
        formats=message.formats,
    )


def failure(who: str, reply: Message, now_s: float) -> MessageError | PeerError | None:
    """What an answer means for its message; None: delivered. `now_s`: seconds since 1970, for a Retry-After date."""
    status = reply.transport["status"]
    if 200 <= status <= 299:
        return None
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


def _headers(response: Response) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for name, value in response.headers.items():
            found[name] = f"{found[name]}, {value}" if name in found else value
    except ValueError:  # a value that is not ASCII, which the client can't show: those that it can
        found = {}
        for name in set(response.headers.keys()):
            try:
                found[name] = ", ".join(response.get_header_all(name))
            except ValueError:
                continue
    return found
