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
from typing import TYPE_CHECKING, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from adapters._head import check_sizes
from adapters._reading import BODY, CLOSING, HEAD, IDLE, LAST, REFUSED, TAKEN, Reading
from adapters._request import Mount, Refusal, Request
from adapters._sockets import facts
from gateway.failpoints import failpoint

if TYPE_CHECKING:
    from adapters._listener import Listening

log = logging.getLogger("gateway.http")

NEVER = float("inf")
# Requests of one connection that may wait for their answers before it is no longer read, and when it is again.
_DEEP, _SHALLOW = 32, 16
# Pieces that a large read is cut into, so that it can't hold thousands of requests; and those of the inside of bodies.
_PIECE, _BODY_PIECE = 4096, 65536
# How long a refused peer may go on sending: closed at once, it would get a reset and never see why.
_LINGER_S = 2.0
_SLOW_AFTER_S = 5.0
# How many looks of the listener, half a second apart, a request waits for somebody to take it. Not a time: a loop that
# stood still for so long has to let the workers run first.
_PATIENCE = 2
_BUSY = b"retry-after: 1\r\n"


class Connection(Reading):
    """See the module. The listener makes one for each connection that it accepts."""

    __slots__ = (
        "_body_since",
        "_choked",
        "_held",
        "_paused",
        "_since",
        "_taker",
        "_timed",
        "_transport",
        "_turn",
        "address",
        "admitted",
        "deadline",
    )

    def __init__(self, listening: Listening) -> None:
        super().__init__(listening)
        self._turn = listening.turn
        self._transport: asyncio.Transport | None = None
        self._taker: asyncio.Protocol | None = None
        self._held = b""  # read, and not parsed while too many requests wait for their answers
        self._paused = False
        self._choked = False  # the peer does not read what we write
        self._timed = IDLE  # the part of the request that has a deadline
        self._since = 0.0
        self._body_since = 0.0
        self.deadline = NEVER
        self.admitted = False
        self.address = ""
        """Of the peer, without its port."""

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
        self._turn.take()
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
        self._turn.read(self, data)

    def take(self, data: bytes) -> None:
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
        self._turn.take()
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
                request.looks += 1
                if not request.taken and request.looks > _PATIENCE:
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

    def _whole(self, request: Request) -> None:
        self._timed = IDLE
        if not self._choked:
            self.deadline = NEVER
        self._queue.append(request)
        if len(self._queue) >= _DEEP:
            self._pause()

    # writing and the life of the connection

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            self._turn.write(transport, data)

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
            self._turn.flush()
            if not transport.is_closing():
                transport.write_eof()
                if self._paused:
                    self._paused = False
                    transport.resume_reading()

    def _close(self) -> None:
        self._phase = CLOSING
        self.deadline = self._listening.tick() + self._listening.limits.request
        if self._transport is not None:
            self._turn.flush()
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
            self._turn.flush()  # so that a peer that does not read is noticed before all of it is answered
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
            failpoint("listener.half_body")
            if self._fed > 8 * self._limit + 1_048_576:
                self._refuse(Refusal(413, "too_large", "body: its chunks hold more framing than content"))
            return
        try:
            check_sizes(b"", self._url, self._headers, self._repeated, limits)
        except Refusal as refusal:
            self._refuse(refusal)
        if self._fed > limits.headers + limits.header_line + _PIECE:
            self._refuse(Refusal(431, "headers_too_large", f"headers: more than {limits.headers} bytes"))

    # upgrades

    def _upgraded(self, rest: bytes) -> None:
        if self._replays:
            # RFC 9110 section 7.8: an upgrade that is not wanted is ignored. llhttp took the body for its first bytes.
            self._replays = False
            self._phase = IDLE
            self._parser = HttpRequestParser(self)
            self._feed(self._plain_head() + rest)
        elif self._phase == TAKEN and self._transport is not None:
            self.deadline = NEVER
            self._turn.flush()
            mount = self._mount
            assert mount is not None
            assert mount.upgrade is not None
            self._taker = mount.upgrade(self._request(b""), self._transport, rest)
