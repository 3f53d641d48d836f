"""Reading what a request carries, within bounds of size and time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from gateway.api.problems import Problem
from gateway.documents import did_you_mean
from gateway.message import JSON
from gateway.ports import Clock
from gateway.units import duration, shown_size

T = TypeVar("T")

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")

BODY_S = 60.0
"""How long a body may take to arrive."""
SMALL = 64 * 1024
"""The largest body of a call that carries no message."""


async def body_of(request: Request, limit: int) -> bytes:
    """The body, of `limit` bytes at most.

    Raises:
        Problem: it is larger (413), encoded (415), late (408) or cut (400).
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Problem(
            415,
            "unsupported",
            f"content-encoding is {encoding!r:.40}; send the body as it is",
            headers={"accept-encoding": "identity"},
        )
    if int(request.headers.get("content-length", "0")) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "too_slow", f"the body did not arrive within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "cut", "the body ended early") from None
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"the body is larger than {shown_size(limit)}", headers={"connection": "close"})


async def read_json(request: Request, shape: type[T], limit: int = SMALL) -> T:
    """The body as JSON of this shape; no body at all is an empty object.

    Raises:
        Problem: it is no JSON (400, 415) or not of that shape (422).
    """
    body = await body_of(request, limit)
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if body and content_type != JSON:
        raise Problem(415, "unsupported", f"content-type is {content_type!r:.80}, expected {JSON}")
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid", _told(str(error), shape)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, "malformed", "the body is no JSON") from None


def _told(text: str, shape: type) -> str:
    """What does not fit the shape, in our words: msgspec names no member that there is, and the place last."""
    unknown = _UNKNOWN.match(text)
    if unknown is not None:
        known = [field.encode_name for field in msgspec.structs.fields(shape)]
        hint = did_you_mean(unknown[1], known) or f"; there are: {', '.join(known)}"
        return f'unknown member "{unknown[1]:.40}"{hint}'
    said, _, place = text.partition(" - at `$.")
    said = said[:1].lower() + said[1:].replace("`", "")
    return f"{place[:-1]}: {said}" if place else said


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as JSON; what JSON has no form for is written as text."""
    return Response(msgspec.json.encode(value, enc_hook=str), status, headers, JSON)


def only(request: Request, *names: str) -> None:
    """Makes sure that the query has no other names than these, each once at most.

    Raises:
        Problem: 422.
    """
    for name, _ in request.query_params.multi_items():
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are: {', '.join(names) or 'none'}"
            raise Problem(422, "invalid", f'unknown parameter "{name:.40}"{hint}')
        if len(request.query_params.getlist(name)) > 1:
            raise Problem(422, "invalid", f"the parameter {name} is there twice; send it once")


def one_of(name: str, text: str | None, known: Sequence[str]) -> None:
    """Makes sure that it is one of these, if it is given: what was written wrong would find nothing.

    Raises:
        Problem: 422.
    """
    if text is not None and text not in known:
        hint = did_you_mean(text, known) or f"; there are: {', '.join(known)}"
        raise Problem(422, "invalid", f'{name}: unknown "{text:.40}"{hint}')


def moment(name: str, text: str | None, clock: Clock) -> float | None:
    """Seconds since 1970-01-01 UTC of a time (RFC 3339), or of a duration, which means that long ago.

    Raises:
        Problem: it is neither (422).
    """
    if text is None:
        return None
    try:
        return clock.time() - duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.timestamp()
    except ValueError:
        pass
    raise Problem(
        422,
        "invalid",
        f"{name}: expected a time such as 2026-11-21T02:34:41Z or a duration such as 1h, got {text!r:.60}",
    )
