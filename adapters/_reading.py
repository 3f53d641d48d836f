"""Reading requests off an HTTP/1.1 connection: what llhttp calls, and what it does not check. No I/O of its own.

After a refusal llhttp goes on calling for the same bytes: every callback asks first whether it still matters.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from httptools import HttpRequestParser

from adapters._head import check_framing, check_sizes, nobody, read_target
from adapters._paths import Place
from adapters._request import NAMES, NOTHING, Mount, Refusal, Request, header_lines, header_name

if TYPE_CHECKING:
    from adapters._listener import Listening

# What a connection does: up to BODY it reads requests.
IDLE, HEAD, BODY = 0, 1, 2
TAKEN = 3  # upgraded: another protocol has it
LAST = 4  # the last request was read, its answer is to come
REFUSED = 5  # a refusal is the last answer; what the peer still sends is dropped
CLOSING = 6  # the last answer was written

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Reading(asyncio.Protocol):
    """The half of a connection that reads."""

    __slots__ = (
        "_answer",
        "_body",
        "_certificate_subject",
        "_chunk",
        "_fed",
        "_headers",
        "_keep_alive",
        "_limit",
        "_listening",
        "_method",
        "_more",
        "_mount",
        "_old",
        "_owes_continue",
        "_params",
        "_parser",
        "_path",
        "_phase",
        "_query",
        "_queue",
        "_repeated",
        "_replays",
        "_size",
        "_target",
        "_trailers",
        "_url",
        "_values",
        "peer",
    )

    def __init__(self, listening: Listening) -> None:
        self._listening = listening
        self._parser: HttpRequestParser | None = None
        self._queue: deque[Request] = deque()
        self._phase = IDLE
        self.peer = ""
        self._certificate_subject: str | None = None
        # of the request that is being read
        self._url = b""
        self._headers: dict[str, str] = {}
        self._repeated = 0
        self._chunk = 0  # bytes of this read
        self._fed = 0  # bytes of the reads before it that this head, or body, began in or is all of
        self._method = b""
        self._path = self._target = ""
        self._query = self._params = NOTHING
        self._values: list[str] = []  # of the parameters of the path
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

    @abstractmethod
    def _refuse(self, refusal: Refusal) -> None:
        """Makes this the last answer of the connection."""

    @abstractmethod
    def _write(self, data: bytes) -> None:
        """Sends this now."""

    @abstractmethod
    def answered(self, request: Request) -> None:
        """The request has its response."""

    @abstractmethod
    def _whole(self, request: Request) -> None:
        """A request is complete."""

    # what llhttp calls

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
        self._owes_continue = False
        request = self._request(self._body if self._more is None else bytes(self._more))
        self._body, self._more = b"", None
        self._whole(request)
        if self._answer is not None:
            request.answer(self._answer.status, self._answer.body, self._answer.headers)
            return
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
        host = headers.get("host")
        self._keep_alive = keep_alive = parser.should_keep_alive()
        usual = "connection" not in headers and "transfer-encoding" not in headers
        if usual and keep_alive and host in listening.hosts:
            self._old = False  # an older one that is to be kept alive has to say so
        else:
            version = parser.get_http_version()
            check_framing(version, headers)
            listening.remember_host(host)
            self._old = version != "1.1"
        self._answer = None
        place = listening.paths.exact.get(url)
        if place is not None:
            self._path = self._target = url.decode()
            self._params = self._query = NOTHING
            return place
        self._target = url.decode("latin-1")
        self._path, self._query, segments = read_target(method, url, host, listening.scheme)
        self._params = NOTHING
        if segments is None:
            self._answer = Refusal(204, "", "", header_lines([("allow", "GET, HEAD, OPTIONS, POST")]))
            return None
        place, self._values = listening.paths.find(segments) or (None, [])
        return place

    def _accept(self, place: Place[Mount] | None) -> None:
        """The head is good: says who gets the request, and whether its body is wanted."""
        headers = self._headers
        mount = place.by_method.get(self._method) if place is not None else None
        if mount is None and self._method == b"HEAD" and place is not None:
            mount = place.by_method.get(b"GET")
        self._mount = mount
        if mount is not None:
            self._limit = mount.limit
            if mount.parameters:
                self._params = dict(zip(mount.parameters, self._values, strict=True))
        else:
            self._limit = self._listening.limits.message
            self._answer = self._answer or nobody(place, self._method, self._listening.now)
        if "content-length" in headers and int(headers["content-length"]) > self._limit:
            raise self._too_large()
        if mount is not None and mount.check is not None:
            self._answer = refusal = mount.check(headers)
            if refusal is not None:
                self._tell(refusal)
        self._phase = BODY
        self._size = 0
        if "expect" in headers and not self._old:
            self._expect(headers["expect"])

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
        refusal = Refusal(413, "too_large", f"body: more than {self._limit} bytes")
        self._tell(refusal)
        return refusal

    def _tell(self, refusal: Refusal) -> None:
        mount = self._mount
        if mount is not None and mount.refused is not None:
            mount.refused(refusal.code, str(refusal), self.peer)

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
            self._target,
            self._keep_alive,
            self._old,
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
        if wanted.parameters:
            self._params = dict(zip(wanted.parameters, self._values, strict=True))
        self._phase = TAKEN
        return True

    def _plain_head(self) -> bytes:
        fields = [(name, value) for name, value in self._headers.items() if name not in ("upgrade", "connection")]
        if not self._keep_alive:
            fields.append(("connection", "close"))
        version = b"1.0" if self._old else b"1.1"
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in fields)
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self._method, self._url, version, lines)
