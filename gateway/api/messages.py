"""Stored messages: find them, see what happened to them, send them again or discard them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.api.access import OPERATE, READ, Caller, Calling
from gateway.api.bodies import answer, moment, one_of, only, read_json
from gateway.api.control import Control, Running, route_named
from gateway.api.intake import TYPE, answered, header_text
from gateway.api.problems import Problem, deferral, refusal
from gateway.api.shapes import as_detail, as_row, status_of
from gateway.documents import did_you_mean
from gateway.errors import GatewayError
from gateway.journal import BEGINNING, FINAL, REASONS, Detail, Filter
from gateway.message import CUT, Accepted, Deferred, Message, Outcome, Refused, new_id
from gateway.route import Route
from gateway.settings import size

log = logging.getLogger("gateway.api")

router = APIRouter(prefix="/api/v1", tags=["messages"])

MOST = 500
STATUSES: Sequence[str] = (
    "pending",
    "delivered",
    "filtered",
    "expired",
    "dead",
    "discarded",
)
DAMAGED = "damaged"
"""The kind of reason that a journal gives for a record that is not as it was written."""
_LARGEST_EDIT = size("96MiB")
"""The largest body that a route may take (64 MiB), written as JSON text."""


@router.get("/messages", dependencies=READ)
async def listed(
    request: Request,
    control: Running,
    route: str | None = None,
    status: str | None = None,
    reason: str | None = None,
    since: str | None = None,
    until: str | None = None,
    q: str | None = None,
    correlation_id: str | None = None,
    sender_id: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Response:
    """Stored messages, newest first. `next` is the cursor of the page after this one; without it this is the last.

    A page whose search takes long ends early, with fewer messages or none, and `next`.
    """
    only(request, "route", "status", "reason", "since", "until", "q", "correlation_id", "sender_id", "cursor", "limit")
    one_of("status", status, STATUSES)
    one_of("reason", reason, REASONS)
    if not 1 <= limit <= MOST:
        raise Problem(422, "invalid", f"limit: expected 1 to {MOST}, got {limit}")
    clock = control.services.clock
    wanted = Filter(
        route=route,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        since_s=moment("since", since, clock),
        until_s=moment("until", until, clock),
        text=q,
        correlation_id=correlation_id,
        sender_id=sender_id,
    )
    try:
        page = await control.services.journal.browse(wanted, cursor, limit)
    except ValueError:
        raise Problem(422, "invalid", "cursor: it is none of ours; begin without one") from None
    after = {} if page.next is None else {"next": page.next}
    return answer({"messages": [as_row(row) for row in page.rows], **after})


async def found(control: Control, message_id: str) -> Detail:
    """What is known of this message.

    Raises:
        Problem: 404.
    """
    detail = await control.services.journal.find(message_id)
    if detail is None:
        raise Problem(
            404,
            "unknown_message",
            "there is no message with this id; it was never stored here, or retention removed it; "
            "a sender's own id, such as MSH-10, is found by sender_id",
        )
    return detail


@router.get("/messages/{message_id}", dependencies=READ)
async def shown(message_id: str, request: Request, control: Running) -> Response:
    """Everything about a message but its body. The id may be that of a child, as a target received it."""
    only(request)
    detail = await found(control, message_id)
    return answer(as_detail(detail, control.services.journal.now(), control.services.clock.time()))


@router.get("/messages/{message_id}/body", dependencies=READ)
async def body(message_id: str, request: Request, control: Running, target: str | None = None) -> Response:
    """The body's bytes as they came; with `target` as that target receives them."""
    only(request, "target")
    detail = await found(control, message_id)
    message = detail.message
    if target is not None:
        message = _delivered_to(control, detail, target, message_id)
    return Response(
        message.raw or b"",
        headers={
            "content-type": header_text(message.content_type),
            "content-disposition": f'attachment; filename="{message.id}"',
            "content-security-policy": "default-src 'none'; sandbox",
        },
    )


def _delivered_to(control: Control, detail: Detail, target: str, message_id: str) -> Message:
    known = [delivery for delivery in detail.deliveries if delivery.target == target]
    for delivery in known:
        if delivery.message.id == message_id:
            return delivery.message
    if known:
        return known[0].message
    route = control.routes.get(detail.row.route)
    targets = [*(delivery.target for delivery in detail.deliveries)]
    targets += [running.name for running in route.inside.targets] if route is not None else []
    if route is not None and target not in targets:
        hint = did_you_mean(target, targets) or f"; there are: {', '.join(dict.fromkeys(targets))}"
        raise Problem(404, "unknown_target", f'route {route.name} has no target "{target:.63}"{hint}')
    detail_text = f'nothing is kept of what "{target:.63}" receives: it took the message at once, or never gets it'
    raise Problem(404, "unknown_target", detail_text)


class Replay(msgspec.Struct, forbid_unknown_fields=True):
    """What to send again, and where to."""

    target: str | None = None
    body: str | dict[str, Any] | list[Any] | None = None
    content_type: str | None = None


@router.post("/messages/{message_id}/replay", dependencies=OPERATE)
async def replay(message_id: str, request: Request, control: Running, caller: Calling) -> Response:
    """Sends a message again: as it came to all or one target, or edited as a new message."""
    only(request)
    wanted = await read_json(request, Replay, _LARGEST_EDIT)
    detail = await found(control, message_id)
    route = _route_of(control, detail)
    if wanted.body is not None or wanted.content_type is not None:
        return await _replay_edited(control, route, detail, wanted, caller)
    if wanted.target is not None:
        _check_target(route, wanted.target)
    await replay_one(control, route, detail, wanted.target, caller)
    log.info("replayed", extra={"message_id": detail.row.id, "route": route.name, "by": caller.shown})
    told = {"id": detail.row.id, "replayed": 1, "status_url": f"/api/v1/messages/{detail.row.id}"}
    return answer(told | ({"paused": route.name} if route.paused else {}), 202)


def _route_of(control: Control, detail: Detail) -> Route:
    name = detail.row.route
    try:
        return route_named(control, name)
    except Problem as problem:
        if problem.status != 404:
            raise
        text = f'its route "{name}" is gone; bring the route back, or post the body to another one'
        raise Problem(409, "route_gone", text) from None


def _check_target(route: Route, target: str) -> None:
    known = [running.name for running in route.inside.targets]
    if target not in known:
        hint = did_you_mean(target, known) or f"; there are: {', '.join(known)}"
        raise Problem(422, "unknown_target", f'route {route.name} has no target "{target:.63}"{hint}')
    if route.delivering is None:
        text = f"target: route {route.name} stores nothing, so that its dead letters go to all its targets again"
        raise Problem(422, "invalid", text)


async def replay_one(control: Control, route: Route, detail: Detail, target: str | None, caller: Caller) -> None:
    """Sends one message again, as it came.

    A dead letter of a route that stores nothing goes through the route at once; when that accepted it, it is discarded.

    Raises:
        Problem: it can't be sent again now (409), or the route does not take it.
    """
    row, journal = detail.row, control.services.journal
    _check_whole(detail)
    if route.delivering is None:
        if row.state != "dead":
            raise Problem(409, "not_final", f"the message is {status_of(row)}: only a dead one can be sent again here")
        _check_intact(detail)
        if route.paused:
            raise Problem(503, "paused", f"route {route.name} is paused; resume it first", retry_after_s=5)
        again = detail.message.replace(since=journal.now(), expires_at_s=None)
        outcome = await route.take(again, answers=True, type_=TYPE)
        check_accepted(outcome)
        done = await journal.discard([row.id], f"{caller.shown}, after a replay that was accepted")
        control.services.observed.route(row.route).discarded += done
        return
    if not await journal.replay([row.id], target, caller.shown):
        if row.state not in FINAL:
            raise Problem(409, "not_final", "the message is pending: it is on its way already")
        text = "nothing is to be sent again"
        if target is not None:
            were = ", ".join(dict.fromkeys(delivery.target for delivery in detail.deliveries))
            text = f"nothing of it was for the target {target}" + (f"; it was for {were}" if were else "")
        raise Problem(409, "nothing_to_replay", text)
    poke(route)


def _check_whole(detail: Detail) -> None:
    """The beginning of what was too large is not sent as what came."""
    if CUT in detail.message.transport:
        raise Problem(409, "too_large", BEGINNING.text)


def _check_intact(detail: Detail) -> None:
    """What the disk changed is not sent as what came."""
    if detail.row.reason is not None and detail.row.reason.kind == DAMAGED:
        text = f"{detail.row.reason.text}; send it edited, with the body as it should be, or discard it"
        raise Problem(409, "damaged", text)


def check_accepted(outcome: Outcome) -> None:
    """Raises a Problem unless the message was accepted."""
    if isinstance(outcome, Refused):
        raise refusal(outcome.code, outcome.full, outcome.id)
    if isinstance(outcome, Deferred):
        raise deferral(outcome)
    assert isinstance(outcome, Accepted)


def poke(route: Route | None) -> None:
    """Tells a route that its messages in the journal have become others."""
    if route is not None and route.delivering is not None and not route.paused:
        route.delivering.poke()


def let_go(route: Route | None, ids: Sequence[str]) -> None:
    """Tells a route that these messages of its were discarded. Call it before the discard is answered."""
    if route is not None and route.delivering is not None and not route.paused:
        route.delivering.discard(ids)


async def _replay_edited(control: Control, route: Route, detail: Detail, wanted: Replay, caller: Caller) -> Response:
    if wanted.target is not None:
        raise Problem(422, "invalid", "target: an edited message is a new one and goes to all targets; leave it out")
    if wanted.body is None:
        _check_whole(detail)
        _check_intact(detail)
    old = detail.message
    edited = old.body if wanted.body is None else _bytes(wanted.body)
    message = old.with_body(edited, wanted.content_type).replace(
        id=new_id(), causation_id=old.id, time_s=control.services.clock.time(), key=None, expires_at_s=None
    )
    if message.type == TYPE:  # it is ours, and nobody's word
        message.type = ""
    message = route.named(message, old)
    if CUT in old.transport:
        message.transport = {name: value for name, value in old.transport.items() if name != CUT}
    outcome = await route.take(message, answers=True, type_=TYPE)
    if isinstance(outcome, Accepted):
        with suppress(GatewayError):  # taken it is, and must not look as if it were not
            await control.services.journal.note(old.id, f"replay edited, as {message.id}", caller.shown)
    answer_ = await answered(control, route, outcome, None, causation_id=old.id)
    log.info(
        "replayed edited",
        extra={"message_id": old.id, "new_id": message.id, "route": route.name, "by": caller.shown},
    )
    return answer_


def _bytes(body: str | Mapping[str, Any] | list[Any]) -> bytes:
    return body.encode("utf-8", "replace") if isinstance(body, str) else msgspec.json.encode(body)


@router.delete("/messages/{message_id}", dependencies=OPERATE)
async def discard(message_id: str, request: Request, control: Running, caller: Calling) -> Response:
    """Discards a dead or pending message: it is not sent any more, and kept until retention removes it."""
    only(request)
    detail = await found(control, message_id)
    if not await control.services.journal.discard([detail.row.id], caller.shown):
        text = f"the message is {status_of(detail.row)}: only pending and dead ones can be discarded"
        raise Problem(409, "not_open", text)
    control.services.observed.route(detail.row.route).discarded += 1
    let_go(control.routes.get(detail.row.route), [detail.row.id])
    log.info("discarded", extra={"message_id": detail.row.id, "route": detail.row.route, "by": caller.shown})
    return answer({"id": detail.row.id, "discarded": 1})
