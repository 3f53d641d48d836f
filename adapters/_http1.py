"""One HTTP/1.1 connection of the data listener: an `asyncio.Protocol` over llhttp. RFC 9110, RFC 9112.

It reads requests, hands over each once it is whole, and writes the answers in the order of the requests. It keeps no
timer: the listener sweeps over its connections now and then, and what is overdue is cut.

What two servers could read differently is refused with 400, and nothing behind it on the connection is read. llhttp
refuses bare CR and LF, folded lines, spaces before a colon, NUL, two lengths, a length beside a Transfer-Encoding and
bad chunk sizes; `_head` refuses the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from adapters._head import check_framing, check_sizes, read_target
from adapters._paths import Place
from adapters._request import NAMES, NOTHING, Mount, Refusal, Request, header_lines, header_name
from adapters._sockets import facts

if TYPE_CHECKING:
    from adapters._listener import Listening

log = logging.getLogger("gateway.http")

# What a connection does: up to BODY it reads requests.
IDLE, HEAD, BODY = 0, 1, 2
TAKEN = 3  # upgraded: another protocol has it
LAST = 4  # the last request was read, its answer is to come
REFUSED = 5  # a refusal is the last answer; what the peer still sends is dropped
CLOSING = 6  # the last answer was written

NEVER = float("inf")
# Requests of one connection that may wait for their answers before it is no longer read, and when it is again.
_DEEP, _SHALLOW = 32, 16
# Pieces that a large read is cut into, so that it can't hold thousands of requests; and those of the inside of bodies.
_PIECE, _BODY_PIECE = 4096, 65536
# How long a refused peer may go on sending: closed at once, it would get a reset and never see why.
_LINGER_S = 2.0
_SLOW_AFTER_S = 5.0
# How long a request waits for somebody to take it.
_PATIENCE_S = 1.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BUSY = b"retry-after: 1\r\n"


class Connection(asyncio.Protocol):
    """See the module. The listener makes one for each connection that it accepts."""

    def __init__(self, listening: Listening) -> None:
        self._listening = listening
        self._transport: asyncio.Transport | None = None
        self._parser: HttpRequestParser | None = None
        self._queue: deque[Request] = deque()
        self._phase = IDLE
        self._taker: asyncio.Protocol | None = None
        self._held = b""  # read, and not parsed while too many requests wait for their answers
        self._paused = False
        self._choked = False  # the peer does not read what we write
        self.deadline = NEVER
        self.admitted = False
        self.address = ""
        self.peer = ""
        self._certificate_subject: str | None = None
        # of the request that is being read
        self._url = b""
        self._headers: dict[str, str] = {}
        self._repeated = 0
        self._chunk = 0  # bytes of this read
        self._fed = 0  # bytes of the reads before it that this head, or body, began in or is all of
        self._timed = IDLE  # the part of the request that has a deadline
        self._since = 0.0
        self._body_since = 0.0
        self._method = b""
        self._path = ""
        self._query = self._params = NOTHING
        self._old = False
        self._keep_alive = True
        self._mount: Mount | None = None
        self._answer: Refusal | None = None  # known before the body is read: it will be dropped
        self._limit = 0
        self._owes_continue = False
        self._replays = False
        self._body = b""
        self._more: bytearray | None = None
        self._size = 0
        self._trailers = 0

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        known = facts(transport)
        self.peer = known["peer"]
        self.address = self.peer.rpartition(":")[0].strip("[]")
        self._certificate_subject = known.get("certificate_subject")
        self._parser = HttpRequestParser(self)
        self.deadline = self._listening.tick() + self._listening.limits.handshake
        if not self._listening.admit(self, transport):
            self._refuse(Refusal(503, "busy", "too many connections; try again later", _BUSY))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._parser = None
        self._phase = CLOSING
        for request in self._queue:
            request.response = request.response or b"-"
        self._queue.clear()
        self._held = b""
        self._listening.left(self)
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._phase > BODY:
            if self._taker is not None:
                self._taker.data_received(data)
        elif self._held:
            self._held += data
        elif len(data) > _PIECE:
            self._feed_pieces(data)
        else:
            self._feed(data)

    def eof_received(self) -> bool:
        if self._taker is not None:
            return bool(self._taker.eof_received())
        if not self._queue or self._listening.tls:
            return False
        # The peer has said all it wanted to, and still listens.
        self._phase = max(self._phase, LAST)
        self._queue[-1].keep_alive = False
        return True

    def pause_writing(self) -> None:
        if self._taker is not None:
            self._taker.pause_writing()
        else:
            self._choked = True
            self._pause()
            self.deadline = self._listening.tick() + self._listening.limits.request

    def resume_writing(self) -> None:
        if self._taker is not None:
            self._taker.resume_writing()
        else:
            self._choked = False
            self._set_deadline()
            self._resume()

    # what the listener calls

    def sweep(self, now: float) -> None:
        """Cuts what is overdue, and answers 503 to requests that nobody took in time."""
        if self._queue:
            for request in list(self._queue):
                if not request.taken and now - request.since > _PATIENCE_S:
                    self.answer_busy(request)
        if now < self.deadline or self._transport is None:
            return
        if self._choked or self._phase >= CLOSING:
            self._transport.abort()
        elif self._phase == IDLE:
            self._close()
        elif self._phase == BODY and self._body_is_quick(now):
            self.deadline = min(now + 1.0, self._since + self._listening.limits.request)
        elif self._phase == HEAD:
            self._refuse(Refusal(408, "timeout", "the headers did not come in time"))
        elif self._phase == BODY:
            self._refuse(Refusal(408, "timeout", "the body did not come in time"))

    def withdraw(self, mount: Mount) -> None:
        """Answers 503 to all requests that wait for an answer of this mount."""
        for request in list(self._queue):
            if request.mount is mount:
                self.answer_busy(request)

    def answer_busy(self, request: Request) -> None:
        """Tells the sender to try again, unless the request is answered."""
        refusal = Refusal(503, "busy", "not now; try again after the time in retry-after", _BUSY)
        request.answer(refusal.status, refusal.body, refusal.headers)

    def shut(self) -> None:
        """Closes once what was answered is written; what is half read is let go."""
        if self._transport is None or self._taker is not None:
            return
        for request in list(self._queue):
            request.keep_alive = False
            self.answer_busy(request)
        if self._phase < CLOSING:
            self._close()

    def abort(self) -> None:
        """Cuts the connection."""
        if self._transport is not None:
            self._transport.abort()

    def answered(self, request: Request) -> None:
        """The request has its response: writes it, and those behind it that waited, if it is its turn."""
        queue = self._queue
        if not queue or queue[0] is not request:
            return
        queue.popleft()
        response = request.response or b""
        if queue and queue[0].response is not None:
            parts = [response]
            while queue and queue[0].response is not None:
                parts.append(queue.popleft().response or b"")
            response = b"".join(parts)
        self._write(response)
        if not queue:
            if self._phase == IDLE:
                if not self._choked:
                    self.deadline = self._listening.now + self._listening.limits.idle
            elif self._phase >= LAST:
                self._finish()
            elif self._owes_continue:
                self._pay_continue()
        if self._paused and len(queue) <= _SHALLOW:
            self._resume()

    # writing and the life of the connection

    def _write(self, data: bytes) -> None:
        transport = self._transport
        # uvloop raises on a write to what the peer has closed already.
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def _refuse(self, refusal: Refusal) -> None:
        """The last answer of this connection, behind those of the requests before. Nothing more is parsed."""
        if self._phase >= REFUSED:
            return
        self._phase = REFUSED
        self.deadline = NEVER
        request = self._request(b"")
        request.mount, request.keep_alive = None, False
        self._queue.append(request)
        request.answer(refusal.status, refusal.body, refusal.headers)

    def _finish(self) -> None:
        transport = self._transport
        if transport is None or self._phase == CLOSING:
            return
        if self._phase == LAST or self._listening.tls or not transport.can_write_eof():
            self._close()
        else:
            self._phase = CLOSING
            self.deadline = self._listening.tick() + _LINGER_S
            if not transport.is_closing():
                transport.write_eof()
                if self._paused:
                    self._paused = False
                    transport.resume_reading()

    def _close(self) -> None:
        self._phase = CLOSING
        self.deadline = self._listening.tick() + self._listening.limits.request
        if self._transport is not None:
            self._transport.close()

    def _pause(self) -> None:
        if not self._choked:
            self.deadline = NEVER
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._choked and len(self._queue) <= _SHALLOW:
            # Not at once: answers are often given while the parser still runs.
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._paused or self._choked or self._transport is None or self._transport.is_closing():
            return
        held, self._held = self._held, b""
        if held:
            self._feed_pieces(held)
        if not self._held and self._paused and not self._choked and len(self._queue) <= _SHALLOW:
            self._paused = False
            self._transport.resume_reading()
            self._set_deadline()

    def _set_deadline(self) -> None:
        """Starts the clock of what is awaited from the peer anew."""
        limits = self._listening.limits
        if self._phase == IDLE:
            self.deadline = NEVER if self._queue else self._listening.now + limits.idle
        elif self._phase <= BODY:
            self._timed = IDLE
            self._time()

    def _time(self) -> None:
        now, limits = self._listening.now, self._listening.limits
        if self._timed == IDLE:
            self._since = now
        self._timed = self._phase
        if self._phase == HEAD:
            self.deadline = min(self.deadline, now + limits.handshake)
        else:
            self._body_since = now
            self.deadline = min(now + _SLOW_AFTER_S, self._since + limits.request)

    def _body_is_quick(self, now: float) -> bool:
        limits = self._listening.limits
        enough = (now - self._body_since) * limits.body_rate
        return now < self._since + limits.request and self._size >= enough

    # reading

    def _feed(self, data: bytes | memoryview) -> None:
        parser = self._parser
        if parser is None:
            return
        self._chunk = len(data)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._upgraded(bytes(data[upgrade.args[0] :]))
        except HttpParserCallbackError as error:
            log.error("http request failed", exc_info=error.__context__)
            self._refuse(Refusal(500, "internal", "the gateway failed on this request"))
        except HttpParserError as error:
            if self._phase <= BODY:
                self._refuse(Refusal(400, "malformed", f"not a request that all servers read alike: {error}"))
        if self._phase == HEAD or self._phase == BODY:
            self._unfinished()

    def _feed_pieces(self, data: bytes) -> None:
        view, at = memoryview(data), 0
        while at < len(data) and self._phase <= BODY:
            if len(self._queue) >= _DEEP or (self._choked and self._phase == IDLE):
                self._held = data[at:]
                self._pause()
                return
            end = at + (_BODY_PIECE if self._phase == BODY else _PIECE)
            self._feed(view[at:end])
            at = end
        if self._taker is not None and at < len(data):
            self._taker.data_received(data[at:])

    def _unfinished(self) -> None:
        """A read ended inside of a request: only then are clocks and half-read sizes looked at."""
        if self._timed != self._phase:
            if self._phase == BODY:
                self._fed = 0
            if not self._paused:
                self._time()
        self._fed += self._chunk
        limits = self._listening.limits
        if self._phase == BODY:
            if self._fed > 8 * self._limit + 1_048_576:
                self._refuse(Refusal(413, "too_large", "body: its chunks hold more framing than content"))
            return
        try:
            check_sizes(b"", self._url, self._headers, self._repeated, limits)
        except Refusal as refusal:
            self._refuse(refusal)
        if self._fed > limits.headers + limits.header_line + _PIECE:
            self._refuse(Refusal(431, "headers_too_large", f"headers: more than {limits.headers} bytes"))

    # what llhttp calls; after a refusal it goes on calling for the same bytes, which must do nothing

    def on_url(self, url: bytes) -> None:
        if self._phase == IDLE:
            self._phase = HEAD
            self._url = url
            self._headers = {}
            self._repeated = self._fed = self._trailers = 0
        elif self._phase == HEAD:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase != HEAD:
            self._trailer(name, value)
            return
        key = NAMES.get(name) or header_name(name)
        text = value.decode("latin-1")
        if value and value[-1] <= 32:
            text = text.rstrip(" \t")
        headers = self._headers
        if key in headers:
            self._repeated += 1
            text = f"{headers[key]}, {text}"
            if key in ("host", "content-type"):
                self._refuse(Refusal(400, "malformed", f"header {key}: expected one, got more"))
        headers[key] = text

    def on_headers_complete(self) -> None:
        if self._phase != HEAD:
            return
        try:
            place = self._read_head()
            if not ("upgrade" in self._headers and self._takes_upgrade(place)):
                self._accept(place)
        except Refusal as refusal:
            self._refuse(refusal)

    def on_body(self, body: bytes) -> None:
        if self._phase != BODY:
            return
        self._size += len(body)
        if self._size > self._limit:
            self._refuse(self._too_large())
        elif self._answer is not None:
            pass
        elif self._more is not None:
            self._more += body
        elif self._body:
            self._more = bytearray(self._body)
            self._more += body
        else:
            self._body = body

    def on_message_complete(self) -> None:
        if self._phase != BODY:
            return
        self._phase = IDLE if self._keep_alive else LAST
        self._timed = IDLE
        self._owes_continue = False
        if not self._choked:
            self.deadline = NEVER
        request = self._request(self._body if self._more is None else bytes(self._more))
        self._body, self._more = b"", None
        queue = self._queue
        queue.append(request)
        if self._answer is not None:
            request.answer(self._answer.status, self._answer.body, self._answer.headers)
            return
        if len(queue) >= _DEEP:
            self._pause()
        mount = self._mount
        assert mount is not None
        mount.handler(request)

    # the head of a request

    def _read_head(self) -> Place[Mount] | None:
        listening, headers, parser, url = self._listening, self._headers, self._parser, self._url
        assert parser is not None
        self._method = method = parser.get_method()
        if self._fed + self._chunk > listening.small_head or len(headers) + self._repeated > listening.header_count:
            check_sizes(method, url, headers, self._repeated, listening.limits)
        version = parser.get_http_version()
        host = headers.get("host")
        if version != "1.1" or host not in listening.hosts or "transfer-encoding" in headers:
            check_framing(version, headers)
            listening.remember_host(host)
        self._old = version != "1.1"
        self._keep_alive = parser.should_keep_alive() if self._old or "connection" in headers else True
        self._answer = None
        place = listening.paths.exact.get(url)
        if place is not None:
            self._path = url.decode()
            self._params = self._query = NOTHING
            return place
        self._path, self._query, segments = read_target(method, url, host, listening.scheme)
        found = listening.paths.find(segments) if segments is not None else None
        if found is None:
            self._params = NOTHING
            if segments is None:
                self._answer = Refusal(204, "", "", header_lines([("allow", "GET, HEAD, OPTIONS, POST")]))
            return None
        place, values = found
        mount = place.by_method.get(method) or place.upgrade
        self._params = dict(zip(mount.parameters, values, strict=True)) if mount is not None else NOTHING
        return place

    def _accept(self, place: Place[Mount] | None) -> None:
        """The head is good: says who gets the request, and whether its body is wanted."""
        headers = self._headers
        self._mount = mount = place.by_method.get(self._method) if place is not None else None
        if mount is None:
            self._mount = mount = self._other_mount(place)
        self._limit = mount.limit if mount is not None else self._listening.limits.message
        if "content-length" in headers and int(headers["content-length"]) > self._limit:
            raise self._too_large()
        if mount is not None and mount.check is not None:
            self._answer = mount.check(headers)
        self._phase = BODY
        self._size = 0
        if "expect" in headers and not self._old:
            self._expect(headers["expect"])

    def _other_mount(self, place: Place[Mount] | None) -> Mount | None:
        """What takes a method that nobody mounted: HEAD is GET without a body. Else the answer is ready."""
        if self._answer is not None:
            return None
        if place is None:
            self._answer = Refusal(404, "not_found", "nothing answers at this path")
        elif place.empty and self._listening.now < (place.left_at or 0.0) + 10.0:
            self._answer = Refusal(503, "busy", "what answers at this path is being changed; try again", _BUSY)
        elif place.empty:
            self._answer = Refusal(404, "not_found", "nothing answers at this path any more")
        elif self._method == b"HEAD" and b"GET" in place.by_method:
            return place.by_method[b"GET"]
        elif self._method == b"OPTIONS":
            self._answer = Refusal(204, "", "", header_lines([("allow", place.allow)]))
        elif place.upgrade is not None and not place.by_method and self._method == b"GET":
            upgrade = header_lines([("upgrade", "websocket")])
            self._answer = Refusal(426, "upgrade_required", "this path speaks WebSocket only", upgrade)
        else:
            allow = header_lines([("allow", place.allow)])
            self._answer = Refusal(405, "method_not_allowed", f"this path takes {place.allow}", allow)
        return None

    def _expect(self, expected: str) -> None:
        if expected.lower() != "100-continue":
            raise Refusal(417, "expectation_failed", "header expect: expected 100-continue")
        if self._answer is not None:
            # Whether the body comes now nobody can know: what follows can't be told from it.
            raise self._answer
        if "transfer-encoding" in self._headers or self._headers.get("content-length", "0") != "0":
            self._owes_continue = True
            self._pay_continue()

    def _pay_continue(self) -> None:
        # Not before the answers to earlier requests: the peer would take it for the start of one of them.
        if not self._queue:
            self._owes_continue = False
            self._write(_CONTINUE)

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"body: more than {self._limit} bytes")

    def _trailer(self, name: bytes, value: bytes) -> None:
        """Trailers are dropped, within the limits of headers."""
        if self._phase != BODY:
            return
        limits = self._listening.limits
        size = len(name) + len(value) + 4
        self._repeated += 1
        self._trailers += size
        if self._repeated + len(self._headers) > limits.header_count or self._trailers > limits.headers:
            self._refuse(Refusal(431, "headers_too_large", "trailers: too many lines or bytes"))
        elif size > limits.header_line:
            self._refuse(Refusal(431, "headers_too_large", f"trailers: a line of more than {limits.header_line} bytes"))

    def _request(self, body: bytes) -> Request:
        listening = self._listening
        return Request(
            self,
            self._mount,
            self._method.decode(),
            self._path,
            self._params,
            self._query,
            self._headers,
            body,
            self.peer,
            listening.scheme,
            self._url.decode("latin-1"),
            self._keep_alive,
            self._old,
            listening.now,
            self._certificate_subject,
        )

    # upgrades

    def _takes_upgrade(self, place: Place[Mount] | None) -> bool:
        """Whether llhttp stops behind this head: for an upgrade that we take, or to read the request again without."""
        parser, headers = self._parser, self._headers
        assert parser is not None
        if not parser.should_upgrade():
            return False
        wanted = place.upgrade if place is not None else None
        if wanted is None or self._method != b"GET" or self._old or headers["upgrade"].lower() != "websocket":
            self._replays = True
            return True
        if self._queue or headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            raise Refusal(400, "malformed", "an upgrade has no body and does not overtake other requests")
        self._mount = wanted
        self._phase = TAKEN
        return True

    def _upgraded(self, rest: bytes) -> None:
        if self._replays:
            # RFC 9110 section 7.8: an upgrade that is not wanted is ignored. llhttp took the body for its first bytes.
            self._replays = False
            self._phase = IDLE
            self._parser = HttpRequestParser(self)
            self._feed(self._plain_head() + rest)
        elif self._phase == TAKEN and self._transport is not None:
            self.deadline = NEVER
            mount = self._mount
            assert mount is not None
            assert mount.upgrade is not None
            self._taker = mount.upgrade(self._request(b""), self._transport, rest)

    def _plain_head(self) -> bytes:
        fields = [(name, value) for name, value in self._headers.items() if name not in ("upgrade", "connection")]
        if not self._keep_alive:
            fields.append(("connection", "close"))
        version = b"1.0" if self._old else b"1.1"
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in fields)
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self._method, self._url, version, lines)
