"""Messages over HTTP/1.1: requests taken in by the data listener, and requests sent to servers."""

from __future__ import annotations

import asyncio
import math
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Annotated, Literal, Self, assert_never
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from adapters._encoding import decompressed
from adapters._handover import offer_of
from adapters._http_client import failure, host_header, modified, peer_error, pool, read, target_of
from adapters._http_pool import ConnectError, Pool
from adapters._http_wire import WireError
from adapters._listener import Listener
from adapters._paths import checked_pattern, shape
from adapters._request import JSON_TYPE, PROBLEM, Refusal, Request, header_lines, problem
from gateway import (
    JSON,
    Accepted,
    ClientTls,
    Deferred,
    Deliver,
    Duration,
    Host,
    Limits,
    Listen,
    Message,
    MessageError,
    Outcome,
    PeerError,
    Refused,
    Secret,
    Send,
    Settings,
    Template,
    UrlTemplate,
    Workers,
    duration,
)

_STATUS: Mapping[str, int] = {
    "refused": 422,
    "malformed": 400,
    "too_large": 413,
    "unsupported": 415,
    "unauthenticated": 401,
    "forbidden": 403,
    "internal": 500,
}
_EXTRA: Mapping[int, bytes] = {
    401: b'www-authenticate: Bearer realm="gateway"\r\nwww-authenticate: Basic realm="gateway"\r\n',
    415: b"accept-encoding: gzip, deflate\r\n",
}
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Decompressing so many bytes takes long enough to be done beside the loop.
_LARGE = 16_384
# Header fields that say how a message is framed are the client's.
_OURS = frozenset({"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"})
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Printable ASCII and tabs: what all servers read alike.
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?=[/\\?#]|$)", re.IGNORECASE)

Path = Annotated[str, AfterValidator(checked_pattern)]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def _media_type(text: str) -> str:
    media_type = text.strip().lower()
    if not re.fullmatch(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+*-]+", media_type):
        raise ValueError(f'expected a content type without parameters, such as application/json, got "{text}"')
    return media_type


def _header_name(text: str) -> str:
    name = text.lower()
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f'expected a header name of letters, digits and dashes, got "{text}"')
    if name in _OURS:
        raise ValueError(f"the header {name} says how a message is framed and can't be set")
    return name


HeaderName = Annotated[str, AfterValidator(_header_name)]


class Answer(Settings):
    """What a sender hears once its message is safe."""

    status: int = Field(202, ge=200, le=299, description="the status of the answer")
    body: Template | None = Field(None, description='the body of the answer; default: {"id": "…"}, the message id')
    content_type: str = Field(JSON, pattern=r"^[\x20-\x7e]+$", description="the content type of `body`")
    headers: dict[HeaderName, Template] = Field({}, description="further headers of the answer, by name")

    @model_validator(mode="after")
    def _says_its_type_once(self) -> Self:
        if "content-type" in self.headers:
            raise ValueError("headers: content-type has a setting of its own; write content_type:")
        return self


class Source(Settings):
    """Requests become messages; each is answered once what became of its message is known.

    202 with the message id (or as `answer` says) when it is safe, with `ack: reply` the target's reply; 4xx when it is
    refused; 503 with Retry-After when it can't be taken now; 502 and 504 when the target that was to reply gave no
    answer, or none in time. Errors are `application/problem+json` with a stable `code`.
    """

    listen: Listen = Field(description="where to listen, such as 127.0.0.1:8081; many routes share one address")
    path: Path = Field("/", description="the path, whose segments may be parameters: /orders/{id}")
    methods: tuple[Method, ...] = Field(
        ("POST",),
        min_length=1,
        description="the methods; others are answered 405. Where GET is taken HEAD is, too, "
        "and OPTIONS is always answered",
    )
    content_types: tuple[Annotated[str, AfterValidator(_media_type)], ...] = Field(
        (), description="the content types that are taken, others are answered 415; default: all"
    )
    content_type: str | None = Field(None, description="what bodies are, whatever their header says")
    answer: Answer = Field(Answer(), description="the answer when a message is safe and there is no reply")

    @property
    def answers(self) -> bool:
        """Senders are told the outcome."""
        return True

    @property
    def claims(self) -> tuple[str, ...]:
        """Its methods at its path: other routes may have others on the same address."""
        if self.listen.address.port == 0:
            return ()
        return tuple(f"http {self.listen} {method} {shape(self.path)}" for method in self.methods)

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Answers at the path until cancelled.

        Raises:
            ConfigError: the address can't be had.
        """

        usual = self.answer == Answer(status=self.answer.status)
        status = self.answer.status

        def settle(request: Request, message: Message, outcome: Outcome) -> None:
            if usual and type(outcome) is Accepted and outcome.reply is None:
                request.answer(status, b'{"id":"%b"}' % message.id.encode(), JSON_TYPE)
            else:
                self._settle(request, message, outcome)

        def handle(request: Request) -> None:
            message = self._message(request)
            if offer is not None and "content-encoding" not in request.headers:
                request.taken = True
                if offer(message, partial(settle, request, message)):
                    return
                request.taken = False
            workers.put((request, message))

        async def work(item: tuple[Request, Message]) -> None:
            request, message = item
            if request.response is not None:
                return
            request.taken = True
            try:
                if "content-encoding" in request.headers:
                    message = await _plain(message, host.limits)
            except MessageError as error:
                host.refused(error.code, str(error), request.peer)
                _refuse(request, error.code, str(error), None)
                return
            settle(request, message, await deliver(message))

        async with (
            host.share(Listener(self.listen)) as listening,
            Workers(work, count=host.limits.in_flight, name=f"{host.route}:http") as workers,
        ):
            offer = offer_of(deliver, workers)
            check = self._check if self.content_types else None
            with listening.mount(
                self.path, self.methods, handle, limits=host.limits, check=check, refused=host.refused
            ):
                ready()
                await asyncio.get_running_loop().create_future()

    def _check(self, headers: Mapping[str, str]) -> Refusal | None:
        content_type = headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() in self.content_types:
            return None
        found = f"content-type is {content_type!r}" if content_type else "there is no content-type"
        return Refusal(415, "unsupported", f"{found}, expected {' or '.join(self.content_types)}")

    def _message(self, request: Request) -> Message:
        headers = request.headers
        traceparent = headers.get("traceparent")
        if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
            traceparent = None
        transport = {
            "method": request.method,
            "path": request.path,
            "params": request.params,
            "query": request.query,
            "peer": request.peer,
            "scheme": request.scheme,
        }
        if request.certificate_subject is not None:
            transport["certificate_subject"] = request.certificate_subject
        return Message(
            type="http.message",
            raw=request.body,
            content_type=self.content_type or headers.get("content-type") or JSON,
            headers=headers,
            transport=transport,
            sender_id=headers.get("idempotency-key"),
            traceparent=traceparent,
        )

    def _settle(self, request: Request, message: Message, outcome: Outcome) -> None:
        match outcome:
            case Accepted(reply=None):
                self._accept(request, message)
            case Accepted(reply=reply):
                assert reply is not None
                _reply(request, reply)
            case Refused(code=code, reason=reason):
                _refuse(request, code, reason, outcome.id)
            case Deferred():
                _defer(request, outcome)
            case other:
                assert_never(other)

    def _accept(self, request: Request, message: Message) -> None:
        answer = self.answer
        lines, body = JSON_TYPE, b'{"id":"%b"}' % message.id.encode()
        if answer.body is not None or answer.headers:
            try:
                fields = [(name, value.text_of(message)) for name, value in answer.headers.items()]
                lines = header_lines([*fields, ("content-type", answer.content_type)])
                if answer.body is not None:
                    body = answer.body.text_of(message).encode()
            except (MessageError, ValueError):
                # The message is safe: an answer that can't be written is no reason to have it sent again.
                lines, body = JSON_TYPE, b'{"id":"%b"}' % message.id.encode()
        request.answer(answer.status, body, lines)


def _reply(request: Request, reply: Message) -> None:
    status = reply.transport.get("status")
    if not isinstance(status, int) or not 200 <= status <= 599:
        status = 200
    try:
        lines, body = _content_type_of_answer(reply.content_type), reply.body
    except (MessageError, ValueError):
        request.answer(502, problem(502, "bad_reply", "the reply of the target can't be passed on"), PROBLEM)
    else:
        request.answer(status, body, lines)


def _refuse(request: Request, code: str, reason: str, message_id: str | None) -> None:
    status = _STATUS[code]
    if code == "internal":
        reason = "the gateway failed on this message; its operator finds why by the id"
    request.answer(status, problem(status, code, reason, message_id), PROBLEM + _EXTRA.get(status, b""))


def _defer(request: Request, outcome: Deferred) -> None:
    # The reason names what is inside; the sender needs to know no more than what to do.
    if outcome.too_late:
        detail = "no answer came in time; the message may have been acted upon"
        request.answer(504, problem(504, "too_late", detail), PROBLEM)
    elif outcome.answerless:
        request.answer(502, problem(502, "answerless", "who was to reply gave no answer"), PROBLEM)
    else:
        wait_s = max(1, math.ceil(outcome.wait_s))
        detail = f"not taken now; try again in {wait_s} s"
        request.answer(503, problem(503, "busy", detail), PROBLEM + b"retry-after: %d\r\n" % wait_s)


async def _plain(message: Message, limits: Limits) -> Message:
    headers = dict(message.headers)
    encoding = headers.pop("content-encoding")
    body = message.body
    if len(body) < _LARGE:
        raw = decompressed(body, encoding, limits)
    else:
        raw = await asyncio.to_thread(decompressed, body, encoding, limits)
    return message.replace(raw=raw, headers=headers)


class Sink(Settings):
    """Sends each message as a request; delivered when the answer is 2xx. The answer is the reply.

    400, 409, 413, 415 and 422 refuse the message; every other answer, and none, is tried again where the route
    retries. Sends the content type, the trace context, `Idempotency-Key: <message id>.<target>`, and what `headers`
    names, in place of ours where it has one of these. Redirects are not followed, and proxies of the environment not
    used.
    """

    url: UrlTemplate = Field(description="where to send; its scheme and host are constant, values are percent-encoded")
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(
        "POST", description="the method; GET and HEAD have no body"
    )
    headers: dict[HeaderName, Template] = Field({}, description="further headers, by name")
    timeout: Duration = Field(duration("30s"), gt=0, le=3600, description="time for the whole answer to arrive")
    connect_timeout: Duration = Field(duration("5s"), gt=0, le=300, description="time for a connection to be made")
    tls: ClientTls | None = Field(None, description="TLS of https:// URLs")
    username: str | None = Field(None, description="user for HTTP basic authentication")
    password: Secret | None = Field(None, description="password of that user")
    token: Secret | None = Field(None, description="bearer token, instead of user and password")
    connections: int = Field(100, ge=1, le=10_000, description="connections at most; further sends wait")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        scheme = urlsplit(self.url.text).scheme.lower()
        if scheme not in ("http", "https"):
            raise ValueError(f'url: expected http:// or https://, got "{self.url.text}"')
        if self.tls is not None and scheme == "http":
            raise ValueError("tls: the url begins with http://; write https://")
        if self.tls is not None and self.tls.server_name is not None:
            raise ValueError("tls.server_name: http checks the host of the url; write that name in the url")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password: expected both or none")
        if self.token is not None and self.username is not None:
            raise ValueError("token: expected either a token or username and password")
        if "authorization" in self.headers and self._authorization() is not None:
            raise ValueError("headers: authorization is what token, or username and password, say; write one of them")
        if not _HEADER_VALUE.fullmatch(self._authorization() or ""):
            raise ValueError("token: it holds characters that no header can carry, such as a line end")
        return self

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """Sends for as long as the context lasts. Connections are made when they are needed.

        Raises:
            ConfigError: a file of `tls` can't be used.
        """
        async with pool(
            self.url.origin,
            self.tls,
            host.limits,
            timeout_s=self.timeout,
            connect_timeout_s=self.connect_timeout,
            connections=self.connections,
        ) as connections:
            yield self._sender(connections, host)

    def _sender(self, connections: Pool, host: Host) -> Send:
        who, suffix, limits, now_s = self.url.origin, f".{host.target}", host.limits, host.clock.time
        bodiless, head = self.method in ("GET", "HEAD"), self.method == "HEAD"
        constant = target_of(self.url.text, who) if self.url.constant else None
        method, headers, common = self.method.encode(), tuple(self.headers.items()), self._common()
        files, own_type = modified(self.tls), "content-type" in self.headers

        def ours(name: str, value: str) -> str:
            return "" if name in self.headers else f"{name}: {value}\r\n"

        async def send(message: Message) -> Message | None:
            target = constant or target_of(self._target(message), who)
            fields, body = ours("idempotency-key", f"{message.id}{suffix}"), b""
            if not bodiless:
                body = message.body
                fields += "" if own_type else _content_type(message.content_type)
                fields += f"content-length: {len(body)}\r\n"
            if message.traceparent is not None:
                fields += ours("traceparent", _sendable("traceparent", message.traceparent))
            for name, value in headers:
                fields += f"{name}: {_sendable(name, value.text_of(message))}\r\n"
            request = b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method, target, common, fields.encode(), body)
            try:
                answer = await connections.ask(request, without_body=head)
            except (WireError, ConnectError) as error:
                if isinstance(error, WireError) and error.taken and not host.wants_reply:
                    return None
                failed = peer_error(who, error, connect_timeout_s=self.connect_timeout)
                # A renewed certificate, of ours or of an authority, is read when the engine opens this anew.
                failed.reconnect = modified(self.tls) != files
                raise failed from error
            try:
                reply = read(answer, message, limits, who)
            except PeerError:
                if 200 <= answer.status <= 299 and not host.wants_reply:
                    return None
                raise
            if not 200 <= answer.status <= 299:
                raise failure(who, reply, now_s())
            return reply

        return send

    def _common(self) -> bytes:
        """The header lines that all requests have."""
        lines = b"host: %b\r\n" % host_header(self.url.origin)
        lines += b"" if "accept" in self.headers else b"accept: */*\r\n"
        lines += b"" if "user-agent" in self.headers else b"user-agent: interchange-gateway\r\n"
        authorization = self._authorization()
        return lines if authorization is None else lines + b"authorization: %b\r\n" % authorization.encode()

    def _target(self, message: Message) -> str:
        target: str = self.url(message)
        # The client would take them away together with the segment before them.
        if _DOTS.search(target.partition("?")[0]):
            raise MessageError(f"url {self.url.text}: a value is . or .., which would change the path")
        return target

    def _authorization(self) -> str | None:
        if self.token is not None:
            return f"Bearer {self.token.get_secret_value()}"
        if self.username is not None and self.password is not None:
            pair = f"{self.username}:{self.password.get_secret_value()}"
            return f"Basic {b64encode(pair.encode()).decode()}"
        return None


@lru_cache(maxsize=256)
def _content_type(value: str) -> str:
    """The line of a request: most messages have one of a few types."""
    return f"content-type: {_sendable('content-type', value)}\r\n"


@lru_cache(maxsize=256)
def _content_type_of_answer(value: str) -> bytes:
    return header_lines([("content-type", value)])


def _sendable(name: str, value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise MessageError(f"header {name}: its value holds a line end, NUL or characters outside of ASCII")
    return value
