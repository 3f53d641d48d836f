"""What the API says of messages, as plain data for JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from gateway.journal import CREDENTIALS, Attempt, Delivery, Detail, Hop, Reason, Row
from gateway.message import rfc3339

Shape = dict[str, Any]


def status_of(row: Row) -> str:
    """The state as people see it: a message is pending until it is final."""
    return "pending" if row.state == "stored" else row.state


def as_reason(reason: Reason | None) -> Shape | None:
    """Why a message is where it is."""
    return None if reason is None else _given(kind=reason.kind, text=reason.text, place=reason.place)


def as_told(reason: Reason | None) -> Shape | None:
    """Why, for who sent the message: with nothing of the inside."""
    return None if reason is None else _given(kind=reason.kind, text=reason.for_sender, place=reason.place)


def as_row(row: Row) -> Shape:
    """A message in a list."""
    return _given(
        id=row.id,
        route=row.route,
        status=status_of(row),
        received=rfc3339(row.received_s),
        type=row.type,
        subject=row.subject,
        key=row.key,
        sender_id=row.sender_id,
        correlation_id=row.correlation_id,
        size=row.size,
        reason=as_reason(row.reason),
    )


def as_detail(detail: Detail, now: float, wall_s: float) -> Shape:
    """Everything about a message but its body.

    now, wall_s: journal time and wall time of the same moment.
    """
    message = detail.message
    principal = message.principal
    return as_row(detail.row) | _given(
        content_type=message.content_type,
        schema=message.schema,
        source=message.source,
        headers=_shown(message.headers),
        transport=dict(message.transport),
        priority=message.priority,
        expires=None if message.expires_at_s is None else rfc3339(message.expires_at_s),
        causation_id=message.causation_id,
        traceparent=message.traceparent,
        principal=None if principal is None else principal.name,
        body_url=f"/api/v1/messages/{detail.row.id}/body",
        hops=[_hop(hop) for hop in detail.hops],
        attempts=[_attempt(attempt) for attempt in detail.attempts],
        deliveries=[_delivery(delivery, wall_s - now) for delivery in detail.deliveries],
        actions=list(detail.actions),
    )


def _given(**members: Any) -> Shape:
    return {name: value for name, value in members.items() if value is not None}


def _shown(headers: Mapping[str, str]) -> Shape:
    return {name: "(hidden)" if name in CREDENTIALS else value for name, value in headers.items()}


def _hop(hop: Hop) -> Shape:
    return _given(place=hop.place, outcome=hop.outcome, before=_bytes(hop.before), after=_bytes(hop.after))


def _bytes(body: bytes | None) -> Shape | None:
    """Bytes as text if they are UTF-8, else in base64."""
    if body is None:
        return None
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def _attempt(attempt: Attempt) -> Shape:
    return _given(
        target=attempt.target,
        number=attempt.number,
        at=rfc3339(attempt.at_s),
        took_s=round(attempt.took_s, 6),
        answer=attempt.answer,
        error=attempt.error,
    )


def _delivery(delivery: Delivery, offset_s: float) -> Shape:
    due_at = delivery.due_at
    return _given(
        id=delivery.message.id,
        target=delivery.target,
        status=delivery.state,
        key=delivery.key,
        attempts=delivery.attempts,
        due=rfc3339(due_at + offset_s) if due_at is not None and delivery.state == "pending" else None,
        content_type=delivery.message.content_type,
        reason=as_reason(delivery.reason),
    )
