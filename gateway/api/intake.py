"""Messages posted to a route: raw bodies and CloudEvents, with `Idempotency-Key` and a wait for the outcome."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import assert_never

from fastapi import APIRouter, Request, Response

from gateway.api.access import SEND, Caller, Calling
from gateway.api.bodies import answer, body_of, only
from gateway.api.control import Control, Running, route_named
from gateway.api.problems import Problem, deferral, refusal
from gateway.api.shapes import as_told, status_of
from gateway.cloudevents import from_http, is_event
from gateway.errors import MessageError
from gateway.journal import FINAL, Detail
from gateway.message import JSON, Accepted, Deferred, Message, Outcome, Principal, Refused
from gateway.route import Route
from gateway.units import duration

router = APIRouter(prefix="/api/v1", tags=["messages"])

TYPE = "rest.message"
WINDOW_S = 86_400.0
"""How long an `Idempotency-Key` is remembered."""
MOST_WAIT_S = 300.0
_MOST_KEY = 255
_REQUEST = "idempotent_request"
"""Under this name a message that came with a key keeps in its context which request it was."""
_FIRST_LOOK_S, _MOST_LOOK_S = 0.01, 0.25
_SETTLED = FINAL
# Of a request, these are between the client and this API; they are no part of the message.
_NOT_THEIRS = frozenset(
    {
        "authorization",
        "cookie",
        "proxy-authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@router.post("/routes/{name}/messages", status_code=202, dependencies=SEND)
async def post(name: str, request: Request, control: Running, caller: Calling, wait: str | None = None) -> Response:
    """Hands a message to a route: 202 with its id once it is safe.

    With `?wait=30s` the answer waits for what became of the message; with `ack: reply` it is the target's reply.
    """
    only(request, "wait")
    wait_s = _wait_s(wait)
    route = route_named(control, name)
    body = await body_of(request, route.configured.settings.limits.message)
    message = message_of(request, body, route, caller)
    key = request.headers.get("idempotency-key")
    if route.delivering is None:
        outcome = await taken(route, message, wait_s)
    elif key is None:
        outcome = await taken(route, message, None)  # it is answered once it is safe, however short the wait
    else:
        async with _alone(route, key):
            message, replayed = await _identified(control, route, message, key, _digest(request, body))
            if not replayed:
                outcome = await taken(route, message, None)
        if replayed:
            return await _stored(control, message.id, wait_s, {"idempotent-replayed": "true"})
    return await answered(control, route, outcome, wait_s)


_under_way: dict[tuple[Route, str], asyncio.Event] = {}
"""Keys whose request is being handled."""


@asynccontextmanager
async def _alone(route: Route, key: str) -> AsyncIterator[None]:
    """One request of a key at a time: of two different messages at once, one would be taken for the other."""
    while (before := _under_way.get((route, key))) is not None:
        await before.wait()
    done = _under_way[route, key] = asyncio.Event()
    try:
        yield
    finally:
        del _under_way[route, key]
        done.set()


def _wait_s(text: str | None) -> float | None:
    try:
        wait_s = None if text is None else duration(text)
    except ValueError as error:
        raise Problem(422, "invalid", f"wait: {error}") from None
    if wait_s is not None and wait_s > MOST_WAIT_S:
        raise Problem(422, "invalid", f"wait: expected at most {MOST_WAIT_S / 60:g}m, got {text}")
    return wait_s


def message_of(request: Request, body: bytes, route: Route, caller: Caller) -> Message:
    """The message that a request carries.

    Raises:
        MessageError: it says that it is a CloudEvent, and is none.
    """
    headers = headers_of(request)
    if is_event(headers):
        message = from_http(headers, body, formats=route.inside.formats)
    else:
        traceparent = headers.get("traceparent", "")
        message = Message(
            raw=body,
            content_type=headers.get("content-type") or JSON,
            headers=headers,
            sender_id=headers.get("idempotency-key"),
            traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
        )
    client = request.client
    message.transport = {
        "method": request.method,
        "path": request.url.path,
        "query": dict(request.query_params),
        "peer": f"{client.host}:{client.port}" if client else "",
        "scheme": request.url.scheme,
    }
    message.principal = Principal(caller.name)
    return route.named(message)


def headers_of(request: Request) -> Mapping[str, str]:
    """What the client says of the message: names in lower case, repeated ones joined, credentials left out."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        if name not in _NOT_THEIRS:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _digest(request: Request, body: bytes) -> str:
    events = sorted((name, value) for name, value in request.headers.items() if name.startswith("ce-"))
    about = repr((request.headers.get("content-type"), events)).encode()
    return blake2b(about + b"\0" + body, digest_size=16).hexdigest()


async def _identified(control: Control, route: Route, message: Message, key: str, digest: str) -> tuple[Message, bool]:
    """The message with the id that its key stands for, and whether that id is stored already.

    The key is remembered before the message is stored, under the id that it will have: a crash between the two gives
    one message, since a journal takes an id only once.
    """
    if not 1 <= len(key) <= _MOST_KEY:
        raise Problem(422, "invalid", f"Idempotency-Key: expected 1 to {_MOST_KEY} characters, got {len(key)}")
    journal = control.services.journal
    message = message.replace(context={_REQUEST: digest})
    kept = await journal.remember(f"rest:{route.name}", key, f"{message.id} {digest}", WINDOW_S)
    kept_id, _, first_digest = kept.partition(" ")
    if kept_id == message.id:
        return message, False
    stored = await journal.find(kept_id)
    if stored is None:
        return message.replace(id=kept_id), False
    # what is stored need not be what came first: that may have been refused, which left the key free
    if stored.message.context.get(_REQUEST, first_digest) != digest:
        detail = "this Idempotency-Key came with another message before; use a new key for each message"
        raise Problem(422, "idempotency_key_reused", detail, id=kept_id)
    return message.replace(id=kept_id), True


async def taken(route: Route, message: Message, wait_s: float | None) -> Outcome:
    """What the route says of the message; when that takes longer than the wait it goes on, and it is too late."""
    if wait_s is None:
        return await route.take(message, answers=True, type_=TYPE)
    task = asyncio.create_task(route.take(message, answers=True, type_=TYPE), name=f"{route.name}:rest")
    _going_on.add(task)
    task.add_done_callback(_going_on.discard)
    await asyncio.wait({task}, timeout=wait_s)
    return task.result() if task.done() else Deferred(message.id, "the wait is over", too_late=True)


_going_on: set[asyncio.Task[Outcome]] = set()
"""A loop holds its tasks weakly only."""


async def answered(control: Control, route: Route, outcome: Outcome, wait_s: float | None, **more: object) -> Response:
    """The answer that an outcome stands for.

    Raises:
        Problem: it is not accepted.
    """
    match outcome:
        case Accepted(reply=None):
            if route.delivering is not None:
                return await _stored(control, outcome.id, wait_s, {}, **more)
            return answer({"id": outcome.id, "status": "accepted", **more})
        case Accepted(reply=reply):
            assert reply is not None
            return _reply(reply)
        case Refused(code=code, reason=reason):
            raise refusal(code, reason, outcome.id)
        case Deferred():
            if route.paused:
                raise Problem(503, "paused", f"route {route.name} is paused; resume it first", retry_after_s=5)
            raise deferral(outcome)
        case other:
            assert_never(other)


async def _stored(
    control: Control, message_id: str, wait_s: float | None, headers: dict[str, str], **more: object
) -> Response:
    told = {"id": message_id, "status_url": f"/api/v1/messages/{message_id}", **more}
    if wait_s is None:
        return answer(told, 202, headers)
    detail = await _settled(control, message_id, wait_s)
    if detail is None or detail.row.state not in _SETTLED:
        return answer({**told, "status": "pending"}, 202, headers)
    reason = as_told(detail.row.reason)
    return answer({**told, "status": status_of(detail.row), **({"reason": reason} if reason else {})}, 200, headers)


async def _settled(control: Control, message_id: str, wait_s: float) -> Detail | None:
    """The message once it is final, or as it is when the wait is over, or when the gateway stops."""
    journal, clock = control.services.journal, control.services.clock
    deadline = clock.monotonic() + wait_s
    pause_s = _FIRST_LOOK_S
    while True:
        detail = await journal.find(message_id)
        left_s = deadline - clock.monotonic()
        if (detail is not None and detail.row.state in _SETTLED) or left_s <= 0 or control.phase == "stopping":
            return detail
        await clock.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _MOST_LOOK_S)


def _reply(reply: Message) -> Response:
    status = reply.transport.get("status")
    if not isinstance(status, int) or not 200 <= status <= 599:
        status = 200
    try:
        body = reply.body
    except MessageError:
        raise Problem(502, "bad_reply", "the reply of the target can't be passed on") from None
    return Response(body, status, {"content-type": header_text(reply.content_type)})


def header_text(content_type: str) -> str:
    """A content type that a header can carry: as it is, or that of any bytes."""
    return content_type if re.fullmatch(r"[\x20-\x7e]+", content_type) else "application/octet-stream"
