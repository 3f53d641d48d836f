"""The client's side of one HTTP/1.1 connection, over llhttp. RFC 9110, RFC 9112.

llhttp refuses what two readers could understand differently; ours are the limits, and that an answer is never taken
for that of another request. Why no client library: docs/decisions/http-client.md.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from adapters._request import header_name
from adapters._sockets import prepare
from adapters._turn import Turn
from gateway import Limits


class WireError(Exception):
    """A request had no answer, for the reason that the text says.

    late: the time for it was over, and the server may have acted on it.
    unheard: the connection was lost before the first byte of an answer.
    taken: the server said 2xx, and only the rest of its answer is of no use.
    """

    def __init__(self, text: str, *, late: bool = False, unheard: bool = False, taken: bool = False) -> None:
        super().__init__(text)
        self.late = late
        self.unheard = unheard
        self.taken = taken


class Answer(NamedTuple):
    """A whole answer. Header names are in lower case; a repeated one has its values joined by `, `."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire(asyncio.Protocol):
    """One connection: `ask` writes a request, and the future that it returns is done with the answer.

    It ends when an answer is late, broken or unasked for, when nobody waits for it any more, and when the server wants
    it so: an answer is never taken for that of another request.
    """

    __slots__ = (
        "_begun",
        "_body",
        "_ended",
        "_headers",
        "_limits",
        "_loop",
        "_more",
        "_parser",
        "_reply",
        "_size",
        "_status",
        "_transport",
        "_turn",
        "_until_close",
        "_without_body",
        "idle_since",
        "usable",
        "used",
    )

    def __init__(self, limits: Limits, turn: Turn, ended: Callable[[Wire], None]) -> None:
        self._limits = limits
        self._turn = turn
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._reply: asyncio.Future[Answer] | None = None
        self._without_body = False
        self.usable = True
        """It can take one more request once it is free."""
        self.used = False
        """It has brought an answer."""
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._begun = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._size = 0
        self._body = b""
        self._more: bytearray | None = None
        self._until_close = False

    def ask(self, request: bytes, *, without_body: bool) -> asyncio.Future[Answer]:
        """Writes a whole request. Only when free.

        without_body: the answer has none, whatever its headers say (HEAD).
        """
        self._reply = reply = self._loop.create_future()
        self._without_body = without_body
        transport = self._transport
        if transport is None or transport.is_closing():  # uvloop raises on a write to what is closed
            self.end(WireError(self._why_closed(None), unheard=True))
        else:
            self._turn.write(transport, request)
        return reply

    def end(self, error: WireError) -> None:
        """Ends the connection at once; who waits for an answer hears why."""
        self.usable = False
        reply, self._reply = self._reply, None
        if reply is not None and not reply.done():
            reply.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        prepare(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._until_close and exc is None:
            self._answered()
        self.end(WireError(self._why_closed(exc), unheard=not self._begun))
        self._ended(self)

    def eof_received(self) -> None:
        self.usable = False

    def _why_closed(self, exc: Exception | None) -> str:
        if isinstance(exc, ssl.SSLError):
            return tls_fault(exc)
        if isinstance(exc, ConnectionResetError) and not self._begun:
            return "it reset the connection"
        if self._begun:
            return "it closed the connection inside its answer"
        return "it closed the connection without an answer"

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self.end(WireError("it sent an answer that nobody had asked for"))
            return
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError as error:
            cause = error.__context__
            self.end(cause if isinstance(cause, WireError) else WireError(f"its answer could not be read: {cause}"))
        except (HttpParserError, HttpParserUpgrade) as error:
            # What comes behind a whole answer is nobody's; the answer itself stands.
            self.end(WireError(f"it did not answer in HTTP/1.1: {str(error).lower()}"))

    # what llhttp calls

    def on_message_begin(self) -> None:
        if self._reply is None:
            raise WireError("it sent an answer that nobody had asked for")
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self._limits
        key, text = header_name(name), value.decode("latin-1").rstrip(" \t")
        self._size += len(name) + len(value) + 4
        if self._size > limits.headers or len(self._headers) >= limits.header_count:
            raise WireError(
                f"its answer has more than {limits.headers} bytes or {limits.header_count} lines of headers"
            )
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        headers = self._headers
        status = self._status = self._parser.get_status_code()
        if status < 200:
            return
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise WireError("it did not answer in HTTP/1.1: its transfer-encoding is not chunked")
        self._size = 0
        if self._without_body:
            self.usable = False  # llhttp would wait for a body
            self._answered()
        elif length is not None and int(length) > self._limits.message:
            raise self._too_large()
        else:
            self._until_close = length is None and coding is None and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._limits.message:
            raise self._too_large()
        if self._more is not None:  # not bytes and bytes: of small chunks, each would copy all before it
            self._more += body
        elif self._body:
            self._more = bytearray(self._body)
            self._more += body
        else:
            self._body = body

    def on_message_complete(self) -> None:
        if self._status < 200:
            # RFC 9110 section 15.2: any number of interim answers may come before the one that counts.
            if self._status == 101:
                raise WireError("it switched to another protocol, which nobody had asked for")
            self._begin()
            self._begun = True
        else:
            if not self._parser.should_keep_alive():
                self.usable = False
            self._answered()

    def _answered(self) -> None:
        reply, self._reply = self._reply, None
        answer = Answer(self._status, self._headers, self._body if self._more is None else bytes(self._more))
        self._begin()
        self.used = True
        if reply is not None and not reply.done():
            reply.set_result(answer)

    def _too_large(self) -> WireError:
        text = f"its answer is larger than {self._limits.message} bytes; raise limits.message if it may be"
        return WireError(text, taken=200 <= self._status <= 299)


_ALERTS = {
    "CERTIFICATE_REQUIRED": "it asks for a client certificate; set tls.certificate and tls.private_key",
    "UNKNOWN_CA": "it does not trust the authority of our certificate",
    "HANDSHAKE_FAILURE": "it refuses the handshake; does it ask for a client certificate?",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; write http:// in the url, or check the port",
}
# X509_V_ERR codes of OpenSSL.
_EXPIRED, _NOT_YET, _WRONG_HOST, _WRONG_ADDRESS = 10, 9, 62, 64
_UNKNOWN_AUTHORITY = frozenset((2, 18, 19, 20, 21))


def tls_fault(error: ssl.SSLError) -> str:
    """What went wrong with TLS, as a sentence about the server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return "its certificate has expired; it needs a new one"
        if error.verify_code == _NOT_YET:
            return "its certificate is not valid yet; is the clock right?"
        if error.verify_code in (_WRONG_HOST, _WRONG_ADDRESS):
            return "its certificate is for another host; is the url right?"
        if error.verify_code in _UNKNOWN_AUTHORITY:
            return "its certificate is by an unknown authority; name its authority in tls.ca"
        return f"its certificate can't be trusted: {error.verify_message.rstrip('.')}"
    for alert, sentence in _ALERTS.items():
        if alert in (error.reason or ""):
            return sentence
    return f"TLS failed: {(error.reason or 'unknown reason').replace('_', ' ').lower()}"
